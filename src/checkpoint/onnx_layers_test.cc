// Quantized layers of ONNX models: each operator against its rule, element by element, and the
// traps of files that tools write. Fixtures of the tools themselves are in tests/internal.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/onnx_test_models.h"

namespace nibble::checkpoint {
namespace {

// --------------------------------------------------------------------------------- MatMulNBits

struct MatMul {
  int64_t n = 5, k = 64, block = 32, bits = 4;
  DType scale_dtype = DType::kF32;
  bool zeros = false, float_zeros = false, flat = false;
  DType zero_dtype = DType::kF32;
  std::vector<int32_t> g_idx = {};

  int64_t blocks() const { return (k + block - 1) / block; }
  int64_t zero_row() const { return (blocks() * bits + 7) / 8; }
  std::string codes() const { return random_bytes(n * blocks() * block * bits / 8, 1); }
  std::string scales() const {  // of both signs
    std::vector<float> out = random_floats(static_cast<size_t>(n * blocks()), 2);
    return values_of(scale_dtype, out);
  }
  std::string zero_points() const {
    if (!float_zeros) return random_bytes(n * zero_row(), 3);
    std::vector<float> out = random_floats(static_cast<size_t>(n * blocks()), 4);
    for (float& zero : out) zero += 7.5f;
    return values_of(zero_dtype, out);
  }
  std::vector<float> weight() const {
    const std::string code_bytes = codes(), scale_bytes = scales(), zero_bytes = zero_points();
    const auto decode = [&](int64_t row, int64_t column) {
      const int64_t group = g_idx.empty() ? column / block : g_idx[static_cast<size_t>(column)];
      const int64_t at = row * blocks() * block + column;
      const int q = bits == 4 ? nibble_of(code_bytes, at) : byte_of(code_bytes, at);
      float zero = bits == 4 ? 8 : 128;
      if (zeros && bits == 4) {
        zero = static_cast<float>(nibble_of(zero_bytes, 2 * row * zero_row() + group));
      } else if (zeros) {
        zero = static_cast<float>(byte_of(zero_bytes, row * zero_row() + group));
      } else if (float_zeros) {
        zero = value_of(zero_bytes, zero_dtype, row * blocks() + group);
      }
      const float difference = static_cast<float>(q) - zero;
      return difference * value_of(scale_bytes, scale_dtype, row * blocks() + group);
    };
    std::vector<float> out;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t column = 0; column < k; ++column) out.push_back(decode(row, column));
    }
    return out;
  }

  GraphText graph() const {
    GraphText out;
    const int64_t blob = block * bits / 8;
    out.tensors = {
        raw_tensor("up.weight_Q4", kUint8, {n, blocks(), blob}, codes()),
        raw_tensor("up.weight_scales", code_of(scale_dtype),
                   flat ? std::vector{n * blocks()} : std::vector{n, blocks()}, scales())};
    NodeText node{"MatMulNBits",
                  "com.microsoft",
                  "up.MatMul_Q4",
                  {"x", "up.weight_Q4", "up.weight_scales"},
                  {"y"},
                  {integer_attribute("K", k), integer_attribute("N", n),
                   integer_attribute("bits", bits), integer_attribute("block_size", block)}};
    if (zeros || float_zeros) {
      const int64_t row = zeros ? zero_row() : blocks();
      out.tensors.push_back(
          raw_tensor("up.weight_zero_points", zeros ? kUint8 : code_of(zero_dtype),
                     flat ? std::vector{n * row} : std::vector{n, row}, zero_points()));
      node.inputs.push_back("up.weight_zero_points");
    }
    if (!g_idx.empty()) {
      node.inputs.resize(4);
      node.inputs.push_back("up.g_idx");
      out.tensors.push_back(
          raw_tensor("up.g_idx", kInt32, {static_cast<int64_t>(g_idx.size())}, bytes_of(g_idx)));
    }
    out.nodes = {node};
    return out;
  }
  Checkpoint open() const { return open_model(graph().model()).value(); }
};

/// Opens the model's only layer, checks its Format, and both ways to decode it against the rule.
void expect_decodes(const MatMul& model, const std::string& format) {
  SCOPED_TRACE(format);
  const Checkpoint checkpoint = model.open();
  EXPECT_EQ(checkpoint.spelling(), "onnx");
  ASSERT_EQ(checkpoint.layers().size(), 1u);
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_EQ(layer.name, "up");
  EXPECT_EQ(layer.n, model.n);
  EXPECT_EQ(layer.k, model.k);
  ASSERT_EQ(layer.dense_only, "");
  EXPECT_EQ(layer.format.name(), format);
  const Result<QuantizedTensor> q = checkpoint.load("up");
  ASSERT_TRUE(q.ok()) << q.status().message();
  EXPECT_EQ(q->format, layer.format);
  EXPECT_EQ(dequantized(*q), model.weight());
  EXPECT_EQ(dense(checkpoint, "up"), model.weight());
}

TEST(OnnxMatMulNBits, WithoutZeroPointsTheMiddleIsZero) {
  expect_decodes({}, "int4-g32:f32");
  expect_decodes({.bits = 8}, "int8-g32:f32");
}

TEST(OnnxMatMulNBits, ZeroPointRowsArePaddedToAByte) {
  expect_decodes({.k = 64, .zeros = true}, "uint4-g32:f32");
  expect_decodes({.k = 96, .zeros = true}, "uint4-g32:f32");  // 3 blocks: 2 bytes a row
  expect_decodes({.k = 96, .zeros = true, .flat = true}, "uint4-g32:f32");
  expect_decodes({.k = 96, .bits = 8, .zeros = true}, "uint8-g32:f32");
}

TEST(OnnxMatMulNBits, BlocksOfATailAreStoredWhole) {
  for (const int64_t k : {1, 31, 33, 62, 63, 65, 150}) {
    expect_decodes({.k = k, .zeros = true}, "uint4-g32:f32");
    expect_decodes({.k = k}, "int4-g32:f32");
    expect_decodes({.k = k, .bits = 8}, "int8-g32:f32");
  }
}

TEST(OnnxMatMulNBits, ScalesAreFlatOrAMatrixOfThreeTypes) {
  expect_decodes({.flat = true}, "int4-g32:f32");
  expect_decodes({.scale_dtype = DType::kF16}, "int4-g32:f16");
  expect_decodes({.scale_dtype = DType::kBF16, .zeros = true}, "uint4-g32");
}

TEST(OnnxMatMulNBits, LongBlocksBecomeGroupsOfTheSameScale) {
  expect_decodes({.k = 64, .block = 16}, "int4-g16:f32");
  expect_decodes({.k = 128, .block = 64}, "int4-g64:f32");
  expect_decodes({.k = 384, .block = 128, .zeros = true}, "uint4-g128:f32");
  expect_decodes({.k = 600, .block = 256}, "int4-g128:f32");
  expect_decodes({.k = 600, .block = 256, .zeros = true}, "uint4-g128:f32");
  expect_decodes({.k = 1030, .block = 512, .float_zeros = true}, "uint4-g128:f32:zfloat");
  expect_decodes({.k = 200, .block = 256, .zeros = true}, "uint4-channel:f32");
}

TEST(OnnxMatMulNBits, FloatZeroPointsStayFloats) {
  expect_decodes({.float_zeros = true}, "uint4-g32:f32:zfloat");
  expect_decodes({.bits = 8, .float_zeros = true, .flat = true}, "uint8-g32:f32:zfloat");
  // Scales of another type are widened, which changes no value.
  expect_decodes({.scale_dtype = DType::kF16, .float_zeros = true}, "uint4-g32:f32:zfloat");
  expect_decodes({.float_zeros = true, .zero_dtype = DType::kBF16}, "uint4-g32:f32:zfloat");
  expect_decodes({.scale_dtype = DType::kF16, .float_zeros = true, .zero_dtype = DType::kF16},
                 "uint4-g32:f16:zfloat");
}

TEST(OnnxMatMulNBits, GroupIndexIsHonoured) {
  MatMul model{.k = 64, .zeros = true};
  for (int32_t column = 0; column < 64; ++column) model.g_idx.push_back(column / 32);
  expect_decodes(model, "uint4-g32:f32");
  EXPECT_TRUE(model.open().load("up")->k_perm.empty());
  for (size_t column = 0; column < 64; ++column) model.g_idx[column] = column % 2 == 0 ? 1 : 0;
  expect_decodes(model, "uint4-g32:f32");
  const QuantizedTensor q = model.open().load("up").value();
  ASSERT_EQ(q.k_perm.size(), 64u);
  EXPECT_EQ(q.k_perm[0], 1);
  EXPECT_EQ(q.k_perm[32], 0);
  EXPECT_EQ(model.open().layers()[0].remark, "act-order");
  // Padded to whole blocks, as one version of the tool wrote it.
  MatMul padded{.k = 50};
  for (int32_t column = 0; column < 64; ++column) padded.g_idx.push_back(column % 50 < 32 ? 0 : 1);
  const Checkpoint checkpoint = padded.open();
  ASSERT_TRUE(checkpoint.layers()[0].status.ok()) << checkpoint.layers()[0].status.message();
  EXPECT_EQ(dense(checkpoint, "up"), padded.weight());
}

TEST(OnnxMatMulNBits, UnequalGroupsAreReadAsDenseRows) {
  MatMul model{.k = 64};
  for (int32_t column = 0; column < 64; ++column) model.g_idx.push_back(column % 3 == 0 ? 1 : 0);
  const Checkpoint checkpoint = model.open();
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_NE(layer.dense_only, "");
  EXPECT_EQ(checkpoint.load("up").status().code(), Code::kUnsupported);
  EXPECT_EQ(dense(checkpoint, "up"), model.weight());
  model.g_idx[5] = 2;
  EXPECT_EQ(model.open().layers()[0].status.code(), Code::kCorruptFile);
}

TEST(OnnxMatMulNBits, StoredOrderIsViewedWithoutACopyWhereItIsCanonical) {
  const MatMul model{.zeros = true};
  const Checkpoint checkpoint = model.open();
  const QuantizedTensor q = checkpoint.load("up").value();
  EXPECT_EQ(q.codes.data(), checkpoint.tensor_bytes("up.weight_Q4")->data());
}

/// The status of the only layer after one change to the model.
template <class Change>
Status changed(const Change& change, const MatMul& model = {}) {
  GraphText graph = model.graph();
  change(graph);
  const Result<Checkpoint> checkpoint = open_model(graph.model());
  if (!checkpoint.ok()) return checkpoint.status();
  EXPECT_EQ(checkpoint->layers().size(), 1u);
  if (checkpoint->layers().empty()) return {};
  const Status status = checkpoint->layers()[0].status;
  EXPECT_EQ(checkpoint->load(checkpoint->layers()[0].name).ok(), status.ok());
  return status;
}
TEST(OnnxMatMulNBits, WhatIsNotReadIsRefusedByRule) {
  const auto attribute = [](size_t index, const std::string& name, int64_t value) {
    return [=](GraphText& graph) {
      std::vector<std::string>& attributes = graph.nodes[0].attributes;
      attributes.resize(std::max(attributes.size(), index + 1));
      attributes[index] = integer_attribute(name, value);
    };
  };
  EXPECT_EQ(unlike(changed(attribute(2, "bits", 2)), Code::kUnsupported, "codes of 2 bits"), "");
  EXPECT_EQ(unlike(changed(attribute(2, "bits", 40)), Code::kUnsupported, "codes of 40 bits"), "");
  EXPECT_EQ(unlike(changed(attribute(3, "block_size", 24)), Code::kUnsupported, "block_size 24"),
            "");
  EXPECT_EQ(unlike(changed(attribute(3, "block_size", 8)), Code::kUnsupported, "block_size 8"), "");
  EXPECT_EQ(unlike(changed(attribute(3, "block_size", 0)), Code::kCorruptFile, "block_size is 0"),
            "");
  EXPECT_EQ(unlike(changed(attribute(0, "K", -64)), Code::kCorruptFile, "K is -64"), "");
  EXPECT_EQ(unlike(changed(attribute(1, "N", INT64_MAX)), Code::kCorruptFile, "N is 922"), "");
  EXPECT_EQ(
      unlike(changed(attribute(1, "N", INT64_MAX / 256)), Code::kCorruptFile, "the layer needs"),
      "");
  EXPECT_EQ(unlike(changed(attribute(1, "N", 6)), Code::kCorruptFile, "the layer needs [6, 32]"),
            "");
  EXPECT_EQ(unlike(changed(attribute(0, "K", 96)), Code::kCorruptFile, "the layer needs [5, 48]"),
            "");
  EXPECT_EQ(unlike(changed(attribute(4, "weight_prepacked", 1)), Code::kUnsupported,
                   "weight_prepacked is 1"),
            "");
  EXPECT_EQ(unlike(changed([](GraphText& g) { g.nodes[0].attributes.resize(1); }),
                   Code::kCorruptFile, "N is 0"),
            "");
}

TEST(OnnxMatMulNBits, DamagedTensorsAreRefused) {
  const MatMul model{.zeros = true};
  const auto tensor = [](size_t index, const std::string& text) {
    return [=](GraphText& graph) { graph.tensors[index] = text; };
  };
  const std::string zeros(5, '\0');
  EXPECT_TRUE(
      changed(tensor(2, raw_tensor("up.weight_zero_points", kUint8, {5, 1}, zeros)), model).ok());
  EXPECT_EQ(
      unlike(changed(tensor(2, raw_tensor("up.weight_zero_points", kUint8, {1, 4}, "abcd")), model),
             Code::kCorruptFile, "'up.weight_zero_points' is UINT8 [1, 4], the layer needs [5, 1]"),
      "");
  EXPECT_EQ(
      unlike(changed(tensor(2, raw_tensor("up.weight_zero_points", kInt8, {5, 1}, zeros)), model),
             Code::kUnsupported, "zero points are UINT8"),
      "");
  EXPECT_EQ(
      unlike(changed(tensor(2, raw_tensor("other", kUint8, {5, 1}, zeros)), model),
             Code::kUnsupported, "its zero_points 'up.weight_zero_points' is no stored tensor"),
      "");
  EXPECT_EQ(unlike(changed(tensor(
                       1, raw_tensor("up.weight_scales", kInt32, {10}, std::string(40, '\0')))),
                   Code::kUnsupported, "scales are FLOAT, FLOAT16 or BFLOAT16"),
            "");
  EXPECT_EQ(unlike(changed(tensor(
                       1, raw_tensor("up.weight_scales", kFloat, {11}, std::string(44, '\0')))),
                   Code::kCorruptFile, "the layer needs [5, 2]"),
            "");
  EXPECT_EQ(unlike(changed(tensor(
                       0, raw_tensor("up.weight_Q4", kInt8, {5, 2, 16}, std::string(160, '\0')))),
                   Code::kUnsupported, "B is UINT8"),
            "");
  EXPECT_EQ(
      unlike(changed(tensor(0, raw_tensor("other", kUint8, {5, 2, 16}, std::string(160, '\0')))),
             Code::kUnsupported, "its B 'up.weight_Q4' is no stored tensor"),
      "");
  EXPECT_EQ(unlike(changed([](GraphText& g) { g.nodes[0].inputs.resize(1); }), Code::kCorruptFile,
                   "it has no B"),
            "");
  EXPECT_EQ(unlike(changed([](GraphText& g) { g.nodes[0].inputs.resize(2); }), Code::kCorruptFile,
                   "it has no scales"),
            "");
}

TEST(OnnxMatMulNBits, ScalesThatAreNotFiniteAreNamed) {
  GraphText graph = MatMul{}.graph();
  std::vector<float> scales(10, 1.0f);
  scales[7] = std::nanf("");
  graph.tensors[1] = raw_tensor("up.weight_scales", kFloat, {5, 2}, bytes_of(scales));
  const Checkpoint checkpoint = open_model(graph.model()).value();
  EXPECT_EQ(
      unlike(checkpoint.load("up").status(), Code::kCorruptFile, "the scale of row 3, group 1"),
      "");
}

TEST(OnnxMatMulNBits, ABiasIsMentionedAndStaysATensor) {
  GraphText graph = MatMul{}.graph();
  graph.nodes[0].inputs.insert(graph.nodes[0].inputs.end(), {"", "", "up.bias"});
  graph.tensors.push_back(raw_tensor("up.bias", kFloat, {5}, std::string(20, '\0')));
  const Checkpoint checkpoint = open_model(graph.model()).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_EQ(layer.remark, "bias in 'up.bias'");
  EXPECT_EQ(layer.tensors, (std::vector<std::string>{"up.weight_Q4", "up.weight_scales"}));
  EXPECT_EQ(layer.stored_bytes, 160 + 40);
}

// ------------------------------------------------------------------------------------- names

std::string only_name(const std::string& tensor, const std::string& node) {
  GraphText graph = MatMul{}.graph();
  graph.tensors[0] = raw_tensor(tensor, kUint8, {5, 2, 16}, MatMul{}.codes());
  graph.nodes[0].inputs[1] = tensor;
  graph.nodes[0].name = node;
  return open_model(graph.model())->layers()[0].name;
}

TEST(OnnxLayers, AreNamedAfterTheirModule) {
  EXPECT_EQ(only_name("model.layers.0.mlp.up_proj.weight_Q4", "n"), "model.layers.0.mlp.up_proj");
  EXPECT_EQ(only_name("model.layers.0.attn.q_proj.MatMul.weight_Q4", "n"),
            "model.layers.0.attn.q_proj");
  EXPECT_EQ(only_name("model.layers.0.attn.q_proj.MatMul.qweight", "n"),
            "model.layers.0.attn.q_proj");
  EXPECT_EQ(only_name("lm_head.weight_Q8G128", "n"), "lm_head");
  EXPECT_EQ(only_name("onnx::MatMul_1234_Q4", "/model/layers.0/mlp/up_proj/MatMul_Q4"),
            "model.layers.0.mlp.up_proj");
  EXPECT_EQ(only_name("val_17_Q4", "layers.3.up/MatMul_Q4"), "layers.3.up");
  EXPECT_EQ(only_name("onnx::MatMul_1234_Q4", ""), "onnx::MatMul_1234_Q4");
  EXPECT_EQ(only_name("_Q4", ""), "_Q4");
}

TEST(OnnxLayers, NamesThatWouldBeEqualAreThoseOfTheTensors) {
  GraphText graph = MatMul{}.graph();
  graph.tensors.push_back(raw_tensor("up.qweight", kUint8, {5, 2, 16}, MatMul{}.codes()));
  graph.nodes.push_back(graph.nodes[0]);
  graph.nodes[1].inputs[1] = "up.qweight";
  graph.nodes[1].outputs = {"z"};
  const Checkpoint checkpoint = open_model(graph.model()).value();
  ASSERT_EQ(checkpoint.layers().size(), 2u);
  EXPECT_EQ(checkpoint.layers()[0].name, "up.weight_Q4");
  EXPECT_EQ(checkpoint.layers()[1].name, "up.qweight");
  EXPECT_TRUE(checkpoint.load("up.qweight").ok());
}

TEST(OnnxLayers, AWeightOfTwoNodesIsOneLayerUnlessTheyDisagree) {
  GraphText graph = MatMul{}.graph();
  graph.nodes.push_back(graph.nodes[0]);
  graph.nodes[1].outputs = {"z"};
  const Checkpoint tied = open_model(graph.model()).value();
  ASSERT_EQ(tied.layers().size(), 1u);
  EXPECT_TRUE(tied.load("up").ok());
  graph.tensors.push_back(raw_tensor("others", kFloat, {5, 2}, std::string(40, '\0')));
  graph.nodes[1].inputs[2] = "others";
  const Checkpoint split = open_model(graph.model()).value();
  EXPECT_EQ(unlike(split.layers()[0].status, Code::kUnsupported, "in two ways"), "");
}

TEST(OnnxLayers, OfSubgraphsAreFound) {
  GraphText graph;
  graph.nodes = {{"If",
                  "",
                  "merge",
                  {"c"},
                  {"y"},
                  {graph_attribute("then_branch", MatMul{}.graph().text()),
                   graph_attribute("else_branch", MatMul{.zeros = true}.graph().text())}}};
  const Checkpoint checkpoint = open_model(graph.model()).value();
  ASSERT_EQ(checkpoint.layers().size(), 2u);
  EXPECT_EQ(checkpoint.load("merge.then_branch/up")->format.name(), "int4-g32:f32");
  EXPECT_EQ(checkpoint.load("merge.else_branch/up")->format.name(), "uint4-g32:f32");
}

}  // namespace
}  // namespace nibble::checkpoint
