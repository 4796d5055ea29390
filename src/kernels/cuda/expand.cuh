// Codes of LayoutId::kCudaFrag16 → BF16 pairs, the registers of an mma A fragment. Every function
// compiles for the host too, where expand_host_test.cc runs it over all codes.
//
// A word of 4-bit codes holds one step of a lane: register i of the fragment is nibble i of the low
// half (its low value) and nibble i of the high half.
//
//   bit  31   28 27   24 23   20 19   16 15   12 11    8 7     4 3     0
//       | e7    | e5    | e3    | e1    | e6    | e4    | e2    | e0    |
//         reg 3   reg 2   reg 1   reg 0   reg 3   reg 2   reg 1   reg 0
//
// nf4 keeps register i in byte i instead, the low value in the low nibble.
#ifndef NIBBLE_KERNELS_CUDA_EXPAND_CUH_
#define NIBBLE_KERNELS_CUDA_EXPAND_CUH_

#include "kernels/cuda/dequant.cuh"

namespace nibble {

/// How codes become BF16 values.
enum class Expand : uint8_t {
  kInteger4,  ///< int4 (stored q + 8) and uint4
  kE2M1,
  kTable4,    ///< nf4: a table of pairs in shared memory
  kInteger8,  ///< int8 and uint8 (stored q - 128)
};

/// Two BF16 values in one register, the first in the low half.
NIBBLE_HD uint32_t bf16_pair(uint16_t low, uint16_t high) {
  return uint32_t{low} | uint32_t{high} << 16;
}
NIBBLE_HD uint32_t bf16_splat(float value) {
  const uint16_t half = round_to_bf16(value);
  return bf16_pair(half, half);
}

/// a * b + c in both halves, rounded once.
NIBBLE_HD uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#if defined(__CUDA_ARCH__)
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  uint32_t d = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    // Exact in double; the uses here are exact in BF16 too, so rounding twice cannot show.
    const double sum = static_cast<double>(decode_bf16(static_cast<uint16_t>(a >> shift))) *
                           static_cast<double>(decode_bf16(static_cast<uint16_t>(b >> shift))) +
                       static_cast<double>(decode_bf16(static_cast<uint16_t>(c >> shift)));
    d |= uint32_t{round_to_bf16(static_cast<float>(sum))} << shift;
  }
  return d;
#endif
}

constexpr uint32_t kBf16One = 0x3F803F80;       // 1, 1
constexpr uint32_t kBf16MinusOne = 0xBF80BF80;  // -1, -1
constexpr uint32_t kBf16MinusZero = 0x80008000;

/// Constants that live in registers: the compiler would else write `(w & a) | b` as two
/// instructions, because one takes a single literal.
struct ExpandConstants {
  uint32_t magic;   // 0x4300: BF16 128
  uint32_t offset;  // added to 128 + code, or to the signed value of 8-bit codes
};
NIBBLE_HD ExpandConstants expand_constants(Element element) {
  ExpandConstants c{0x43004300, kBf16MinusZero};
  if (element == Element::kInt4) c.offset = 0xC308C308;   // -136: stored q + 8
  if (element == Element::kUint4) c.offset = 0xC300C300;  // -128
  if (element == Element::kUint8) c.offset = 0x43004300;  // 128: stored q - 128
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(c.magic));
#endif
  return c;
}

// BF16 128 is 0x4300, and its seven mantissa bits count ones: 0x4300 | code = 128 + code.
NIBBLE_HD void expand_integer4(uint32_t word, const ExpandConstants& c, uint32_t (&a)[4]) {
  NIBBLE_UNROLL
  for (int i = 0; i < 4; ++i) {
    a[i] = fma_bf16x2(((word >> (4 * i)) & 0x000F000F) | c.magic, kBf16One, c.offset);
  }
}

//   e2m1 at bits 3-0 or 7-4 of a half:   s e e m
//   times 2^12 + 2^6 (2^8 + 2^2):        s e e m . . s e e m . . . . . .
//   masked, the BF16 pattern             s 0 0 0 0 0 0 e e m 0 0 0 0 0 0
//   whose value is the code's times 2^-126; 2^126 (0x7E80) brings it back, 0.5 included.
NIBBLE_HD void expand_e2m1(uint32_t word, uint32_t (&a)[4]) {
  NIBBLE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t source = i < 2 ? word : word >> 8;
    const uint32_t moved = i % 2 == 0 ? (source & 0x000F000F) * ((1u << 12) + (1u << 6))
                                      : (source & 0x00F000F0) * ((1u << 8) + (1u << 2));
    a[i] = fma_bf16x2(moved & 0x81C081C0, 0x7E807E80, kBf16MinusZero);
  }
}

// A word of 8-bit codes is half a step; registers i = 0, 1 are bytes i and i + 2. The low seven
// bits of a code give 128 + low; the sign bit falls on the exponent's last bit and gives 128 or
// 256: (128 + low) - (sign ? 256 : 128) is the code in two's complement.
NIBBLE_HD void expand_integer8(uint32_t word, const ExpandConstants& c, uint32_t (&a)[2]) {
  NIBBLE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t source = word >> (8 * i);
    const uint32_t low = (source & 0x007F007F) | c.magic;
    const uint32_t sign = (source & 0x00800080) | c.magic;
    a[i] = fma_bf16x2(fma_bf16x2(sign, kBf16MinusOne, low), kBf16One, c.offset);
  }
}

/// Entry `byte` of a pair table: the values of its low and high nibble.
NIBBLE_HD uint32_t table_entry(const float* codebook, uint32_t byte) {
  return bf16_pair(round_to_bf16(codebook[byte & 15]), round_to_bf16(codebook[byte >> 4]));
}

/// Part `part` of x as BF16 values whose sum is x: truncation leaves eight bits a part, so that
/// three parts hold an FP32 value and two an FP16 value exactly. Infinity and NaN stay in part 0.
NIBBLE_HD uint16_t bf16_part(float x, int part) {
  uint32_t bits = bits_of_float(x);
  if ((bits & 0x7F800000u) == 0x7F800000u) {
    if (part > 0) return 0;
    return static_cast<uint16_t>((bits >> 16) | ((bits & 0x007FFFFFu) != 0 ? 0x40 : 0));
  }
  for (int i = 0; i < part; ++i) {
    x -= float_of_bits(bits & 0xFFFF0000u);
    bits = bits_of_float(x);
  }
  return static_cast<uint16_t>(bits >> 16);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_EXPAND_CUH_
