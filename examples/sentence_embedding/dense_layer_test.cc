#include "dense_layer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "nibble/quantize.h"

namespace sentence_embedding {
namespace {

using nibble::Activation;
using nibble::Isa;

std::vector<Isa> isas_here() {
  std::vector<Isa> out;
  for (int i = 0; i < nibble::kNumIsas; ++i) {
    if (nibble::Device::this_cpu().has(static_cast<Isa>(i))) out.push_back(static_cast<Isa>(i));
  }
  return out;
}

/// Small integers: every sum is exact in FP32, whatever its order.
std::vector<float> integers(int64_t count, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::uniform_int_distribution<int> value(-8, 8);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = static_cast<float>(value(random));
  return out;
}

std::vector<float> normals(int64_t count, int seed, float deviation) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::normal_distribution<float> value(0, deviation);
  std::vector<float> out(static_cast<size_t>(count));
  for (float& v : out) v = value(random);
  return out;
}

TEST(F32Dense, IsExactOnIntegersForEveryShapeIsaAndThreadCount) {
  for (const Isa isa : isas_here()) {
    for (const int threads : {1, 3}) {
      const auto pool = nibble::make_thread_pool(threads);
      for (const int64_t n : {1, 15, 16, 33}) {
        for (const int64_t k : {1, 7, 64}) {
          const auto weight = integers(n * k, 1), bias = integers(n, 2);
          const F32Dense layer(weight, bias, isa);
          for (int64_t m = 0; m <= 26; ++m) {
            const auto x = integers(m * k, 3), residual = integers(m * n, 4);
            constexpr float kGuard = 12345;
            std::vector<float> y(static_cast<size_t>(m * n + 16), kGuard);
            ASSERT_TRUE(
                layer.run({x.data(), y.data(), m, Activation::kNone, residual.data()}, *pool).ok());
            for (int64_t row = 0; row < m; ++row) {
              for (int64_t col = 0; col < n; ++col) {
                const auto at = static_cast<size_t>(row * n + col);
                float want = bias[static_cast<size_t>(col)] + residual[at];
                for (int64_t i = 0; i < k; ++i) {
                  want += x[static_cast<size_t>(row * k + i)] *
                          weight[static_cast<size_t>(col * k + i)];
                }
                ASSERT_EQ(y[at], want) << nibble::isa_name(isa) << " m " << m << " n " << n << " k "
                                       << k << " row " << row << " col " << col;
              }
            }
            for (size_t i = static_cast<size_t>(m * n); i < y.size(); ++i) {
              ASSERT_EQ(y[i], kGuard) << "written past the end";
            }
          }
        }
      }
    }
  }
}

TEST(F32Dense, AppliesTheActivationBeforeTheResidual) {
  const std::vector<float> weight = {1}, bias = {-3}, x = {1}, residual = {10};
  const auto pool = nibble::make_thread_pool(1);
  float y = 0;
  const F32Dense layer(weight, bias);
  ASSERT_TRUE(layer.run({x.data(), &y, 1, Activation::kGeluErf, residual.data()}, *pool).ok());
  EXPECT_NEAR(y, 10 + nibble::activate(Activation::kGeluErf, -2), 1e-6);
}

TEST(F32Dense, RefusesActivationsItDoesNotHave) {
  const std::vector<float> one = {1};
  const auto pool = nibble::make_thread_pool(1);
  float y = 0;
  const auto status = F32Dense(one, one).run({one.data(), &y, 1, Activation::kSilu}, *pool);
  EXPECT_EQ(status.code(), nibble::Code::kUnsupported);
}

TEST(GeluErf, FollowsTheDoublePrecisionActivationOnEveryIsa) {
  std::vector<float> x;
  for (int i = -120'000; i <= 120'000; ++i) x.push_back(static_cast<float>(i) * 1e-4f);
  for (const float far : {-1e30f, -88.0f, 88.0f, 1e30f}) x.push_back(far);
  for (const Isa isa : isas_here()) {
    std::vector<float> y = x;
    gelu_erf(y, isa);
    for (size_t i = 0; i < x.size(); ++i) {
      const auto value = static_cast<double>(x[i]);
      // erfc of the largest argument is 1.5e-8, not 0: that is all that is left of -1e30.
      ASSERT_NEAR(static_cast<double>(y[i]), nibble::activate(Activation::kGeluErf, value),
                  2e-7 * std::max(1.0, std::fabs(value)))
          << nibble::isa_name(isa) << " x " << value;
    }
  }
}

TEST(FourBitDense, AgreesWithFp32OnTheDequantizedWeight) {
  constexpr int64_t kN = 48, kK = 256, kM = 5;
  const auto pool = nibble::make_thread_pool(2);
  const auto weight = normals(kN * kK, 5, 0.05f), bias = normals(kN, 6, 1);
  const auto x = normals(kM * kK, 7, 1), residual = normals(kM * kN, 8, 1);
  for (const char* name : {"int4-g128", "nvfp4"}) {
    const auto format = nibble::Format::parse(name);
    ASSERT_TRUE(format.ok());
    const auto quantized =
        nibble::quantize({weight.data(), nibble::DType::kF32, {kN, kK}}, *format);
    ASSERT_TRUE(quantized.ok()) << quantized.status().message();
    std::vector<float> decoded(weight.size());
    quantized->dequantize(0, kN, decoded.data());
    const auto four_bit = FourBitDense::create(*quantized, bias, {});
    ASSERT_TRUE(four_bit.ok()) << four_bit.status().message();
    for (const Activation activation : {Activation::kNone, Activation::kGeluErf}) {
      std::vector<float> got(kM * kN), want(kM * kN);
      const float* add = activation == Activation::kNone ? residual.data() : nullptr;
      const auto status = (*four_bit)->run({x.data(), got.data(), kM, activation, add}, *pool);
      ASSERT_TRUE(status.ok()) << status.message();
      ASSERT_TRUE(
          F32Dense(decoded, bias).run({x.data(), want.data(), kM, activation, add}, *pool).ok());
      for (size_t i = 0; i < got.size(); ++i) {
        // 256 products of about 0.05: sums near 1, so 1e-5 is a hundred roundings.
        ASSERT_NEAR(got[i], want[i], 1e-5f) << name << " at " << i;
      }
    }
  }
}

TEST(FourBitDense, RefusesABiasOfAnotherLength) {
  const auto weight = normals(16 * 128, 5, 1);
  const auto quantized = nibble::quantize({weight.data(), nibble::DType::kF32, {16, 128}},
                                          *nibble::Format::parse("int4-g128"));
  ASSERT_TRUE(quantized.ok());
  const auto made = FourBitDense::create(*quantized, std::vector<float>(15), {});
  EXPECT_NE(made.status().message().find("15"), std::string::npos);
}

}  // namespace
}  // namespace sentence_embedding
