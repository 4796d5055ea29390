#include "weight_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace nibble::cli {
namespace {

constexpr int64_t kBandValues = 1 << 18;

struct Sums {
  double difference = 0, reference = 0;
  int64_t not_finite = -1;  // index within the band
  bool identical = true;
  Status status;
};

Sums compare_band(const DenseRows& a, const DenseRows& b, int64_t begin, int64_t end) {
  Sums sums;
  const auto count = static_cast<size_t>((end - begin) * a.k);
  std::vector<float> left(count), right(count);
  sums.status = a.read(begin, end, left.data());
  if (sums.status.ok()) sums.status = b.read(begin, end, right.data());
  if (!sums.status.ok()) return sums;
  sums.identical = std::memcmp(left.data(), right.data(), count * sizeof(float)) == 0;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(right[i])) {
      sums.not_finite = static_cast<int64_t>(i);
      return sums;
    }
    const double difference = static_cast<double>(left[i]) - static_cast<double>(right[i]);
    sums.difference += difference * difference;
    sums.reference += static_cast<double>(right[i]) * static_cast<double>(right[i]);
  }
  return sums;
}

}  // namespace

DenseRows with_pre_scale(DenseRows rows) {
  if (rows.pre_scale.empty()) return rows;
  const DenseRows source = std::move(rows);
  return {source.n, source.k, [source](int64_t begin, int64_t end, float* out) {
            NIBBLE_RETURN_IF_ERROR(source.read(begin, end, out));
            for (int64_t i = 0; i < (end - begin) * source.k; ++i) {
              out[i] *= source.pre_scale[static_cast<size_t>(i % source.k)];
            }
            return ok_status();
          }};
}

const TensorInfo* float_weight(const Checkpoint& checkpoint, const std::string& layer) {
  const TensorInfo* info = checkpoint.find(layer + ".weight");
  const bool good = info != nullptr && info->dtype && is_activation_dtype(*info->dtype) &&
                    info->shape.size() >= 2 && info->shape.back() > 0;
  return good ? info : nullptr;
}

Result<DenseRows> weight_of(const Checkpoint& checkpoint, const std::string& layer) {
  if (checkpoint.find_layer(layer) != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(DenseRows rows, checkpoint.dense_rows(layer));
    return with_pre_scale(std::move(rows));
  }
  const TensorInfo* info = float_weight(checkpoint, layer);
  if (info == nullptr) {
    return invalid_argument(fmt::format("{} has neither a quantized layer nor a float matrix {}",
                                        checkpoint.path(), layer));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Tensor tensor, checkpoint.tensor(info->name));
  const int64_t k = info->shape.back();
  return DenseRows{tensor.view.elements() / k, k,
                   [tensor, k](int64_t begin, int64_t end, float* out) {
                     for (int64_t i = begin * k; i < end * k; ++i) {
                       *out++ = load_as_f32(tensor.view.data, tensor.view.dtype, i);
                     }
                     return ok_status();
                   }};
}

Result<WeightDifference> compare_weights(const DenseRows& a, const DenseRows& b, ThreadPool* pool) {
  if (a.n != b.n || a.k != b.k) {
    return invalid_argument(
        fmt::format("its shape [{}, {}] is [{}, {}] there", a.n, a.k, b.n, b.k));
  }
  const int64_t band = std::clamp<int64_t>(kBandValues / a.k, 1, std::max<int64_t>(1, a.n));
  std::vector<Sums> sums(static_cast<size_t>(ceil_div(a.n, band)));
  const auto run = [&](int64_t i) {
    sums[static_cast<size_t>(i)] = compare_band(a, b, i * band, std::min(a.n, (i + 1) * band));
  };
  if (pool != nullptr) {
    pool->for_each(static_cast<int64_t>(sums.size()), run);
  } else {
    for (size_t i = 0; i < sums.size(); ++i) run(static_cast<int64_t>(i));
  }
  WeightDifference out;
  double difference = 0, reference = 0;
  for (size_t i = 0; i < sums.size(); ++i) {  // in order: the bits do not depend on the threads
    NIBBLE_RETURN_IF_ERROR(Status(sums[i].status));
    if (sums[i].not_finite >= 0) {
      const int64_t index = static_cast<int64_t>(i) * band * a.k + sums[i].not_finite;
      return invalid_argument(
          fmt::format("the weight is not finite at [{}, {}]", index / a.k, index % a.k));
    }
    difference += sums[i].difference;
    reference += sums[i].reference;
    out.identical &= sums[i].identical;
  }
  if (difference == 0) return out;
  out.relative_error =
      reference == 0 ? std::numeric_limits<double>::infinity() : std::sqrt(difference / reference);
  return out;
}

}  // namespace nibble::cli
