// What a row of x becomes before it meets a weight: gathered, pre-scaled, zero-filled and, for
// int8 compute, quantized. The bit-exact specification of every prepared form.
#ifndef NIBBLE_KERNELS_CPU_X_SCALAR_H_
#define NIBBLE_KERNELS_CPU_X_SCALAR_H_

#include "kernels/args.h"

namespace nibble {

inline constexpr int64_t kInt8BlockColumns = 32;

/// The caller's x and its transforms.
struct XSource {
  const void* x;
  int64_t stride_bytes;
  DType dtype;
  const int32_t* k_perm;   ///< null: identity
  const float* pre_scale;  ///< null: none
  int64_t k;
};

/// out[j] = RN32(x[row][p] * pre_scale[p]), p = k_perm[column_begin + j], for `count` columns;
/// 0 for columns >= k, which are not read. Conversions to FP32 are exact.
void gather_x(const XSource& source, int64_t row, int64_t column_begin, int64_t count, float* out);

/// One row's 32 columns in int8: x is about code * scale.
struct Int8Block {
  int8_t codes[kInt8BlockColumns];
  int32_t sums[2];  ///< of the codes of columns 0-15 and 16-31
  float scale;
};

/// scale = amax / 127, code = nearest even integer of x * (127 / amax), all in FP32.
/// amax < 2^-100: codes 0, scale 1. amax Inf or any NaN: codes 0, scale 0x7FC00000 (a quiet NaN).
Int8Block quantize_block(const float* x);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_X_SCALAR_H_
