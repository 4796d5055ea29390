#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {
namespace {

constexpr double kF32Roundoff = 0x1p-24;
constexpr double kSmallestNormal = 0x1p-126;
constexpr int64_t kQuantBlock = 32;
// |activation(a) - activation(b)| <= kSteepest * |a - b|: SiLU 1.0999, GELU 1.1290.
constexpr double kSteepest = 1.13;
// Error of a fused activation in units of 2^-24 * |argument|.
constexpr double kActivationUnits = 8;

// The number a code stands for; kept apart from decode_element on purpose.
double element_value(Element element, uint8_t code, const std::array<float, 16>& codebook) {
  static constexpr double kE2M1[16] = {0,    0.5,  1,  1.5,  2,  3,  4,  6,  //
                                       -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
  switch (element) {
    case Element::kInt4:
      return code < 8 ? code : code - 16;
    case Element::kUint4:
    case Element::kUint8:
      return code;
    case Element::kE2M1:
      return kE2M1[code];
    case Element::kNF4:
      return static_cast<double>(codebook[code]);
    case Element::kInt8:
      return code < 128 ? code : code - 256;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

double round_to(DType dtype, double value) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::kF32:
      return static_cast<double>(single);
    case DType::kF16:
      return static_cast<double>(f16_to_f32(f32_to_f16(single)));
    case DType::kBF16:
      return static_cast<double>(bf16_to_f32(f32_to_bf16(single)));
    case DType::kE4M3:
      return static_cast<double>(e4m3_to_f32(f32_to_e4m3(single)));
    case DType::kE8M0:
    case DType::kE5M2:
    case DType::kF64:
    case DType::kU8:
    case DType::kI8:
    case DType::kU16:
    case DType::kI16:
    case DType::kU32:
    case DType::kI32:
    case DType::kU64:
    case DType::kI64:
    case DType::kBool:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();  // no row rounds weights to these
}

// Factor of `row` that meets the finished sum: t or 1/t.
double tensor_factor(const QuantizedTensor& w, int64_t row) {
  double factor = 1;
  for (const TensorScale& segment : w.tensor_scales) {
    if (segment.row_begin > row) break;
    factor = static_cast<double>(segment.value);
  }
  return w.tensor_scale_op == TensorScaleOp::kMultiply ? factor : 1 / factor;
}

// One weight, split where a kernel may split it: value * x = code_part * x + zero_part * x.
struct WeightParts {
  double code_part, zero_part;
};

WeightParts decode_parts(const QuantizedTensor& w, const Numerics& numerics, double element,
                         double scale, double zero) {
  switch (numerics.scale_applied_at) {
    case ScaleAt::kWeight: {
      double single = 0;  // as `dequantize` rounds it
      switch (w.format.zero) {
        case ZeroKind::kNone:
          single = round_to(DType::kF32, element * scale);
          break;
        case ZeroKind::kInteger:
        case ZeroKind::kFloatCode:
          single = round_to(DType::kF32, round_to(DType::kF32, element - zero) * scale);
          break;
        case ZeroKind::kAdditive:
          single = round_to(DType::kF32, round_to(DType::kF32, element * scale) + zero);
          break;
      }
      return {round_to(numerics.w_rounds_to, single), 0};
    }
    case ScaleAt::kGroupSum: {
      const double rounded = round_to(numerics.w_rounds_to, element);
      switch (w.format.zero) {
        case ZeroKind::kNone:
          return {rounded * scale, 0};
        case ZeroKind::kInteger:
        case ZeroKind::kFloatCode:
          return {rounded * scale, -zero * scale};
        case ZeroKind::kAdditive:
          return {rounded * scale, zero};
      }
    }
  }
  return {0, 0};
}

// int8 rounding of one block of FP32 values, in place: code * scale.
void quantize(double* x, int64_t count) {
  float amax = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (!std::isfinite(x[j])) {
      std::fill(x, x + count, std::numeric_limits<double>::quiet_NaN());
      return;
    }
    amax = std::max(amax, std::fabs(static_cast<float>(x[j])));
  }
  const bool tiny = amax < kInt8SmallestAmax;
  const float inverse = tiny ? 0.0f : 127.0f / amax;
  const float scale = tiny ? 1.0f : amax / 127.0f;
  for (int64_t j = 0; j < count; ++j) {
    const float code = std::nearbyintf(static_cast<float>(x[j]) * inverse);
    x[j] = static_cast<double>(code) * static_cast<double>(scale);
  }
}

// alpha * sum + bias with its tolerance; `column` counts tensor rows.
ReferenceOutput scaled(const ReferenceSum& sum, const EpilogueArgs& epilogue, int64_t column) {
  const double alpha = static_cast<double>(epilogue.alpha);
  ReferenceOutput t = {alpha * sum.value, std::fabs(alpha) * sum.tolerance};
  if (epilogue.alpha != 1.0f) t.tolerance += kF32Roundoff * std::fabs(t.value);
  if (epilogue.bias != nullptr) {
    t.value += static_cast<double>(load_as_f32(epilogue.bias, epilogue.bias_dtype, column));
    t.tolerance += kF32Roundoff * std::fabs(t.value);
  }
  return t;
}

void add_rounded(ReferenceOutput* t, double term, double term_tolerance) {
  t->value += term;
  t->tolerance += term_tolerance + kF32Roundoff * std::fabs(t->value);
}

}  // namespace

double unit_roundoff(DType dtype) {
  if (dtype == DType::kBF16) return 0x1p-8;
  return dtype == DType::kF16 ? 0x1p-11 : kF32Roundoff;
}

double smallest_error(DType dtype) {
  if (dtype == DType::kBF16) return 0x1p-134;
  return dtype == DType::kF16 ? 0x1p-25 : 0x1p-150;
}

ReferenceWeight reference_weight(const QuantizedTensor& w, const Numerics& numerics) {
  const auto size = static_cast<size_t>(w.n * w.k);
  const int64_t groups = w.format.groups(w.k), columns = w.format.group_columns(w.k);
  const bool zero_apart =
      numerics.scale_applied_at == ScaleAt::kGroupSum && w.format.zero != ZeroKind::kNone;
  ReferenceWeight out;
  out.n = w.n;
  out.k = w.k;
  out.values.resize(size);
  out.scale_sums.assign(static_cast<size_t>(w.n), 0);
  if (zero_apart) {
    out.code_parts.resize(size);
    out.zero_parts.resize(size);
  }
  for (int64_t row = 0; row < w.n; ++row) {
    const double factor = tensor_factor(w, row);
    for (int64_t j = 0; j < w.k; ++j) {
      const int64_t group = row * groups + j / columns;
      const double scale = static_cast<double>(load_as_f32(w.scales.data(), w.format.scale, group));
      double zero = 0;
      if (w.format.zero != ZeroKind::kNone) {
        zero = static_cast<double>(load_as_f32(w.zeros.data(), w.format.zero_dtype(), group));
      }
      const double element = element_value(w.format.element, w.code(row, j), w.codebook);
      const WeightParts parts = decode_parts(w, numerics, element, scale, zero);
      const auto at = static_cast<size_t>(row * w.k + j);
      out.values[at] = (parts.code_part + parts.zero_part) * factor;
      if (zero_apart) {
        out.code_parts[at] = std::fabs(parts.code_part * factor);
        out.zero_parts[at] = std::fabs(parts.zero_part * factor);
      }
      out.scale_sums[static_cast<size_t>(row)] +=
          std::fabs(out.values[at]) + std::fabs(scale * factor);
    }
  }
  return out;
}

std::vector<double> reference_x(const QuantizedTensor& w, const MatrixView& x,
                                const Numerics& numerics) {
  std::vector<double> out(static_cast<size_t>(x.rows * w.k));
  for (int64_t row = 0; row < x.rows; ++row) {
    const auto* from = static_cast<const uint8_t*>(x.data) + row * x.stride_bytes;
    double* to = out.data() + row * w.k;
    for (int64_t j = 0; j < w.k; ++j) {
      const int64_t p = w.k_perm.empty() ? j : w.k_perm[static_cast<size_t>(j)];
      double value = static_cast<double>(load_as_f32(from, x.dtype, p));
      if (!w.pre_scale.empty()) {
        value =
            round_to(DType::kF32, value * static_cast<double>(w.pre_scale[static_cast<size_t>(p)]));
      }
      to[j] = value;
    }
    if (numerics.x_quant != Compute::kInt8) continue;
    for (int64_t j = 0; j < w.k; j += kQuantBlock) quantize(to + j, std::min(kQuantBlock, w.k - j));
  }
  return out;
}

std::vector<ReferenceSum> reference_sums(const ReferenceWeight& w, const std::vector<double>& x,
                                         const Numerics& numerics) {
  const auto m = static_cast<int64_t>(x.size()) / w.k;
  const double root_k = std::sqrt(static_cast<double>(w.k));
  std::vector<ReferenceSum> out(static_cast<size_t>(m * w.n));
  for (int64_t row = 0; row < m; ++row) {
    const double* xs = x.data() + row * w.k;
    double x_magnitude = 0;
    for (int64_t j = 0; j < w.k; ++j) x_magnitude += std::fabs(xs[j]);
    for (int64_t n = 0; n < w.n; ++n) {
      ReferenceSum& sum = out[static_cast<size_t>(row * w.n + n)];
      const double* values = w.values.data() + n * w.k;
      for (int64_t j = 0; j < w.k; ++j) {
        const double product = xs[j] * values[j];
        sum.value += product;
        sum.squares += product * product;
        sum.magnitude += std::fabs(product);
      }
      if (!w.code_parts.empty()) {
        // The kernel may add sum(x * code) and zero * sum(x): both have their own roundings.
        const double* codes = w.code_parts.data() + n * w.k;
        const double* zeros = w.zero_parts.data() + n * w.k;
        sum.squares = sum.magnitude = 0;
        for (int64_t j = 0; j < w.k; ++j) {
          const double code = xs[j] * codes[j], zero = xs[j] * zeros[j];
          sum.squares += code * code + zero * zero;
          sum.magnitude += std::fabs(code) + std::fabs(zero);
        }
      }
      sum.tolerance = 4 * kF32Roundoff * (root_k * std::sqrt(sum.squares) + sum.magnitude / 8);
      if (numerics.w_rounds_to == DType::kBF16) {
        // vdpbf16ps takes subnormal operands, products and sums as zero.
        sum.tolerance += kSmallestNormal * (w.scale_sums[static_cast<size_t>(n)] + x_magnitude);
      }
      sum.tolerance += static_cast<double>(w.k) * smallest_error(DType::kF32);
    }
  }
  return out;
}

std::vector<ReferenceOutput> reference_outputs(const std::vector<ReferenceSum>& sums,
                                               const ReferenceShape& shape,
                                               const EpilogueArgs& epilogue) {
  const int64_t outputs = shape.paired ? shape.n / 2 : shape.n;
  std::vector<ReferenceOutput> out(static_cast<size_t>(shape.m * outputs));
  for (int64_t row = 0; row < shape.m; ++row) {
    for (int64_t column = 0; column < outputs; ++column) {
      const auto at = static_cast<size_t>(row * shape.n + column);
      ReferenceOutput t = scaled(sums[at], epilogue, column);
      if (epilogue.activation != Activation::kNone) {
        const double steepest = epilogue.activation == Activation::kRelu ? 1.0 : kSteepest;
        const double argument = std::fabs(t.value);
        t.value = activate(epilogue.activation, t.value);
        t.tolerance = steepest * t.tolerance + kActivationUnits * kF32Roundoff * argument;
      }
      if (shape.paired) {
        const ReferenceOutput up =
            scaled(sums[at + static_cast<size_t>(outputs)], epilogue, outputs + column);
        t.tolerance = std::fabs(t.value) * up.tolerance + std::fabs(up.value) * t.tolerance +
                      t.tolerance * up.tolerance;
        t.value *= up.value;
        t.tolerance += kF32Roundoff * std::fabs(t.value);
      }
      if (epilogue.beta != 0.0f) {
        const auto* c = static_cast<const uint8_t*>(epilogue.c) + row * epilogue.c_stride_bytes;
        const double term = static_cast<double>(epilogue.beta) *
                            static_cast<double>(load_as_f32(c, shape.y_dtype, column));
        add_rounded(&t, term, kF32Roundoff * std::fabs(term));
      }
      if (epilogue.residual != nullptr) {
        const auto* residual =
            static_cast<const uint8_t*>(epilogue.residual) + row * epilogue.residual_stride_bytes;
        add_rounded(&t, static_cast<double>(load_as_f32(residual, shape.y_dtype, column)), 0);
      }
      t.tolerance += unit_roundoff(shape.y_dtype) * (std::fabs(t.value) + t.tolerance) +
                     smallest_error(shape.y_dtype);
      out[static_cast<size_t>(row * outputs + column)] = t;
    }
  }
  return out;
}

}  // namespace nibble
