// x in the caller's type → the forms that matmul rows read (XForm in nibble/types.h): gathered by
// k_perm, multiplied by pre_scale, zero-filled from k to k_padded.
//
// Work goes row by row in blocks of 32 columns. Nothing past column k is read, so NaNs that the
// caller keeps there stay there.
#include "kernels/args.h"
#include "kernels/cpu/panel_avx512.h"

namespace nibble {
namespace {

constexpr int64_t kTileRows = 8;

/// 32 columns of one row of x.
struct Block {
  __m512 lower, upper;  // columns 0-15 and 16-31
};

/// 16 values from column `k` on; lanes whose bit is not set in `lanes` are 0 and not read.
NIBBLE_INLINE __m512 load_lanes(const void* row, DType dtype, int64_t k, __mmask16 lanes) {
  const uint8_t* at = static_cast<const uint8_t*>(row) + k * (dtype == DType::kF32 ? 4 : 2);
  if (dtype == DType::kF32) return _mm512_maskz_loadu_ps(lanes, at);
  const __m256i half = _mm256_maskz_loadu_epi16(lanes, at);
  return dtype == DType::kF16 ? _mm512_cvtph_ps(half) : bf16_to_f32(half);
}

NIBBLE_INLINE float load_one(const void* row, DType dtype, int64_t k) {
  return _mm512_cvtss_f32(load_lanes(row, dtype, k, 1));
}

/// Bit i: column k + i lies before `end`.
NIBBLE_INLINE __mmask16 lanes_before(int64_t k, int64_t end) {
  const int64_t count = end - k;
  return count >= 16 ? static_cast<__mmask16>(0xFFFF)
                     : static_cast<__mmask16>(count <= 0 ? 0 : (1 << count) - 1);
}

NIBBLE_INLINE __m512 gathered(const PrepareArgs& a, const void* row, int64_t k) {
  alignas(64) float values[16] = {};
  for (int64_t i = 0; i < 16 && k + i < a.k; ++i) {
    const int64_t column = a.k_perm[k + i];
    const float value = load_one(row, a.x_dtype, column);
    values[i] = a.pre_scale == nullptr ? value : value * a.pre_scale[column];
  }
  return _mm512_load_ps(values);
}

NIBBLE_INLINE __m512 straight(const PrepareArgs& a, const void* row, int64_t k) {
  const __mmask16 lanes = lanes_before(k, a.k);
  const __m512 value = load_lanes(row, a.x_dtype, k, lanes);
  if (a.pre_scale == nullptr) return value;
  return _mm512_mul_ps(value, _mm512_maskz_loadu_ps(lanes, a.pre_scale + k));
}

NIBBLE_INLINE Block load_block(const PrepareArgs& a, const void* row, int64_t k) {
  if (a.k_perm != nullptr) return {gathered(a, row, k), gathered(a, row, k + 16)};
  return {straight(a, row, k), straight(a, row, k + 16)};
}

NIBBLE_INLINE const void* row_of(const PrepareArgs& a, int64_t m) {
  return static_cast<const uint8_t*>(a.x) + m * a.x_stride_bytes;
}

/// 32 columns of one row in int8: x is about code * scale.
struct Int8Block {
  __m512i lower, upper;  // codes as int32
  float scale;
};

/// The rule of kInt8Tiles (kernels/args.h).
NIBBLE_INLINE Int8Block quantize_block(const Block& x) {
  // Magnitudes compare as integers, and so NaN > Inf > every number.
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  const __m512i larger =
      _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(x.lower), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(x.upper), magnitude));
  const uint32_t amax_bits = _mm512_reduce_max_epu32(larger);
  float amax;
  __builtin_memcpy(&amax, &amax_bits, sizeof(amax));
  if (amax_bits >= 0x7F800000u)
    return {_mm512_setzero_si512(), _mm512_setzero_si512(), __builtin_nanf("")};
  if (amax < kInt8SmallestAmax) return {_mm512_setzero_si512(), _mm512_setzero_si512(), 1.0f};
  const __m512 factor = _mm512_set1_ps(127.0f / amax);
  return {_mm512_cvtps_epi32(_mm512_mul_ps(x.lower, factor)),
          _mm512_cvtps_epi32(_mm512_mul_ps(x.upper, factor)), amax / 127.0f};
}

/// Where the parts of one row in one block of an int8 tile go.
struct Int8Row {
  uint8_t* codes;
  uint8_t* sums;
  uint8_t* scale;
  int64_t tile_rows;
};

NIBBLE_INLINE void store_block(const Int8Block& block, const Int8Row& out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out.codes), _mm512_cvtepi32_epi8(block.lower));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out.codes + 16), _mm512_cvtepi32_epi8(block.upper));
  const int32_t sums[2] = {_mm512_reduce_add_epi32(block.lower),
                           _mm512_reduce_add_epi32(block.upper)};
  __builtin_memcpy(out.sums, &sums[0], 4);
  __builtin_memcpy(out.sums + 4 * out.tile_rows, &sums[1], 4);
  __builtin_memcpy(out.scale, &block.scale, 4);
}

/// Each four columns in the order 0 2 1 3.
NIBBLE_INLINE __m512i swap_middle_columns(__m512i bf16) {
  const __m512i order =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
  return _mm512_shuffle_epi8(bf16, order);
}

NIBBLE_INLINE __m512i load_bf16_block(const PrepareArgs& a, const void* row, int64_t k) {
  const uint16_t* x = static_cast<const uint16_t*>(row);
  const int64_t count = min_i64(kBlockColumns, a.k - k);
  if (a.k_perm == nullptr) {
    const __mmask32 lanes = count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0u : (1u << count) - 1u;
    return _mm512_maskz_loadu_epi16(lanes, x + k);
  }
  alignas(64) uint16_t values[32] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = x[a.k_perm[k + i]];
  return _mm512_load_si512(values);
}

}  // namespace

void prepare_f32_rows_avx512_vnni(const PrepareArgs& args, Range tiles) {
  const int64_t end = min_i64(tiles.end * kTileRows, args.m);
  for (int64_t m = tiles.begin * kTileRows; m < end; ++m) {
    float* out = static_cast<float*>(args.out) + m * args.k_padded;
    for (int64_t k = 0; k < args.k_padded; k += kBlockColumns) {
      const Block block = load_block(args, row_of(args, m), k);
      _mm512_storeu_ps(out + k, block.lower);
      _mm512_storeu_ps(out + k + 16, block.upper);
    }
  }
}

/// RN32(code * scale): FP32 rows for int8 compute of weights that have no integer row.
void prepare_f32_of_int8_avx512_vnni(const PrepareArgs& args, Range tiles) {
  const int64_t end = min_i64(tiles.end * kTileRows, args.m);
  for (int64_t m = tiles.begin * kTileRows; m < end; ++m) {
    float* out = static_cast<float*>(args.out) + m * args.k_padded;
    for (int64_t k = 0; k < args.k_padded; k += kBlockColumns) {
      const Int8Block block = quantize_block(load_block(args, row_of(args, m), k));
      const __m512 scale = _mm512_set1_ps(block.scale);
      _mm512_storeu_ps(out + k, _mm512_mul_ps(_mm512_cvtepi32_ps(block.lower), scale));
      _mm512_storeu_ps(out + k + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(block.upper), scale));
    }
  }
}

void prepare_bf16_rows_avx512_vnni(const PrepareArgs& args, Range tiles) {
  NIBBLE_ASSUME(args.x_dtype == DType::kBF16 && args.pre_scale == nullptr);
  const int64_t end = min_i64(tiles.end * kTileRows, args.m);
  for (int64_t m = tiles.begin * kTileRows; m < end; ++m) {
    uint16_t* out = static_cast<uint16_t*>(args.out) + m * args.k_padded;
    for (int64_t k = 0; k < args.k_padded; k += kBlockColumns) {
      _mm512_storeu_si512(out + k, swap_middle_columns(load_bf16_block(args, row_of(args, m), k)));
    }
  }
}

void prepare_int8_tiles_avx512_vnni(const PrepareArgs& args, Range tiles) {
  const int64_t blocks = args.k_padded / kBlockColumns;
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int64_t m = t * kTileRows;
    const int64_t rows = min_i64(kTileRows, args.m - m);
    uint8_t* out = static_cast<uint8_t*>(args.out) + m * blocks * kInt8RowBlockBytes;
    for (int64_t block = 0; block < blocks; ++block, out += rows * kInt8RowBlockBytes) {
      for (int64_t r = 0; r < rows; ++r) {
        const Block x = load_block(args, row_of(args, m + r), block * kBlockColumns);
        store_block(quantize_block(x),
                    {out + 32 * r, out + 32 * rows + 4 * r, out + 40 * rows + 4 * r, rows});
      }
    }
  }
}

}  // namespace nibble
