// Number formats in scalar form. These functions are the specification that every SIMD and GPU
// decode is tested against; tests/python/test_numbers.py compares them with ml_dtypes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/names.h"
#include "nibble/core.h"

namespace nibble {
namespace {

uint32_t f32_bits(float value) { return std::bit_cast<uint32_t>(value); }
float bits_f32(uint32_t bits) { return std::bit_cast<float>(bits); }

constexpr NamedValue<DType> kDTypeNames[] = {
    {"f32", DType::kF32},   {"f16", DType::kF16},   {"bf16", DType::kBF16}, {"e4m3", DType::kE4M3},
    {"e8m0", DType::kE8M0}, {"e5m2", DType::kE5M2}, {"f64", DType::kF64},   {"u8", DType::kU8},
    {"i8", DType::kI8},     {"u16", DType::kU16},   {"i16", DType::kI16},   {"u32", DType::kU32},
    {"i32", DType::kI32},   {"u64", DType::kU64},   {"i64", DType::kI64},   {"bool", DType::kBool},
};

/// Rounds a magnitude to a float format with `mantissa_bits` stored bits and smallest normal
/// exponent `min_exponent`, ties to even, and returns its stored bits. A carry out of the mantissa
/// runs into the exponent field, which is the right answer. Overflow is the caller's business.
uint32_t round_magnitude(float magnitude, int mantissa_bits, int min_exponent) {
  if (magnitude == 0) return 0;
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent, m in [0.5, 1)
  const int unit_exponent = std::max(exponent - 1, min_exponent) - mantissa_bits;
  // Scaling by a power of two is exact in double; nearbyint rounds ties to even.
  const double units = std::nearbyint(std::ldexp(static_cast<double>(magnitude), -unit_exponent));
  const int biased =
      unit_exponent + mantissa_bits - min_exponent;  // 0 for subnormals and the first binade
  return (static_cast<uint32_t>(biased) << mantissa_bits) + static_cast<uint32_t>(units);
}

}  // namespace

int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kE4M3:
    case DType::kE8M0:
    case DType::kE5M2:
    case DType::kU8:
    case DType::kI8:
    case DType::kBool:
      return 1;
    case DType::kF16:
    case DType::kBF16:
    case DType::kU16:
    case DType::kI16:
      return 2;
    case DType::kF32:
    case DType::kU32:
    case DType::kI32:
      return 4;
    case DType::kF64:
    case DType::kU64:
    case DType::kI64:
      return 8;
  }
  return 0;
}

const char* dtype_name(DType dtype) { return name_of(kDTypeNames, dtype); }
Result<DType> parse_dtype(std::string_view name) { return value_of(kDTypeNames, name, "dtype"); }

float bf16_to_f32(uint16_t bits) { return bits_f32(static_cast<uint32_t>(bits) << 16); }

uint16_t f32_to_bf16(float value) {
  const uint32_t bits = f32_bits(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);  // quiet, sign kept
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 0x3FF;
  if (exponent == 31) return bits_f32(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return bits_f32(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return bits_f32(sign | f32_bits(magnitude));
}

uint16_t f32_to_f16(float value) {
  const auto sign = static_cast<uint16_t>((f32_bits(value) >> 16) & 0x8000);
  if (std::isnan(value))
    return static_cast<uint16_t>(sign | 0x7E00 | ((f32_bits(value) >> 13) & 0x3FF));
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7C00);
  return static_cast<uint16_t>(sign | round_magnitude(magnitude, 10, -14));
}

float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80) << 24;
  const uint32_t exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return bits_f32(sign | 0x7FC00000u);
  if (exponent == 0) return bits_f32(sign | f32_bits(static_cast<float>(mantissa) * 0x1p-9f));
  return bits_f32(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

uint8_t f32_to_e4m3(float value) {
  const auto sign = static_cast<uint8_t>((f32_bits(value) >> 24) & 0x80);
  if (std::isnan(value)) return static_cast<uint8_t>(sign | 0x7F);
  const float magnitude = std::min(std::fabs(value), 448.0f);
  return static_cast<uint8_t>(sign | round_magnitude(magnitude, 3, -6));
}

float e8m0_to_f32(uint8_t bits) {
  if (bits == 0xFF) return bits_f32(0x7FC00000u);
  if (bits == 0) return 0x1p-127f;
  return bits_f32(static_cast<uint32_t>(bits) << 23);
}

float e2m1_to_f32(uint8_t code) {
  static constexpr float kMagnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float magnitude = kMagnitudes[code & 7];
  return (code & 8) != 0 ? -magnitude : magnitude;
}

uint8_t f32_to_e2m1(float value) {
  if (std::isnan(value)) return 0;
  const auto sign = static_cast<uint8_t>((f32_bits(value) >> 28) & 8);
  const float magnitude = std::min(std::fabs(value), 6.0f);
  return static_cast<uint8_t>(sign | round_magnitude(magnitude, 1, 0));
}

float load_as_f32(const void* data, DType dtype, int64_t index) {
  const auto* bytes = static_cast<const uint8_t*>(data) + index * dtype_bytes(dtype);
  const auto as = [bytes]<class T>(T) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
  };
  switch (dtype) {
    case DType::kF32:
      return as(float{});
    case DType::kF16:
      return f16_to_f32(as(uint16_t{}));
    case DType::kBF16:
      return bf16_to_f32(as(uint16_t{}));
    case DType::kE4M3:
      return e4m3_to_f32(*bytes);
    case DType::kE8M0:
      return e8m0_to_f32(*bytes);
    case DType::kF64:
      return static_cast<float>(as(double{}));
    case DType::kU8:
      return static_cast<float>(*bytes);
    case DType::kE5M2:
    case DType::kI8:
    case DType::kU16:
    case DType::kI16:
    case DType::kU32:
    case DType::kI32:
    case DType::kU64:
    case DType::kI64:
    case DType::kBool:
      break;
  }
  return bits_f32(0x7FC00000u);  // no caller passes these; NaN cannot go unnoticed
}

void store_from_f32(void* data, DType dtype, int64_t index, float value) {
  auto* bytes = static_cast<uint8_t*>(data) + index * dtype_bytes(dtype);
  const auto put = [bytes](auto v) { std::memcpy(bytes, &v, sizeof(v)); };
  switch (dtype) {
    case DType::kF32:
      put(value);
      return;
    case DType::kF16:
      put(f32_to_f16(value));
      return;
    case DType::kBF16:
      put(f32_to_bf16(value));
      return;
    case DType::kE4M3:
      put(f32_to_e4m3(value));
      return;
    case DType::kE8M0:
    case DType::kF64:
    case DType::kU8:
    case DType::kE5M2:
    case DType::kI8:
    case DType::kU16:
    case DType::kI16:
    case DType::kU32:
    case DType::kI32:
    case DType::kU64:
    case DType::kI64:
    case DType::kBool:
      break;
  }
  std::memset(bytes, 0xFF, static_cast<size_t>(dtype_bytes(dtype)));
}

// Quantiles of the standard normal distribution, scaled to [-1, 1] (Dettmers et al., QLoRA, 2023),
// in the single-precision values that checkpoints carry in `quant_map`.
const std::array<float, 16> kNf4Codebook = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

}  // namespace nibble
