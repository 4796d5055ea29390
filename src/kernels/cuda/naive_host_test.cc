// The device functions, compiled for the host.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kernels/cuda/naive.cuh"
#include "kernels/table.h"
#include "nibble/pack.h"
#include "nibble/plan.h"

namespace nibble {
namespace {

void expect_same(float a, float b, uint32_t pattern) {
  if (std::isnan(b)) {
    EXPECT_TRUE(std::isnan(a)) << pattern;
  } else {
    ASSERT_EQ(bits_of_float(a), bits_of_float(b)) << pattern;
  }
}

TEST(CudaDequantTest, EveryPatternDecodesAsCoreSays) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto pattern = static_cast<uint16_t>(bits);
    expect_same(decode_f16(pattern), f16_to_f32(pattern), bits);
    expect_same(decode_bf16(pattern), bf16_to_f32(pattern), bits);
  }
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const auto pattern = static_cast<uint8_t>(bits);
    expect_same(decode_e4m3(pattern), e4m3_to_f32(pattern), bits);
    expect_same(decode_e8m0(pattern), e8m0_to_f32(pattern), bits);
    for (const Element element : {Element::kInt8, Element::kUint8}) {
      EXPECT_EQ(decode_code(element, pattern, nullptr), decode_element(element, pattern, nullptr));
    }
  }
  for (uint8_t code = 0; code < 16; ++code) {
    for (const Element element : {Element::kInt4, Element::kUint4, Element::kE2M1, Element::kNF4}) {
      expect_same(decode_code(element, code, kNf4Codebook.data()),
                  decode_element(element, code, kNf4Codebook.data()), code);
    }
  }
}

TEST(CudaDequantTest, RoundingAgreesWithCore) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000000; ++i) {
    float value = float_of_bits(static_cast<uint32_t>(random()));
    if (i % 2 == 0)
      value = std::ldexp(std::fmod(value, 2.0f), static_cast<int>(random() % 44) - 28);
    if (std::isnan(value)) continue;
    ASSERT_EQ(round_to_f16(value), f32_to_f16(value)) << value;
    ASSERT_EQ(round_to_bf16(value), f32_to_bf16(value)) << value;
  }
  for (const float value : {0.0f, -0.0f, 0x1p-24f, 0x1p-25f, 0x1.8p-25f, 65504.0f, 65519.0f,
                            65520.0f, INFINITY, -INFINITY}) {
    EXPECT_EQ(round_to_f16(value), f32_to_f16(value)) << value;
  }
}

/// Powers of two as scales and small integers as x: every order of summation gives the same bits.
TEST(CudaNaiveTest, MultipliesEveryFormatExactlyOnExactData) {
  std::mt19937 random(2);
  for (const char* name :
       {"int4-g128", "int4-channel", "uint4-g32", "uint4-g32:f16:zfloat", "uint4-g64:f32:zadd",
        "nvfp4", "mxfp4", "fp4-g32", "nf4-g64", "int8-g16", "uint8-g64:f16"}) {
    const int64_t n = 7, k = 165, m = 3;
    QuantizedTensor q = *make_quantized_tensor(*Format::parse(name), n, k);
    for (int64_t i = 0; i < q.codes.bytes(); ++i)
      q.codes.mutable_data()[i] = static_cast<uint8_t>(random());
    if (q.format.bits() == 4) {
      for (int64_t r = 1; r <= n; ++r)
        q.codes.mutable_data()[r * q.format.code_row_bytes(k) - 1] &= 15;
    }
    for (int64_t i = 0; i < n * q.format.groups(k); ++i) {
      if (q.format.scale == DType::kE8M0) {
        q.scales.mutable_data()[i] = static_cast<uint8_t>(126 + random() % 3);
      } else {
        store_from_f32(q.scales.mutable_data(), q.format.scale, i, random() % 2 == 0 ? 0.5f : 2.0f);
      }
      if (q.format.zero == ZeroKind::kInteger)
        q.zeros.mutable_data()[i] = static_cast<uint8_t>(random() % 16);
      if (q.format.zero == ZeroKind::kFloatCode || q.format.zero == ZeroKind::kAdditive) {
        store_from_f32(q.zeros.mutable_data(), q.format.scale, i,
                       static_cast<float>(random() % 16) * 0.5f);
      }
    }
    if (q.format.element == Element::kNF4) {
      for (size_t i = 0; i < 16; ++i) q.codebook[i] = static_cast<float>(i) * 0.25f - 2;  // dyadic
    }
    q.tensor_scales = q.format.zero == ZeroKind::kAdditive
                          ? std::vector<TensorScale>{}
                          : std::vector<TensorScale>{{0, 0.5f}, {3, 4.0f}};
    q.tensor_scale_op = TensorScaleOp::kDivide;
    for (int32_t j = 0; j < k; ++j) {
      q.k_perm.push_back(static_cast<int32_t>((j * 7) % k));
      q.pre_scale.push_back(j % 2 == 0 ? 1.0f : 2.0f);
    }
    const PackedWeight packed = *pack(q, {LayoutId::kRowMajor, false});

    std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n), NAN),
        decoded(static_cast<size_t>(n * k));
    for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 5) - 2);
    NaiveArgs args{};
    args.matmul.x = x.data();
    args.matmul.x_stride_bytes = k * 4;
    args.matmul.k_perm = reinterpret_cast<const int32_t*>(packed.section(SectionId::kKPerm));
    args.matmul.pre_scale = reinterpret_cast<const float*>(packed.section(SectionId::kPreScale));
    args.matmul.y = y.data();
    args.matmul.y_stride_bytes = n * 4;
    args.matmul.m = m;
    args.matmul.epilogue.alpha = 1;
    WeightArgs& w = args.matmul.w;
    w.codes = packed.section(SectionId::kCodes);
    w.scales = packed.section(SectionId::kScales);
    w.zeros = packed.section(SectionId::kZeros);
    w.row_scale = reinterpret_cast<const float*>(packed.section(SectionId::kRowScale));
    w.element = q.format.element;
    w.scale_dtype = q.format.scale;
    w.zero_kind = q.format.zero;
    w.row_scale_op = q.tensor_scale_op;
    w.group = q.format.group_columns(k);
    w.num_groups = packed.info.num_groups;
    w.n = n;
    w.k = k;
    for (size_t i = 0; i < 16; ++i) args.codebook[i] = q.codebook[i];
    q.dequantize(0, n, decoded.data());
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        naive_output(args, i, j);
        double sum = 0;
        for (int64_t c = 0; c < k; ++c) {
          const auto at = static_cast<size_t>(c);
          sum += static_cast<double>(x[static_cast<size_t>(i * k) + at]) *
                 static_cast<double>(q.pre_scale[at]) *
                 static_cast<double>(decoded[static_cast<size_t>(j * k) + at]);
        }
        ASSERT_EQ(static_cast<double>(y[static_cast<size_t>(i * n + j)]), sum)
            << name << " " << i << " " << j;
      }
    }
  }
}

TEST(CudaNaiveTest, IsPlannedForDescribedGpus) {
  if (cuda_kernels().empty()) GTEST_SKIP() << "this build has no CUDA rows";
  for (const char* device : {"h200", "thor", "orin", "rtx4090"}) {
    for (const char* format : named_formats()) {
      const auto weight =
          described_weight(*Format::parse(format), 64, 4304, {LayoutId::kRowMajor, false});
      const auto made = plan({5, 64, 4304}, *weight, *Device::named(device));
      ASSERT_TRUE(made.ok()) << device << " " << format << ": " << made.status().message();
      EXPECT_EQ(made->workspace_bytes, 0);
    }
  }
  Device pascal = *Device::named("h200");
  pascal.sm = 61;
  const auto weight =
      described_weight(*Format::parse("nvfp4"), 64, 64, {LayoutId::kRowMajor, false});
  EXPECT_NE(plan({1, 64, 64}, *weight, pascal).status().message().find("is sm_61"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
