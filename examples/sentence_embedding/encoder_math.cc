// What lies between the dense layers: LayerNorm and attention, in FP32.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bert.h"

namespace sentence_embedding {
namespace {

/// Partial sums side by side: one running sum would wait for itself at every addition.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);

float sum_of(const Lanes& lanes) {
  float sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

float dot(const float* a, const float* b, int64_t n) {
  Lanes sums = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes x, y;
    std::memcpy(&x, a + i, sizeof(x));
    std::memcpy(&y, b + i, sizeof(y));
    sums += x * y;
  }
  float sum = sum_of(sums);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// y += factor * x
void add_scaled(float factor, const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes from, to;
    std::memcpy(&from, x + i, sizeof(from));
    std::memcpy(&to, y + i, sizeof(to));
    to += from * factor;
    std::memcpy(y + i, &to, sizeof(to));
  }
  for (; i < n; ++i) y[i] += factor * x[i];
}

}  // namespace

void LayerNorm::run(std::span<float> rows) const {
  const auto n = static_cast<int64_t>(gain.size());
  const float count = static_cast<float>(n);
  for (size_t start = 0; start < rows.size(); start += gain.size()) {
    float* x = rows.data() + start;
    Lanes sums = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      Lanes v;
      std::memcpy(&v, x + i, sizeof(v));
      sums += v;
    }
    float sum = sum_of(sums);
    for (; i < n; ++i) sum += x[i];
    const float mean = sum / count;
    for (i = 0; i < n; ++i) x[i] -= mean;
    // The variance of centred values: mean(x^2) - mean^2 would cancel.
    const float scale = 1.0f / std::sqrt(dot(x, x, n) / count + eps);
    for (i = 0; i < n; ++i) {
      const auto c = static_cast<size_t>(i);
      x[i] = x[i] * scale * gain[c] + offset[c];
    }
  }
}

void attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* out,
            nibble::ThreadPool& pool) {
  const int64_t columns = shape.heads * shape.head_columns;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.head_columns));
  pool.for_each(shape.heads, [&](int64_t head) {
    const int64_t first = head * shape.head_columns;
    std::vector<float> weights(static_cast<size_t>(shape.tokens));
    for (int64_t row = 0; row < shape.tokens; ++row) {
      for (int64_t other = 0; other < shape.tokens; ++other) {
        weights[static_cast<size_t>(other)] =
            scale * dot(q + row * columns + first, k + other * columns + first, shape.head_columns);
      }
      const float largest = *std::ranges::max_element(weights);
      float sum = 0;
      for (float& weight : weights) {
        weight = std::exp(weight - largest);
        sum += weight;
      }
      float* to = out + row * columns + first;
      std::fill_n(to, shape.head_columns, 0.0f);
      for (int64_t other = 0; other < shape.tokens; ++other) {
        add_scaled(weights[static_cast<size_t>(other)] / sum, v + other * columns + first, to,
                   shape.head_columns);
      }
    }
  });
}

}  // namespace sentence_embedding
