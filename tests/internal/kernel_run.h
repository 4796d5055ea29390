// Running rows of the kernel table on their own, without planning or ops, and judging what they
// wrote.
#ifndef NIBBLE_TESTS_INTERNAL_KERNEL_RUN_H_
#define NIBBLE_TESTS_INTERNAL_KERNEL_RUN_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/reference.h"
#include "kernels/table.h"
#include "nibble/pack.h"
#include "tests/internal/kernel_data.h"

namespace nibble::harness {

/// A matmul row with the kPrepareX row that feeds it. kF32Rows rows appear twice: with x as it is,
/// and with x rounded to int8 first.
struct RowCase {
  const KernelInfo* matmul = nullptr;
  const KernelInfo* prepare = nullptr;  ///< null: the row reads the caller's x
  Compute compute = Compute::kExact;

  std::string name() const;
  Numerics numerics() const;
  std::vector<DType> x_dtypes() const;
  bool gathers() const;
  bool pre_scales() const;
  /// The number of rows of x nearest to `m` that the row takes.
  int64_t clamp_m(int64_t m) const;
};
inline void PrintTo(const RowCase& row, std::ostream* out) { *out << row.name(); }
inline std::string row_name(const ::testing::TestParamInfo<RowCase>& row) {
  return row.param.name();
}
/// Every matmul row that this machine can run. Prepared forms come from the scalar rows, which are
/// their specification.
std::vector<RowCase> runnable_rows();

/// How a test runs a row.
struct RunSpec {
  int64_t block_m = 0;   ///< 0: the row's own
  uint64_t shuffle = 0;  ///< not 0: one call an item, in an order drawn from this seed
  uint8_t workspace = kNanByte;
};

/// Runs `row` and fails the test when it wrote outside y. Row-major weights are copied to memory
/// that ends at an unmapped page.
void run_row(const RowCase& row, const PackedWeight& packed, const MatrixView& x, Matrix& y,
             const EpilogueArgs& epilogue, const RunSpec& spec);
inline EpilogueArgs plain_epilogue() {
  return {1, 0, nullptr, 0, nullptr, 0, nullptr, DType::kF32, Activation::kNone};
}

/// Where a case comes from, for messages.
struct CaseLabel {
  const RowCase& row;
  const QuantizedTensor& w;
  const Layout& layout;
  const Matrix& x;
  const Matrix& y;
  uint64_t seed;
};

/// Every output must be the reference's value rounded once.
::testing::AssertionResult equals_exactly(const std::vector<ReferenceOutput>& expected,
                                          const CaseLabel& label);
/// Every output must lie within the reference's tolerance.
::testing::AssertionResult within_tolerance(const std::vector<ReferenceOutput>& expected,
                                            const CaseLabel& label);
/// Largest error as a share of the tolerance.
double worst_share(const std::vector<ReferenceOutput>& expected, const Matrix& y);

/// `ordinary` repetitions, or one where a sanitizer makes everything slow.
int repetitions(int ordinary);

}  // namespace nibble::harness

#endif  // NIBBLE_TESTS_INTERNAL_KERNEL_RUN_H_
