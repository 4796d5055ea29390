// Epilogue of one tile for any CPU: the specification of the ISA files' own versions.
#include <cmath>

#include "kernels/cpu/epilogue.h"
#include "nibble/core.h"

namespace nibble {
namespace {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kPairs = 8;  // lanes 0-7 gate, 8-15 up

const uint8_t* row_at(const void* matrix, int64_t row, int64_t stride_bytes) {
  if (matrix == nullptr) return nullptr;
  return static_cast<const uint8_t*>(matrix) + row * stride_bytes;
}

// alpha * (sum op row_scale) + bias. `packed_row` counts padded rows in packed order, `bias_row`
// the rows of the tensor.
float scaled_sum(const MatmulArgs& args, float sum, int64_t packed_row, int64_t bias_row) {
  float t = sum;
  if (args.w.row_scale != nullptr) {
    const float scale = args.w.row_scale[packed_row];
    switch (args.w.row_scale_op) {
      case TensorScaleOp::kMultiply:
        t = t * scale;
        break;
      case TensorScaleOp::kDivide:
        t = t / scale;
        break;
    }
  }
  const EpilogueArgs& epilogue = args.epilogue;
  if (epilogue.alpha != 1.0f) t = epilogue.alpha * t;
  if (epilogue.bias != nullptr) {
    t = t + load_as_f32(epilogue.bias, epilogue.bias_dtype, bias_row);
  }
  return t;
}

}  // namespace

float activate_f32(Activation activation, float value) {
  switch (activation) {
    case Activation::kNone:
      return value;
    case Activation::kRelu:
      return value < 0.0f ? 0.0f : value;  // NaN stays NaN
    case Activation::kSilu:
      return value / (1.0f + std::exp(-value));
    case Activation::kGeluTanh: {
      // 0.5 (1 + tanh u) = 1 / (1 + exp(-2u)) without the cancellation of the left side.
      constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;  // 2 sqrt(2 / pi)
      const float cubic = value + 0.044715f * value * value * value;
      return value / (1.0f + std::exp(-kTwoSqrt2OverPi * cubic));
    }
    case Activation::kGeluErf: {
      // 0.5 (1 + erf u) = 0.5 erfc(-u), again without cancellation.
      constexpr float kSqrtHalf = 0.70710678118654752f;
      return 0.5f * value * std::erfc(-kSqrtHalf * value);
    }
  }
  return value;
}

void finish_tile(const MatmulArgs& args, const SumTile& tile) {
  const EpilogueArgs& epilogue = args.epilogue;
  const bool paired = args.w.paired;
  const int64_t outputs = paired ? args.w.n / 2 : args.w.n;
  const int64_t width = paired ? kPairs : kPanelRows;
  const int64_t first = tile.panel * width;
  const int64_t count = outputs - first < width ? outputs - first : width;
  NIBBLE_ASSUME(tile.m_begin >= 0 && tile.m_begin + tile.rows <= args.m);
  NIBBLE_ASSUME(epilogue.beta == 0.0f || epilogue.c != nullptr);

  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = tile.m_begin + r;
    const float* sums = tile.sums + r * kPanelRows;
    uint8_t* y = static_cast<uint8_t*>(args.y) + row * args.y_stride_bytes;
    const uint8_t* c = row_at(epilogue.c, row, epilogue.c_stride_bytes);
    const uint8_t* residual = row_at(epilogue.residual, row, epilogue.residual_stride_bytes);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t column = first + lane;
      const int64_t packed_row = tile.panel * kPanelRows + lane;
      float t = activate_f32(epilogue.activation, scaled_sum(args, sums[lane], packed_row, column));
      if (paired) {
        t = t * scaled_sum(args, sums[kPairs + lane], packed_row + kPairs, outputs + column);
      }
      if (epilogue.beta != 0.0f) t = t + epilogue.beta * load_as_f32(c, args.y_dtype, column);
      if (epilogue.residual != nullptr) t = t + load_as_f32(residual, args.y_dtype, column);
      store_from_f32(y, args.y_dtype, column, t);
    }
  }
}

}  // namespace nibble
