// finish_tile (epilogue.h) in AVX-512: the same steps in the same order with the same roundings, so
// the same bits, except that activations are polynomials instead of libm calls.
// Scalar code here costs 20 cycles an output, a third of a multiplication at K = 4096.
#ifndef NIBBLE_KERNELS_CPU_EPILOGUE_AVX512_H_
#define NIBBLE_KERNELS_CPU_EPILOGUE_AVX512_H_

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/panel_avx512.h"

namespace nibble {

/// e^v: 2^n * e^r with |r| <= ln(2)/2 and a polynomial fitted to 2^-28; about 1 unit of 2^-24.
/// Overflows to Inf and underflows to 0 as expf does; NaN stays NaN.
NIBBLE_INLINE __m512 exp_f32(__m512 v) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln(2) in two parts: the first times any n of interest is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), v);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.38282314e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.37560199e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16684267e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66664109e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.99999910e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  // NOTE: for v = +-Inf, r is NaN; the limits are put in by hand.
  const __mmask16 high = _mm512_cmp_ps_mask(v, _mm512_set1_ps(89.0f), _CMP_GT_OQ);
  const __mmask16 low = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-104.0f), _CMP_LT_OQ);
  p = _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), high, _mm512_set1_ps(__builtin_inff()));
  return _mm512_mask_mov_ps(p, low, _mm512_setzero_ps());
}

/// erfc(z) = t * e^(-z*z) * q(t) with t = 1 / (1 + z/2) for z >= 0, q fitted to 2^-28, and
/// erfc(-z) = 2 - erfc(z).
NIBBLE_INLINE __m512 erfc_f32(__m512 v) {
  const __m512 z = _mm512_abs_ps(v);
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.5f), one));
  __m512 q = _mm512_set1_ps(0.0361235291f);
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-0.193129495f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.386808544f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-0.297546029f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-0.0145179238f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.0308078714f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.0567714497f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.185083345f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.245265707f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.282244146f));
  q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(0.282088846f));
  const __m512 e = exp_f32(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z)));
  const __m512 positive = _mm512_mul_ps(_mm512_mul_ps(t, q), e);
  const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(v));
  return _mm512_mask_sub_ps(positive, negative, _mm512_set1_ps(2.0f), positive);
}

/// v / (1 + e^-u)
NIBBLE_INLINE __m512 times_logistic(__m512 v, __m512 u) {
  const __m512 e = exp_f32(_mm512_sub_ps(_mm512_setzero_ps(), u));
  return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

NIBBLE_INLINE __m512 activate_avx512(Activation activation, __m512 v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kRelu:  // NaN stays NaN
      return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLT_UQ), v);
    case Activation::kSilu:
      return times_logistic(v, v);
    case Activation::kGeluTanh: {  // 0.5 (1 + tanh u) = 1 / (1 + e^-2u)
      const __m512 square = _mm512_mul_ps(v, v);
      const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(square, v), _mm512_set1_ps(0.044715f), v);
      return times_logistic(v, _mm512_mul_ps(cubic, _mm512_set1_ps(1.5957691216057308f)));
    }
    case Activation::kGeluErf: {  // 0.5 (1 + erf u) = 0.5 erfc(-u)
      const __m512 tail = erfc_f32(_mm512_mul_ps(v, _mm512_set1_ps(-0.70710678118654752f)));
      return _mm512_mul_ps(_mm512_mul_ps(v, _mm512_set1_ps(0.5f)), tail);
    }
  }
  return v;
}

NIBBLE_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << (count < 0 ? 0 : count > 16 ? 16 : count)) - 1u);
}

/// 16 values of an array of f32, f16 or bf16 from `index` on; lanes outside `lanes` are 0, not
/// read.
NIBBLE_INLINE __m512 load_values(const void* data, DType dtype, int64_t index, __mmask16 lanes) {
  if (dtype == DType::kF32)
    return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(data) + index);
  const __m256i half = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(data) + index);
  return dtype == DType::kF16 ? _mm512_cvtph_ps(half) : bf16_to_f32(half);
}

/// Round to nearest even; NaN stays NaN, quiet, with its sign. vcvtneps2bf16 would flush
/// subnormals.
NIBBLE_INLINE __m256i f32_to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF)), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40)));
}

NIBBLE_INLINE void store_values(void* data, DType dtype, int64_t index, __mmask16 lanes, __m512 v) {
  if (dtype == DType::kF32) {
    _mm512_mask_storeu_ps(static_cast<float*>(data) + index, lanes, v);
    return;
  }
  const __m256i half = dtype == DType::kF16
                           ? _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                           : f32_to_bf16(v);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(data) + index, lanes, half);
}

/// Biases of a panel's 16 rows. Paired: gate rows [first, first + 8), then up rows from `outputs`
/// on.
NIBBLE_INLINE __m512 load_bias(const MatmulArgs& args, int64_t first, int64_t outputs) {
  const EpilogueArgs& e = args.epilogue;
  if (!args.w.paired) return load_values(e.bias, e.bias_dtype, first, first_lanes(outputs - first));
  const __mmask16 lanes = first_lanes(min_i64(8, outputs - first));
  const __m512 gate = load_values(e.bias, e.bias_dtype, first, lanes);
  const __m512 up = load_values(e.bias, e.bias_dtype, outputs + first, lanes);
  return _mm512_shuffle_f32x4(gate, up, _MM_SHUFFLE(1, 0, 1, 0));
}

/// finish_tile with the activation's value within the same bound.
__attribute__((noinline, unused)) static void finish_tile_avx512(const MatmulArgs& args,
                                                                 const SumTile& tile) {
  const EpilogueArgs& e = args.epilogue;
  const bool paired = args.w.paired;
  const int64_t outputs = paired ? args.w.n / 2 : args.w.n;
  const int64_t width = paired ? kPanelRows / 2 : kPanelRows;
  const int64_t first = tile.panel * width;
  const __mmask16 lanes = first_lanes(min_i64(width, outputs - first));
  const bool scaled = args.w.row_scale != nullptr;
  const bool divide = args.w.row_scale_op == TensorScaleOp::kDivide;
  const __m512 row_scale =
      scaled ? _mm512_maskz_loadu_ps(first_lanes(args.w.n_padded - tile.panel * kPanelRows),
                                     args.w.row_scale + tile.panel * kPanelRows)
             : _mm512_set1_ps(1.0f);
  const __m512 bias = e.bias != nullptr ? load_bias(args, first, outputs) : _mm512_setzero_ps();
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.m_begin + r;
    __m512 t = _mm512_loadu_ps(tile.sums + kPanelRows * r);
    if (scaled) t = divide ? _mm512_div_ps(t, row_scale) : _mm512_mul_ps(t, row_scale);
    if (e.alpha != 1.0f) t = _mm512_mul_ps(_mm512_set1_ps(e.alpha), t);
    if (e.bias != nullptr) t = _mm512_add_ps(t, bias);
    if (paired) {
      const __m512 up = _mm512_shuffle_f32x4(t, t, _MM_SHUFFLE(3, 2, 3, 2));
      t = _mm512_mul_ps(activate_avx512(e.activation, t), up);
    } else if (e.activation != Activation::kNone) {
      t = activate_avx512(e.activation, t);
    }
    if (e.beta != 0.0f) {
      const void* c = static_cast<const uint8_t*>(e.c) + row * e.c_stride_bytes;
      const __m512 old = load_values(c, args.y_dtype, first, lanes);
      t = _mm512_add_ps(t, _mm512_mul_ps(_mm512_set1_ps(e.beta), old));
    }
    if (e.residual != nullptr) {
      const void* residual =
          static_cast<const uint8_t*>(e.residual) + row * e.residual_stride_bytes;
      t = _mm512_add_ps(t, load_values(residual, args.y_dtype, first, lanes));
    }
    store_values(static_cast<uint8_t*>(args.y) + row * args.y_stride_bytes, args.y_dtype, first,
                 lanes, t);
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_EPILOGUE_AVX512_H_
