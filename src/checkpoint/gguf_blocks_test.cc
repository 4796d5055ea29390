// ggml's blocks as layers: the values that the gguf package makes of them, and their traps.
#include "checkpoint/gguf_blocks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/gguf_test_files.h"
#include "checkpoint/json.h"

namespace nibble::checkpoint {
namespace {

constexpr uint32_t kQ4_0 = 2, kQ4_K = 12, kMxfp4 = 39, kNvfp4 = 40;

std::string data_path(const std::string& name) {
  return std::string(NIBBLE_TEST_DATA_DIR) + "/" + name;
}

std::vector<float> dequantized(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, out.data());
  return out;
}

TEST(GgufBlocks, EveryTypeDecodesToTheGgufPackagesOwnValues) {
  const Checkpoint source = Checkpoint::open(data_path("gguf/all-types.gguf")).value();
  const Checkpoint golden = Checkpoint::open(data_path("gguf/all-types.safetensors")).value();
  EXPECT_EQ(source.spelling(), "gguf");
  ASSERT_EQ(golden.tensors().size(), ggml_blocks().size());
  for (const TensorInfo& info : golden.tensors()) {
    SCOPED_TRACE(info.name);
    const std::string name = without_suffix(info.name, ".weight").value();
    const LayerInfo* layer = source.find_layer(name);
    ASSERT_NE(layer, nullptr);
    const Result<QuantizedTensor> q = source.load(name);
    ASSERT_TRUE(q.ok()) << q.status().message();
    EXPECT_EQ(q->format, layer->format);
    const std::vector<float> values = dequantized(*q);
    const Tensor expected = golden.tensor(info.name).value();
    const auto* want = static_cast<const float*>(expected.view.data);
    ASSERT_EQ(static_cast<int64_t>(values.size()), expected.view.elements());
    int wrong = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      // ggml's integer codes have no -0: equal values, whatever the sign of zero.
      if (values[i] == want[i]) continue;
      if (++wrong <= 3) ADD_FAILURE() << i << ": expected " << want[i] << ", got " << values[i];
    }
    EXPECT_EQ(wrong, 0);
  }
}

TEST(GgufBlocks, FormatsHoldWhatTheBlocksHold) {
  const Checkpoint source = Checkpoint::open(data_path("gguf/all-types.gguf")).value();
  const auto format_of = [&source](const std::string& name) {
    return source.find_layer(name)->format.name();
  };
  EXPECT_EQ(format_of("q4_0"), "int4-g32:f16");
  EXPECT_EQ(format_of("q4_1"), "uint4-g32:f16:zadd");
  EXPECT_EQ(format_of("q8_0"), "int8-g32:f16");
  EXPECT_EQ(format_of("q4_k"), "uint4-g32:f32:zadd");
  EXPECT_EQ(format_of("q6_k"), "int8-g16:f32");
  EXPECT_EQ(format_of("mxfp4"), "mxfp4");
  EXPECT_EQ(format_of("nvfp4"), "nvfp4");
  EXPECT_EQ(source.find_layer("q4_k")->remark, "Q4_K");
}

TEST(GgufBlocks, TypesThatAreNotReadSayTheirName) {
  const Checkpoint source = Checkpoint::open(data_path("gguf/all-types.gguf")).value();
  for (const auto& [name, type] : {std::pair("iq2_xxs", "IQ2_XXS"), {"tq1_0", "TQ1_0"}}) {
    const LayerInfo* layer = source.find_layer(name);
    ASSERT_NE(layer, nullptr);
    EXPECT_EQ(layer->status.code(), Code::kUnsupported);
    EXPECT_NE(layer->status.message().find(type), std::string::npos);
    EXPECT_NE(layer->status.message().find("Q4_K"), std::string::npos);  // what is read instead
    EXPECT_EQ(layer->remark, type);
    EXPECT_FALSE(source.load(name).ok());
    EXPECT_FALSE(source.dense_rows(name).ok());
  }
}

// Q4_K computes f32(f32(d * sc) * q) - f32(dmin * m). With all three products exact there is one
// rounding, that of the difference, as in decode's RN(RN(q * S) + b). Exhaustive in d, sc and q.
TEST(GgufBlocks, ProductsOfSixBitScalesAreExact) {
  for (uint32_t bits = 0; bits < 0x7C00; ++bits) {  // the sign takes no part
    const float d = f16_to_f32(static_cast<uint16_t>(bits));
    for (int sc = 0; sc < 128; ++sc) {  // Q6_K's scales have 7 bits beside their sign
      const float scale = d * static_cast<float>(sc);
      ASSERT_EQ(static_cast<double>(scale), static_cast<double>(d) * sc);
      if (sc > 63) continue;
      for (const int q : {1, 3, 5, 7, 9, 11, 13, 15, 31}) {  // even ones shift these
        ASSERT_EQ(static_cast<double>(scale * static_cast<float>(q)),
                  static_cast<double>(scale) * q);
      }
    }
  }
}

/// One Q4_K block in which every 6-bit value of scales and minimums can be set.
std::string q4_k_block(uint16_t d, uint16_t dmin, const std::array<int, 8>& sc,
                       const std::array<int, 8>& m, uint8_t codes) {
  std::string packed(12, '\0');
  const auto add = [&packed](int at, int value) {
    packed[static_cast<size_t>(at)] =
        static_cast<char>(static_cast<uint8_t>(packed[static_cast<size_t>(at)]) | value);
  };
  for (int j = 0; j < 4; ++j) {
    add(j, sc[static_cast<size_t>(j)]);
    add(j + 4, m[static_cast<size_t>(j)]);
    const int s = sc[static_cast<size_t>(j + 4)], t = m[static_cast<size_t>(j + 4)];
    add(j + 8, (s & 15) | (t & 15) << 4);
    add(j, s >> 4 << 6);
    add(j + 4, t >> 4 << 6);
  }
  return raw(d) + raw(dmin) + packed + std::string(128, static_cast<char>(codes));
}

TEST(GgufBlocks, AllSixBitScalesAndMinimumsDecodeByTheToolsRule) {
  // 64 * 64 pairs in blocks of 8, with scales whose products round.
  const uint16_t d = 0x2D55, dmin = 0xA7F3;
  std::string blocks;
  for (int pair = 0; pair < 64 * 64; pair += 8) {
    std::array<int, 8> sc{}, m{};
    for (int j = 0; j < 8; ++j) {
      sc[static_cast<size_t>(j)] = (pair + j) / 64;
      m[static_cast<size_t>(j)] = (pair + j) % 64;
    }
    blocks += q4_k_block(d, dmin, sc, m, 0xD6);
  }
  GgufBuilder builder;
  builder.tensor("w.weight", {256, 512}, kQ4_K, blocks);
  const std::vector<float> values =
      dequantized(open_gguf_bytes(builder.build())->load("w").value());
  for (int pair = 0; pair < 64 * 64; ++pair) {
    const float scale = f16_to_f32(d) * static_cast<float>(pair / 64);
    const float minimum = f16_to_f32(dmin) * static_cast<float>(pair % 64);
    const float code = pair % 2 == 0 ? 6 : 13;  // a group in low nibbles, the next in high ones
    for (size_t i = 0; i < 32; ++i) {
      const float want = scale * code - minimum;
      ASSERT_EQ(values[static_cast<size_t>(pair) * 32 + i], want) << "pair " << pair;
    }
  }
}

TEST(GgufBlocks, HalvesAreSplitAndJoinedAlike) {
  for (int byte = 0; byte < 256; ++byte) {
    for (const uint8_t flip : {uint8_t{0}, uint8_t{0x88}}) {
      uint8_t in[16], codes[16], back[16];
      for (int i = 0; i < 16; ++i) in[i] = static_cast<uint8_t>(byte + 7 * i);
      split_halves(in, flip, codes);
      for (int i = 0; i < 32; ++i) {
        const int stored = (in[i % 16] ^ flip) >> (i < 16 ? 0 : 4) & 15;
        ASSERT_EQ(codes[i / 2] >> (4 * (i & 1)) & 15, stored);
      }
      join_halves(codes, flip, back);
      ASSERT_EQ(std::memcmp(in, back, 16), 0);
    }
  }
}

TEST(GgufBlocks, Q4_0ScalesMayBeNegative) {
  GgufBuilder builder;
  builder.tensor("w.weight", {32}, kQ4_0, raw<uint16_t>(0xC000) + std::string(16, '\x1F'));
  const std::vector<float> values =
      dequantized(open_gguf_bytes(builder.build())->load("w").value());
  EXPECT_EQ(values[0], -2.0f * 7);
  EXPECT_EQ(values[31], -2.0f * -7);
}

TEST(GgufBlocks, ScalesThatAreNotFiniteAreRefused) {
  for (const int bits : {0x7C00, 0xFC00, 0x7E01}) {
    const auto scale = static_cast<uint16_t>(bits);
    GgufBuilder builder;
    builder.tensor(
        "w.weight", {64}, kQ4_0,
        raw<uint16_t>(0x3C00) + std::string(16, '\0') + raw(scale) + std::string(16, '\0'));
    const auto q = open_gguf_bytes(builder.build())->load("w");
    ASSERT_FALSE(q.ok());
    EXPECT_EQ(q.status().code(), Code::kCorruptFile);
    EXPECT_NE(q.status().message().find("group 1"), std::string::npos) << q.status().message();
    GgufBuilder two_levels;
    two_levels.tensor("w.weight", {256}, kQ4_K, q4_k_block(0, scale, {}, {}, 0));
    EXPECT_FALSE(open_gguf_bytes(two_levels.build())->load("w").ok());
  }
}

TEST(GgufBlocks, Mxfp4ExponentsMeanHalfTheirValue) {
  const float doubled[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  for (int e = 0; e < 256; ++e) {
    std::string block(1, static_cast<char>(e));
    for (int i = 0; i < 16; ++i) block += static_cast<char>(i | (15 - i) << 4);
    GgufBuilder builder;
    builder.tensor("w.weight", {32}, kMxfp4, block);
    const auto q = open_gguf_bytes(builder.build())->load("w");
    if (e == 255) {  // NaN as E8M0
      EXPECT_EQ(q.status().code(), Code::kCorruptFile);
      continue;
    }
    const std::vector<float> values = dequantized(q.value());
    for (int i = 0; i < 16; ++i) {  // e = 0 means 2^-128, not 0
      ASSERT_EQ(values[static_cast<size_t>(i)], std::ldexp(doubled[i], e - 128)) << e;
      ASSERT_EQ(values[static_cast<size_t>(16 + i)], std::ldexp(doubled[15 - i], e - 128)) << e;
    }
  }
}

std::string nvfp4_block(const std::array<uint8_t, 4>& scales) {
  return {std::string(scales.begin(), scales.end()) + std::string(32, '\x72')};
}

TEST(GgufBlocks, Nvfp4ScalesHaveNoSignAnd7FIsZero) {
  GgufBuilder builder;
  builder.tensor("w.weight", {64}, kNvfp4, nvfp4_block({0x38, 0x7F, 0xB8, 0x80}));
  const std::vector<float> values =
      dequantized(open_gguf_bytes(builder.build())->load("w").value());
  EXPECT_EQ(values[0], 1.0f);  // low nibbles are the first half of each 16
  EXPECT_EQ(values[8], 6.0f);
  EXPECT_EQ(values[16], 0.0f);
  EXPECT_EQ(values[32], 1.0f);
  EXPECT_EQ(values[48], 0.0f);
}

TEST(GgufBlocks, Nvfp4ScaleFFIsRefusedForE4M3HasNo480) {
  GgufBuilder builder;
  builder.tensor("w.weight", {64}, kNvfp4, nvfp4_block({0x38, 0x38, 0xFF, 0x38}));
  const auto q = open_gguf_bytes(builder.build())->load("w");
  ASSERT_FALSE(q.ok());
  EXPECT_NE(q.status().message().find("group 2"), std::string::npos) << q.status().message();
}

TEST(GgufBlocks, TensorScalesOfNvfp4AreNotDropped) {
  for (const char* part : {"w.scale", "w.weight.scale"}) {
    GgufBuilder builder;
    builder.tensor("w.weight", {64}, kNvfp4, nvfp4_block({0x38, 0x39, 0x3A, 0x3B}));
    builder.tensor(part, {1}, 0, raw(0.3f));
    builder.tensor("w.input_scale", {1}, 0, raw(2.0f));
    const Checkpoint opened = open_gguf_bytes(builder.build()).value();
    const LayerInfo& layer = opened.layers()[0];
    EXPECT_EQ(layer.format.name(), "nvfp4");
    EXPECT_EQ(layer.tensors.size(), 3u);
    EXPECT_EQ(layer.remark, "NVFP4, tensor scale");
    const QuantizedTensor q = opened.load("w").value();
    ASSERT_EQ(q.tensor_scales.size(), 1u);
    EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kMultiply);
    EXPECT_EQ(dequantized(q)[16], 1.0f * (1.125f * 0.3f));
  }
}

TEST(GgufBlocks, EveryExpertHasItsOwnTensorScale) {
  for (const size_t experts : {3u, 8u, 20u}) {  // more than 8 fit no QuantizedTensor
    std::string blocks;
    std::vector<float> scales;
    for (size_t i = 0; i < 2 * experts; ++i) blocks += nvfp4_block({0x38, 0x31, 0x32, 0x7E});
    for (size_t i = 0; i < experts; ++i) scales.push_back(0.1f + 0.37f * static_cast<float>(i));
    GgufBuilder builder;
    builder.tensor("e.weight", {64, 2, experts}, kNvfp4, blocks);
    builder.tensor("e.scale", {experts}, 0, bytes_of(scales));
    const Checkpoint opened = open_gguf_bytes(builder.build()).value();
    const QuantizedTensor q = opened.load("e").value();
    EXPECT_EQ(q.format, opened.layers()[0].format);
    EXPECT_EQ(q.n, static_cast<int64_t>(2 * experts));
    const std::vector<float> values = dequantized(q);
    const float block_scales[] = {1.0f, e4m3_to_f32(0x31), e4m3_to_f32(0x32), 448.0f};
    for (size_t i = 0; i < values.size(); ++i) {
      const float code = i % 16 < 8 ? 1.0f : 6.0f;
      const float scale = block_scales[i / 16 % 4] * scales[i / 128];
      ASSERT_EQ(values[i], code * scale) << experts << " experts, value " << i;
    }
  }
}

TEST(GgufBlocks, ATensorScaleThatDoesNotFitIsRefused) {
  GgufBuilder count, dtype, additive, infinite;
  count.tensor("w.weight", {64}, kNvfp4, nvfp4_block({}));
  count.tensor("w.scale", {2}, 0, std::string(8, '\0'));
  EXPECT_EQ(open_gguf_bytes(count.build())->layers()[0].status.code(), Code::kCorruptFile);
  dtype.tensor("w.weight", {64}, kNvfp4, nvfp4_block({}));
  dtype.tensor("w.scale", {2}, 1, std::string(4, '\0'));
  EXPECT_EQ(open_gguf_bytes(dtype.build())->layers()[0].status.code(), Code::kCorruptFile);
  additive.tensor("w.weight", {256}, kQ4_K, q4_k_block(0, 0, {}, {}, 0));
  additive.tensor("w.scale", {1}, 0, raw(1.0f));
  EXPECT_EQ(open_gguf_bytes(additive.build())->layers()[0].status.code(), Code::kUnsupported);
  infinite.tensor("w.weight", {64}, kNvfp4, nvfp4_block({}));
  infinite.tensor("w.scale", {1}, 0, raw(std::numeric_limits<float>::infinity()));
  EXPECT_EQ(open_gguf_bytes(infinite.build())->load("w").status().code(), Code::kCorruptFile);
}

TEST(GgufBlocks, ExpertsAreRowsOfOneWeight) {
  std::string blocks;
  for (int i = 0; i < 6; ++i) {
    blocks += raw<uint16_t>(0x3C00) + std::string(16, static_cast<char>(0x11 * (8 + i)));
  }
  GgufBuilder builder;
  builder.tensor("blk.0.ffn_up_exps.weight", {32, 2, 3}, kQ4_0, blocks);
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  const LayerInfo& layer = opened.layers()[0];
  EXPECT_EQ(layer.n, 6);
  EXPECT_EQ(layer.k, 32);
  EXPECT_EQ(layer.remark, "Q4_0, 3 experts of 2 rows");
  EXPECT_EQ(opened.tensors()[0].shape, (std::vector<int64_t>{3, 2, 32}));
  const std::vector<float> values = dequantized(opened.load(layer.name).value());
  for (size_t row = 0; row < 6; ++row) EXPECT_EQ(values[row * 32 + 31], static_cast<float>(row));
}

TEST(GgufBlocks, TwoTensorsOfOneLayerAreRefused) {
  GgufBuilder builder;
  const std::string block = raw<uint16_t>(0x3C00) + std::string(16, '\0');
  builder.tensor("w", {32}, kQ4_0, block).tensor("w.weight", {32}, kQ4_0, block);
  builder.tensor("v", {32}, kQ4_0, block);
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  EXPECT_FALSE(opened.layers()[0].status.ok());
  EXPECT_FALSE(opened.layers()[1].status.ok());
  EXPECT_TRUE(opened.load("v").ok());  // a name without ".weight" is the layer's own
}

TEST(GgufBlocks, OpeningReadsNoTensor) {
  // Values of a tensor that cannot be loaded do not keep the file from opening.
  GgufBuilder builder;
  builder.tensor("w.weight", {32}, kQ4_0, std::string(18, '\xFF'));
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  EXPECT_TRUE(opened.layers()[0].status.ok());
  EXPECT_FALSE(opened.load("w").ok());
}

}  // namespace
}  // namespace nibble::checkpoint
