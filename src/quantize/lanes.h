// Vectors of W floats in the compiler's own vector type: plain C++ arithmetic that GCC and Clang
// turn into the instructions of whichever function it is inlined into. One source, one order of
// operations, no contraction: the same bits on every instruction set.
#ifndef NIBBLE_QUANTIZE_LANES_H_
#define NIBBLE_QUANTIZE_LANES_H_

#include <stdint.h>

#include "nibble/types.h"

// Included by files that are compiled for one instruction set, so nothing here may leave a symbol:
// every function is inlined, and no template of the standard library is used.
#define NIBBLE_LANES_INLINE [[gnu::always_inline]] inline
#pragma GCC diagnostic ignored "-Wpsabi"  // about returned vectors; inlined, none is returned

namespace nibble {

template <int W>
struct Lanes {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef int32_t I __attribute__((vector_size(4 * W)));
  typedef uint32_t U __attribute__((vector_size(4 * W)));
  typedef uint64_t Q __attribute__((vector_size(4 * W)));
  typedef uint16_t H __attribute__((vector_size(2 * W)));
  typedef uint8_t B __attribute__((vector_size(W)));
  typedef uint8_t N __attribute__((vector_size(W / 2)));

  NIBBLE_LANES_INLINE static F load(const float* from) {
    F v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  NIBBLE_LANES_INLINE static I load(const int32_t* from) {
    I v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  NIBBLE_LANES_INLINE static void store(float* to, const F& v) {
    __builtin_memcpy(to, &v, sizeof(v));
  }
  NIBBLE_LANES_INLINE static F splat(float x) { return x - F{}; }  // x - 0 keeps the sign of -0
  NIBBLE_LANES_INLINE static F max(const F& a, const F& b) { return a > b ? a : b; }
  NIBBLE_LANES_INLINE static F min(const F& a, const F& b) { return a < b ? a : b; }
  NIBBLE_LANES_INLINE static F clamp(const F& v, float low, float high) {
    return min(max(v, splat(low)), splat(high));
  }
};

#if defined(__GNUC__) && !defined(__clang__)
/// Whether a table of 2 W floats is looked up by one instruction.
template <int W>
inline constexpr bool kHasLookup = W == 16;
/// table[index] of 2 W entries.
template <int W>
NIBBLE_LANES_INLINE typename Lanes<W>::F lookup(const float* table,
                                                const typename Lanes<W>::I& index) {
  const auto low = Lanes<W>::load(table), high = Lanes<W>::load(table + W);
  return __builtin_shuffle(low, high, index);
}
#else
template <int W>
inline constexpr bool kHasLookup = false;
template <int W>
typename Lanes<W>::F lookup(const float* table, const typename Lanes<W>::I& index);
#endif

/// Stores the low four bits of each lane, two to a byte, the first lane in the low half.
template <int W>
NIBBLE_LANES_INLINE void store_nibbles(uint8_t* to, const typename Lanes<W>::I& codes) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
  const auto pairs = (typename Lanes<W>::Q)(codes & 15);
  const typename Lanes<W>::Q joined = pairs | pairs >> 28;
  const auto bytes = __builtin_convertvector(joined, typename Lanes<W>::N);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}
template <int W>
NIBBLE_LANES_INLINE void store_bytes(uint8_t* to, const typename Lanes<W>::I& codes) {
  const auto bytes = __builtin_convertvector(codes, typename Lanes<W>::B);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}

/// The smallest lane of a vector of 4, 8 or 16 values of any type: halves are compared until four
/// lanes are left, which keeps the chain of dependent steps short.
template <class T, int W>
NIBBLE_LANES_INLINE T smallest_lane(const void* lanes) {
  typedef T Vector __attribute__((vector_size(4 * W)));
  if constexpr (W > 4) {
    typedef T Half __attribute__((vector_size(2 * W)));
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof(low));
    __builtin_memcpy(&high, static_cast<const char*>(lanes) + sizeof(low), sizeof(high));
    const Half less = low < high ? low : high;
    return smallest_lane<T, W / 2>(&less);
  } else {
    Vector v;
    __builtin_memcpy(&v, lanes, sizeof(v));
    const T left = v[0] < v[1] ? v[0] : v[1], right = v[2] < v[3] ? v[2] : v[3];
    return left < right ? left : right;
  }
}

/// Adding 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even, and leaves that
/// integer in the low bits: the bits of the sum are 0x4B400000 + integer. Sums of larger numbers
/// have bits that are larger still, so an integer clamp of the bits limits them too.
inline constexpr float kRoundToInteger = 12582912.0f;
inline constexpr int32_t kRoundToIntegerBits = 0x4B400000;

/// kRoundToInteger plus the nearest integer of [low, high].
template <int W>
NIBBLE_LANES_INLINE typename Lanes<W>::F rounded_sum(const typename Lanes<W>::F& v, int32_t low,
                                                     int32_t high) {
  using I = typename Lanes<W>::I;
  const auto bits = (I)(v + kRoundToInteger);
  const I lowest = I{} + (kRoundToIntegerBits + low), highest = I{} + (kRoundToIntegerBits + high);
  const I raised = bits > lowest ? bits : lowest;
  return (typename Lanes<W>::F)(raised < highest ? raised : highest);
}

/// Nearest E2M1 magnitude of v >= 0, ties to the even code. The spacing is 0.5 below 2, 1 below 4
/// and 2 above: 2^(e-1) with e = max(floor(log2 v), 0), so adding 1.5 * 2^(22 + e) rounds.
/// Non-negative floats compare like the integers of their bits, which has one instruction.
template <int W>
NIBBLE_LANES_INLINE typename Lanes<W>::F round_to_e2m1(const typename Lanes<W>::F& v) {
  using I = typename Lanes<W>::I;
  using F = typename Lanes<W>::F;
  const I six = I{} + 0x40C00000, one = I{} + 0x3F800000;
  const I bits = (I)v < six ? (I)v : six;
  const I exponent = bits & 0x7F800000;
  const auto magic = (F)((exponent > one ? exponent : one) + ((22 << 23) | 0x400000));
  return ((F)bits + magic) - magic;
}

/// Rounds non-negative values (and, for zeros, signed ones) to the storage dtype of scales, then
/// limits their magnitude to its finite range.
template <int W>
NIBBLE_LANES_INLINE typename Lanes<W>::F round_to_dtype(const typename Lanes<W>::F& v,
                                                        DType dtype) {
  using L = Lanes<W>;
  using U = typename L::U;
  using F = typename L::F;
  if (dtype == DType::kBF16) {
    const U bits = (U)v;
    const F rounded = (F)((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
    return L::clamp(rounded, -0x1.FEp127f, 0x1.FEp127f);
  }
  if (dtype == DType::kF16) {
    const U sign = (U)v & 0x80000000u;
    const U bits = (U)v & 0x7FFFFFFFu;
    const F normal = (F)((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000u);
    const F subnormal = ((F)bits + 0.75f) - 0.75f;  // multiples of 2^-24
    const F magnitude = (F)bits < 0x1p-14f ? subnormal : normal;
    return (F)((U)L::min(magnitude, L::splat(65504.0f)) | sign);
  }
  return L::clamp(v, -0x1.FFFFFEp127f, 0x1.FFFFFEp127f);
}

NIBBLE_LANES_INLINE uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
NIBBLE_LANES_INLINE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// Stores a value that round_to_dtype returned.
NIBBLE_LANES_INLINE void store_exact(uint8_t* to, DType dtype, int64_t index, float x) {
  const uint32_t bits = bits_of(x);
  if (dtype == DType::kF32) {
    __builtin_memcpy(to + 4 * index, &x, 4);
    return;
  }
  uint32_t half = bits >> 16;
  if (dtype == DType::kF16) {
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    const float subnormal = float_of(magnitude) * 0x1p24f;
    half = (bits >> 16 & 0x8000u) | (magnitude < 0x38800000u ? static_cast<uint32_t>(subnormal)
                                                             : (magnitude >> 13) - (112u << 10));
  }
  const auto stored = static_cast<uint16_t>(half);
  __builtin_memcpy(to + 2 * index, &stored, 2);
}

/// Smallest positive value of a scale dtype: a scale that underflows becomes this.
NIBBLE_LANES_INLINE float smallest_positive(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-133f : dtype == DType::kF16 ? 0x1p-24f : 0x1p-149f;
}

/// The next `count` <= W weights as f32 bits; lanes past the count are 0. Infinities and NaNs keep
/// the exponent 0xFF.
template <int W>
NIBBLE_LANES_INLINE typename Lanes<W>::U load_weight_bits(const uint8_t* from, DType dtype,
                                                          int64_t count) {
  using U = typename Lanes<W>::U;
  if (dtype == DType::kF32) {
    U bits{};
    __builtin_memcpy(&bits, from, static_cast<uint64_t>(4 * count));
    return bits;
  }
  typename Lanes<W>::H half{};
  __builtin_memcpy(&half, from, static_cast<uint64_t>(2 * count));
  const U bits = __builtin_convertvector(half, U);
  if (dtype == DType::kBF16) return bits << 16;
  // Multiplying by 2^112 moves an f16's exponent to f32's place, subnormals included.
  const auto magnitude = (U)((typename Lanes<W>::F)((bits & 0x7FFFu) << 13) * 0x1p112f);
  const U special = (bits & 0x7C00u) == 0x7C00u ? U{} + 0x7F800000u : U{};
  return magnitude | special | ((bits & 0x8000u) << 16);
}

/// Copies `count` weights as f32, zeros after them up to a multiple of W, and returns the bits of
/// the largest magnitude, in which 0x7F800000 and above mean an infinity or a NaN.
template <int W>
NIBBLE_LANES_INLINE uint32_t load_weights(const uint8_t* from, DType dtype, int64_t count,
                                          float* to) {
  using U = typename Lanes<W>::U;
  const int64_t bytes = dtype == DType::kF32 ? 4 : 2;
  U largest{};
  for (int64_t i = 0; i < count; i += W) {
    const U bits = i + W <= count ? load_weight_bits<W>(from + bytes * i, dtype, W)
                                  : load_weight_bits<W>(from + bytes * i, dtype, count - i);
    __builtin_memcpy(to + i, &bits, sizeof(bits));
    const U magnitude = bits & 0x7FFFFFFFu;
    largest = magnitude > largest ? magnitude : largest;
  }
  uint32_t result = 0;
  for (int lane = 0; lane < W; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_LANES_H_
