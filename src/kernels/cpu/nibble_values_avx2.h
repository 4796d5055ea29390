// The 16 values of a stored 4-bit code as two byte tables for vpshufb. Each value is exact in BF16,
// so its upper and lower byte, followed by two zero bytes, are its FP32:
//
//   FP32  s eeeeeee | e mmmmmmm | 0 | 0        upper = table[code], lower = table[code]
//
// int4 is stored as q + 8 here (row-major codes are brought to it by code ^ 8).
#ifndef NIBBLE_KERNELS_CPU_NIBBLE_VALUES_AVX2_H_
#define NIBBLE_KERNELS_CPU_NIBBLE_VALUES_AVX2_H_

#include "kernels/cpu/panel_avx2.h"

namespace nibble {

struct ValueTables {
  __m256i upper, lower;
};

/// Tables of kInt4, kUint4 or kE2M1.
NIBBLE_INLINE ValueTables value_tables(Element element) {
  // -8 -7 .. 7
  __m128i upper = _mm_setr_epi8(-0x3F, -0x40, -0x40, -0x40, -0x40, -0x40, -0x40, -0x41,  //
                                0, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40);
  __m128i lower = _mm_setr_epi8(0, -0x20, -0x40, -0x60, -0x80, 0x40, 0, -0x80,  //
                                0, -0x80, 0, 0x40, -0x80, -0x60, -0x40, -0x20);
  if (element == Element::kUint4) {                                     // 0 .. 15
    upper = _mm_setr_epi8(0, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,  //
                          0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41);
    lower = _mm_setr_epi8(0, -0x80, 0, 0x40, -0x80, -0x60, -0x40, -0x20,  //
                          0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70);
  }
  if (element == Element::kE2M1) {  // 0 .5 1 1.5 2 3 4 6 and their negatives
    upper = _mm_setr_epi8(0, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,  //
                          -0x80, -0x41, -0x41, -0x41, -0x40, -0x40, -0x40, -0x40);
    lower = _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40,  //
                          0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40);
  }
  return {_mm256_broadcastsi128_si256(upper), _mm256_broadcastsi128_si256(lower)};
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_NIBBLE_VALUES_AVX2_H_
