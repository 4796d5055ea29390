// The rules of docs/quality.md, one test each, with examples small enough to follow by hand.
#include "nibble/quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace nibble {
namespace {

QuantizeOptions absmax() {
  QuantizeOptions options;
  options.scales = ScaleRule::kAbsmax;
  return options;
}

QuantizeOptions with_rule(MxfpRule rule) {
  QuantizeOptions options;
  options.mxfp = rule;
  return options;
}

TensorView view(const std::vector<float>& w, int64_t n, int64_t k) {
  return {w.data(), DType::kF32, {n, k}};
}

Format format_of(const char* name) {
  auto format = Format::parse(name);
  EXPECT_TRUE(format.ok()) << name;
  return *format;
}

QuantizedTensor quantize_ok(const std::vector<float>& w, int64_t n, const char* format,
                            const QuantizeOptions& options = {}) {
  auto q = quantize(view(w, n, static_cast<int64_t>(w.size()) / n), format_of(format), options);
  EXPECT_TRUE(q.ok()) << q.status().message();
  if (!q.ok()) return {};
  EXPECT_TRUE(q->validate().ok()) << q->validate().message();
  return std::move(q).value();
}

std::vector<float> decoded(const QuantizedTensor& q) {
  std::vector<float> w(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, w.data());
  return w;
}

float scale(const QuantizedTensor& q, int64_t group = 0) {
  return load_as_f32(q.scales.data(), q.format.scale, group);
}

std::vector<int> codes(const QuantizedTensor& q, int64_t row = 0) {
  std::vector<int> all;
  for (int64_t j = 0; j < q.k; ++j) all.push_back(q.code(row, j));
  return all;
}

/// `head`, then zeros up to `size` values.
std::vector<float> padded(std::vector<float> head, size_t size) {
  head.resize(size);
  return head;
}

std::vector<float> gauss(int64_t count, uint32_t seed = 1, float sigma = 0.02f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> w(static_cast<size_t>(count));
  for (float& x : w) x = normal(random);
  return w;
}

// ------------------------------------------------------------------------------------------ nvfp4

TEST(QuantizeTest, Nvfp4TensorScaleIsAmaxOver2688) {
  const auto q = quantize_ok(padded({-1.5f, 0.25f}, 32), 1, "nvfp4");
  ASSERT_EQ(q.tensor_scales.size(), 1u);
  EXPECT_EQ(q.tensor_scales[0].value, 1.5f / (6.0f * 448.0f));
  EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kMultiply);
}

TEST(QuantizeTest, Nvfp4TensorScaleThatDividesIs2688OverAmax) {
  QuantizeOptions options = absmax();
  options.tensor_scale_op = TensorScaleOp::kDivide;
  const auto q = quantize_ok(padded({-1.5f, 0.25f}, 16), 1, "nvfp4", options);
  EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kDivide);
  EXPECT_EQ(q.tensor_scales[0].value, 2688 / 1.5f);
  EXPECT_EQ(q.scales.data()[0], 0x7E);
  EXPECT_EQ(q.decode(0, 0), -1.5f);  // -6 * (448 / 1792)
  EXPECT_EQ(q.decode(0, 1), 0.25f);
  EXPECT_EQ(quantize_ok(std::vector<float>(16), 1, "nvfp4", options).tensor_scales[0].value, 1);
}

TEST(QuantizeTest, Nvfp4PlainBlockScaleIsAmaxOver6OverTInE4m3) {
  // amax 2688 gives t = 1. Block scales: 2688/6 = 448 (0x7E); 3/6 = 0.5 (0x30);
  // 2.3/6 = 0.3833, between 0.375 and 0.40625, nearer to 0.375 (0x2C).
  std::vector<float> w(48);
  w[0] = 2688;
  w[16] = -3;
  w[17] = 1.1f;
  w[32] = 2.3f;
  w[33] = -0.95f;
  const auto q = quantize_ok(w, 1, "nvfp4", absmax());
  EXPECT_EQ(q.tensor_scales[0].value, 1);
  EXPECT_EQ(q.scales.data()[0], 0x7E);
  EXPECT_EQ(q.scales.data()[1], 0x30);
  EXPECT_EQ(q.scales.data()[2], 0x2C);
  EXPECT_EQ(q.code(0, 0), 7);       // 2688/448 = 6
  EXPECT_EQ(q.code(0, 16), 8 | 7);  // -6
  EXPECT_EQ(q.code(0, 17), 4);      // 2.2 -> 2
  EXPECT_EQ(q.code(0, 32), 7);      // 6.13 -> 6
  EXPECT_EQ(q.code(0, 33), 8 | 5);  // -2.53 -> -3
}

TEST(QuantizeTest, Nvfp4CodesTakeTiesToTheEvenCodeAndKeepTheSign) {
  // One block with amax 2688 = 6 * 448 * t: s * t = 448, quotients are w / 448.
  const float quotients[16] = {6,     0.25f,  0.75f,  1.25f,  1.75f,  2.5f,  3.5f,  5,
                               -0.2f, -0.25f, -0.75f, -1.25f, -1.75f, -2.5f, -3.5f, -5};
  std::vector<float> w;
  for (const float y : quotients) w.push_back(448 * y);
  EXPECT_EQ(codes(quantize_ok(w, 1, "nvfp4", absmax())),
            (std::vector<int>{7, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14}));
}

TEST(QuantizeTest, Nvfp4AllZeroBlockHasScaleOne) {
  std::vector<float> w(64);
  w[3] = 1;
  w[20] = -0.0f;
  for (const auto& options : {QuantizeOptions{}, absmax()}) {
    const auto q = quantize_ok(w, 1, "nvfp4", options);
    for (int64_t block = 1; block < 4; ++block) {
      EXPECT_EQ(q.scales.data()[block], 0x38);
      for (int64_t j = 16 * block; j < 16 * block + 16; ++j) EXPECT_EQ(q.code(0, j), 0);
    }
  }
}

TEST(QuantizeTest, Nvfp4AllZeroTensorHasTensorScaleOne) {
  const auto q = quantize_ok(std::vector<float>(32), 2, "nvfp4");
  EXPECT_EQ(q.tensor_scales[0].value, 1);
  for (int64_t i = 0; i < q.scales.bytes(); ++i) EXPECT_EQ(q.scales.data()[i], 0x38);
  for (const float x : decoded(q)) EXPECT_EQ(x, 0);
}

TEST(QuantizeTest, Nvfp4SmallBlocksKeepTheSmallestScale) {
  // t = 1; a block of 1e-6 wants the scale 1.7e-7 and gets 2^-9 (byte 1), so its codes are 0.
  std::vector<float> w(32, 1e-6f);
  w[0] = 2688;
  EXPECT_EQ(quantize_ok(w, 1, "nvfp4", absmax()).scales.data()[1], 1);
  const auto q = quantize_ok(w, 1, "nvfp4");
  for (int64_t j = 16; j < 32; ++j) EXPECT_EQ(q.decode(0, j), 0);
}

TEST(QuantizeTest, Nvfp4WeightsNearTheEndsOfF32HaveFiniteScales) {
  for (const float size : {0x1p-149f, 0x1p-140f, 0x1p-126f, 1e-30f, 1e30f, 3.4e38f}) {
    std::vector<float> w = gauss(64, 3, 0.25f);
    for (float& x : w) x = std::clamp(x, -1.0f, 1.0f) * size;
    w[5] = size;
    for (const auto& options : {QuantizeOptions{}, absmax()}) {
      const auto q = quantize_ok(w, 1, "nvfp4", options);
      EXPECT_GT(q.tensor_scales[0].value, 0);
      for (const float x : decoded(q)) EXPECT_TRUE(std::isfinite(x)) << size;
    }
  }
}

// ------------------------------------------------------------------------------------------ mxfp4

TEST(QuantizeTest, Mxfp4OcpRuleIsFloorLog2AmaxMinus2) {
  for (const auto& [amax, e] : {std::pair{4.0f, 127},
                                {7.99f, 127},
                                {8.0f, 128},
                                {6.5f, 127},
                                {1.0f, 125},
                                {0x1p-126f, 0},
                                {0x1p-149f, 0}}) {
    const auto q = quantize_ok(padded({amax}, 32), 1, "mxfp4", with_rule(MxfpRule::kOcp));
    EXPECT_EQ(q.scales.data()[0], e) << amax;
  }
}

TEST(QuantizeTest, Mxfp4ModelOptRuleIsCeilLog2AmaxOver6) {
  for (const auto& [amax, e] : {std::pair{6.0f, 127},
                                {6.0001f, 128},
                                {12.0f, 128},
                                {4.0f, 127},
                                {3.0f, 126},
                                {3.01f, 127}}) {
    const auto q = quantize_ok(padded({amax}, 32), 1, "mxfp4", with_rule(MxfpRule::kModelOpt));
    EXPECT_EQ(q.scales.data()[0], e) << amax;
  }
}

TEST(QuantizeTest, Mxfp4CompressedTensorsRuleRoundsUpFromMantissa1Point75) {
  for (const auto& [amax, e] :
       {std::pair{6.99f, 127}, {7.0f, 128}, {4.0f, 127}, {13.9f, 128}, {14.0f, 129}}) {
    const auto q =
        quantize_ok(padded({amax}, 32), 1, "mxfp4", with_rule(MxfpRule::kCompressedTensors));
    EXPECT_EQ(q.scales.data()[0], e) << amax;
  }
}

TEST(QuantizeTest, Mxfp4DefaultTakesTheRuleWithTheSmallestError) {
  // amax 7: with 2^0 the 7 becomes 6 and 0.5 stays (error 1); with 2^1 the 7 becomes 8 and 0.5
  // becomes 0, both ties that go to the even code (error 1.25).
  const auto low = quantize_ok(padded({7, 0.5f}, 32), 1, "mxfp4", absmax());
  EXPECT_EQ(low.scales.data()[0], 127);
  // amax 7.9: with 2^0 it becomes 6 (error 3.61); with 2^1 it becomes 8 (error 0.01).
  const auto high = quantize_ok(padded({7.9f, 1}, 32), 1, "mxfp4", absmax());
  EXPECT_EQ(high.scales.data()[0], 128);
}

TEST(QuantizeTest, Mxfp4DefaultIsNeverWorseThanAnyRule) {
  const auto w = gauss(64 * 256, 5);
  const auto best = quantize_ok(w, 64, "mxfp4");
  for (const MxfpRule rule : {MxfpRule::kOcp, MxfpRule::kModelOpt, MxfpRule::kCompressedTensors}) {
    const auto other = quantize_ok(w, 64, "mxfp4", with_rule(rule));
    for (int64_t row = 0; row < 64; ++row) {
      for (int64_t g = 0; g < 8; ++g) {
        double ours = 0, theirs = 0;
        for (int64_t j = 32 * g; j < 32 * g + 32; ++j) {
          const double x = w[static_cast<size_t>(row * 256 + j)];
          ours += std::pow(x - best.decode(row, j), 2);
          theirs += std::pow(x - other.decode(row, j), 2);
        }
        EXPECT_LE(ours, theirs * (1 + 1e-5));
      }
    }
  }
}

TEST(QuantizeTest, Mxfp4AllZeroBlockHasExponent127) {
  std::vector<float> w(64);
  w[1] = 100;
  const auto q = quantize_ok(w, 1, "mxfp4");
  EXPECT_EQ(q.scales.data()[1], 127);
  EXPECT_TRUE(q.tensor_scales.empty());
  for (int64_t j = 32; j < 64; ++j) EXPECT_EQ(q.code(0, j), 0);
}

TEST(QuantizeTest, Mxfp4ExponentsEndWhereTheByteEnds) {
  const auto largest = quantize_ok(padded({3.4e38f}, 32), 1, "mxfp4", with_rule(MxfpRule::kOcp));
  EXPECT_EQ(largest.scales.data()[0], 127 + 125);
  const auto smallest = quantize_ok(padded({-0x1p-149f}, 32), 1, "mxfp4");
  EXPECT_EQ(smallest.scales.data()[0], 0);
  EXPECT_EQ(smallest.decode(0, 0), 0);
}

// ------------------------------------------------------------------------- integers, fp4 and nf4

TEST(QuantizeTest, Int4PlainScaleIsAmaxOver7OrOver8BySquaredError) {
  // 7 and -7: amax/7 = 1 is exact. -8 and 7: amax/8 = 1 is exact. 8 and 7: the 8 is cut to 7 with
  // amax/8 (error 1); with amax/7 = 1.1428 the 7 becomes 6.857 (error 0.02).
  EXPECT_EQ(scale(quantize_ok(padded({7, -7, 3}, 16), 1, "int4-g16", absmax())), 1);
  EXPECT_EQ(scale(quantize_ok(padded({-8, 7, 3}, 16), 1, "int4-g16", absmax())), 1);
  EXPECT_EQ(scale(quantize_ok(padded({8, 7}, 16), 1, "int4-g16:f32", absmax())), 8.0f / 7.0f);
}

TEST(QuantizeTest, Int4CodesFollowFromTheStoredScale) {
  // 1/7 = 0.142857 is 0.142578125 in bf16. 0.3566 / 0.142578 = 2.5011 -> 3, while against the
  // unrounded scale it would be 2.4962 -> 2.
  const auto q = quantize_ok(padded({1, -1, 0.356f, 0.3566f}, 16), 1, "int4-g16", absmax());
  EXPECT_EQ(scale(q), 0.142578125f);
  EXPECT_EQ(q.code(0, 0), 7);
  EXPECT_EQ(q.code(0, 1), 16 - 7);
  EXPECT_EQ(q.code(0, 2), 2);
  EXPECT_EQ(q.code(0, 3), 3);
}

TEST(QuantizeTest, Int8PlainScaleIsAmaxOver127OrOver128BySquaredError) {
  EXPECT_EQ(scale(quantize_ok(padded({127, 5}, 16), 1, "int8-g16", absmax())), 1);
  EXPECT_EQ(scale(quantize_ok(padded({-128, 5}, 16), 1, "int8-g16", absmax())), 1);
}

TEST(QuantizeTest, Fp4Group32PlainScaleIsAmaxOver6) {
  const auto q = quantize_ok(padded({-1.2f, 0.5f, 0.09f}, 32), 1, "fp4-g32", absmax());
  EXPECT_EQ(scale(q), 1.2f / 6);
  EXPECT_EQ(q.code(0, 0), 15);
  EXPECT_EQ(q.code(0, 1), 4);  // 2.5 -> 2, the even code
  EXPECT_EQ(q.code(0, 2), 1);  // 0.45 -> 0.5
}

TEST(QuantizeTest, Nf4PlainScaleIsAmaxAndZeroIsCode7) {
  const auto q = quantize_ok(padded({-2, 2, 0, 0.7f}, 64), 1, "nf4-g64", absmax());
  EXPECT_EQ(scale(q), 2);
  EXPECT_EQ(q.code(0, 0), 0);
  EXPECT_EQ(q.code(0, 1), 15);
  EXPECT_EQ(q.code(0, 2), 7);
  EXPECT_EQ(q.code(0, 3), 11);  // 0.35 is nearest to 0.3379
  EXPECT_EQ(q.codebook, kNf4Codebook);
}

TEST(QuantizeTest, Nf4AllZeroGroupHasCode7) {
  const auto q = quantize_ok(std::vector<float>(2 * 65), 2, "nf4-g64");
  for (const float x : decoded(q)) EXPECT_EQ(x, 0);
  EXPECT_EQ(scale(q, 3), 1);
  EXPECT_EQ(q.codes.data()[32], 7);  // the odd last weight; the nibble past the end is 0
}

TEST(QuantizeTest, Uint4IntegerZeroSpansMinToMaxWithZeroAmongTheCodes) {
  // min -3, max 12: scale 1, zero 3.
  const auto q = quantize_ok(padded({-3, 12, 5}, 16), 1, "uint4-g16", absmax());
  EXPECT_EQ(scale(q), 1);
  EXPECT_EQ(q.zeros.data()[0], 3);
  EXPECT_EQ(q.code(0, 0), 0);
  EXPECT_EQ(q.code(0, 1), 15);
  EXPECT_EQ(q.code(0, 2), 8);
  EXPECT_EQ(q.decode(0, 2), 5);
  // All positive: 0 is the least code. All negative: 0 is the largest code.
  std::vector<float> positive(16, 15.0f), negative(16, -15.0f);
  positive[0] = negative[0] = 0.0f;
  EXPECT_EQ(quantize_ok(positive, 1, "uint4-g16", absmax()).zeros.data()[0], 0);
  EXPECT_EQ(quantize_ok(negative, 1, "uint4-g16", absmax()).zeros.data()[0], 15);
}

TEST(QuantizeTest, Uint4FloatZeroSpansMinToMaxWithoutZero) {
  // 100 .. 115 in steps of 1: scale 1 and zero -100 lose nothing; with an integer zero of 0..15
  // the scale is 115/15.
  std::vector<float> w;
  for (int i = 0; i < 16; ++i) w.push_back(100.0f + static_cast<float>(i));
  for (const auto& options : {QuantizeOptions{}, absmax()}) {
    const auto q = quantize_ok(w, 1, "uint4-g16:f32:zfloat", options);
    EXPECT_EQ(scale(q), 1);
    EXPECT_EQ(load_as_f32(q.zeros.data(), DType::kF32, 0), -100);
    EXPECT_EQ(decoded(q), w);
  }
  EXPECT_NE(decoded(quantize_ok(w, 1, "uint4-g16:f32", absmax())), w);
}

TEST(QuantizeTest, Uint4AdditiveZeroIsTheMinimum) {
  std::vector<float> w;
  for (int i = 0; i < 16; ++i) w.push_back(100.0f + static_cast<float>(i));
  for (const auto& options : {QuantizeOptions{}, absmax()}) {
    const auto q = quantize_ok(w, 1, "uint4-g16:zadd", options);
    EXPECT_EQ(scale(q), 1);
    EXPECT_EQ(load_as_f32(q.zeros.data(), DType::kBF16, 0), 100);
    EXPECT_EQ(decoded(q), w);
  }
}

TEST(QuantizeTest, ConstantGroupsOfEveryZeroKindDecodeExactly) {
  for (const char* name : {"uint4-g16:f32", "uint4-g16:f32:zfloat", "uint4-g16:f32:zadd"}) {
    for (const float value : {0.75f, -0.75f}) {
      const std::vector<float> w(16, value * 15);
      EXPECT_EQ(decoded(quantize_ok(w, 1, name)), w) << name << " " << value;
    }
  }
}

TEST(QuantizeTest, AllZeroGroupsHaveScaleOneAndDecodeToZero) {
  for (const char* name : named_formats()) {
    const auto q = quantize_ok(std::vector<float>(4 * 256), 4, name);
    for (int64_t i = 0; i < 4 * q.format.groups(256); ++i) EXPECT_EQ(scale(q, i), 1) << name;
    for (const float x : decoded(q)) EXPECT_EQ(x, 0) << name;
  }
}

// -------------------------------------------------------------------------------- scales that end

TEST(QuantizeTest, ScalesThatUnderflowBecomeTheSmallestPositiveValue) {
  // 1e-7 / 7 is below half of f16's smallest value 2^-24.
  const auto f16 = quantize_ok(std::vector<float>(16, 1e-7f), 1, "int4-g16:f16", absmax());
  EXPECT_EQ(scale(f16), 0x1p-24f);
  EXPECT_EQ(f16.code(0, 0), 2);  // 1e-7 * 2^24 = 1.68
  const auto bf16 = quantize_ok(std::vector<float>(16, -0x1p-140f), 1, "int4-g16", absmax());
  EXPECT_EQ(scale(bf16), 0x1p-133f);
  EXPECT_EQ(bf16.decode(0, 0), 0);
  const auto f32 = quantize_ok(std::vector<float>(16, 0x1p-149f), 1, "int4-g16:f32");
  EXPECT_EQ(scale(f32), 0x1p-149f);
  EXPECT_EQ(f32.decode(0, 0), 0x1p-149f);
}

TEST(QuantizeTest, ScaleAboveF16IsRefusedWithItsPlace) {
  std::vector<float> w = gauss(3 * 64);
  w[64 + 37] = 65520.0f * 7;
  QuantizeOptions options;
  options.name = "layers.3.mlp.up_proj.weight";
  const auto q = quantize(view(w, 3, 64), format_of("int4-g32:f16"), options);
  ASSERT_FALSE(q.ok());
  EXPECT_EQ(q.status().code(), Code::kInvalidArgument);
  EXPECT_NE(q.status().message().find("layers.3.mlp.up_proj.weight: the scale of the group at "
                                      "[1, 32] is above f16's largest value 65504"),
            std::string::npos)
      << q.status().message();
  w[64 + 37] = 65519.0f * 7;  // rounds to 65504
  EXPECT_TRUE(quantize(view(w, 3, 64), format_of("int4-g32:f16"), options).ok());
  w[64 + 37] = 1e30f;
  EXPECT_TRUE(quantize(view(w, 3, 64), format_of("int4-g32"), options).ok());
}

TEST(QuantizeTest, AdditiveZeroBelowF16IsRefused) {
  std::vector<float> w(16, -65400.0f);
  EXPECT_TRUE(quantize(view(w, 1, 16), format_of("uint4-g16:f16:zadd")).ok());
  w[3] = -70000;
  const auto q = quantize(view(w, 1, 16), format_of("uint4-g16:f16:zadd"));
  ASSERT_FALSE(q.ok());
  EXPECT_NE(q.status().message().find("the zero of the group at [0, 0]"), std::string::npos);
}

// --------------------------------------------------------------------------------------- refusals

TEST(QuantizeTest, NanAndInfinityAreRefusedWithTensorNameAndIndex) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const char* format : {"int4-g128", "uint4-g32", "nvfp4", "mxfp4", "nf4-g64", "int8-channel",
                             "uint4-g128:zfloat"}) {
    for (const auto& [bad, text] :
         {std::pair{nan, "nan"}, {-nan, "nan"}, {infinity, "inf"}, {-infinity, "-inf"}}) {
      // Columns at the begin, in the middle and in the tail of a vector; two bad weights: the first
      // in row-major order is named.
      for (const int64_t column : {0, 17, 299, 300}) {
        std::vector<float> w = gauss(4 * 301);
        w[static_cast<size_t>(2 * 301 + column)] = bad;
        w[static_cast<size_t>(3 * 301)] = nan;
        QuantizeOptions options;
        options.name = "model.layers.0.q_proj.weight";
        const auto q = quantize(view(w, 4, 301), format_of(format), options);
        ASSERT_FALSE(q.ok()) << format;
        EXPECT_EQ(q.status().code(), Code::kInvalidArgument);
        const std::string want = "model.layers.0.q_proj.weight: weight [2, " +
                                 std::to_string(column) + "] (index " +
                                 std::to_string(602 + column) + ") is ";
        EXPECT_EQ(q.status().message().rfind(want, 0), 0u) << q.status().message();
        EXPECT_NE(q.status().message().find(text), std::string::npos) << q.status().message();
      }
    }
  }
}

TEST(QuantizeTest, NanAndInfinityOfHalfWidthWeightsAreRefused) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const uint16_t bad : dtype == DType::kF16
                                  ? std::vector<uint16_t>{0x7C00, 0xFC00, 0x7C01, 0xFE00}
                                  : std::vector<uint16_t>{0x7F80, 0xFF80, 0x7F81, 0xFFC0}) {
      std::vector<uint16_t> w(2 * 77, 0x3C00);
      w[100] = bad;
      const auto q = quantize({w.data(), dtype, {2, 77}}, format_of("int4-g32"));
      ASSERT_FALSE(q.ok());
      EXPECT_NE(q.status().message().find("(index 100)"), std::string::npos);
    }
  }
}

TEST(QuantizeTest, WrongRankDtypeAndFormatAreRefused) {
  const std::vector<float> w(64);
  EXPECT_FALSE(quantize({w.data(), DType::kF32, {64}}, format_of("nvfp4")).ok());
  EXPECT_FALSE(quantize({w.data(), DType::kF32, {4, 4, 4}}, format_of("nvfp4")).ok());
  EXPECT_FALSE(quantize({w.data(), DType::kF32, {0, 16}}, format_of("nvfp4")).ok());
  EXPECT_FALSE(quantize({w.data(), DType::kI32, {4, 16}}, format_of("nvfp4")).ok());
  EXPECT_FALSE(quantize({nullptr, DType::kF32, {4, 16}}, format_of("nvfp4")).ok());
  EXPECT_FALSE(
      quantize({w.data(), DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}, format_of("nvfp4"))
          .ok());
  Format impossible = format_of("int4-g128");
  impossible.group = 48;
  const auto q = quantize(view(w, 1, 64), impossible);
  ASSERT_FALSE(q.ok());
  EXPECT_NE(q.status().message().find("48"), std::string::npos);
}

// ------------------------------------------------------------------------------ shapes and sources

TEST(QuantizeTest, EveryShapeAndFormatIsValidAndNear) {
  for (const char* name : named_formats()) {
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 1},
                               {1, 2},
                               {3, 15},
                               {2, 16},
                               {5, 17},
                               {1, 129},
                               {2, 4303},
                               {2, 4304}}) {
      const auto w = gauss(n * k, 11);
      const auto q = quantize_ok(w, n, name);
      EXPECT_EQ(q.n, n);
      EXPECT_EQ(q.k, k);
      const auto error = relative_error(q, view(w, n, k));
      ASSERT_TRUE(error.ok());
      EXPECT_LT(*error, 0.16) << name << " " << n << "x" << k;
    }
  }
}

TEST(QuantizeTest, PaddingOfAnOddRowIsZero) {
  for (const char* name : {"int4-g16", "uint4-g16", "nvfp4", "mxfp4", "nf4-g64"}) {
    const auto q = quantize_ok(std::vector<float>(3 * 33, -1.0f), 3, name);
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_EQ(q.codes.data()[row * 17 + 16] >> 4, 0) << name;
    }
  }
}

TEST(QuantizeTest, HalfWidthSourcesGiveTheBitsOfTheirF32Values) {
  // Every finite f16 value, subnormals included, and as many bf16 values.
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<uint16_t> half;
    std::vector<float> wide;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float value = load_as_f32(&bits, dtype, 0);
      if (!std::isfinite(value)) continue;
      half.push_back(static_cast<uint16_t>(bits));
      wide.push_back(value);
    }
    const auto k = static_cast<int64_t>(half.size());
    for (const char* name : {"int4-g16:f32", "nvfp4", "mxfp4", "uint8-g32:f32:zadd"}) {
      const auto from_half = quantize({half.data(), dtype, {1, k}}, format_of(name));
      const auto from_wide = quantize(view(wide, 1, k), format_of(name));
      ASSERT_TRUE(from_half.ok() && from_wide.ok());
      EXPECT_TRUE(identical(*from_half, *from_wide)) << name;
    }
  }
}

TEST(QuantizeTest, UnalignedSourceIsRead) {
  const auto w = gauss(4 * 100);
  std::vector<uint8_t> bytes(w.size() * 4 + 1);
  std::memcpy(bytes.data() + 1, w.data(), w.size() * 4);
  const auto q = quantize({bytes.data() + 1, DType::kF32, {4, 100}}, format_of("nvfp4"));
  ASSERT_TRUE(q.ok());
  EXPECT_TRUE(identical(*q, quantize_ok(w, 4, "nvfp4")));
}

TEST(QuantizeTest, BitsDoNotDependOnTheThreadCount) {
  const int64_t n = 300, k = 1000;  // several bands
  const auto w = gauss(n * k, 21);
  for (const char* name : {"int4-g128", "nvfp4", "mxfp4", "uint4-g32", "int8-channel"}) {
    const auto alone = quantize_ok(w, n, name);
    const auto error = relative_error(alone, view(w, n, k));
    for (const int threads : {1, 2, 3, 5}) {
      const auto pool = make_thread_pool(threads);
      QuantizeOptions options;
      options.pool = pool.get();
      EXPECT_TRUE(identical(quantize_ok(w, n, name, options), alone)) << name << " " << threads;
      EXPECT_EQ(*relative_error(alone, view(w, n, k), pool.get()), *error);
    }
  }
}

TEST(QuantizeTest, TheFirstBadWeightIsNamedWhateverTheThreadCount) {
  const int64_t n = 400, k = 1000;
  auto w = gauss(n * k, 22);
  for (const size_t i : {399'999u, 250'001u, 123'456u}) w[i] = INFINITY;
  for (const int threads : {1, 2, 4}) {
    const auto pool = make_thread_pool(threads);
    QuantizeOptions options;
    options.pool = pool.get();
    for (const char* name : {"nvfp4", "int4-g128"}) {
      const auto q = quantize(view(w, n, k), format_of(name), options);
      ASSERT_FALSE(q.ok());
      EXPECT_NE(q.status().message().find("[123, 456] (index 123456)"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace nibble
