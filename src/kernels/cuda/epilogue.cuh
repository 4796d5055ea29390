// From an FP32 sum to a stored output; the order of roundings is that of docs/numerics.md. Compiles
// for the host.
#ifndef NIBBLE_KERNELS_CUDA_EPILOGUE_CUH_
#define NIBBLE_KERNELS_CUDA_EPILOGUE_CUH_

#include <math.h>

#include "kernels/cuda/dequant.cuh"

namespace nibble {

/// One value of x, y, a bias or a residual: f32, bf16 or f16.
NIBBLE_HD float load_activation(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kBF16 ? decode_bf16(bits) : decode_f16(bits);
}

NIBBLE_HD float activate_f32(Activation activation, float v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;
    case Activation::kSilu:
      return v / (1 + expf(-v));
    case Activation::kGeluTanh:  // 0.5 v (1 + tanh u) = v / (1 + exp(-2u)), without cancellation
      return v / (1 + expf(-2 * 0.7978845608f * (v + 0.044715f * v * v * v)));
    case Activation::kGeluErf:
      return 0.5f * v * erfcf(v * -0.7071067812f);
  }
  return v;
}

/// alpha * (sum op row_scale) + bias. `packed` indexes row_scale, `row` the bias.
NIBBLE_HD float scale_and_bias(const MatmulArgs& a, float sum, int64_t packed, int64_t row) {
  if (a.w.row_scale != nullptr) {
    sum = a.w.row_scale_op == TensorScaleOp::kMultiply ? sum * a.w.row_scale[packed]
                                                       : sum / a.w.row_scale[packed];
  }
  sum *= a.epilogue.alpha;
  if (a.epilogue.bias != nullptr)
    sum += load_activation(a.epilogue.bias, a.epilogue.bias_dtype, row);
  return sum;
}

/// + beta * c + residual, rounded into y[m][column].
NIBBLE_HD void add_and_store(const MatmulArgs& a, int64_t m, int64_t column, float value) {
  const EpilogueArgs& e = a.epilogue;
  if (e.c != nullptr) {
    const auto* c = static_cast<const uint8_t*>(e.c) + m * e.c_stride_bytes;
    value += e.beta * load_activation(c, a.y_dtype, column);
  }
  if (e.residual != nullptr) {
    const auto* residual = static_cast<const uint8_t*>(e.residual) + m * e.residual_stride_bytes;
    value += load_activation(residual, a.y_dtype, column);
  }
  store_value(static_cast<uint8_t*>(a.y) + m * a.y_stride_bytes, a.y_dtype, column, value);
}

NIBBLE_HD void finish_plain(const MatmulArgs& a, int64_t m, int64_t row, int64_t packed,
                            float sum) {
  add_and_store(a, m, row,
                activate_f32(a.epilogue.activation, scale_and_bias(a, sum, packed, row)));
}

/// Gate row `packed` and its up row, eight further on in the panel.
NIBBLE_HD void finish_gated(const MatmulArgs& a, int64_t m, int64_t column, int64_t packed,
                            float gate, float up) {
  gate = scale_and_bias(a, gate, packed, column);
  up = scale_and_bias(a, up, packed + 8, a.w.n / 2 + column);
  add_and_store(a, m, column, activate_f32(a.epilogue.activation, gate) * up);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_EPILOGUE_CUH_
