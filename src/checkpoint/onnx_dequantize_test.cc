// DequantizeLinear and GatherBlockQuantized: every place of axis, block and transpose, against the
// operator's rule element by element.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/onnx_test_models.h"

namespace nibble::checkpoint {
namespace {

/// y = (x - zero) * scale of a stored matrix [rows, columns], and what multiplies with it.
struct Dequantize {
  OnnxCode type = kInt4Code;
  int64_t rows = 6, columns = 64;
  int64_t axis = 1, block = 32;  ///< block 0: per axis; axis 9: one scale
  OnnxCode scale_type = kFloat;
  DType scale_dtype = DType::kF32;
  bool zeros = false;
  std::string product = "Gemm";  ///< transB; or MatMul, MatMul behind Transpose, W · x, Gather

  bool four_bits() const { return type != kInt8 && type != kUint8 && type != kE4m3fn; }
  int64_t bytes(int64_t count) const { return four_bits() ? (count + 1) / 2 : count; }
  std::vector<int64_t> scale_shape() const {
    if (axis == 9) return {};
    const int64_t extent = (axis + 2) % 2 == 0 ? rows : columns;
    if (block == 0) return {extent};
    const int64_t blocks = (extent + block - 1) / block;
    return (axis + 2) % 2 == 0 ? std::vector{blocks, columns} : std::vector{rows, blocks};
  }
  int64_t scale_count() const {
    int64_t count = 1;
    for (const int64_t extent : scale_shape()) count *= extent;
    return count;
  }
  int64_t scale_at(int64_t row, int64_t column) const {
    if (axis == 9) return 0;
    const bool by_row = (axis + 2) % 2 == 0;
    if (block == 0) return by_row ? row : column;
    if (by_row) return row / block * columns + column;
    return row * ((columns + block - 1) / block) + column / block;
  }
  std::string codes() const {
    std::string out = random_bytes(bytes(rows * columns), 5);
    if (type == kE4m3fn) {
      for (char& byte : out) byte = static_cast<char>(byte & 0xBF);  // no NaN
    }
    return out;
  }
  std::string scales() const {
    if (scale_type == kE8m0Code) {
      std::string out = random_bytes(scale_count(), 6);
      for (char& byte : out) byte = static_cast<char>(120 + (byte & 7));
      return out;
    }
    return values_of(scale_dtype, random_floats(static_cast<size_t>(scale_count()), 6));
  }
  std::string zero_points() const { return random_bytes(bytes(scale_count()), 7); }

  float code(const std::string& stored, int64_t at) const {
    const int q = four_bits() ? nibble_of(stored, at) : byte_of(stored, at);
    if (type == kInt4Code) return static_cast<float>(q < 8 ? q : q - 16);
    if (type == kInt8) return static_cast<float>(q < 128 ? q : q - 256);
    if (type == kFloat4) return e2m1_to_f32(static_cast<uint8_t>(q));
    if (type == kE4m3fn) return e4m3_to_f32(static_cast<uint8_t>(q));
    return static_cast<float>(q);
  }
  /// As the graph's matrix, [rows, columns].
  std::vector<float> matrix() const {
    const std::string code_bytes = codes(), scale_bytes = scales(), zero_bytes = zero_points();
    std::vector<float> out;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t at = scale_at(row, column);
        float value = code(code_bytes, row * columns + column);
        if (zeros) value -= code(zero_bytes, at);
        out.push_back(value * value_of(scale_bytes, scale_dtype, at));
      }
    }
    return out;
  }
  bool rows_are_outputs() const { return product != "MatMul"; }
  /// [n, k]
  std::vector<float> weight() const {
    const std::vector<float> stored = matrix();
    if (rows_are_outputs()) return stored;
    std::vector<float> out;
    for (int64_t column = 0; column < columns; ++column) {
      for (int64_t row = 0; row < rows; ++row) {
        out.push_back(stored[static_cast<size_t>(row * columns + column)]);
      }
    }
    return out;
  }

  GraphText graph() const {
    GraphText out;
    out.tensors = {raw_tensor("up.weight_DQ_Q4", type, {rows, columns}, codes()),
                   raw_tensor("up.scales", scale_type, scale_shape(), scales())};
    NodeText node{"DequantizeLinear", "", "up.DQ", {"up.weight_DQ_Q4", "up.scales"}, {"w"}, {}};
    if (axis != 9 && axis != 1) node.attributes.push_back(integer_attribute("axis", axis));
    if (block != 0) node.attributes.push_back(integer_attribute("block_size", block));
    if (zeros) {
      node.inputs.push_back("up.zeros");
      out.tensors.push_back(raw_tensor("up.zeros", type, scale_shape(), zero_points()));
    }
    out.nodes = {node};
    std::string w = "w";
    if (product == "Transpose") {
      out.nodes.push_back({"Cast", "", "", {w}, {"cast"}, {integer_attribute("to", 10)}});
      out.nodes.push_back(
          {"Transpose", "", "", {"cast"}, {"wt"}, {integers_attribute("perm", {1, 0})}});
      out.nodes.push_back({"MatMul", "", "", {"x", "wt"}, {"y"}, {}});
    } else if (product == "Gemm") {
      out.nodes.push_back({"Gemm", "", "", {"x", w}, {"y"}, {integer_attribute("transB", 1)}});
    } else if (product == "left") {
      out.nodes.push_back({"MatMul", "", "", {w, "x"}, {"y"}, {}});
    } else if (product == "Gather") {
      out.nodes.push_back({"Gather", "", "", {w, "ids"}, {"y"}, {}});
    } else if (product == "MatMul") {
      out.nodes.push_back({"MatMul", "", "", {"x", w}, {"y"}, {}});
    }
    return out;
  }
  Checkpoint open() const { return open_model(graph().model()).value(); }
};

/// `format` empty: dense rows only.
void expect_decodes(const Dequantize& model, const std::string& format) {
  SCOPED_TRACE(format + " " + model.product + " " + std::to_string(model.rows) + "x" +
               std::to_string(model.columns));
  const Checkpoint checkpoint = model.open();
  ASSERT_EQ(checkpoint.layers().size(), 1u);
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_EQ(layer.name, "up");
  EXPECT_EQ(layer.n, model.rows_are_outputs() ? model.rows : model.columns);
  EXPECT_EQ(layer.k, model.rows_are_outputs() ? model.columns : model.rows);
  EXPECT_EQ(dense(checkpoint, "up"), model.weight());
  if (format.empty()) {
    EXPECT_NE(layer.dense_only, "");
    EXPECT_EQ(checkpoint.load("up").status().code(), Code::kUnsupported);
    return;
  }
  ASSERT_EQ(layer.dense_only, "");
  EXPECT_EQ(layer.format.name(), format);
  const Result<QuantizedTensor> q = checkpoint.load("up");
  ASSERT_TRUE(q.ok()) << q.status().message();
  EXPECT_EQ(q->format, layer.format);
  EXPECT_EQ(dequantized(*q), model.weight());
}

TEST(OnnxDequantize, TheProductSaysWhichDimensionIsTheOutputs) {
  for (const char* product : {"Gemm", "Transpose", "left", "Gather", "none"}) {
    expect_decodes({.product = product}, "int4-g32:f32");
  }
  expect_decodes({.rows = 64, .columns = 6, .axis = 0, .product = "MatMul"}, "int4-g32:f32");
}

TEST(OnnxDequantize, MatricesOfColumnsAreTransposed) {
  for (const OnnxCode type : {kInt4Code, kUint4Code, kFloat4}) {
    for (const int64_t n : {1, 2, 7, 8, 130, 131, 144}) {
      for (const int64_t k : {1, 31, 32, 64, 130, 257}) {
        const char* format = type == kInt4Code    ? "int4-g32:f32"
                             : type == kUint4Code ? "uint4-g32:f32"
                                                  : "fp4-g32";
        expect_decodes({.type = type, .rows = k, .columns = n, .axis = 0, .product = "MatMul"},
                       format);
      }
    }
  }
  expect_decodes({.type = kInt8, .rows = 70, .columns = 9, .axis = 0, .product = "MatMul"},
                 "int8-g32:f32");
}

TEST(OnnxDequantize, RowsOfOddLengthBeginInsideABytes) {
  expect_decodes({.rows = 5, .columns = 33}, "int4-g32:f32");
  expect_decodes({.rows = 5, .columns = 33, .zeros = true}, "uint4-g32:f32");
  expect_decodes({.type = kFloat4, .rows = 3, .columns = 17, .block = 16}, "fp4-g16");
}

TEST(OnnxDequantize, SignedCodesWithAZeroPointAreUnsignedOnesShifted) {
  expect_decodes({.zeros = true}, "uint4-g32:f32");
  expect_decodes({.type = kInt8, .zeros = true}, "uint8-g32:f32");
  expect_decodes({.type = kUint4Code, .zeros = true}, "uint4-g32:f32");
  expect_decodes({.type = kUint8, .zeros = true}, "uint8-g32:f32");
  expect_decodes({.rows = 96, .columns = 5, .axis = -2, .zeros = true, .product = "MatMul"},
                 "uint4-g32:f32");
  expect_decodes({.rows = 5, .columns = 96, .axis = -1, .zeros = true}, "uint4-g32:f32");
}

TEST(OnnxDequantize, UnsignedCodesWithoutAZeroPointHaveZero) {
  expect_decodes({.type = kUint4Code}, "uint4-g32:f32");
  expect_decodes({.type = kUint8, .rows = 64, .columns = 5, .axis = 0, .product = "MatMul"},
                 "uint8-g32:f32");
}

TEST(OnnxDequantize, ScalesAreOfAnyFloatType) {
  expect_decodes({.scale_type = kFloat16, .scale_dtype = DType::kF16}, "int4-g32:f16");
  expect_decodes({.scale_type = kBfloat16, .scale_dtype = DType::kBF16}, "int4-g32");
  expect_decodes({.type = kFloat4, .scale_type = kE8m0Code, .scale_dtype = DType::kE8M0}, "mxfp4");
  expect_decodes(
      {.type = kUint4Code, .scale_type = kE8m0Code, .scale_dtype = DType::kE8M0, .zeros = true},
      "uint4-g32:e8m0");
}

TEST(OnnxDequantize, PerOutputAndPerTensorScalesAreOneARow) {
  for (const bool zeros : {false, true}) {
    const char* format = zeros ? "uint4-channel:f32" : "int4-channel:f32";
    expect_decodes({.axis = 0, .block = 0, .zeros = zeros}, format);
    expect_decodes({.axis = 9, .block = 0, .zeros = zeros}, format);
    expect_decodes({.axis = 1, .block = 0, .zeros = zeros, .product = "MatMul"}, format);
    expect_decodes({.axis = 9, .block = 0, .zeros = zeros, .product = "MatMul"}, format);
    expect_decodes({.block = 64, .zeros = zeros}, zeros ? "uint4-g64:f32" : "int4-g64:f32");
    expect_decodes({.block = 100, .zeros = zeros}, format);
  }
}

TEST(OnnxDequantize, LongBlocksBecomeGroupsOfTheSameScale) {
  expect_decodes({.columns = 300, .block = 256}, "int4-g128:f32");
  expect_decodes({.columns = 300, .block = 48}, "int4-g16:f32");
  expect_decodes(
      {.rows = 300, .columns = 4, .axis = 0, .block = 192, .zeros = true, .product = "MatMul"},
      "uint4-g64:f32");
}

TEST(OnnxDequantize, ScalesAlongOtherBordersAreReadAsDenseRows) {
  expect_decodes({.block = 20}, "");
  expect_decodes({.block = 20, .zeros = true}, "");
  expect_decodes({.axis = 1, .block = 0, .zeros = true}, "");  // a scale for each column
  expect_decodes({.rows = 40, .axis = 0, .block = 32}, "");    // blocks of rows
  expect_decodes({.rows = 40, .axis = 0, .block = 32, .zeros = true}, "");
  expect_decodes({.rows = 40, .columns = 33, .block = 16, .product = "MatMul"}, "");
  expect_decodes({.type = kE4m3fn}, "");
}

// --------------------------------------------------------------------------------------- NVFP4

/// FLOAT4E2M1 with FLOAT8E4M3FN scales that a second node dequantizes by one scale.
GraphText nvfp4(OnnxCode product_type, DType product_dtype) {
  GraphText graph = Dequantize{.type = kFloat4, .block = 16}.graph();
  std::string scales = random_bytes(24, 8);
  for (char& byte : scales) byte = static_cast<char>(byte & 0x7B);  // finite
  graph.tensors[1] = raw_tensor("up.block_scales", kE4m3fn, {6, 4}, scales);
  graph.tensors.push_back(
      raw_tensor("up.tensor_scale", product_type, {}, values_of(product_dtype, {0.0123f})));
  graph.nodes[0].inputs[1] = "s";
  graph.nodes.push_back(
      {"DequantizeLinear", "", "", {"up.block_scales", "up.tensor_scale"}, {"s"}, {}});
  return graph;
}

TEST(OnnxDequantize, TwoChainedNodesAreNvfp4) {
  const Checkpoint checkpoint = open_model(nvfp4(kFloat, DType::kF32).model()).value();
  ASSERT_EQ(checkpoint.layers().size(), 1u);
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_EQ(layer.format.name(), "nvfp4");
  EXPECT_EQ(layer.tensors.size(), 3u);
  const QuantizedTensor q = checkpoint.load("up").value();
  EXPECT_EQ(q.tensor_scales, (std::vector<TensorScale>{{0, 0.0123f}}));
  EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kMultiply);
  EXPECT_EQ(q.codes.data(), checkpoint.tensor_bytes("up.weight_DQ_Q4")->data());
  const std::string codes = Dequantize{.type = kFloat4, .block = 16}.codes();
  const Buffer scales = checkpoint.tensor_bytes("up.block_scales").value();
  std::vector<float> expected;
  for (int64_t at = 0; at < 6 * 64; ++at) {
    const float scale = e4m3_to_f32(scales.data()[at / 16]) * 0.0123f;
    expected.push_back(e2m1_to_f32(static_cast<uint8_t>(nibble_of(codes, at))) * scale);
  }
  EXPECT_EQ(dequantized(q), expected);
  EXPECT_EQ(dense(checkpoint, "up"), expected);
}

TEST(OnnxDequantize, ScalesThatTheModelRoundsTo16BitsAreRounded) {
  const Checkpoint checkpoint = open_model(nvfp4(kFloat16, DType::kF16).model()).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  ASSERT_TRUE(layer.status.ok()) << layer.status.message();
  EXPECT_EQ(layer.format.name(), "fp4-g16:f16");
  const QuantizedTensor q = checkpoint.load("up").value();
  EXPECT_TRUE(q.tensor_scales.empty());
  const Buffer scales = checkpoint.tensor_bytes("up.block_scales").value();
  const float factor = f16_to_f32(f32_to_f16(0.0123f));
  int inexact = 0;
  for (int64_t i = 0; i < 24; ++i) {
    const float product = e4m3_to_f32(scales.data()[i]) * factor;
    EXPECT_EQ(load_as_f32(q.scales.data(), DType::kF16, i), f16_to_f32(f32_to_f16(product)));
    inexact += f16_to_f32(f32_to_f16(product)) != product;
  }
  EXPECT_GT(inexact, 5);
}

TEST(OnnxDequantize, ZeroPointsOfFloatTypesMustBeZero) {
  Dequantize model{.type = kFloat4, .block = 16};
  GraphText graph = model.graph();
  graph.nodes[0].inputs.push_back("zeros");
  graph.tensors.push_back(raw_tensor("zeros", kFloat4, {6, 4}, std::string(12, '\x80')));
  EXPECT_EQ(dequantized(open_model(graph.model())->load("up").value()), model.weight());
  graph.tensors.back() = raw_tensor("zeros", kFloat4, {6, 4}, std::string(11, '\0') + "\x10");
  EXPECT_EQ(unlike(open_model(graph.model())->load("up").status(), Code::kUnsupported,
                   "'zeros' holds zero points other than 0"),
            "");
}

// ------------------------------------------------------------------------------------- refusals

template <class Change>
Status changed(const Change& change, const Dequantize& model = {}) {
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

TEST(OnnxDequantize, DamagedLayersAreRefusedByName) {
  const auto scales = [](OnnxCode type, std::vector<int64_t> shape, size_t bytes) {
    return [=](GraphText& g) {
      g.tensors[1] = raw_tensor("up.scales", type, shape, std::string(bytes, '\0'));
    };
  };
  EXPECT_EQ(unlike(changed(scales(kFloat, {6, 3}, 72)), Code::kCorruptFile,
                   "tensor 'up.scales' is FLOAT [6, 3], the weight [6, 64] with blocks of 32 along "
                   "axis 1 needs [6, 2]"),
            "");
  EXPECT_EQ(unlike(changed(scales(kFloat, {12}, 48)), Code::kCorruptFile, "needs [6, 2]"), "");
  EXPECT_EQ(unlike(changed(scales(kFloat, {2}, 8), {.axis = 0, .block = 0}), Code::kCorruptFile,
                   "needs one scale or [6] along axis 0"),
            "");
  EXPECT_EQ(unlike(changed(scales(kInt32, {6, 2}, 48)), Code::kUnsupported, "scales are FLOAT"),
            "");
  EXPECT_EQ(unlike(changed([](GraphText& g) { g.nodes[0].inputs[1] = "x"; }), Code::kUnsupported,
                   "its scale 'x' is no stored tensor"),
            "");
  EXPECT_EQ(unlike(changed([](GraphText& g) { g.nodes[0].inputs.resize(1); }), Code::kCorruptFile,
                   "it has no scale"),
            "");
  for (const int64_t axis : {2, -3}) {
    EXPECT_EQ(unlike(changed([axis](GraphText& g) {
                       g.nodes[0].attributes.push_back(integer_attribute("axis", axis));
                     }),
                     Code::kCorruptFile, "its axis is " + std::to_string(axis)),
              "");
  }
  EXPECT_EQ(unlike(changed([](GraphText& g) {
                     g.nodes[0].attributes[0] = integer_attribute("block_size", -32);
                   }),
                   Code::kCorruptFile, "its block_size -32"),
            "");
  const auto zeros = [](OnnxCode type, std::vector<int64_t> shape, size_t bytes) {
    return [=](GraphText& g) {
      g.tensors[2] = raw_tensor("up.zeros", type, shape, std::string(bytes, '\0'));
    };
  };
  EXPECT_EQ(unlike(changed(zeros(kUint4Code, {6, 2}, 6), {.zeros = true}), Code::kCorruptFile,
                   "'up.zeros' is UINT4 [6, 2], the weight needs INT4 [6, 2]"),
            "");
  EXPECT_EQ(unlike(changed(zeros(kInt4Code, {12}, 6), {.zeros = true}), Code::kCorruptFile,
                   "'up.zeros' is INT4 [12]"),
            "");
}

TEST(OnnxDequantize, ChainsOfScalesAreOfOneScale) {
  GraphText graph = nvfp4(kFloat, DType::kF32);
  graph.tensors[2] = raw_tensor("up.tensor_scale", kFloat, {6}, std::string(24, '\0'));
  EXPECT_EQ(unlike(open_model(graph.model())->layers()[0].status, Code::kUnsupported,
                   "scales are dequantized by one scale"),
            "");
  graph = nvfp4(kFloat, DType::kF32);
  graph.tensors[2] = raw_tensor("up.tensor_scale", kFloat, {},
                                bytes_of<float>({std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(unlike(open_model(graph.model())->load("up").status(), Code::kCorruptFile,
                   "'up.tensor_scale' is not finite"),
            "");
}

TEST(OnnxDequantize, NodesInACircleEnd) {
  GraphText graph = Dequantize{.product = "none"}.graph();
  graph.nodes.push_back({"Identity", "", "", {"w"}, {"a"}, {}});
  graph.nodes.push_back({"Cast", "", "", {"b"}, {"c"}, {}});
  graph.nodes.push_back({"Cast", "", "", {"c"}, {"b"}, {}});
  graph.nodes.push_back({"DequantizeLinear", "", "", {"q", "r"}, {"r"}, {}});
  graph.nodes[0].inputs[1] = "w";
  const Checkpoint checkpoint = open_model(graph.model()).value();
  EXPECT_TRUE(checkpoint.layers().empty() || !checkpoint.layers()[0].status.ok());
}

TEST(OnnxDequantize, VectorsAndEightBitMatricesWithoutAProductAreNoLayers) {
  EXPECT_TRUE(Dequantize({.type = kInt8, .product = "none"}).open().layers().empty());
  EXPECT_EQ(Dequantize({.type = kInt8, .product = "left"}).open().layers().size(), 1u);
  GraphText graph = Dequantize{.block = 0, .product = "MatMul"}.graph();
  graph.tensors[0] = raw_tensor("up.weight_DQ_Q4", kInt4Code, {64}, std::string(32, '\0'));
  EXPECT_TRUE(open_model(graph.model())->layers().empty());
}

// ------------------------------------------------------------------------- GatherBlockQuantized

TEST(OnnxGather, TablesAreReadByRows) {
  const std::string codes = random_bytes(6 * 32, 1), zeros = random_bytes(6 * 2, 2);
  const std::string scales = bytes_of(random_floats(6 * 3, 3));
  for (const OnnxCode type : {kUint8, kUint4Code, kInt4Code}) {
    for (const bool has_zeros : {false, true}) {
      const int64_t columns = type == kUint8 ? 32 : 64;
      GraphText graph;
      graph.tensors = {raw_tensor("embed.weight_Q4", type, {6, columns}, codes),
                       raw_tensor("embed.scales", kFloat, {6, 2}, scales.substr(0, 48))};
      NodeText node{"GatherBlockQuantized",
                    "com.microsoft",
                    "embed",
                    {"embed.weight_Q4", "ids", "embed.scales"},
                    {"y"},
                    {integer_attribute("block_size", 32), integer_attribute("quantize_axis", -1)}};
      if (has_zeros) {
        node.inputs.push_back("embed.zeros");
        graph.tensors.push_back(
            raw_tensor("embed.zeros", type, {6, type == kUint8 ? 1 : 2}, zeros.substr(0, 6)));
      }
      graph.nodes = {node};
      const Checkpoint checkpoint = open_model(graph.model()).value();
      const LayerInfo& layer = checkpoint.layers()[0];
      ASSERT_TRUE(layer.status.ok()) << layer.status.message();
      EXPECT_EQ(layer.name, "embed");
      const std::vector<float> got = dequantized(checkpoint.load("embed").value());
      for (int64_t at = 0; at < 6 * 64; ++at) {
        int q = nibble_of(codes, at), zero = has_zeros ? nibble_of(zeros, at / 32) : 0;
        if (!has_zeros && type == kUint8) zero = 8;
        if (type == kInt4Code) {
          q = q < 8 ? q : q - 16;
          zero = zero < 8 ? zero : zero - 16;
        }
        const float scale = value_of(scales, DType::kF32, at / 32);
        ASSERT_EQ(got[static_cast<size_t>(at)], static_cast<float>(q - zero) * scale) << at;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::checkpoint
