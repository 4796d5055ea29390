// A weight of random integers with zero points and scales, and its tensors as GPTQ and AWQ store
// them, written from the formats' rules alone.
#ifndef NIBBLE_CHECKPOINT_TEST_QWEIGHT_H_
#define NIBBLE_CHECKPOINT_TEST_QWEIGHT_H_

#include <random>
#include <string>
#include <vector>

#include "checkpoint/test_files.h"

namespace nibble::checkpoint {

struct IntegerWeight {
  int bits = 4;
  size_t n = 0, k = 0, groups = 0;
  std::vector<uint32_t> codes;  ///< [n][k]
  std::vector<uint32_t> zeros;  ///< [groups][n]
  std::vector<float> scales;    ///< [groups][n], exact in f16
  std::vector<int32_t> index;   ///< [k]: group of each column

  /// Equal groups of `length` columns; every zero point `zero`, or random where it is negative.
  static IntegerWeight random(int bits, size_t n, size_t k, size_t length, int zero) {
    IntegerWeight w;
    w.bits = bits;
    w.n = n;
    w.k = k;
    w.groups = (k + length - 1) / length;
    std::mt19937 engine(static_cast<uint32_t>(1000 * n + k));
    const uint32_t range = 1u << bits;
    w.codes.resize(n * k);
    for (uint32_t& code : w.codes) code = static_cast<uint32_t>(engine()) % range;
    w.zeros.resize(w.groups * n);
    for (uint32_t& each : w.zeros) {
      each = zero < 0 ? static_cast<uint32_t>(engine()) % range : static_cast<uint32_t>(zero);
    }
    w.scales.resize(w.groups * n);
    for (float& scale : w.scales) scale = static_cast<float>(engine() % 1000 + 1) / 1024;
    w.index.resize(k);
    for (size_t j = 0; j < k; ++j) w.index[j] = static_cast<int32_t>(j / length);
    return w;
  }

  std::vector<float> dense() const {
    std::vector<float> out(n * k);
    for (size_t row = 0; row < n; ++row) {
      for (size_t j = 0; j < k; ++j) {
        const size_t at = static_cast<size_t>(index[j]) * n + row;
        const int value = static_cast<int>(codes[row * k + j]) - static_cast<int>(zeros[at]);
        out[row * k + j] = static_cast<float>(value) * scales[at];
      }
    }
    return out;
  }

  size_t fields() const { return 32 / static_cast<size_t>(bits); }
  size_t words(size_t count) const { return (count + fields() - 1) / fields(); }
  uint32_t shifted(uint32_t value, size_t field) const {
    return value << (static_cast<size_t>(bits) * field);
  }

  /// GPTQ: words [ceil(k/fields), n], fields along k; zeros [groups, ceil(n/fields)] minus
  /// `subtract` a word.
  std::vector<uint32_t> gptq_codes() const {
    std::vector<uint32_t> out(words(k) * n);
    for (size_t row = 0; row < n; ++row) {
      for (size_t j = 0; j < k; ++j) {
        out[j / fields() * n + row] |= shifted(codes[row * k + j], j % fields());
      }
    }
    return out;
  }
  std::vector<uint32_t> gptq_zeros(uint32_t subtract) const {
    std::vector<uint32_t> out(groups * words(n));
    for (size_t g = 0; g < groups; ++g) {
      for (size_t row = 0; row < n; ++row) {
        out[g * words(n) + row / fields()] |= shifted(zeros[g * n + row], row % fields());
      }
    }
    for (uint32_t& word : out) word -= subtract;
    return out;
  }

  /// AWQ: rows [count][ceil(n/8)] of words whose field i is row 8c + {0, 2, 4, 6, 1, 3, 5, 7}[i].
  std::vector<uint32_t> awq(size_t count, const auto& value) const {
    static constexpr size_t kRow[] = {0, 2, 4, 6, 1, 3, 5, 7};
    std::vector<uint32_t> out(count * words(n));
    for (size_t r = 0; r < count; ++r) {
      for (size_t c = 0; c < words(n); ++c) {
        for (size_t i = 0; i < 8; ++i) {
          const size_t row = 8 * c + kRow[i];
          if (row < n) out[r * words(n) + c] |= shifted(value(r, row), i);
        }
      }
    }
    return out;
  }
  std::vector<uint32_t> awq_codes() const {
    return awq(k, [this](size_t j, size_t row) { return codes[row * k + j]; });
  }
  std::vector<uint32_t> awq_zeros() const {
    return awq(groups, [this](size_t g, size_t row) { return zeros[g * n + row]; });
  }
};

inline std::vector<int64_t> shape_of(size_t rows, size_t columns) {
  return {static_cast<int64_t>(rows), static_cast<int64_t>(columns)};
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TEST_QWEIGHT_H_
