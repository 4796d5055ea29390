// kPrepareX for any CPU. SIMD rows of the same XForm must write the same bytes.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/x_scalar.h"
#include "nibble/core.h"

namespace nibble {

namespace {

constexpr int64_t kTileRows = 8;

XSource source_of(const PrepareArgs& args) {
  return {args.x, args.x_stride_bytes, args.x_dtype, args.k_perm, args.pre_scale, args.k};
}

// Rows of the tiles [tiles.begin, tiles.end).
Range rows_of(const PrepareArgs& args, Range tiles) {
  NIBBLE_ASSUME(args.k_padded % kInt8BlockColumns == 0 && args.k <= args.k_padded);
  const int64_t end = tiles.end * kTileRows;
  return {tiles.begin * kTileRows, end < args.m ? end : args.m};
}

}  // namespace

void gather_x(const XSource& source, int64_t row, int64_t column_begin, int64_t count, float* out) {
  const uint8_t* x = static_cast<const uint8_t*>(source.x) + row * source.stride_bytes;
  const int64_t left = source.k - column_begin;
  const int64_t real = left < 0 ? 0 : left < count ? left : count;
  if (source.k_perm == nullptr && source.dtype == DType::kF32) {
    std::memcpy(out, x + 4 * column_begin, static_cast<size_t>(4 * real));
  } else {
    for (int64_t j = 0; j < real; ++j) {
      const int64_t column = column_begin + j;
      const int64_t original = source.k_perm != nullptr ? source.k_perm[column] : column;
      out[j] = load_as_f32(x, source.dtype, original);
    }
  }
  if (source.pre_scale != nullptr) {
    for (int64_t j = 0; j < real; ++j) {
      const int64_t column = column_begin + j;
      out[j] *= source.pre_scale[source.k_perm != nullptr ? source.k_perm[column] : column];
    }
  }
  for (int64_t j = real; j < count; ++j) out[j] = 0;
}

Int8Block quantize_block(const float* x) {
  Int8Block block = {};
  float amax = 0;
  bool has_nan = false;
  for (int64_t j = 0; j < kInt8BlockColumns; ++j) {
    const float magnitude = std::fabs(x[j]);
    if (magnitude > amax) amax = magnitude;
    has_nan |= std::isnan(magnitude);
  }
  if (has_nan || std::isinf(amax)) {
    block.scale = std::numeric_limits<float>::quiet_NaN();
    return block;
  }
  if (amax < kInt8SmallestAmax) {
    block.scale = 1;
    return block;
  }
  // Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is the nearest even integer, without
  // a call to the mathematics library a value.
  constexpr float kNoFraction = 0x1.8p23f;
  const float inverse = 127.0f / amax;
  block.scale = amax / 127.0f;
  for (int64_t j = 0; j < kInt8BlockColumns; ++j) {
    const auto code = static_cast<int8_t>((x[j] * inverse + kNoFraction) - kNoFraction);
    block.codes[j] = code;
    block.sums[j / (kInt8BlockColumns / 2)] += code;
  }
  return block;
}

/// XForm::kF32Rows.
void prepare_f32_scalar(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  auto* out = static_cast<float*>(args.out);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    gather_x(source_of(args), row, 0, args.k_padded, out + row * args.k_padded);
  }
}

/// XForm::kF32Rows of x rounded to int8: RN32(code * scale).
void prepare_f32_of_int8_scalar(const PrepareArgs& args, Range tiles) {
  const Range rows = rows_of(args, tiles);
  auto* out = static_cast<float*>(args.out);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t column = 0; column < args.k_padded; column += kInt8BlockColumns) {
      float x[kInt8BlockColumns];
      gather_x(source_of(args), row, column, kInt8BlockColumns, x);
      const Int8Block block = quantize_block(x);
      float* to = out + row * args.k_padded + column;
      for (int64_t j = 0; j < kInt8BlockColumns; ++j) {
        to[j] = static_cast<float>(block.codes[j]) * block.scale;
      }
    }
  }
}

/// XForm::kBf16Rows. x is BF16 and is not pre-scaled: `exact` never rounds x.
void prepare_bf16_scalar(const PrepareArgs& args, Range tiles) {
  NIBBLE_ASSUME(args.x_dtype == DType::kBF16 && args.pre_scale == nullptr);
  constexpr int64_t kOrder[4] = {0, 2, 1, 3};
  const Range rows = rows_of(args, tiles);
  auto* out = static_cast<uint16_t*>(args.out);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const uint8_t* x = static_cast<const uint8_t*>(args.x) + row * args.x_stride_bytes;
    for (int64_t place = 0; place < args.k_padded; ++place) {
      const int64_t column = place / 4 * 4 + kOrder[place % 4];
      uint16_t value = 0;
      if (column < args.k) {
        const int64_t original = args.k_perm != nullptr ? args.k_perm[column] : column;
        std::memcpy(&value, x + 2 * original, sizeof(value));
      }
      out[row * args.k_padded + place] = value;
    }
  }
}

/// XForm::kInt8Tiles, as kernels/args.h draws it.
void prepare_int8_scalar(const PrepareArgs& args, Range tiles) {
  const int64_t blocks = args.k_padded / kInt8BlockColumns;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const Range rows = rows_of(args, {tile, tile + 1});
    const int64_t count = rows.end - rows.begin;
    uint8_t* tile_out = static_cast<uint8_t*>(args.out) + rows.begin * blocks * kInt8RowBlockBytes;
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t* codes = tile_out + b * count * kInt8RowBlockBytes;
      uint8_t* sums = codes + count * kInt8BlockColumns;
      uint8_t* scales = sums + 2 * count * static_cast<int64_t>(sizeof(int32_t));
      for (int64_t r = 0; r < count; ++r) {
        float x[kInt8BlockColumns];
        gather_x(source_of(args), rows.begin + r, b * kInt8BlockColumns, kInt8BlockColumns, x);
        const Int8Block block = quantize_block(x);
        std::memcpy(codes + r * kInt8BlockColumns, block.codes, sizeof(block.codes));
        for (int64_t half = 0; half < 2; ++half) {
          std::memcpy(sums + 4 * (half * count + r), &block.sums[half], sizeof(int32_t));
        }
        std::memcpy(scales + 4 * r, &block.scale, sizeof(float));
      }
    }
  }
}

}  // namespace nibble
