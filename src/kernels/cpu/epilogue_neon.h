// The epilogue of AArch64 rows: 4 outputs at a time with the order and roundings of finish_tile,
// which it calls for panels cut by the edge of the matrix and for the activation it does not know:
// erf. Without activation the bits are those of finish_tile; SiLU and tanh-GELU differ by the
// rounding of exp.
#ifndef NIBBLE_KERNELS_CPU_EPILOGUE_NEON_H_
#define NIBBLE_KERNELS_CPU_EPILOGUE_NEON_H_

#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/panel_neon.h"

namespace nibble {

/// 4 values from element `index` of an array of f32, f16 or bf16.
NIBBLE_INLINE float32x4_t load_4(const void* data, DType dtype, int64_t index) {
  const auto* at = static_cast<const uint8_t*>(data);
  if (dtype == DType::kF32) return load_f32(at + 4 * index);
  return dtype == DType::kF16 ? load_f16(at + 2 * index) : load_bf16(at + 2 * index);
}

/// 4 values → BF16, nearest even; NaN stays NaN with its sign.
NIBBLE_INLINE uint16x4_t to_bf16(float32x4_t values) {
  const uint32x4_t bits = vreinterpretq_u32_f32(values);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(values, values), rounded, quiet), 16);
}

NIBBLE_INLINE void store_4(void* data, DType dtype, int64_t index, float32x4_t values) {
  auto* at = static_cast<uint8_t*>(data);
  if (dtype == DType::kF32) {
    vst1q_u8(at + 4 * index, vreinterpretq_u8_f32(values));
    return;
  }
  const uint16x4_t narrow =
      dtype == DType::kF16 ? vreinterpret_u16_f16(vcvt_f16_f32(values)) : to_bf16(values);
  vst1_u8(at + 2 * index, vreinterpret_u8_u16(narrow));
}

/// e^v within 2 units in the last place. Clamped to [-87.3, 88.3], where the result is normal.
NIBBLE_INLINE float32x4_t exp_f32(float32x4_t v) {
  // FMIN and FMAX keep a NaN.
  v = vmaxq_f32(vminq_f32(v, vdupq_n_f32(88.3f)), vdupq_n_f32(-87.3f));
  const float32x4_t n = vrndnq_f32(vmulq_n_f32(v, 1.44269504f));
  // v - n ln 2 in two steps; the first constant has few bits, so its product with n is exact.
  float32x4_t r = vfmsq_f32(v, n, vdupq_n_f32(0.693359375f));
  r = vfmsq_f32(r, n, vdupq_n_f32(-2.12194440e-4f));
  // Taylor's series to r^7/7!: |r| <= 0.347, so the rest is below 2^-27.
  float32x4_t p = vdupq_n_f32(1.0f / 5040);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 720), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 120), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 24), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f / 6), p, r);
  p = vfmaq_f32(vdupq_n_f32(0.5f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  p = vfmaq_f32(vdupq_n_f32(1.0f), p, r);
  const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), exponent));
}

/// v / (1 + e^-u)
NIBBLE_INLINE float32x4_t times_sigmoid(float32x4_t v, float32x4_t u) {
  return vdivq_f32(v, vaddq_f32(vdupq_n_f32(1.0f), exp_f32(vnegq_f32(u))));
}

/// The activation of 4 values; not kGeluErf.
NIBBLE_INLINE float32x4_t activate_4(Activation activation, float32x4_t v) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kGeluErf:
      return v;
    case Activation::kRelu:  // NaN is not below 0 and stays
      return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltzq_f32(v)));
    case Activation::kSilu:
      return times_sigmoid(v, v);
    case Activation::kGeluTanh: {
      const float32x4_t cube = vmulq_f32(vmulq_f32(vmulq_n_f32(v, 0.044715f), v), v);
      return times_sigmoid(v, vmulq_n_f32(vaddq_f32(v, cube), 1.5957691216057308f));
    }
  }
  return v;
}

/// alpha * (sum op row_scale) + bias of 4 lanes.
NIBBLE_INLINE float32x4_t scaled_sums(const MatmulArgs& args, float32x4_t sums, int64_t packed_row,
                                      int64_t bias_row) {
  float32x4_t t = sums;
  if (args.w.row_scale != nullptr) {
    const float32x4_t scale = load_f32(args.w.row_scale + packed_row);
    t = args.w.row_scale_op == TensorScaleOp::kMultiply ? vmulq_f32(t, scale) : vdivq_f32(t, scale);
  }
  const EpilogueArgs& epilogue = args.epilogue;
  if (epilogue.alpha != 1.0f) t = vmulq_n_f32(t, epilogue.alpha);
  if (epilogue.bias != nullptr) {
    t = vaddq_f32(t, load_4(epilogue.bias, epilogue.bias_dtype, bias_row));
  }
  return t;
}

/// Adds what lies in y's shape and stores 4 outputs of row `row` from column `column` on.
NIBBLE_INLINE void store_outputs(const MatmulArgs& args, int64_t row, int64_t column,
                                 float32x4_t t) {
  const EpilogueArgs& epilogue = args.epilogue;
  if (epilogue.beta != 0.0f) {
    const auto* c = static_cast<const uint8_t*>(epilogue.c) + row * epilogue.c_stride_bytes;
    t = vaddq_f32(t, vmulq_n_f32(load_4(c, args.y_dtype, column), epilogue.beta));
  }
  if (epilogue.residual != nullptr) {
    const auto* residual =
        static_cast<const uint8_t*>(epilogue.residual) + row * epilogue.residual_stride_bytes;
    t = vaddq_f32(t, load_4(residual, args.y_dtype, column));
  }
  store_4(static_cast<uint8_t*>(args.y) + row * args.y_stride_bytes, args.y_dtype, column, t);
}

/// finish_tile for `sums` [rows][16].
static inline __attribute__((noinline)) void finish_tile_neon(const MatmulArgs& args,
                                                              const SumTile& tile) {
  const bool paired = args.w.paired;
  const int64_t outputs = paired ? args.w.n / 2 : args.w.n;
  const int64_t width = paired ? kPanelRows / 2 : kPanelRows;
  const int64_t column = tile.panel * width, packed_row = tile.panel * kPanelRows;
  const Activation activation = args.epilogue.activation;
  if (column + width > outputs || activation == Activation::kGeluErf) {
    finish_tile(args, tile);
    return;
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* sums = tile.sums + r * kPanelRows;
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      float32x4_t t = scaled_sums(args, vld1q_f32(sums + lane), packed_row + lane, column + lane);
      t = activate_4(activation, t);
      if (paired) {
        const int64_t up = lane + kPanelRows / 2;
        t = vmulq_f32(
            t, scaled_sums(args, vld1q_f32(sums + up), packed_row + up, outputs + column + lane));
      }
      store_outputs(args, tile.m_begin + r, column + lane, t);
    }
  }
}

/// The outputs of `totals` [rows][16] * `factor`, a power of two.
static inline __attribute__((noinline)) void finish_totals(const MatmulArgs& args,
                                                           const double* totals, int64_t m_begin,
                                                           int64_t rows, int64_t panel,
                                                           double factor) {
  constexpr int64_t kRowsAtOnce = 8;
  alignas(16) float sums[kRowsAtOnce * kPanelRows];
  for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
    const int64_t count = min_i64(kRowsAtOnce, rows - row);
    const double* from = totals + row * kPanelRows;
    for (int64_t i = 0; i < count * kPanelRows; i += kLanes) {
      const float32x2_t low = vcvt_f32_f64(vmulq_n_f64(vld1q_f64(from + i), factor));
      vst1q_f32(sums + i, vcvt_high_f32_f64(low, vmulq_n_f64(vld1q_f64(from + i + 2), factor)));
    }
    finish_tile_neon(args, {sums, m_begin + row, count, panel});
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_EPILOGUE_NEON_H_
