#include <algorithm>
#include <cmath>
#include <limits>

#include "nibble/quantize.h"

namespace nibble {
namespace {

struct RowSums {
  double difference = 0, weight = 0;
  int64_t bad_column = -1;  ///< of a weight that is not finite
};

RowSums row_sums(const QuantizedTensor& a, const TensorView& b, int64_t row, float* decoded) {
  a.dequantize(row, row + 1, decoded);
  RowSums sums;
  for (int64_t j = 0; j < a.k; ++j) {
    const float w = load_as_f32(b.data, b.dtype, row * a.k + j);
    if (!std::isfinite(w)) {
      sums.bad_column = j;
      return sums;
    }
    float value = decoded[j];
    if (!a.pre_scale.empty()) value *= a.pre_scale[static_cast<size_t>(j)];
    const double difference = static_cast<double>(value) - static_cast<double>(w);
    sums.difference += difference * difference;
    sums.weight += static_cast<double>(w) * static_cast<double>(w);
  }
  return sums;
}

}  // namespace

Result<double> relative_error(const QuantizedTensor& a, const TensorView& b, ThreadPool* pool) {
  if (b.shape.size() != 2 || b.shape[0] != a.n || b.shape[1] != a.k) {
    return invalid_argument("the float weight is not [" + std::to_string(a.n) + ", " +
                            std::to_string(a.k) + "], the shape of the quantized one");
  }
  if (!is_activation_dtype(b.dtype)) {
    return invalid_argument(std::string("the float weight is f32, f16 or bf16, not ") +
                            dtype_name(b.dtype));
  }
  NIBBLE_RETURN_IF_ERROR(a.validate());
  std::vector<RowSums> rows(static_cast<size_t>(a.n));
  constexpr int64_t kBandRows = 16;
  const auto run = [&](int64_t band) {
    std::vector<float> decoded(static_cast<size_t>(a.k));
    const int64_t end = std::min(a.n, (band + 1) * kBandRows);
    for (int64_t row = band * kBandRows; row < end; ++row) {
      rows[static_cast<size_t>(row)] = row_sums(a, b, row, decoded.data());
    }
  };
  const int64_t bands = ceil_div(a.n, kBandRows);
  if (pool != nullptr) {
    pool->for_each(bands, run);
  } else {
    for (int64_t i = 0; i < bands; ++i) run(i);
  }
  RowSums total;  // in row order: the bits do not depend on the threads
  for (size_t row = 0; row < rows.size(); ++row) {
    if (rows[row].bad_column >= 0) {
      return invalid_argument("the float weight is not finite at [" + std::to_string(row) + ", " +
                              std::to_string(rows[row].bad_column) + "]");
    }
    total.difference += rows[row].difference;
    total.weight += rows[row].weight;
  }
  if (total.difference == 0) return 0.0;
  if (total.weight == 0) return std::numeric_limits<double>::infinity();
  return std::sqrt(total.difference / total.weight);
}

}  // namespace nibble
