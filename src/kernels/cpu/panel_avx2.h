// What the AVX2 rows share: walking a CpuGrid, decoding scales, broadcasts. Everything is
// `static inline`: each ISA file compiles its own copy, so the linker shares none of it.
//
// A panel of cpu_panel16 holds 16 rows of W; its codes lie in blocks of 32 columns:
//
//   4-bit block, 256 bytes: vector j = 0..3, byte 4*lane + i:  low nibble  k = 4j + i
//                                                              high nibble k = 16 + 4j + i
//   8-bit block, 512 bytes: vector j = 0..7, byte 4*lane + i:  k = 4j + i
//
// A 64-byte vector is two registers of AVX2: half 0 holds lanes 0-7, half 1 lanes 8-15.
#ifndef NIBBLE_KERNELS_CPU_PANEL_AVX2_H_
#define NIBBLE_KERNELS_CPU_PANEL_AVX2_H_

#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

#define NIBBLE_INLINE static inline __attribute__((always_inline))
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

namespace nibble {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kBlockColumns = 32;
constexpr int kHalves = 2;
constexpr int kHalfLanes = 8;
constexpr int64_t kLineBytes = 64;

/// Columns whose FP32 sums form one partial sum; the sums of partial sums are double, so that
/// chains of FP32 additions stay short at any K (epilogue.h says how short).
constexpr int64_t kPartColumns = 512;
constexpr int64_t kPartBlocks = kPartColumns / kBlockColumns;

NIBBLE_INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
NIBBLE_INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/// Into L2; never faults, so it may run past the end of the weights. Measured with int4 at M = 1,
/// share of the read roof: 16 KB ahead into L2 0.87, no prefetch 0.80, any distance into L1 0.66.
NIBBLE_INLINE void prefetch_line(const uint8_t* at) {
  _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
}

NIBBLE_INLINE __m256i load_i256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
NIBBLE_INLINE __m128i load_i128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
NIBBLE_INLINE __m128i load_i64(const void* p) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(p));
}
/// The 32 bits at `p` in every lane.
NIBBLE_INLINE __m256i broadcast_i32(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm256_set1_epi32(value);
}
NIBBLE_INLINE __m256 broadcast_f32(const void* p) { return _mm256_castsi256_ps(broadcast_i32(p)); }

/// 8 values from `p`, exact.
NIBBLE_INLINE __m256 load_f32(const void* p) {
  return _mm256_loadu_ps(static_cast<const float*>(p));
}
NIBBLE_INLINE __m256 load_f16(const void* p) { return _mm256_cvtph_ps(load_i128(p)); }
NIBBLE_INLINE __m256 load_bf16(const void* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_i128(p)), 16));
}

/// 8 E4M3 bytes → value / 256 in FP32, exact. As FP16 bits, s eeee mmm becomes s 0eeee mmm0000000,
/// which is the value * 2^-8: the exponent biases are 7 and 15, and subnormals meet subnormals.
/// Through FP16 because converting its subnormals costs nothing on any CPU.
NIBBLE_INLINE __m256 load_e4m3_over_256(const void* p) {
  const __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(load_i64(p)), 7);
  return _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(static_cast<int16_t>(0xBFFF))));
}

/// 8 E8M0 bytes → FP32. NOTE: e = 0 is 2^-127, which only a subnormal FP32 (0x00400000) can hold.
NIBBLE_INLINE __m256 load_e8m0(const void* p) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtepu8_epi32(load_i64(p)), 23);
  return _mm256_castsi256_ps(_mm256_max_epi32(exponent, _mm256_set1_epi32(0x00400000)));
}

/// Bytes of one scale.
NIBBLE_INLINE int64_t scale_bytes(DType dtype) {
  if (dtype == DType::kF32) return 4;
  return dtype == DType::kBF16 || dtype == DType::kF16 ? 2 : 1;
}
/// What a vector of load_scales counts in: E4M3 comes as value / 256.
NIBBLE_INLINE float scale_unit(DType dtype) { return dtype == DType::kE4M3 ? 256.0f : 1.0f; }

/// 8 scales (or zeros in the scale's type) in units of `scale_unit`. The branches always go the
/// same way within one call of a kernel.
NIBBLE_INLINE __m256 load_scales(const void* p, DType dtype) {
  if (dtype == DType::kBF16) return load_bf16(p);
  if (dtype == DType::kE4M3) return load_e4m3_over_256(p);
  if (dtype == DType::kE8M0) return load_e8m0(p);
  return dtype == DType::kF16 ? load_f16(p) : load_f32(p);
}

/// Keeps a sum where it stands: gcc 12 would regroup the integer additions of an unrolled loop to
/// its end, with all products spilled to the stack.
NIBBLE_INLINE __m256i in_order(__m256i sum) {
  __asm__("" : "+x"(sum));
  return sum;
}

/// The rows of x of one work item, and its panel.
struct Item {
  int64_t row_begin, row_end;
  int64_t panel;
};
NIBBLE_INLINE Item item_of(const MatmulArgs& args, int64_t index) {
  const int64_t row_begin = index / args.grid.items_n * args.grid.block_m;
  return {row_begin, min_i64(row_begin + args.grid.block_m, args.m), index % args.grid.items_n};
}

/// to[0..7] += values, in double.
NIBBLE_INLINE void add_to_total(double* to, __m256 values) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
  _mm256_storeu_pd(to, _mm256_add_pd(_mm256_loadu_pd(to), low));
  _mm256_storeu_pd(to + 4, _mm256_add_pd(_mm256_loadu_pd(to + 4), high));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_PANEL_AVX2_H_
