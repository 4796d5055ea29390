// What BFDOT and BFMMLA do to a sum, against a model in integers: products are exact, the two of a
// pair are added and then the pair to the accumulator, each sum rounded to odd, subnormals flushed.
// The arithmetic of `exact` on Armv8.6 rests on it (docs/numerics.md).
#if defined(__aarch64__)

#include <arm_neon.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "nibble/core.h"

namespace nibble {
namespace {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();

float flushed(float value) {
  return std::fabs(value) < kSmallestNormal ? std::copysign(0.0f, value) : value;
}

// a + b of two FP32 values, rounded to odd: truncated, the last bit set where anything was lost.
// Both have 24 bits; where their exponents are too far apart for an exact double the smaller one
// still leaves its mark, as a sum that TwoSum says is inexact.
float add_to_odd(float a, float b) {
  const double x = static_cast<double>(a), y = static_cast<double>(b);
  const double sum = x + y;
  const double of_y = sum - x;
  const double lost = (x - (sum - of_y)) + (y - of_y);  // sum + lost == a + b exactly
  double toward_zero = sum;
  if (lost != 0 && std::signbit(lost) != std::signbit(sum)) {
    toward_zero = std::nextafter(sum, 0.0);
  }
  // FP32 below or at it.
  auto result = static_cast<float>(toward_zero);
  if (std::isfinite(result) && std::fabs(static_cast<double>(result)) > std::fabs(toward_zero)) {
    result = std::nextafter(result, 0.0f);
  }
  if (std::isinf(result) && std::isfinite(sum)) {
    if (std::fabs(toward_zero) >= 0x1p128) return result;  // overflow is infinite all the same
    result = std::copysign(std::numeric_limits<float>::max(), result);
  }
  const bool inexact = static_cast<double>(result) != sum || lost != 0;
  if (inexact) result = std::bit_cast<float>(std::bit_cast<uint32_t>(result) | 1u);
  return flushed(result);
}

float product(uint16_t a, uint16_t b) {  // 8 bits by 8: exact but for the range
  return flushed(flushed(bf16_to_f32(a)) * flushed(bf16_to_f32(b)));
}

float model_pair(float acc, const uint16_t* a, const uint16_t* b) {
  return add_to_odd(flushed(acc), add_to_odd(product(a[0], b[0]), product(a[1], b[1])));
}

__attribute__((target("arch=armv8.2-a+bf16"))) void bfdot(float* acc, const uint16_t* a,
                                                          const uint16_t* b) {
  const bfloat16x8_t x = vreinterpretq_bf16_u16(vld1q_u16(a));
  const bfloat16x8_t y = vreinterpretq_bf16_u16(vld1q_u16(b));
  vst1q_f32(acc, vbfdotq_f32(vld1q_f32(acc), x, y));
}

__attribute__((target("arch=armv8.2-a+bf16"))) void bfmmla(float* acc, const uint16_t* a,
                                                           const uint16_t* b) {
  const bfloat16x8_t x = vreinterpretq_bf16_u16(vld1q_u16(a));
  const bfloat16x8_t y = vreinterpretq_bf16_u16(vld1q_u16(b));
  vst1q_f32(acc, vbfmmlaq_f32(vld1q_f32(acc), x, y));
}

class BfmmlaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Device::this_cpu().has(Isa::kNeonBf16)) GTEST_SKIP() << "this CPU has no BF16 products";
  }
  uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // Of 2^-`octaves` to 2^`octaves`, either sign; now and then 0.
  uint16_t bf16(uint32_t octaves) {
    const uint32_t exponent = 127 - octaves + next() % (2 * octaves + 1);
    const uint32_t bits = (next() & 0x8000u) | exponent << 7 | (next() & 0x7Fu);
    return next() % 50 == 0 ? uint16_t{0} : static_cast<uint16_t>(bits);
  }
  float f32(uint32_t octaves) {
    const uint32_t low = next() & 0xFFFFu;
    return std::bit_cast<float>(static_cast<uint32_t>(bf16(octaves)) << 16 | low);
  }

 private:
  uint64_t state_ = 1;
};

TEST_F(BfmmlaTest, AddsExactProductsAndRoundsToOdd) {
  int inexact = 0;
  for (int turn = 0; turn < 100000; ++turn) {
    const uint32_t octaves = turn % 4 == 0 ? 62 : turn % 2 == 0 ? 12 : 3;
    float acc[4], got[4];
    uint16_t a[8], b[8];
    for (float& value : acc) value = f32(octaves);
    for (uint16_t& value : a) value = bf16(octaves);
    for (uint16_t& value : b) value = bf16(octaves);
    std::copy(acc, acc + 4, got);
    bfdot(got, a, b);
    for (int lane = 0; lane < 4; ++lane) {
      const float want = model_pair(acc[lane], a + 2 * lane, b + 2 * lane);
      ASSERT_EQ(std::bit_cast<uint32_t>(got[lane] + 0.0f), std::bit_cast<uint32_t>(want + 0.0f))
          << turn << ": " << got[lane] << " and " << want;
      const double exact = static_cast<double>(acc[lane]) +
                           static_cast<double>(product(a[2 * lane], b[2 * lane])) +
                           static_cast<double>(product(a[2 * lane + 1], b[2 * lane + 1]));
      inexact += static_cast<double>(got[lane]) != exact ? 1 : 0;
    }
  }
  EXPECT_GT(inexact, 1000) << "the data round nothing";
}

TEST_F(BfmmlaTest, IsTwoBfdotsIntoEachOfFourSums) {
  for (int turn = 0; turn < 100000; ++turn) {
    float acc[4], got[4];
    uint16_t a[8], b[8];
    for (float& value : acc) value = f32(6);
    for (uint16_t& value : a) value = bf16(6);
    for (uint16_t& value : b) value = bf16(6);
    std::copy(acc, acc + 4, got);
    bfmmla(got, a, b);
    for (int r = 0; r < 2; ++r) {
      for (int n = 0; n < 2; ++n) {
        float want = model_pair(acc[2 * r + n], a + 4 * r, b + 4 * n);
        want = model_pair(want, a + 4 * r + 2, b + 4 * n + 2);
        ASSERT_EQ(std::bit_cast<uint32_t>(got[2 * r + n] + 0.0f),
                  std::bit_cast<uint32_t>(want + 0.0f))
            << turn;
      }
    }
  }
}

TEST_F(BfmmlaTest, FlushesSubnormalsAndOverflowsToInfinity) {
  const auto bits = [](float value) { return f32_to_bf16(value); };
  const auto dot = [](float start, uint16_t a, uint16_t b) {
    float acc[4] = {start, start, start, start};
    const uint16_t x[8] = {a, 0, a, 0, a, 0, a, 0}, y[8] = {b, 0, b, 0, b, 0, b, 0};
    bfdot(acc, x, y);
    return acc[0];
  };
  EXPECT_EQ(dot(0, bits(0x1p-130f), bits(0x1p20f)), 0.0f) << "an operand";
  EXPECT_EQ(dot(0, bits(0x1p-70f), bits(0x1p-57f)), 0.0f) << "a product";
  EXPECT_EQ(dot(0x1p-130f, 0, 0), 0.0f) << "the accumulator";
  EXPECT_EQ(dot(0, bits(0x1p-63f), bits(0x1p-63f)), 0x1p-126f);
  EXPECT_TRUE(std::isinf(dot(0x1.8p127f, bits(0x1p64f), bits(0x1p63f))));
  EXPECT_TRUE(std::isnan(dot(0, bits(INFINITY), 0)));
}

// Rounding to odd has no bias: that is why chains of it may stand beside those of rounding to
// nearest (docs/numerics.md).
TEST_F(BfmmlaTest, RoundingToOddHasNoBias) {
  double sum = 0, squares = 0;
  constexpr int kCount = 200000;
  for (int i = 0; i < kCount; i += 4) {
    float acc[4], got[4];
    uint16_t a[8] = {}, b[8] = {};
    for (float& value : acc) value = std::bit_cast<float>(0x3F800000u | (next() & 0x3FFFFFu));
    for (int lane = 0; lane < 4; ++lane) {  // 8 to 32 units of acc's last place, and a fraction
      a[2 * lane] = static_cast<uint16_t>(0x3580u | (next() & 0x7Fu));
      b[2 * lane] = static_cast<uint16_t>(0x3F80u | (next() & 0x7Fu));
    }
    std::copy(acc, acc + 4, got);
    bfdot(got, a, b);
    for (int lane = 0; lane < 4; ++lane) {
      const double added = static_cast<double>(product(a[2 * lane], b[2 * lane]));
      const double exact = static_cast<double>(acc[lane]) + added;
      const double units = (static_cast<double>(got[lane]) - exact) * 0x1p23;
      ASSERT_LT(std::fabs(units), 1);
      sum += units;
      squares += units * units;
    }
  }
  EXPECT_NEAR(sum / kCount, 0, 0.01);
  EXPECT_NEAR(std::sqrt(squares / kCount), std::sqrt(1.0 / 3), 0.02) << "even over (-1, 1)";
}

}  // namespace
}  // namespace nibble

#endif  // __aarch64__
