// kPrepareX on AArch64: the bytes of prepare_scalar.cc, 4 columns at a time.
//
// A row is walked in blocks of 32 columns. A block that lies within k and is not gathered is loaded
// straight from x; all others go through 32 values on the stack.
#include "kernels/cpu/panel_neon.h"

namespace nibble {
namespace {

constexpr int64_t kTileRows = 8;
constexpr int kVectors = 8;  // of 4 columns in a block

struct Block {
  float32x4_t values[kVectors];
};

NIBBLE_INLINE float load_one(const uint8_t* x, DType dtype, int64_t column) {
  if (dtype == DType::kF32) {
    float value;
    __builtin_memcpy(&value, x + 4 * column, sizeof(value));
    return value;
  }
  uint16_t bits;
  __builtin_memcpy(&bits, x + 2 * column, sizeof(bits));
  if (dtype == DType::kF16) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
  }
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return value;
}

NIBBLE_INLINE float32x4_t load_four(const uint8_t* x, DType dtype, int64_t column) {
  if (dtype == DType::kF32) return load_f32(x + 4 * column);
  return dtype == DType::kF16 ? load_f16(x + 2 * column) : load_bf16(x + 2 * column);
}

/// 32 columns of one row from `column` on, as they meet the weight: gathered, pre-scaled, 0 past k.
NIBBLE_INLINE Block load_block(const PrepareArgs& args, const uint8_t* x, int64_t column) {
  Block block;
  if (args.k_perm == nullptr && column + kBlockColumns <= args.k) {
    NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
      block.values[v] = load_four(x, args.x_dtype, column + 4 * v);
      if (args.pre_scale != nullptr) {
        block.values[v] = vmulq_f32(block.values[v], load_f32(args.pre_scale + column + 4 * v));
      }
    }
    return block;
  }
  float values[kBlockColumns] = {};
  const int64_t count = min_i64(kBlockColumns, args.k - column);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t from = args.k_perm != nullptr ? args.k_perm[column + j] : column + j;
    const float value = load_one(x, args.x_dtype, from);
    values[j] = args.pre_scale != nullptr ? value * args.pre_scale[from] : value;
  }
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) block.values[v] = vld1q_f32(values + 4 * v);
  return block;
}

/// Largest magnitude as FP32 bits. Integers order like the floats, with Inf and NaN on top.
NIBBLE_INLINE uint32_t largest_bits(const Block& block) {
  uint32x4_t most = vdupq_n_u32(0);
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(block.values[v]);
    most = vmaxq_u32(most, vbicq_u32(bits, vdupq_n_u32(0x80000000)));
  }
  return vmaxvq_u32(most);
}

struct Quantized {
  int32x4_t codes[kVectors];
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
    NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) out.codes[v] = vdupq_n_s32(0);
    out.scale = bits >= kInfinity ? nan : 1.0f;
    return out;
  }
  const float inverse = 127.0f / amax;
  NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
    out.codes[v] = vcvtnq_s32_f32(vmulq_n_f32(block.values[v], inverse));
  }
  out.scale = amax / 127.0f;
  return out;
}

/// Sum of the 16 codes from vector `first` on.
NIBBLE_INLINE int32_t sum_of(const Quantized& q, int first) {
  const int32x4_t a = vaddq_s32(q.codes[first], q.codes[first + 1]);
  return vaddvq_s32(vaddq_s32(a, vaddq_s32(q.codes[first + 2], q.codes[first + 3])));
}

/// 16 codes as int8 from vector `first` on.
NIBBLE_INLINE int8x16_t as_int8(const Quantized& q, int first) {
  const int16x8_t low = vcombine_s16(vmovn_s32(q.codes[first]), vmovn_s32(q.codes[first + 1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(q.codes[first + 2]), vmovn_s32(q.codes[first + 3]));
  return vcombine_s8(vmovn_s16(low), vmovn_s16(high));
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
void prepare_f32_neon(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = row_of(args, row);
    float* out = static_cast<float*>(args.out) + row * args.k_padded;
    for (int64_t column = 0; column < args.k_padded; column += kBlockColumns) {
      const Block block = load_block(args, x, column);
      NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
        vst1q_f32(out + column + 4 * v, block.values[v]);
      }
    }
  }
}

/// XForm::kF32Rows of x rounded to int8: RN32(code * scale).
void prepare_f32_of_int8_neon(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = row_of(args, row);
    float* out = static_cast<float*>(args.out) + row * args.k_padded;
    for (int64_t column = 0; column < args.k_padded; column += kBlockColumns) {
      const Quantized q = quantize(load_block(args, x, column));
      NIBBLE_UNROLL for (int v = 0; v < kVectors; ++v) {
        vst1q_f32(out + column + 4 * v, vmulq_n_f32(vcvtq_f32_s32(q.codes[v]), q.scale));
      }
    }
  }
}

/// XForm::kBf16Rows: each four columns in the order 0 2 1 3. x is BF16 and is not pre-scaled:
/// `exact` never rounds x.
void prepare_bf16_neon(const PrepareArgs& args, Range tiles) {
  NIBBLE_ASSUME(args.x_dtype == DType::kBF16 && args.pre_scale == nullptr);
  const uint8x16_t order = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
  const Range rows = rows_of(args, tiles);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = row_of(args, row);
    uint8_t* out = static_cast<uint8_t*>(args.out) + 2 * row * args.k_padded;
    for (int64_t column = 0; column < args.k_padded; column += kBlockColumns) {
      uint8_t gathered[2 * kBlockColumns] = {};
      const uint8_t* from = x + 2 * column;
      if (args.k_perm != nullptr || column + kBlockColumns > args.k) {
        const int64_t count = min_i64(kBlockColumns, args.k - column);
        for (int64_t j = 0; j < count; ++j) {
          const int64_t of = args.k_perm != nullptr ? args.k_perm[column + j] : column + j;
          __builtin_memcpy(gathered + 2 * j, x + 2 * of, 2);
        }
        from = gathered;
      }
      NIBBLE_UNROLL for (int v = 0; v < 4; ++v) {
        vst1q_u8(out + 2 * column + 16 * v, vqtbl1q_u8(vld1q_u8(from + 16 * v), order));
      }
    }
  }
}

/// XForm::kInt8Tiles, as kernels/args.h draws it.
void prepare_int8_neon(const PrepareArgs& args, Range tiles) {
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
        const int32_t lower = sum_of(q, 0), upper = sum_of(q, 4);
        auto* to = reinterpret_cast<int8_t*>(codes + r * kBlockColumns);
        vst1q_s8(to, as_int8(q, 0));
        vst1q_s8(to + 16, as_int8(q, 4));
        __builtin_memcpy(sums, &lower, sizeof(lower));
        __builtin_memcpy(sums + 4 * count, &upper, sizeof(upper));
        __builtin_memcpy(sums + 8 * count, &q.scale, sizeof(q.scale));
      }
    }
  }
}

}  // namespace nibble
