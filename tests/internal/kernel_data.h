// Data for the tests that walk the kernel table: memory that traps stray reads, exact data for
// which every order of summation gives the same bits, random and one-sided data.
#ifndef NIBBLE_TESTS_INTERNAL_KERNEL_DATA_H_
#define NIBBLE_TESTS_INTERNAL_KERNEL_DATA_H_

#include <cstdint>
#include <vector>

#include "nibble/core.h"

namespace nibble::harness {

/// A small deterministic generator (splitmix64): the same data on every machine.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t next();
  int64_t between(int64_t low, int64_t high);  ///< inclusive
  double real();                               ///< [0, 1)
  double gaussian();                           ///< mean 0, variance 1
  bool one_in(int64_t n) { return between(1, n) == 1; }

 private:
  uint64_t state_;
};

/// Bytes that end where an unmapped page begins, all set to one value. What lies before them on
/// their first page has the same value, so that stray writes show.
class GuardedMemory {
 public:
  GuardedMemory(int64_t bytes, uint8_t fill);
  ~GuardedMemory();
  GuardedMemory(GuardedMemory&& other) noexcept;
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  bool front_is_untouched() const;

 private:
  uint8_t* mapping_ = nullptr;
  int64_t mapped_bytes_ = 0;
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
  uint8_t fill_ = 0;
};

inline constexpr uint8_t kNanByte = 0xFF;    ///< f32, f16 and bf16 of this byte are NaN
inline constexpr uint8_t kGuardByte = 0xA5;  ///< what nobody may overwrite

/// A matrix in guarded memory, `gap` unused values after each row but the last.
class Matrix {
 public:
  Matrix(DType dtype, int64_t rows, int64_t cols, int64_t gap, uint8_t fill);
  float at(int64_t row, int64_t col) const;
  void set(int64_t row, int64_t col, float value);
  /// Bytes of one value, for comparisons bit by bit.
  uint32_t bits(int64_t row, int64_t col) const;
  MatrixView view() const;
  MutableMatrixView mutable_view() const;
  DType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t stride_bytes() const { return stride_bytes_; }
  /// True when the bytes between the rows and before the first still hold `fill`.
  bool gaps_are_untouched() const;

 private:
  uint8_t* value(int64_t row, int64_t col) const;
  DType dtype_;
  int64_t rows_, cols_, stride_bytes_;
  uint8_t fill_;
  GuardedMemory memory_;
};

/// What a weight carries beside codes, scales and zeros.
struct WeightExtras {
  int tensor_scales = 0;  ///< segments
  TensorScaleOp op = TensorScaleOp::kMultiply;
  bool k_perm = false;
  bool pre_scale = false;
};

/// A weight and x for which all sums are exact in FP32.
struct ExactProblem {
  QuantizedTensor w;
  std::vector<float> x;  ///< [m][k] dense, original column order
  float unit = 1;        ///< every partial sum is a multiple of it, before tensor scales
};
struct ProblemShape {
  int64_t m = 1, n = 1, k = 1;
};
/// Octaves of the 24 that an epilogue needs: tensor scales and alpha move the sum by 2 each way,
/// then bias, c and residual of up to 120 units join it.
inline constexpr int kEpilogueOctaves = 5;
/// docs/numerics.md, "Exact data": partial sums are at most 2^(24 - free_octaves) units. Aborts
/// when that cannot be met: no data are made that only look exact.
ExactProblem make_exact(const Format& format, const ProblemShape& shape, Compute compute,
                        const WeightExtras& extras, int free_octaves, Rng& rng);

/// Codes of all kinds, scales over several octaves of both signs, zeros inside the codes' range.
/// `one_sided`: codes whose value is not negative, positive scales, zero points of 0.
QuantizedTensor make_random_weight(const Format& format, const ProblemShape& shape,
                                   const WeightExtras& extras, bool one_sided, Rng& rng);
/// Gaussian, or uniform in [0, 1) when one-sided; rounded to `dtype`. NaN between the rows.
Matrix make_random_x(DType dtype, const ProblemShape& shape, int64_t gap, bool one_sided, Rng& rng);
/// The dense values in a strided matrix with NaN between the rows.
Matrix make_matrix(DType dtype, const std::vector<float>& values, int64_t rows, int64_t cols,
                   int64_t gap);

/// Every Format whose parts are in the given sets; groups of at least `min_group` and whole rows.
std::vector<Format> formats_of(const KernelRow& row);
/// About `count` of them, spread over the list.
std::vector<Format> some_formats(const KernelRow& row, int count);

}  // namespace nibble::harness

#endif  // NIBBLE_TESTS_INTERNAL_KERNEL_DATA_H_
