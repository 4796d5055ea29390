// The epilogue of AVX2 rows: 8 outputs at a time with the order and roundings of finish_tile, which
// it calls for panels cut by the edge of the matrix and for the activation it does not know: erf.
// Without activation the bits are those of finish_tile; SiLU and tanh-GELU differ by the rounding
// of exp.
#ifndef NIBBLE_KERNELS_CPU_EPILOGUE_AVX2_H_
#define NIBBLE_KERNELS_CPU_EPILOGUE_AVX2_H_

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {

/// 8 values from element `index` of an array of f32, f16 or bf16.
NIBBLE_INLINE __m256 load_8(const void* data, DType dtype, int64_t index) {
  const auto* at = static_cast<const uint8_t*>(data);
  if (dtype == DType::kF32) return load_f32(at + 4 * index);
  return dtype == DType::kF16 ? load_f16(at + 2 * index) : load_bf16(at + 2 * index);
}

/// 8 values → BF16, nearest even; NaN stays NaN with its sign.
NIBBLE_INLINE __m128i to_bf16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i wide = _mm256_blendv_epi8(rounded, quiet, is_nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}

NIBBLE_INLINE void store_8(void* data, DType dtype, int64_t index, __m256 values) {
  auto* at = static_cast<uint8_t*>(data);
  if (dtype == DType::kF32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(at + 4 * index), values);
    return;
  }
  const __m128i narrow =
      dtype == DType::kF16 ? _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT) : to_bf16(values);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 2 * index), narrow);
}

/// e^v within 2 units in the last place. Clamped to [-87.3, 88.3], where the result is normal.
NIBBLE_INLINE __m256 exp_f32(__m256 v) {
  // NaN: min and max return their second operand, which keeps it.
  v = _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.3f), v));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // v - n ln 2 in two steps; the first constant has few bits, so its product with n is exact.
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), v);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  // Taylor's series to r^7/7!: |r| <= 0.347, so the rest is below 2^-27.
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

/// v / (1 + e^-u)
NIBBLE_INLINE __m256 times_sigmoid(__m256 v, __m256 u) {
  const __m256 e = exp_f32(_mm256_xor_ps(u, _mm256_set1_ps(-0.0f)));
  return _mm256_div_ps(v, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

/// The activation of 8 values; not kGeluErf.
NIBBLE_INLINE __m256 activate_8(Activation activation, __m256 v) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kGeluErf:
      return v;
    case Activation::kRelu:  // NaN is not below 0 and stays
      return _mm256_andnot_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ), v);
    case Activation::kSilu:
      return times_sigmoid(v, v);
    case Activation::kGeluTanh: {
      const __m256 cube =
          _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.044715f), v), v), v);
      const __m256 u = _mm256_mul_ps(_mm256_set1_ps(1.5957691216057308f), _mm256_add_ps(v, cube));
      return times_sigmoid(v, u);
    }
  }
  return v;
}

/// alpha * (sum op row_scale) + bias of 8 lanes.
NIBBLE_INLINE __m256 scaled_sums(const MatmulArgs& args, __m256 sums, int64_t packed_row,
                                 int64_t bias_row) {
  __m256 t = sums;
  if (args.w.row_scale != nullptr) {
    const __m256 scale = _mm256_loadu_ps(args.w.row_scale + packed_row);
    t = args.w.row_scale_op == TensorScaleOp::kMultiply ? _mm256_mul_ps(t, scale)
                                                        : _mm256_div_ps(t, scale);
  }
  const EpilogueArgs& epilogue = args.epilogue;
  if (epilogue.alpha != 1.0f) t = _mm256_mul_ps(_mm256_set1_ps(epilogue.alpha), t);
  if (epilogue.bias != nullptr) {
    t = _mm256_add_ps(t, load_8(epilogue.bias, epilogue.bias_dtype, bias_row));
  }
  return t;
}

/// Adds what lies in y's shape and stores 8 outputs of row `row` from column `column` on.
NIBBLE_INLINE void store_outputs(const MatmulArgs& args, int64_t row, int64_t column, __m256 t) {
  const EpilogueArgs& epilogue = args.epilogue;
  if (epilogue.beta != 0.0f) {
    const auto* c = static_cast<const uint8_t*>(epilogue.c) + row * epilogue.c_stride_bytes;
    const __m256 value = load_8(c, args.y_dtype, column);
    t = _mm256_add_ps(t, _mm256_mul_ps(_mm256_set1_ps(epilogue.beta), value));
  }
  if (epilogue.residual != nullptr) {
    const auto* residual =
        static_cast<const uint8_t*>(epilogue.residual) + row * epilogue.residual_stride_bytes;
    t = _mm256_add_ps(t, load_8(residual, args.y_dtype, column));
  }
  store_8(static_cast<uint8_t*>(args.y) + row * args.y_stride_bytes, args.y_dtype, column, t);
}

/// finish_tile for `sums` [rows][16].
static inline __attribute__((noinline)) void finish_tile_avx2(const MatmulArgs& args,
                                                              const SumTile& tile) {
  const bool paired = args.w.paired;
  const int64_t outputs = paired ? args.w.n / 2 : args.w.n;
  const int64_t width = paired ? kHalfLanes : kPanelRows;
  const int64_t column = tile.panel * width, packed_row = tile.panel * kPanelRows;
  if (column + width > outputs || args.epilogue.activation == Activation::kGeluErf) {
    finish_tile(args, tile);
    return;
  }
  const Activation activation = args.epilogue.activation;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* sums = tile.sums + r * kPanelRows;
    const int64_t row = tile.m_begin + r, up_bias = paired ? outputs + column : column + kHalfLanes;
    __m256 low = scaled_sums(args, _mm256_loadu_ps(sums), packed_row, column);
    __m256 high =
        scaled_sums(args, _mm256_loadu_ps(sums + kHalfLanes), packed_row + kHalfLanes, up_bias);
    low = activate_8(activation, low);
    if (paired) {
      store_outputs(args, row, column, _mm256_mul_ps(low, high));
    } else {
      store_outputs(args, row, column, low);
      store_outputs(args, row, column + kHalfLanes, activate_8(activation, high));
    }
  }
}

/// The outputs of `totals` [rows][16] * `factor`, a power of two.
static inline __attribute__((noinline)) void finish_totals(const MatmulArgs& args,
                                                           const double* totals, int64_t m_begin,
                                                           int64_t rows, int64_t panel,
                                                           double factor) {
  constexpr int64_t kRowsAtOnce = 8;
  alignas(32) float sums[kRowsAtOnce * kPanelRows];
  const __m256d scale = _mm256_set1_pd(factor);
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = min_i64(kRowsAtOnce, rows - row);
    const double* from = totals + row * kPanelRows;
    for (int64_t i = 0; i < count * kPanelRows; i += 4) {
      _mm_store_ps(sums + i, _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_loadu_pd(from + i), scale)));
    }
    finish_tile_avx2(args, {sums, m_begin + row, count, panel});
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_EPILOGUE_AVX2_H_
