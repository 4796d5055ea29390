// What the AVX-512 rows of layout cpu_panel16 share: walking a CpuGrid, decoding scales and zeros,
// broadcasts. Everything is `static inline`: each ISA file compiles its own copy (contracts.md,
// "ISA files").
//
// A panel holds 16 rows of W. Its codes lie in blocks of 32 columns:
//
//   4-bit block, 256 bytes: vector j = 0..3, byte 4*lane + i:  low nibble  k = 4j + i
//                                                              high nibble k = 16 + 4j + i
//   8-bit block, 512 bytes: vector j = 0..7, byte 4*lane + i:  k = 4j + i
//
// so that one 32-bit lane of a vector belongs to one output, as vpdpbusd and vdpbf16ps want it.
#ifndef NIBBLE_KERNELS_CPU_PANEL_AVX512_H_
#define NIBBLE_KERNELS_CPU_PANEL_AVX512_H_

// NOTE: gcc 12 calls its own _mm512_undefined_* uninitialized (its bug 105593) wherever an
// intrinsic is inlined; the pragma has to stand before the intrinsics are defined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

#define NIBBLE_INLINE static inline __attribute__((always_inline))
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

namespace nibble {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kBlockColumns = 32;
constexpr int64_t kNibbleBlockBytes = 256;
constexpr int64_t kByteBlockBytes = 512;

constexpr int64_t kSmallestGroup = 16;

/// Bytes of one value of a scale type.
NIBBLE_INLINE int64_t scale_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    default:  // E4M3, E8M0, U8: the table lets nothing else through
      return 1;
  }
}

/// 16 E4M3 bytes → FP32, exact, subnormals included: the bits moved into an FP16 are value * 2^-8
/// (the exponent biases differ by 8), and FP16 has subnormals exactly where E4M3 has them.
NIBBLE_INLINE __m512 e4m3_to_f32(__m128i bytes) {
  const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
  const __m256i f16 = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0xBF80)));
  return _mm512_mul_ps(_mm512_cvtph_ps(f16), _mm512_set1_ps(256.0f));
}

/// 16 E8M0 bytes → FP32. NOTE: e = 0 is 2^-127, which only a subnormal FP32 can hold.
NIBBLE_INLINE __m512 e8m0_to_f32(__m128i bytes) {
  const __m512i e = _mm512_cvtepu8_epi32(bytes);
  const __mmask16 zero = _mm512_testn_epi32_mask(e, e);
  return _mm512_castsi512_ps(
      _mm512_mask_mov_epi32(_mm512_slli_epi32(e, 23), zero, _mm512_set1_epi32(0x00400000)));
}

NIBBLE_INLINE __m512 bf16_to_f32(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

/// Values 16*index .. 16*index + 15 of an array of scales (or of zeros in the scale's type).
NIBBLE_INLINE __m512 load_scales(const void* scales, DType dtype, int64_t index) {
  const uint8_t* at = static_cast<const uint8_t*>(scales) + 16 * index * scale_bytes(dtype);
  switch (dtype) {
    case DType::kF32:
      return _mm512_loadu_ps(at);
    case DType::kF16:
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    case DType::kBF16:
      return bf16_to_f32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    case DType::kE4M3:
      return e4m3_to_f32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    case DType::kE8M0:
      return e8m0_to_f32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    default:  // U8: an integer zero
      return _mm512_cvtepi32_ps(
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }
}

/// Decodes the `count` vectors of 16 scales from vector `index` on into out[count][16].
/// Once a chunk of every tile; not inlined, because five loops a register tile bloat the code.
__attribute__((noinline, unused)) static void decode_scales(const void* scales, DType dtype,
                                                            int64_t index, int64_t count,
                                                            float* out) {
  switch (dtype) {
    case DType::kF32:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kF32, index + g));
      return;
    case DType::kF16:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kF16, index + g));
      return;
    case DType::kBF16:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kBF16, index + g));
      return;
    case DType::kE4M3:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kE4M3, index + g));
      return;
    case DType::kE8M0:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kE8M0, index + g));
      return;
    default:
      for (int64_t g = 0; g < count; ++g)
        _mm512_store_ps(out + 16 * g, load_scales(scales, DType::kU8, index + g));
      return;
  }
}

/// The 32 bits at `p` in every lane.
NIBBLE_INLINE __m512i broadcast_i32(const void* p) {
  int32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return _mm512_set1_epi32(value);
}
NIBBLE_INLINE __m512 broadcast_f32(const void* p) { return _mm512_castsi512_ps(broadcast_i32(p)); }

NIBBLE_INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/// Bytes 16*index .. 16*index + 15 as int32.
NIBBLE_INLINE __m512i load_u8(const void* bytes, int64_t index) {
  const uint8_t* at = static_cast<const uint8_t*>(bytes) + 16 * index;
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

/// Type in which zeros are stored.
NIBBLE_INLINE DType zero_dtype(const WeightArgs& w) {
  return w.zero_kind == ZeroKind::kInteger ? DType::kU8 : w.scale_dtype;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_PANEL_AVX512_H_
