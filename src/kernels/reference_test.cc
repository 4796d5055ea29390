// The oracle against the specification (`dequantize`) and against sums worked out by hand.
#include "kernels/reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace nibble {
namespace {

constexpr Numerics kGroupSums{};  // FP32 weights, exact x, scale on the group's sum

QuantizedTensor make(const char* format, int64_t n, int64_t k) {
  auto q = make_quantized_tensor(*Format::parse(format), n, k);
  EXPECT_TRUE(q.ok()) << q.status().message();
  uint8_t* codes = q->codes.mutable_data();
  for (int64_t i = 0; i < q->codes.bytes(); ++i) codes[i] = static_cast<uint8_t>(i * 37 + 11);
  const int64_t groups = n * q->format.groups(k);
  for (int64_t i = 0; i < groups; ++i) {
    const float scale = 0.01f * static_cast<float>(i % 13 + 1);
    if (q->format.scale == DType::kE8M0) {
      q->scales.mutable_data()[i] = static_cast<uint8_t>(120 + i % 9);
    } else {
      store_from_f32(q->scales.mutable_data(), q->format.scale, i, scale);
    }
    if (q->format.zero == ZeroKind::kInteger) {
      q->zeros.mutable_data()[i] = static_cast<uint8_t>(i % 16);
    } else if (q->format.zero != ZeroKind::kNone) {
      store_from_f32(q->zeros.mutable_data(), q->format.scale, i, 0.3f * static_cast<float>(i % 7));
    }
  }
  return std::move(q).value();
}

TEST(ReferenceWeight, IsTheSpecificationUpToItsRounding) {
  for (const char* name : {"int4-g32", "uint4-g16", "uint4-g64:f16:zfloat", "uint4-g32:f32:zadd",
                           "int8-channel", "uint8-g128", "nvfp4", "mxfp4", "fp4-g32", "nf4-g64"}) {
    QuantizedTensor q = make(name, 5, 74);
    if (q.format.zero != ZeroKind::kAdditive) q.tensor_scales = {{0, 0.37f}, {2, 1.9f}};
    for (const TensorScaleOp op : {TensorScaleOp::kMultiply, TensorScaleOp::kDivide}) {
      q.tensor_scale_op = op;
      const ReferenceWeight w = reference_weight(q, kGroupSums);
      std::vector<float> specified(5 * 74);
      q.dequantize(0, 5, specified.data());
      for (size_t i = 0; i < specified.size(); ++i) {
        const double want = static_cast<double>(specified[i]);
        // `dequantize` rounds up to three times, the group sum not at all; b of q*s + b may cancel.
        EXPECT_NEAR(w.values[i], want, 4 * 0x1p-24 * (std::fabs(want) + 2)) << name << " " << i;
      }
    }
  }
}

TEST(ReferenceWeight, RoundsToTheTypeThatARowDeclares) {
  QuantizedTensor q = make("int4-g32:f32", 3, 64);
  Numerics numerics;
  numerics.scale_applied_at = ScaleAt::kWeight;
  numerics.w_rounds_to = DType::kBF16;
  const ReferenceWeight w = reference_weight(q, numerics);
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t j = 0; j < 64; ++j) {
      const double want = static_cast<double>(bf16_to_f32(f32_to_bf16(q.decode(n, j))));
      EXPECT_EQ(w.values[static_cast<size_t>(n * 64 + j)], want);
    }
  }
  // On the group's sum, the integer codes are exact in BF16 and the scale is not rounded.
  numerics.scale_applied_at = ScaleAt::kGroupSum;
  const ReferenceWeight exact = reference_weight(q, numerics);
  const double scale = static_cast<double>(load_as_f32(q.scales.data(), DType::kF32, 0));
  const int code = q.code(0, 1);
  EXPECT_EQ(exact.values[1], (code < 8 ? code : code - 16) * scale);
}

TEST(ReferenceX, GathersThenScalesThenQuantizes) {
  QuantizedTensor q = make("int4-g32", 1, 34);
  for (int32_t j = 0; j < 34; ++j) q.k_perm.push_back(33 - j);
  q.pre_scale.assign(34, 1);
  q.pre_scale[33] = 0.5f;
  std::vector<float> x(34);
  for (size_t j = 0; j < 34; ++j) x[j] = static_cast<float>(j);
  const MatrixView view = {x.data(), DType::kF32, 1, 34, 34 * 4};
  const std::vector<double> exact = reference_x(q, view, kGroupSums);
  EXPECT_EQ(exact[0], 16.5);
  EXPECT_EQ(exact[33], 0);
  Numerics numerics;
  numerics.x_quant = Compute::kInt8;
  const std::vector<double> rounded = reference_x(q, view, numerics);
  // The first block holds 16.5, 32, 31, …, 2, the second 1 and 0: a scale each.
  const auto scale = static_cast<double>(32.0f / 127.0f);
  EXPECT_EQ(rounded[0], 65 * scale);  // 16.5 * 127 / 32 = 65.48
  EXPECT_EQ(rounded[1], 127 * scale);
  EXPECT_EQ(rounded[32], 127 * static_cast<double>(1.0f / 127.0f));
  EXPECT_EQ(rounded[33], 0);
}

TEST(ReferenceSums, ComeWithTheirTolerance) {
  ReferenceWeight w;
  w.n = 1;
  w.k = 4;
  w.values = {1, -2, 3, 0.5};
  w.scale_sums = {0};
  const auto sums = reference_sums(w, {2, 1, -1, 4}, kGroupSums);
  ASSERT_EQ(sums.size(), 1u);
  EXPECT_EQ(sums[0].value, 2 - 2 - 3 + 2);
  EXPECT_EQ(sums[0].squares, 4 + 4 + 9 + 4);
  EXPECT_EQ(sums[0].magnitude, 9);
  const double want = 4 * 0x1p-24 * (2 * std::sqrt(21.0) + 9.0 / 8);
  EXPECT_NEAR(sums[0].tolerance, want, 1e-12 * want);
}

TEST(ReferenceSums, CountAZeroPointApart) {
  QuantizedTensor q = make("uint4-g16:f32", 1, 16);
  std::memset(q.codes.mutable_data(), 0x77, 8);  // q = z = 7: the weight is 0, its parts are not
  q.zeros.mutable_data()[0] = 7;
  const auto sums =
      reference_sums(reference_weight(q, kGroupSums), std::vector<double>(16, 1.0), kGroupSums);
  EXPECT_EQ(sums[0].value, 0);
  const double scale = static_cast<double>(load_as_f32(q.scales.data(), DType::kF32, 0));
  EXPECT_NEAR(sums[0].magnitude, 16 * 14 * scale, 1e-9);
}

TEST(ReferenceOutputs, FollowTheEpilogueInOrder) {
  std::vector<ReferenceSum> sums(4);
  for (size_t i = 0; i < 4; ++i) sums[i] = {static_cast<double>(i) - 1, 0, 0, 1e-6};
  const float bias[4] = {1, 2, 3, 4}, c[2] = {10, 20}, residual[2] = {100, 200};
  const EpilogueArgs epilogue = {2, -1, c, 8, residual, 8, bias, DType::kF32, Activation::kRelu};
  // Gate 2 * -1 + 1 = -1 → 0, 2 * 0 + 2 = 2; up 2 * 1 + 3 = 5, 2 * 2 + 4 = 8.
  const auto out = reference_outputs(sums, {1, 4, true, DType::kF32}, epilogue);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].value, 0 - 10 + 100);
  EXPECT_EQ(out[1].value, 2 * 8 - 20 + 200);
  // The gate's error of 2e-6 counts 8 times, the up's twice.
  EXPECT_GT(out[1].tolerance, 2e-6 * (8 + 2));
  EXPECT_LT(out[1].tolerance, 2e-6 * (8 + 2) + 1e-4);
}

}  // namespace
}  // namespace nibble
