#include <gtest/gtest.h>

#include <cmath>

#include "nibble/core.h"

namespace nibble {
namespace {

QuantizedTensor small(const char* format, int64_t n, int64_t k) {
  QuantizedTensor q = *make_quantized_tensor(*Format::parse(format), n, k);
  for (int64_t i = 0; i < n * q.format.groups(k); ++i) {
    if (q.format.scale == DType::kE8M0) {
      q.scales.mutable_data()[i] = 127;
    } else {
      store_from_f32(q.scales.mutable_data(), q.format.scale, i, 1.0f);
    }
  }
  return q;
}

TEST(QuantizedTensorTest, CodesAreLowBitsFirstAlongK) {
  QuantizedTensor q = small("int4-g16", 2, 3);
  q.codes.mutable_data()[0] = 0x21;
  q.codes.mutable_data()[1] = 0x0F;
  q.codes.mutable_data()[2] = 0x98;
  float out[6];
  q.dequantize(0, 2, out);
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[1], 2);
  EXPECT_EQ(out[2], -1);
  EXPECT_EQ(out[3], -8);
  EXPECT_EQ(out[4], -7);
}

TEST(QuantizedTensorTest, ZeroKindsDecodeInTheirOwnOrder) {
  for (const char* name : {"uint4-g16", "uint4-g16:f32:zfloat", "uint4-g16:f32:zadd"}) {
    QuantizedTensor q = small(name, 1, 2);
    q.codes.mutable_data()[0] = 0x95;
    store_from_f32(q.scales.mutable_data(), q.format.scale, 0, 0.5f);
    if (q.format.zero == ZeroKind::kInteger) {
      q.zeros.mutable_data()[0] = 7;
    } else {
      store_from_f32(q.zeros.mutable_data(), DType::kF32, 0, 7.25f);
    }
    float out[2];
    q.dequantize(0, 1, out);
    switch (q.format.zero) {
      case ZeroKind::kInteger:
        EXPECT_EQ(out[0], (5 - 7) * 0.5f);
        break;
      case ZeroKind::kFloatCode:
        EXPECT_EQ(out[0], (5 - 7.25f) * 0.5f);
        break;
      case ZeroKind::kAdditive:
        EXPECT_EQ(out[0], 5 * 0.5f + 7.25f);
        break;
      case ZeroKind::kNone:
        FAIL();
    }
  }
}

TEST(QuantizedTensorTest, DividingByATensorScaleIsNotMultiplyingByItsInverse) {
  QuantizedTensor q = small("nvfp4", 2, 16);
  q.codes.mutable_data()[0] = 0x02;  // 1.0
  q.codes.mutable_data()[8] = 0x02;
  store_from_f32(q.scales.mutable_data(), DType::kE4M3, 0, 1.125f);
  store_from_f32(q.scales.mutable_data(), DType::kE4M3, 1, 1.125f);
  int different = 0;
  for (int i = 3; i < 200; ++i) {
    const float g = static_cast<float>(i);
    q.tensor_scales = {{0, g}};
    q.tensor_scale_op = TensorScaleOp::kDivide;
    EXPECT_EQ(q.decode(0, 0), 1.125f / g);
    different += q.decode(0, 0) != 1.125f * (1.0f / g) ? 1 : 0;
    q.tensor_scale_op = TensorScaleOp::kMultiply;
    EXPECT_EQ(q.decode(1, 0), 1.125f * g);
  }
  EXPECT_GT(different, 10);
}

TEST(QuantizedTensorTest, TensorScaleSegmentsApplyToTheirRows) {
  QuantizedTensor q = small("nvfp4", 3, 16);
  for (int row = 0; row < 3; ++row) q.codes.mutable_data()[8 * row] = 0x02;
  q.tensor_scales = {{0, 2.0f}, {2, 8.0f}};
  ASSERT_TRUE(q.validate().ok()) << q.validate().message();
  EXPECT_EQ(q.decode(0, 0), 2.0f);
  EXPECT_EQ(q.decode(1, 0), 2.0f);
  EXPECT_EQ(q.decode(2, 0), 8.0f);
}

TEST(QuantizedTensorTest, PermutationReturnsColumnsToTheirPlaces) {
  QuantizedTensor q = small("int4-g16", 1, 4);
  q.codes.mutable_data()[0] = 0x21;
  q.codes.mutable_data()[1] = 0x43;
  q.k_perm = {2, 0, 3, 1};
  float out[4];
  q.dequantize(0, 1, out);
  EXPECT_EQ(out[2], 1);
  EXPECT_EQ(out[0], 2);
  EXPECT_EQ(out[3], 3);
  EXPECT_EQ(out[1], 4);
}

TEST(QuantizedTensorTest, ShortLastGroupHasItsOwnScale) {
  QuantizedTensor q = small("int4-g16:f32", 1, 18);
  EXPECT_EQ(q.format.groups(18), 2);
  q.codes.mutable_data()[8] = 0x03;
  store_from_f32(q.scales.mutable_data(), DType::kF32, 1, 4.0f);
  EXPECT_EQ(q.decode(0, 16), 12.0f);
}

TEST(QuantizedTensorTest, ValidateNamesTheValueAndTheRule) {
  const auto message = [](QuantizedTensor q) {
    const Status status = q.validate();
    EXPECT_EQ(status.code(),
              status.code() == Code::kUnsupported ? Code::kUnsupported : Code::kInvalidArgument);
    return status.message();
  };
  QuantizedTensor q = small("uint4-g32", 2, 64);
  EXPECT_TRUE(q.validate().ok()) << q.validate().message();
  QuantizedTensor wrong = q;
  wrong.codes = wrong.codes.slice(0, 63);
  EXPECT_NE(message(wrong).find("codes holds 63 bytes, the rule says 64"), std::string::npos);
  wrong = q;
  wrong.zeros = {};
  EXPECT_NE(message(wrong).find("zeros holds 0 bytes"), std::string::npos);
  wrong = q;
  wrong.k_perm.assign(64, 0);
  EXPECT_NE(message(wrong).find("k_perm[1] = 0"), std::string::npos);
  wrong = q;
  wrong.pre_scale.assign(3, 1.0f);
  EXPECT_NE(message(wrong).find("pre_scale has 3"), std::string::npos);
  wrong = small("uint4-g32", 2, 64);
  store_from_f32(wrong.scales.mutable_data(), DType::kBF16, 3, NAN);
  EXPECT_NE(message(wrong).find("row 1, group 1 is not finite"), std::string::npos);
  wrong = small("mxfp4", 40, 64);
  wrong.scales.mutable_data()[79] = 0xFF;
  EXPECT_NE(message(wrong).find("row 39, group 1 is not finite"), std::string::npos);
  wrong = small("int4-g32", 2, 3);
  wrong.codes.mutable_data()[3] = 0x10;
  EXPECT_NE(message(wrong).find("row 1 has bits past its last column"), std::string::npos);
  wrong = small("nvfp4", 2, 32);
  wrong.tensor_scales = {{0, 1.0f}, {0, 2.0f}};
  EXPECT_NE(message(wrong).find("rising order"), std::string::npos);
  wrong = small("uint4-g32:f32:zadd", 2, 32);
  wrong.tensor_scales = {{0, 1.0f}};
  EXPECT_NE(message(wrong).find("additive zero"), std::string::npos);
}

TEST(QuantizedTensorTest, SizesThatOverflowAreRefused) {
  EXPECT_FALSE(make_quantized_tensor(*Format::parse("int8-g16"), INT64_MAX / 2, 1 << 20).ok());
  EXPECT_FALSE(make_quantized_tensor(*Format::parse("int8-g16"), 1, INT64_MAX).ok());
  EXPECT_FALSE(make_quantized_tensor(*Format::parse("int8-g16"), 0, 16).ok());
}

}  // namespace
}  // namespace nibble
