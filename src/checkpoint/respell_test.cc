#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>

#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

#define EXPECT_SAYS(status, text) \
  EXPECT_NE((status).message().find(text), std::string::npos) << (status).message()

QuantizedTensor weight(const std::string& format, int64_t n, int64_t k, uint32_t seed = 1) {
  return random_weight(Format::parse(format).value(), n, k, seed);
}

void fill_zeros(QuantizedTensor& q, uint8_t zero) {
  std::fill_n(q.zeros.mutable_data(), q.zeros.bytes(), zero);
}

std::vector<float> decoded(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, out.data());
  return out;
}

/// The conversion, which must decode to the same bits and have the given Format.
QuantizedTensor converted(const QuantizedTensor& q, const std::string& spelling,
                          const std::string& format) {
  const Result<QuantizedTensor> out = convert_exactly(q, spelling);
  EXPECT_TRUE(out.ok()) << out.status().message();
  if (!out.ok()) return {};
  EXPECT_EQ(out->format.name(), format);
  EXPECT_TRUE(out->validate().ok());
  EXPECT_TRUE(out->k_perm.empty());
  const std::vector<float> a = decoded(q), b = decoded(*out);
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
  return *out;
}

Status refused(const QuantizedTensor& q, const std::string& spelling) {
  const Result<QuantizedTensor> out = convert_exactly(q, spelling);
  EXPECT_EQ(out.status().code(), Code::kUnsupported);
  return out.status();
}

TEST(ConvertExactly, WhatTheSpellingHoldsIsShared) {
  const QuantizedTensor q = weight("int4-g32:f16", 6, 96);
  const QuantizedTensor out = converted(q, "compressed-tensors", "int4-g32:f16");
  EXPECT_TRUE(identical(q, out));
  EXPECT_EQ(out.codes.data(), q.codes.data());
  EXPECT_EQ(out.scales.data(), q.scales.data());
}

TEST(ConvertExactly, ZerosThatAreAllTheMiddleOneAreDropped) {
  for (const auto& [from, to, middle] :
       {std::tuple("uint4-g32:f16", "int4-g32:f16", 8), std::tuple("uint8-g32", "int8-g32", 128)}) {
    QuantizedTensor q = weight(from, 5, 96);
    fill_zeros(q, static_cast<uint8_t>(middle));
    converted(q, "compressed-tensors", to);
    q.zeros.mutable_data()[7] ^= 1;
    EXPECT_TRUE(identical(converted(q, "compressed-tensors", from), q));
    EXPECT_SAYS(refused(q, "gguf"), "zero points are not all " + std::to_string(middle));
  }
}

TEST(ConvertExactly, OddRowsOfCodesKeepTheirPadding) {
  QuantizedTensor q = weight("uint4-channel:f16", 3, 7);
  fill_zeros(q, 8);
  const QuantizedTensor out = converted(q, "compressed-tensors", "int4-channel:f16");
  for (int64_t row = 0; row < 3; ++row) EXPECT_EQ(out.codes.data()[4 * row + 3] >> 4, 0);
}

TEST(ConvertExactly, FloatZerosThatAreIntegersBecomeIntegers) {
  QuantizedTensor q = weight("uint4-g64:f16:zfloat", 4, 128);
  for (int64_t i = 0; i < 8; ++i) {
    store_from_f32(q.zeros.mutable_data(), DType::kF16, i, static_cast<float>(2 * i));
  }
  EXPECT_SAYS(refused(q, "gguf"), "not all 8");
  store_from_f32(q.zeros.mutable_data(), DType::kF16, 7, 15);
  converted(q, "compressed-tensors", "uint4-g64:f16");
  for (const float bad : {7.5f, -1.0f, 16.0f}) {
    store_from_f32(q.zeros.mutable_data(), DType::kF16, 3, bad);
    EXPECT_SAYS(refused(q, "compressed-tensors"), "not integers in the range");
  }
}

TEST(ConvertExactly, AdditiveZerosBecomeIntegersWhereEveryCodeAgrees) {
  QuantizedTensor q = weight("uint4-g32:f16:zadd", 2, 64);
  for (int64_t i = 0; i < 4; ++i) {
    const float scale = std::ldexp(1.0f, static_cast<int>(i) - 4);
    store_from_f32(q.scales.mutable_data(), DType::kF16, i, scale);
    store_from_f32(q.zeros.mutable_data(), DType::kF16, i, -scale * static_cast<float>(3 * i));
  }
  const QuantizedTensor out = converted(q, "compressed-tensors", "uint4-g32:f16");
  EXPECT_EQ(out.zeros.data()[3], 9);
  store_from_f32(q.zeros.mutable_data(), DType::kF16, 2, -0.3f);
  EXPECT_SAYS(refused(q, "compressed-tensors"), "q * s + b is no (q - z) * s");
}

TEST(ConvertExactly, GroupsAreSplitAndScalesStoredInAnotherTypeWhereItHasThem) {
  const QuantizedTensor q = weight("int4-g64:f16", 4, 128);
  converted(q, "gguf", "int4-g32:f16");
  converted(weight("int4-channel:f16", 4, 96), "gguf", "int4-g32:f16");
  EXPECT_SAYS(refused(weight("int4-g16:f16", 4, 96), "gguf"), "gguf has no exact form");
  EXPECT_SAYS(refused(weight("int4-channel:f16", 4, 80), "gguf"), "80 is not a multiple of 32");
  // bf16 has fewer digits than f16: scales of ordinary size are values of both.
  converted(weight("int4-g32", 4, 96), "gguf", "int4-g32:f16");
  QuantizedTensor small = weight("int4-g32", 4, 96);
  store_from_f32(small.scales.mutable_data(), DType::kBF16, 7, 1e-9f);
  const Status status = refused(small, "gguf");
  EXPECT_SAYS(status, "row 2, group 1 is no value of f16");
  converted(small, "modelopt", "int4-g32:f32");
}

TEST(ConvertExactly, ColumnsGoBackWhereGroupsAllowIt) {
  // A whole row is one group: any order will do.
  QuantizedTensor q = weight("int4-channel:f16", 3, 33);
  q.k_perm.resize(33);
  for (int32_t j = 0; j < 33; ++j) q.k_perm[static_cast<size_t>(j)] = j * 5 % 33;
  converted(q, "compressed-tensors", "int4-channel:f16");
  // Blocks of 16 columns that moved as a whole are groups of 16.
  q = weight("uint4-g32:f16", 4, 96);
  constexpr int32_t kBlocks[] = {5, 0, 3, 4, 1, 2};
  for (int32_t j = 0; j < 96; ++j) q.k_perm.push_back(16 * kBlocks[j / 16] + (j + 3) % 16);
  converted(q, "compressed-tensors", "uint4-g16:f16");
  std::swap(q.k_perm[0], q.k_perm[40]);
  EXPECT_SAYS(refused(q, "compressed-tensors"), "act-order scatters");
  q = weight("int8-g32:f32", 2, 64);
  for (int32_t j = 0; j < 64; ++j) q.k_perm.push_back(63 - j);
  converted(q, "compressed-tensors", "int8-g32:f32");
}

TEST(ConvertExactly, TensorScaleChangesItsOperationOnlyWhereEveryProductIsTheSame) {
  int exact = 0, lossy = 0;
  for (uint32_t seed = 0; seed < 60; ++seed) {
    QuantizedTensor q = weight("nvfp4", 8, 64, seed);
    q.tensor_scales = {{0, 0.001f + 0.0173f * static_cast<float>(seed)}};
    q.tensor_scale_op = seed % 2 == 0 ? TensorScaleOp::kMultiply : TensorScaleOp::kDivide;
    const std::string other = seed % 2 == 0 ? "compressed-tensors" : "modelopt";
    const std::string same = seed % 2 == 0 ? "modelopt" : "compressed-tensors";
    EXPECT_TRUE(identical(converted(q, same, "nvfp4"), q));
    const Result<QuantizedTensor> out = convert_exactly(q, other);
    if (!out.ok()) {
      ++lossy;
      EXPECT_SAYS(out.status(), "near its reciprocal");
      continue;
    }
    ++exact;
    EXPECT_NE(out->tensor_scale_op, q.tensor_scale_op);
    const std::vector<float> a = decoded(q), b = decoded(*out);
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
  }
  EXPECT_GT(exact, 0);
  EXPECT_GT(lossy, 0);
}

TEST(ConvertExactly, APowerOfTwoAlwaysChangesItsOperation) {
  QuantizedTensor q = weight("nvfp4", 8, 64);
  q.tensor_scales = {{0, 0.03125f}};
  q.tensor_scale_op = TensorScaleOp::kMultiply;
  const QuantizedTensor out = converted(q, "compressed-tensors", "nvfp4");
  EXPECT_EQ(out.tensor_scales, (std::vector<TensorScale>{{0, 32.0f}}));
  q.tensor_scales.clear();
  EXPECT_EQ(converted(q, "modelopt", "nvfp4").tensor_scales, (std::vector<TensorScale>{{0, 1.0f}}));
}

TEST(ConvertExactly, SeveralTensorScalesAreOneWhereTheyAreEqual) {
  QuantizedTensor q = weight("nvfp4", 8, 64);
  q.tensor_scales = {{0, 3.0f}, {4, 3.0f}};
  EXPECT_EQ(converted(q, "compressed-tensors", "nvfp4").tensor_scales.size(), 1u);
  q.tensor_scales[1].value = 5.0f;
  EXPECT_SAYS(refused(q, "compressed-tensors"), "2 different tensor scales");
}

TEST(ConvertExactly, TensorScalesOfIntegersGoIntoTheScales) {
  QuantizedTensor q = weight("int4-g32:f16", 4, 64);
  q.tensor_scales = {{0, 0.3f}, {2, 0.7f}};
  converted(q, "compressed-tensors", "int4-g32:f32");
}

TEST(ConvertExactly, PreScaleIsKeptOrRefusedAndOnesMeanNone) {
  QuantizedTensor q = weight("int4-g32:f32", 4, 64);
  q.pre_scale.assign(64, 1.0f);
  EXPECT_TRUE(converted(q, "compressed-tensors", "int4-g32:f32").pre_scale.empty());
  q.pre_scale[9] = 0.5f;
  EXPECT_SAYS(refused(q, "compressed-tensors"), "no place for its pre_scale");
  EXPECT_SAYS(refused(q, "gguf"), "no place for its pre_scale");
  EXPECT_EQ(converted(q, "modelopt", "int4-g32:f32").pre_scale, q.pre_scale);
}

TEST(ConvertExactly, WhatHasNoFormIsRefused) {
  EXPECT_SAYS(refused(weight("nf4-g64", 4, 64), "compressed-tensors"),
              "compressed-tensors has no exact form for nf4-g64");
  EXPECT_SAYS(refused(weight("mxfp4", 4, 48), "modelopt"), "48 is not a multiple of 32");
  EXPECT_SAYS(refused(weight("int4-g32:f16", 3, 64), "modelopt"), "n = 3 is odd");
  EXPECT_SAYS(refused(weight("nvfp4", 4, 64), "gguf"), "gguf has no exact form for nvfp4");
  EXPECT_EQ(convert_exactly(weight("mxfp4", 4, 64), "gptq").status().code(),
            Code::kInvalidArgument);
}

TEST(ConvertExactly, PowersOfTwoAreExponents) {
  QuantizedTensor q = weight("fp4-g32", 4, 64);
  for (int64_t i = 0; i < 8; ++i) {
    store_from_f32(q.scales.mutable_data(), DType::kF32, i,
                   std::ldexp(1.0f, static_cast<int>(i) * 30 - 126));
  }
  converted(q, "gguf", "mxfp4");
  store_from_f32(q.scales.mutable_data(), DType::kF32, 0, -1.0f);
  EXPECT_SAYS(refused(q, "gguf"), "is no value of e8m0");
}

TEST(ConvertExactly, ThreadsChangeNothing) {
  const auto pool = make_thread_pool(3);
  QuantizedTensor q = weight("uint4-g128:f16", 300, 2048);
  fill_zeros(q, 8);
  const QuantizedTensor alone = converted(q, "gguf", "int4-g32:f16");
  EXPECT_TRUE(identical(convert_exactly(q, "gguf", pool.get()).value(), alone));
}

}  // namespace
}  // namespace nibble::checkpoint
