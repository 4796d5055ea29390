// Reproducibility: the bits of an output do not depend on how the work is split, on its neighbours
// in N, or (where a row promises it) on M.
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

class Bits : public ::testing::TestWithParam<RowCase> {
 protected:
  Matrix run(const QuantizedTensor& w, const Matrix& x, bool paired, const RunSpec& spec) const {
    const auto packed = pack(w, {GetParam().matmul->row.layout, paired});
    EXPECT_TRUE(packed.ok()) << packed.status().message();
    Matrix y(DType::kF32, x.rows(), packed->info.output_columns(), 0, kGuardByte);
    run_row(GetParam(), *packed, x.view(), y, plain_epilogue(), spec);
    return y;
  }

  static void expect_same(const Matrix& a, const Matrix& b, const std::string& what) {
    for (int64_t row = 0; row < a.rows(); ++row) {
      for (int64_t col = 0; col < a.cols(); ++col) {
        ASSERT_EQ(a.bits(row, col), b.bits(row, col))
            << what << ", y[" << row << ", " << col << "] " << a.at(row, col) << " and "
            << b.at(row, col);
      }
    }
  }
};

TEST_P(Bits, DoNotDependOnTheSplitOfTheWork) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(20))) {
    Rng rng(turn + 5);
    const ProblemShape shape = {GetParam().clamp_m(turn % 2 == 0 ? 19 : 1), 70, 290};
    const QuantizedTensor w = make_random_weight(format, shape, {}, false, rng);
    const Matrix x = make_random_x(GetParam().x_dtypes()[0], shape, 0, false, rng);
    const bool paired = GetParam().matmul->row.paired && turn % 3 == 0;
    const Matrix whole = run(w, x, paired, {});
    expect_same(whole, run(w, x, paired, {.shuffle = turn + 1}), format.name() + " item by item");
    const int64_t block_m = GetParam().matmul->row.block_m;
    expect_same(whole, run(w, x, paired, {.block_m = 3 * block_m, .shuffle = turn + 1}),
                format.name() + " in larger blocks of rows");
    ++turn;
  }
}

TEST_P(Bits, DoNotDependOnTheWorkspaceBefore) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(20))) {
    Rng rng(turn + 6);
    const ProblemShape shape = {GetParam().clamp_m(5), 33, 98};
    const QuantizedTensor w = make_random_weight(format, shape, {}, false, rng);
    const Matrix x = make_random_x(GetParam().x_dtypes()[0], shape, 0, false, rng);
    expect_same(run(w, x, false, {}), run(w, x, false, {.workspace = 0}), format.name());
    ++turn;
  }
}

// Rows 5 .. 5 + 29 alone: other lanes, other panels, the same bits.
TEST_P(Bits, DoNotDependOnNeighboursInN) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(20))) {
    Rng rng(turn + 7);
    const ProblemShape shape = {GetParam().clamp_m(turn % 2 == 0 ? 1 : 9), 70, 322};
    const QuantizedTensor w = make_random_weight(format, shape, {}, false, rng);
    const Matrix x = make_random_x(GetParam().x_dtypes()[0], shape, 0, false, rng);
    const Matrix all = run(w, x, false, {});

    constexpr int64_t kFirst = 5, kCount = 29;
    QuantizedTensor part = w;
    const auto rows_of = [&](const Buffer& whole) {
      const int64_t row_bytes = whole.bytes() / shape.n;
      return whole.slice(kFirst * row_bytes, kCount * row_bytes);
    };
    part.n = kCount;
    part.codes = rows_of(w.codes);
    part.scales = rows_of(w.scales);
    if (!w.zeros.empty()) part.zeros = rows_of(w.zeros);
    const Matrix some = run(part, x, false, {});
    for (int64_t row = 0; row < shape.m; ++row) {
      for (int64_t col = 0; col < kCount; ++col) {
        ASSERT_EQ(some.bits(row, col), all.bits(row, kFirst + col))
            << format.name() << " y[" << row << ", " << kFirst + col << "]";
      }
    }
    ++turn;
  }
}

TEST_P(Bits, DependOnMOnlyWhereTheRowSaysSo) {
  const RowCase& row = GetParam();
  uint64_t turn = 0;
  int64_t differing = 0, compared = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(20))) {
    Rng rng(turn + 8);
    const ProblemShape shape = {row.clamp_m(37), 33, 386};
    const QuantizedTensor w = make_random_weight(format, shape, {}, false, rng);
    const Matrix x = make_random_x(row.x_dtypes()[0], shape, 0, false, rng);
    const Matrix all = run(w, x, false, {});
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31}) {
      if (m > shape.m || row.clamp_m(m) != m) continue;
      // The last m rows of x: another place in the tile as well as another m.
      const MatrixView whole = x.view();
      const auto packed = pack(w, {row.matmul->row.layout, false});
      const MatrixView tail = {
          static_cast<const uint8_t*>(whole.data) + (shape.m - m) * whole.stride_bytes, whole.dtype,
          m, whole.cols, whole.stride_bytes};
      Matrix y(DType::kF32, m, shape.n, 0, kGuardByte);
      run_row(row, *packed, tail, y, plain_epilogue(), {});
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t col = 0; col < shape.n; ++col) {
          ++compared;
          if (y.bits(i, col) == all.bits(shape.m - m + i, col)) continue;
          ++differing;
          ASSERT_TRUE(row.matmul->row.bits_depend_on_m)
              << row.name() << " " << format.name() << " m=" << m << " y[" << i << ", " << col
              << "] " << y.at(i, col) << " and " << all.at(shape.m - m + i, col)
              << ": bits_depend_on_m is false";
        }
      }
    }
    ++turn;
  }
  RecordProperty("outputs_compared", std::to_string(compared));
  RecordProperty("outputs_that_depend_on_m", std::to_string(differing));
  // A row that says so without need would be kept from batch-invariant plans.
  if (row.matmul->row.bits_depend_on_m) {
    EXPECT_GT(differing, 0) << row.name();
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, Bits, ::testing::ValuesIn(runnable_rows()), row_name);

}  // namespace
}  // namespace nibble::harness
