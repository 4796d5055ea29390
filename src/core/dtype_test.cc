// Bit patterns against arithmetic definitions written here a second time; the comparison with an
// independent package over all patterns is tests/python/test_numbers.py.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "nibble/core.h"

namespace nibble {
namespace {

/// Value of a float with the given field widths, by the definition of IEEE 754 formats.
double definition(uint32_t bits, int exponent_bits, int mantissa_bits, int bias) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>((bits >> mantissa_bits) & ((1u << exponent_bits) - 1));
  const double sign = ((bits >> (mantissa_bits + exponent_bits)) & 1) != 0 ? -1 : 1;
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias)
                       : sign * std::ldexp(1 + fraction, exponent - bias);
}

TEST(DTypeTest, EveryF16PatternDecodesByDefinitionAndBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    if ((bits & 0x7C00) == 0x7C00) {
      EXPECT_EQ(std::isnan(value), (bits & 0x3FF) != 0);
      if (std::isinf(value)) {
        EXPECT_EQ(f32_to_f16(value), bits);
      }
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), definition(bits, 5, 10, 15)) << bits;
    ASSERT_EQ(f32_to_f16(value), bits);
  }
}

TEST(DTypeTest, EveryBf16PatternSurvives) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
    } else {
      ASSERT_EQ(f32_to_bf16(value), bits);
    }
  }
}

TEST(DTypeTest, EveryE4m3PatternDecodesByDefinitionAndBack) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    const float value = e4m3_to_f32(static_cast<uint8_t>(bits));
    if ((bits & 0x7F) == 0x7F) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(f32_to_e4m3(value) & 0x7F, 0x7F);
      continue;
    }
    EXPECT_EQ(static_cast<double>(value), definition(bits, 4, 3, 7)) << bits;
    EXPECT_EQ(f32_to_e4m3(value), bits);
  }
}

TEST(DTypeTest, E8m0IsAPowerOfTwoAndItsZeroCodeIsNotZero) {
  for (int bits = 0; bits < 255; ++bits) {
    EXPECT_EQ(static_cast<double>(e8m0_to_f32(static_cast<uint8_t>(bits))),
              std::ldexp(1.0, bits - 127));
  }
  EXPECT_GT(e8m0_to_f32(0), 0.0f);
  EXPECT_TRUE(std::isnan(e8m0_to_f32(255)));
}

TEST(DTypeTest, E2m1RoundsTiesToTheEvenCode) {
  const std::pair<float, int> cases[] = {{0.0f, 0},  {0.25f, 0}, {0.26f, 1}, {0.75f, 2}, {0.74f, 1},
                                         {1.25f, 2}, {1.75f, 4}, {2.5f, 4},  {3.5f, 6},  {5.0f, 6},
                                         {5.1f, 7},  {6.0f, 7},  {100.0f, 7}};
  for (const auto& [value, code] : cases) {
    EXPECT_EQ(f32_to_e2m1(value), code) << value;
    EXPECT_EQ(f32_to_e2m1(-value), code | 8) << -value;
  }
}

TEST(DTypeTest, RoundingIsToTheNearestWithTiesToEven) {
  std::mt19937 random(1);
  const auto check = [](float value, auto encode, auto decode, uint32_t largest) {
    // The two neighbours that enclose |value|, found by bisection over the ordered patterns.
    uint32_t low = 0, high = largest;
    const double magnitude = std::fabs(static_cast<double>(value));
    if (magnitude >= static_cast<double>(decode(high))) return;
    while (high - low > 1) {
      const uint32_t middle = (low + high) / 2;
      (static_cast<double>(decode(middle)) <= magnitude ? low : high) = middle;
    }
    const double to_low = magnitude - static_cast<double>(decode(low));
    const double to_high = static_cast<double>(decode(high)) - magnitude;
    const uint32_t expected = to_low < to_high   ? low
                              : to_high < to_low ? high
                                                 : (low % 2 == 0 ? low : high);
    EXPECT_EQ(encode(std::fabs(value)), expected) << value;
  };
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    check(
        value, [](float v) { return uint32_t{f32_to_bf16(v)}; },
        [](uint32_t b) { return bf16_to_f32(static_cast<uint16_t>(b)); }, 0x7F7F);
    const float small = std::ldexp(std::fmod(value, 1.0f), static_cast<int>(random() % 40) - 26);
    check(
        small, [](float v) { return uint32_t{f32_to_f16(v)}; },
        [](uint32_t b) { return f16_to_f32(static_cast<uint16_t>(b)); }, 0x7BFF);
    check(
        small, [](float v) { return uint32_t{f32_to_e4m3(v)}; },
        [](uint32_t b) { return e4m3_to_f32(static_cast<uint8_t>(b)); }, 0x7E);
  }
}

TEST(DTypeTest, OverflowSaturatesOrBecomesInfinityAsDocumented) {
  EXPECT_EQ(f32_to_e4m3(1e9f), 0x7E);
  EXPECT_EQ(f32_to_e4m3(-INFINITY), 0xFE);
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(f32_to_bf16(3.4e38f), 0x7F80);
}

TEST(DTypeTest, LoadAndStoreAgreeWithTheConversions) {
  uint8_t bytes[16] = {};
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3}) {
    store_from_f32(bytes, dtype, 1, -1.5f);
    EXPECT_EQ(load_as_f32(bytes, dtype, 1), -1.5f);
    EXPECT_EQ(load_as_f32(bytes, dtype, 0), 0.0f);
  }
}

TEST(DTypeTest, NamesRoundTrip) {
  for (int i = 0; i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(*parse_dtype(dtype_name(dtype)), dtype);
    EXPECT_GT(dtype_bytes(dtype), 0);
  }
  EXPECT_FALSE(parse_dtype("f8").ok());
}

}  // namespace
}  // namespace nibble
