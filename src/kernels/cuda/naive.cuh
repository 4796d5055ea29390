// One output per thread, any Format, row-major weights: the plain meaning of a product on the
// device.
//
//   thread (m, n):  y[m][n] = epilogue( sum over groups g of scale[n][g] * (sum over columns in g
//   of
//                                       value(code) * x ) )
//
// It reads a row of codes per thread, so nothing is coalesced; it exists to be right on every GPU,
// to serve Formats that no faster row takes, and to be compared with. The host compiles it too.
#ifndef NIBBLE_KERNELS_CUDA_NAIVE_CUH_
#define NIBBLE_KERNELS_CUDA_NAIVE_CUH_

#include <math.h>

#include "kernels/cuda/dequant.cuh"

namespace nibble {

/// The codebook travels by value: MatmulArgs points at host memory there.
struct NaiveArgs {
  MatmulArgs matmul;
  float codebook[16];
};

/// Columns per FP32 partial sum (docs/numerics.md: longer chains leave the tolerance).
constexpr int64_t kNaiveChain = 128;

NIBBLE_HD uint8_t code_at(const WeightArgs& w, int64_t n, int64_t column) {
  if (w.element == Element::kInt8 || w.element == Element::kUint8) return w.codes[n * w.k + column];
  const uint8_t byte = w.codes[n * ((w.k + 1) / 2) + column / 2];
  return static_cast<uint8_t>((byte >> (4 * (column & 1))) & 15);
}

/// x that stored column `column` meets: gathered, then pre-scaled.
NIBBLE_HD float x_at(const MatmulArgs& a, int64_t m, int64_t column) {
  const int64_t source = a.k_perm == nullptr ? column : a.k_perm[column];
  const auto* row = static_cast<const uint8_t*>(a.x) + m * a.x_stride_bytes;
  const float value = load_value(row, a.x_dtype, source);
  return a.pre_scale == nullptr ? value : value * a.pre_scale[source];
}

NIBBLE_HD float group_sum(const NaiveArgs& args, int64_t m, int64_t n, int64_t group) {
  const MatmulArgs& a = args.matmul;
  const WeightArgs& w = a.w;
  const int64_t index = n * w.num_groups + group;
  const float scale = load_value(w.scales, w.scale_dtype, index);
  const bool code_zero = w.zero_kind == ZeroKind::kInteger || w.zero_kind == ZeroKind::kFloatCode;
  const DType zero_dtype = w.zero_kind == ZeroKind::kInteger ? DType::kU8 : w.scale_dtype;
  const float zero = w.zero_kind == ZeroKind::kNone ? 0.0f : load_value(w.zeros, zero_dtype, index);
  const int64_t end = (group + 1) * w.group < w.k ? (group + 1) * w.group : w.k;
  float total = 0;
  for (int64_t begin = group * w.group; begin < end; begin += kNaiveChain) {
    float sum = 0, sum_x = 0;
    for (int64_t j = begin; j < end && j < begin + kNaiveChain; ++j) {
      const float x = x_at(a, m, j);
      const float value = decode_code(w.element, code_at(w, n, j), args.codebook);
      sum += x * (code_zero ? value - zero : value);
      sum_x += x;
    }
    total += w.zero_kind == ZeroKind::kAdditive ? sum * scale + sum_x * zero : sum * scale;
  }
  return total;
}

NIBBLE_HD float activate_naive(Activation activation, float v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;
    case Activation::kSilu:
      return v / (1 + expf(-v));
    case Activation::kGeluTanh:
      return 0.5f * v * (1 + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    case Activation::kGeluErf:
      return 0.5f * v * (1 + erff(v * 0.7071067812f));
  }
  return v;
}

/// Computes and stores y[m][n].
NIBBLE_HD void naive_output(const NaiveArgs& args, int64_t m, int64_t n) {
  const MatmulArgs& a = args.matmul;
  const EpilogueArgs& e = a.epilogue;
  float t = 0;
  for (int64_t g = 0; g < a.w.num_groups; ++g) t += group_sum(args, m, n, g);
  if (a.w.row_scale != nullptr) {
    t = a.w.row_scale_op == TensorScaleOp::kMultiply ? t * a.w.row_scale[n] : t / a.w.row_scale[n];
  }
  t *= e.alpha;
  if (e.bias != nullptr) t += load_value(e.bias, e.bias_dtype, n);
  t = activate_naive(e.activation, t);
  if (e.c != nullptr) {
    t += e.beta * load_value(static_cast<const uint8_t*>(e.c) + m * e.c_stride_bytes, a.y_dtype, n);
  }
  if (e.residual != nullptr) {
    t += load_value(static_cast<const uint8_t*>(e.residual) + m * e.residual_stride_bytes,
                    a.y_dtype, n);
  }
  store_value(static_cast<uint8_t*>(a.y) + m * a.y_stride_bytes, a.y_dtype, n, t);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_NAIVE_CUH_
