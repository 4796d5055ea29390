// ModelOpt layers made by hand: what the tool writes beyond the fixtures, and damaged ones.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/json.h"
#include "checkpoint/test_layer.h"

namespace nibble::checkpoint {
namespace {

std::string config(const std::string& details) {
  return R"({"quantization_config": {"quant_method": "modelopt", )" + details + "}}";
}
std::string algorithm(const std::string& name) {
  return config("\"quant_algo\": \"" + name + "\"");
}

struct Part {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Parts = std::map<std::string, Part>;

Part f32(const std::vector<int64_t>& shape, const std::vector<float>& values) {
  return {"F32", shape, values_of(DType::kF32, values)};
}
std::string some_bytes(int64_t count, int step = 37) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<char>(step * i + i / 241));
  return out;
}

/// Adds the parts of one layer to `out`.
void add_layer(FileBuilder& out, const std::string& name, const Parts& parts) {
  for (const auto& [suffix, part] : parts) {
    out.add(name + "." + suffix, part.dtype, part.shape, part.bytes);
  }
}
FileBuilder file(const Parts& parts) {
  FileBuilder out;
  add_layer(out, "l", parts);
  return out;
}

Parts int4_layer(int64_t n, int64_t k, int64_t groups) {
  std::vector<float> scales;
  for (int64_t i = 0; i < n * groups; ++i) {
    scales.push_back(0.01f + 0.003f * static_cast<float>(i % 53));
  }
  return {{"weight", {"U8", {n / 2, k}, some_bytes(n / 2 * k)}},
          {"weight_scale", f32({n, groups}, scales)}};
}
Parts nvfp4_layer(int64_t n, int64_t k, int64_t group = 16) {
  const int64_t groups = ceil_div(k, group);
  std::string scales = some_bytes(n * groups, 11);
  for (char& c : scales) c = static_cast<char>(c & 0x3F);
  return {{"weight", {"U8", {n, k / 2}, some_bytes(n * k / 2)}},
          {"weight_scale", {"F8_E4M3", {n, groups}, scales}},
          {"weight_scale_2", f32({}, {0.00123f})}};
}
Parts mxfp4_layer(int64_t n, int64_t k) {
  const int64_t groups = ceil_div(k, 32);
  return {{"weight", {"U8", {n, k / 2}, some_bytes(n * k / 2)}},
          {"weight_scale", {"U8", {n, groups}, std::string(static_cast<size_t>(n * groups), 'y')}}};
}
Parts fp8_layer(int64_t n, int64_t k, const Part& scale) {
  std::string codes = some_bytes(n * k, 7);
  for (char& c : codes) c = (c & 0x7F) == 0x7F ? '\x7E' : c;
  return {{"weight", {"F8_E4M3", {n, k}, codes}}, {"weight_scale", scale}};
}

std::vector<float> int4_decoded(const Parts& parts, int64_t n, int64_t k, int64_t groups) {
  const Part &weight = parts.at("weight"), &scale = parts.at("weight_scale");
  std::vector<float> out;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      const auto byte = static_cast<uint8_t>(weight.bytes[static_cast<size_t>(row / 2 * k + j)]);
      const int field = row % 2 == 0 ? byte & 15 : byte >> 4;
      const float value = static_cast<float>(field < 8 ? field : field - 16);
      out.push_back(value *
                    load_as_f32(scale.bytes.data(), DType::kF32, row * groups + j / (k / groups)));
    }
  }
  return out;
}

TEST(ModelOpt, Int4IsPackedAlongNLowNibbleFirst) {
  struct Case {
    int64_t n, k, groups;
    const char* format;
  };
  for (const Case& c : {Case{4, 64, 2, "int4-g32:f32"}, Case{6, 160, 5, "int4-g32:f32"},
                        Case{2, 128, 1, "int4-g128:f32"}, Case{4, 96, 1, "int4-channel:f32"},
                        Case{4, 33, 1, "int4-channel:f32"}, Case{2, 512, 2, "int4-g128:f32"},
                        Case{4, 96, 2, "int4-g16:f32"}, Case{4, 48, 2, "dense"}}) {
    const Parts parts = int4_layer(c.n, c.k, c.groups);
    const Checkpoint checkpoint = open_made(file(parts), algorithm("W4A16_AWQ")).value();
    EXPECT_EQ(dense_made(checkpoint), int4_decoded(parts, c.n, c.k, c.groups)) << c.k;
    const Result<QuantizedTensor> q = checkpoint.load("l");
    EXPECT_EQ(q.ok() ? q->format.name() : "dense", c.format) << q.status().message();
  }
}

TEST(ModelOpt, WeightScale2OfInt4IsNoPartOfTheWeight) {
  Parts parts = int4_layer(4, 64, 2);
  parts["weight_scale_2"] = f32({}, {0.002f});
  parts["input_scale"] = f32({}, {0.5f});
  const Checkpoint checkpoint = open_made(file(parts), algorithm("W4A8_AWQ")).value();
  EXPECT_EQ(dense_made(checkpoint), int4_decoded(parts, 4, 64, 2));
  EXPECT_TRUE(checkpoint.load("l")->tensor_scales.empty());
  EXPECT_EQ(checkpoint.layers()[0].tensors.size(), 4u);
}

TEST(ModelOpt, WeightScale2OfNvfp4Multiplies) {
  for (const char* name : {"NVFP4", "nvfp4", "W4A16_NVFP4", "NVFP4_AWQ", "W4A8_NVFP4_FP8"}) {
    const QuantizedTensor q = load_made(file(nvfp4_layer(3, 48)), algorithm(name)).value();
    EXPECT_EQ(q.format.name(), "nvfp4");
    EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kMultiply);
    EXPECT_EQ(q.tensor_scales, (std::vector<TensorScale>{{0, 0.00123f}}));
  }
  Parts of_one = nvfp4_layer(3, 48);
  of_one["weight_scale_2"].shape = {1};
  EXPECT_TRUE(load_made(file(of_one), "").ok());
}

TEST(ModelOpt, TheGroupComesFromTheShapeOfWeightScale) {
  EXPECT_EQ(load_made(file(nvfp4_layer(2, 96, 32)), algorithm("W4A8_NVFP4_FP8"))->format.name(),
            "fp4-g32:e4m3");
  EXPECT_EQ(load_made(file(nvfp4_layer(2, 90)), "")->format.name(), "nvfp4");  // the last is short
  EXPECT_EQ(load_made(file(mxfp4_layer(2, 80)), "")->format.name(), "mxfp4");
  EXPECT_EQ(load_made(file(mxfp4_layer(2, 16)), "")->format.name(), "mxfp4");
}

TEST(ModelOpt, ZerosOfMxfp4AreNegative) {
  Parts parts = mxfp4_layer(1, 32);
  parts["weight"].bytes = std::string(16, '\x88');
  const Checkpoint checkpoint = open_made(file(parts), algorithm("mxfp4")).value();
  for (const float value : dense_made(checkpoint)) EXPECT_EQ(value, 0.0f);
}

TEST(ModelOpt, PreQuantScaleMultipliesTheActivation) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Parts parts = nvfp4_layer(2, 16);
    std::vector<float> scale(16);
    for (size_t j = 0; j < 16; ++j) scale[j] = 0.5f + static_cast<float>(j) / 4;
    parts["pre_quant_scale"] = {dtype == DType::kF32   ? "F32"
                                : dtype == DType::kF16 ? "F16"
                                                       : "BF16",
                                {16},
                                values_of(dtype, scale)};
    const Checkpoint checkpoint = open_made(file(parts), algorithm("NVFP4_AWQ")).value();
    EXPECT_EQ(checkpoint.layers()[0].remark, "pre_quant_scale");
    EXPECT_EQ(checkpoint.load("l")->pre_scale, scale);
    parts["pre_quant_scale"].bytes = values_of(dtype, std::vector<float>(16, NAN));
    expect_refused(file(parts), "", {"pre_scale[0] is not finite"});
    parts["pre_quant_scale"].shape = {8};
    parts["pre_quant_scale"].bytes.resize(parts["pre_quant_scale"].bytes.size() / 2);
    expect_refused(file(parts), "", {"'l.pre_quant_scale'", "[8]", "[16]"});
  }
}

TEST(ModelOpt, Fp8IsDenseWithScalesOfTensorsRowsOrBlocks) {
  const auto scales = [](int64_t count) {
    std::vector<float> out;
    for (int64_t i = 0; i < count; ++i) out.push_back(0.01f + 0.007f * static_cast<float>(i % 31));
    return out;
  };
  const auto decoded = [](const Parts& parts, int64_t n, int64_t k, auto scale_of) {
    std::vector<float> out;
    for (int64_t i = 0; i < n * k; ++i) {
      const float value =
          e4m3_to_f32(static_cast<uint8_t>(parts.at("weight").bytes[static_cast<size_t>(i)]));
      out.push_back(value * load_as_f32(parts.at("weight_scale").bytes.data(), DType::kF32,
                                        scale_of(i / k, i % k)));
    }
    return out;
  };
  const int64_t n = 40, k = 72;
  const auto check = [&](const Part& scale, auto scale_of) {
    const Parts parts = fp8_layer(n, k, scale);
    const Checkpoint checkpoint = open_made(file(parts), algorithm("FP8")).value();
    const LayerInfo& layer = checkpoint.layers()[0];
    EXPECT_EQ(layer.remark, "FP8");
    EXPECT_EQ(checkpoint.load("l").status().code(), Code::kUnsupported);
    EXPECT_EQ(dense_made(checkpoint), decoded(parts, n, k, scale_of)) << shape_text(scale.shape);
  };
  check(f32({}, scales(1)), [](int64_t, int64_t) { return 0; });
  check(f32({1}, scales(1)), [](int64_t, int64_t) { return 0; });
  check(f32({n}, scales(n)), [](int64_t row, int64_t) { return row; });
  check(f32({n, 1}, scales(n)), [](int64_t row, int64_t) { return row; });
  check(f32({3, 5}, scales(15)), [](int64_t row, int64_t j) { return row / 16 * 5 + j / 16; });
  check(f32({2, 1, 3, 1}, scales(6)), [](int64_t row, int64_t j) { return row / 32 * 3 + j / 32; });
  check(f32({1, 2}, scales(2)), [](int64_t, int64_t j) { return j / 64; });
  for (const auto& shape : {std::vector<int64_t>{k}, {1, n}, {2, 5}, {1, 3, 2, 1}, {6}}) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    expect_refused(file(fp8_layer(n, k, f32(shape, scales(count)))), algorithm("FP8"),
                   {"'l.weight_scale'", shape_text(shape)});
  }
}

TEST(ModelOpt, Mxfp8IsDense) {
  std::string exponents;
  for (int i = 0; i < 9; ++i) exponents.push_back(static_cast<char>(118 + i));
  const Parts parts = fp8_layer(3, 72, {"U8", {3, 3}, exponents});
  const Checkpoint checkpoint = open_made(file(parts), algorithm("MXFP8")).value();
  EXPECT_EQ(checkpoint.layers()[0].remark, "MXFP8");
  const std::vector<float> values = dense_made(checkpoint);
  for (size_t i = 0; i < values.size(); ++i) {
    const int exponent = exponents[i / 72 * 3 + i % 72 / 32] - 127;
    ASSERT_EQ(values[i],
              std::ldexp(e4m3_to_f32(static_cast<uint8_t>(parts.at("weight").bytes[i])), exponent));
  }
}

TEST(ModelOpt, Int8IsAFormat) {
  const Parts rows = {{"weight", {"I8", {4, 10}, some_bytes(40)}},
                      {"weight_scale", f32({4}, {1, 2, 3, 4})}};
  const QuantizedTensor q = load_made(file(rows), algorithm("W8A16")).value();
  EXPECT_EQ(q.format.name(), "int8-channel:f32");
  EXPECT_EQ(q.decode(2, 3), 3.0f * static_cast<float>(static_cast<int8_t>(23 * 37)));
  Parts single = rows;
  single["weight_scale"] = f32({}, {0.5f});
  const QuantizedTensor one = load_made(file(single), algorithm("W8A8_SQ_PER_CHANNEL")).value();
  EXPECT_EQ(one.decode(3, 1), 0.5f * static_cast<float>(static_cast<int8_t>(31 * 37)));
}

TEST(ModelOpt, LayersOfMixedPrecisionHaveTheirOwnAlgorithms) {
  const std::string text =
      config(R"("quant_algo": "MIXED_PRECISION", "quantized_layers": {)"
             R"("a": {"quant_algo": "NVFP4", "group_size": 16}, "b": {"quant_algo": "FP8"}, )"
             R"("c": {"quant_algo": "W4A16_AWQ", "group_size": 32}, "d": {"quant_algo": "FP8"}})");
  FileBuilder out;
  add_layer(out, "a", nvfp4_layer(2, 32));
  add_layer(out, "b", fp8_layer(2, 8, f32({}, {2})));
  add_layer(out, "c", int4_layer(2, 64, 2));
  add_layer(out, "d", nvfp4_layer(2, 32));
  add_layer(out, "e", mxfp4_layer(2, 32));
  out.add("norm.weight", "F32", {1}, "0123");
  const Checkpoint checkpoint = open_made(out, text).value();
  ASSERT_EQ(checkpoint.layers().size(), 5u);
  EXPECT_EQ(checkpoint.load("a")->format.name(), "nvfp4");
  EXPECT_EQ(checkpoint.dense_rows("b")->n, 2);
  EXPECT_EQ(checkpoint.load("c")->format.name(), "int4-g32:f32");
  EXPECT_EQ(checkpoint.load("d").status().code(), Code::kCorruptFile);
  expect_words(checkpoint.load("d").status(), {"'d'", "quant_algo is FP8", "hold NVFP4"});
  EXPECT_EQ(checkpoint.load("e")->format.name(), "mxfp4");
}

TEST(ModelOpt, HfQuantConfigAloneIsEnough) {
  const TempDirectory folder;
  write_bytes(folder.path("model.safetensors"), file(nvfp4_layer(2, 32)).build());
  write_bytes(folder.path("config.json"), R"({"dtype": "bfloat16"})");
  const auto open_with = [&](const std::string& name) {
    write_bytes(folder.path("hf_quant_config.json"),
                R"({"quantization": {"quant_algo": ")" + name + "\"}}");
    return Checkpoint::open(folder.path()).value();
  };
  EXPECT_EQ(open_with("NVFP4").spelling(), "modelopt");
  EXPECT_TRUE(open_with("nvfp4").load("l").ok());
  EXPECT_EQ(open_with("FP8").load("l").status().code(), Code::kCorruptFile);
  const Status unknown = open_with("W2A16_XYZ").load("l").status();
  EXPECT_EQ(unknown.code(), Code::kUnsupported);
  expect_words(unknown, {"'W2A16_XYZ' is not read", "NVFP4"});
}

TEST(ModelOpt, WhatWouldBeDroppedIsRefused) {
  Parts residual = nvfp4_layer(2, 32);
  residual["svdquant_lora_a"] = f32({2, 32}, std::vector<float>(64));
  expect_refused(file(residual), "", {"low-rank residual", "svdquant_lora_a"}, Code::kUnsupported);
  Parts smooth = fp8_layer(2, 8, f32({}, {2}));
  smooth["pre_quant_scale"] = f32({8}, std::vector<float>(8, 1));
  expect_refused(file(smooth), algorithm("FP8"), {"FP8 with pre_quant_scale"}, Code::kUnsupported);
  Parts twice = mxfp4_layer(2, 32);
  twice["weight_scale_2"] = f32({}, {2});
  expect_refused(file(twice), "", {"MXFP4 with a weight_scale_2"}, Code::kUnsupported);
  FileBuilder experts;
  experts.add("l", "U8", {2, 4, 8}, some_bytes(64));
  experts.add("l_weight_scale", "F8_E4M3", {2, 4, 1}, "01234567");
  expect_refused(experts, algorithm("NVFP4"), {"[2, 4, 8]", "experts"}, Code::kUnsupported);
  Parts stack = nvfp4_layer(2, 32);
  stack["weight"].shape = {1, 2, 16};
  expect_refused(file(stack), algorithm("NVFP4"), {"[1, 2, 16]", "matrices"}, Code::kUnsupported);
}

TEST(ModelOpt, DamagedLayersAreRefusedByTheRuleTheyBreak) {
  const auto broken = [](Parts parts, auto change, const std::string& text,
                         const std::vector<std::string>& words, Code code = Code::kCorruptFile) {
    change(parts);
    expect_refused(file(parts), text, words, code);
  };
  const std::string nvfp4 = algorithm("NVFP4"), int4 = algorithm("W4A16_AWQ");
  broken(nvfp4_layer(2, 32), [](Parts& p) { p.erase("weight_scale"); }, nvfp4,
         {"'l.weight_scale' is missing"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p.erase("weight_scale_2"); }, nvfp4,
         {"'l.weight_scale_2' is missing"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p["weight_scale_2"] = f32({2}, {1, 2}); }, nvfp4,
         {"'l.weight_scale_2'", "[2]", "[1]"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p["weight_scale_2"] = f32({}, {NAN}); }, nvfp4,
         {"weight_scale_2 is nan"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p["weight_scale"].bytes[3] = '\x7F'; }, nvfp4,
         {"row 1, group 1"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p["weight_scale"].shape = {4, 1}; }, nvfp4,
         {"'l.weight_scale'", "[4, 1]", "[2, 1]"});
  broken(nvfp4_layer(2, 32), [](Parts& p) { p["weight_scale"].shape = {4}; }, nvfp4,
         {"'l.weight_scale'", "[4]"});
  broken(
      nvfp4_layer(2, 128, 16),
      [](Parts& p) {
        p["weight_scale"].shape = {2, 3};
        p["weight_scale"].bytes.resize(6);
      },
      nvfp4, {"3 scales for k = 128"}, Code::kUnsupported);
  broken(mxfp4_layer(2, 32), [](Parts& p) { p["weight_scale"].bytes[1] = '\xFF'; }, "",
         {"row 1, group 0"});
  broken(int4_layer(4, 64, 2), [](Parts& p) { p["weight"].shape = {4, 32}; }, int4,
         {"'l.weight_scale'", "[4, 2]", "[8, 2]"});  // packed along K, as in memory
  broken(int4_layer(4, 63, 1),
         [](Parts& p) { p["weight_scale"] = f32({4, 2}, {1, 2, 3, 4, 5, 6, 7, 8}); }, int4,
         {"2 scales for k = 63"});
  broken(int4_layer(4, 64, 2), [](Parts& p) { p["weight_scale"] = f32({4, 0}, {}); }, int4,
         {"'l.weight_scale'", "[4, 0]"});
  broken(int4_layer(4, 64, 2), [](Parts& p) { p["weight"] = {"U8", {0, 64}, ""}; }, int4,
         {"[0, 64]"});
  broken(
      int4_layer(4, 64, 2), [](Parts& p) { p["weight_scale"].dtype = "I32"; }, int4,
      {"weight U8 with weight_scale I32"}, Code::kUnsupported);
  broken(int4_layer(4, 64, 2), [](Parts&) {}, nvfp4, {"quant_algo is NVFP4", "packed along N"});
  // Groups of no Format are checked before they are read, too.
  Parts dense = int4_layer(4, 48, 2);
  dense["weight_scale"].bytes = values_of(DType::kF32, {1, 2, 3, NAN, 5, 6, 7, 8});
  const Result<DenseRows> rows = open_made(file(dense), int4)->dense_rows("l");
  EXPECT_EQ(rows.status().code(), Code::kCorruptFile);
  const Result<DenseRows> infinite =
      open_made(file(fp8_layer(2, 8, f32({}, {INFINITY}))), algorithm("FP8"))->dense_rows("l");
  EXPECT_EQ(infinite.status().code(), Code::kCorruptFile);
}

TEST(ModelOpt, NanInAnFp8WeightIsNamedByRowAndColumn) {
  Parts parts = fp8_layer(3, 8, f32({}, {2}));
  parts["weight"].bytes[2 * 8 + 5] = '\xFF';
  const DenseRows rows = open_made(file(parts), algorithm("FP8"))->dense_rows("l").value();
  std::vector<float> out(24);
  EXPECT_TRUE(rows.read(0, 2, out.data()).ok());
  const Status status = rows.read(2, 3, out.data());
  EXPECT_EQ(status.code(), Code::kCorruptFile);
  expect_words(status, {"weight [2, 5] is NaN"});
}

}  // namespace
}  // namespace nibble::checkpoint
