// kPrepareX on AVX2: the bytes of prepare_scalar.cc, 8 columns at a time.
//
// A row is walked in blocks of 32 columns. A block that lies within k and is neither gathered nor
// of an unpadded tail is loaded straight from x; all others go through 32 floats on the stack.
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

constexpr int64_t kTileRows = 8;
constexpr int kVectors = 4;  // of 8 columns in a block

struct Block {
  __m256 values[kVectors];
};

NIBBLE_INLINE float load_one(const uint8_t* x, DType dtype, int64_t column) {
  if (dtype == DType::kF32) {
    float value;
    __builtin_memcpy(&value, x + 4 * column, sizeof(value));
    return value;
  }
  uint16_t bits;
  __builtin_memcpy(&bits, x + 2 * column, sizeof(bits));
  if (dtype == DType::kF16) return _cvtsh_ss(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

NIBBLE_INLINE __m256 load_eight(const uint8_t* x, DType dtype, int64_t column) {
  if (dtype == DType::kF32) return load_f32(x + 4 * column);
  return dtype == DType::kF16 ? load_f16(x + 2 * column) : load_bf16(x + 2 * column);
}

/// 32 columns of one row from `column` on, as they meet the weight: gathered, pre-scaled, 0 past k.
NIBBLE_INLINE Block load_block(const PrepareArgs& args, const uint8_t* x, int64_t column) {
  Block block;
  if (args.k_perm == nullptr && column + kBlockColumns <= args.k) {
    NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
      block.values[v] = load_eight(x, args.x_dtype, column + 8 * v);
      if (args.pre_scale != nullptr) {
        const __m256 factor = load_f32(args.pre_scale + column + 8 * v);
        block.values[v] = _mm256_mul_ps(block.values[v], factor);
      }
    }
    return block;
  }
  alignas(32) float values[kBlockColumns] = {};
  const int64_t count = min_i64(kBlockColumns, args.k - column);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t from = args.k_perm != nullptr ? args.k_perm[column + j] : column + j;
    const float value = load_one(x, args.x_dtype, from);
    values[j] = args.pre_scale != nullptr ? value * args.pre_scale[from] : value;
  }
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) block.values[v] = _mm256_load_ps(values + 8 * v);
  return block;
}

/// Largest magnitude as FP32 bits. Integers order like the floats, with Inf and NaN on top.
NIBBLE_INLINE uint32_t largest_bits(const Block& block) {
  const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
  __m256i most = _mm256_setzero_si256();
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
    const __m256i bits = _mm256_castps_si256(block.values[v]);
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, magnitude));
  }
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

struct Quantized {
  __m256i codes[kVectors];  ///< 8 x int32
  float scale;
};

/// scale = amax / 127, code = nearest even integer of x * (127 / amax).
NIBBLE_INLINE Quantized quantize(const Block& block) {
  constexpr uint32_t kInfinity = 0x7F800000, kQuietNan = 0x7FC00000;
  const uint32_t bits = largest_bits(block);
  float amax, nan;
  __builtin_memcpy(&amax, &bits, sizeof(amax));
  __builtin_memcpy(&nan, &kQuietNan, sizeof(nan));
  Quantized out;
  if (bits >= kInfinity || amax < kInt8SmallestAmax) {
    NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) out.codes[v] = _mm256_setzero_si256();
    out.scale = bits >= kInfinity ? nan : 1.0f;
    return out;
  }
  const __m256 inverse = _mm256_set1_ps(127.0f / amax);
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
    // The default rounding of the control register: nearest even.
    out.codes[v] = _mm256_cvtps_epi32(_mm256_mul_ps(block.values[v], inverse));
  }
  out.scale = amax / 127.0f;
  return out;
}

/// Sum of 16 codes.
NIBBLE_INLINE int32_t sum_of(__m256i a, __m256i b) {
  const __m256i both = _mm256_add_epi32(a, b);
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
  return _mm_cvtsi128_si32(s);
}

/// 32 codes as int8, in order. Packing works within 128-bit lanes, hence the permutation.
NIBBLE_INLINE __m256i as_int8(const Quantized& q) {
  const __m256i low = _mm256_packs_epi32(q.codes[0], q.codes[1]);
  const __m256i high = _mm256_packs_epi32(q.codes[2], q.codes[3]);
  return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

NIBBLE_INLINE Range rows_of(const PrepareArgs& args, Range tiles) {
  NIBBLE_ASSUME(args.k_padded % kBlockColumns == 0 && args.k <= args.k_padded);
  return {tiles.begin * kTileRows, min_i64(tiles.end * kTileRows, args.m)};
}

NIBBLE_INLINE const uint8_t* row_of(const PrepareArgs& args, int64_t row) {
  return static_cast<const uint8_t*>(args.x) + row * args.x_stride_bytes;
}

}  // namespace

/// XForm::kF32Rows.
void prepare_f32_avx2(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = row_of(args, row);
    float* out = static_cast<float*>(args.out) + row * args.k_padded;
    for (int64_t column = 0; column < args.k_padded; column += kBlockColumns) {
      const Block block = load_block(args, x, column);
      NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
        _mm256_storeu_ps(out + column + 8 * v, block.values[v]);
      }
    }
  }
}

/// XForm::kF32Rows of x rounded to int8: RN32(code * scale).
void prepare_f32_of_int8_avx2(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = row_of(args, row);
    float* out = static_cast<float*>(args.out) + row * args.k_padded;
    for (int64_t column = 0; column < args.k_padded; column += kBlockColumns) {
      const Quantized q = quantize(load_block(args, x, column));
      const __m256 scale = _mm256_set1_ps(q.scale);
      NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
        _mm256_storeu_ps(out + column + 8 * v,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(q.codes[v]), scale));
      }
    }
  }
}

/// XForm::kInt8Tiles, as kernels/args.h draws it.
void prepare_int8_avx2(const PrepareArgs& args, Range tiles) {
  const int64_t blocks = args.k_padded / kBlockColumns;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const Range rows = rows_of(args, {tile, tile + 1});
    const int64_t count = rows.end - rows.begin;
    uint8_t* tile_out = static_cast<uint8_t*>(args.out) + rows.begin * blocks * kInt8RowBlockBytes;
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* x = row_of(args, rows.begin + r);
      for (int64_t b = 0; b < blocks; ++b) {
        const Quantized q = quantize(load_block(args, x, b * kBlockColumns));
        uint8_t* codes = tile_out + b * count * kInt8RowBlockBytes;
        uint8_t* sums = codes + count * kBlockColumns + 4 * r;
        const int32_t lower = sum_of(q.codes[0], q.codes[1]);
        const int32_t upper = sum_of(q.codes[2], q.codes[3]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + r * kBlockColumns), as_int8(q));
        __builtin_memcpy(sums, &lower, sizeof(lower));
        __builtin_memcpy(sums + 4 * count, &upper, sizeof(upper));
        __builtin_memcpy(sums + 8 * count, &q.scale, sizeof(q.scale));
      }
    }
  }
}

}  // namespace nibble
