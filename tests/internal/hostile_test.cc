// Inputs that are no numbers: they stay in their own row, and what the caller's memory holds beyond
// K, between rows and in the workspace never reaches y.
#include <cmath>
#include <limits>

#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Hostile : public ::testing::TestWithParam<RowCase> {
 protected:
  struct Case {
    QuantizedTensor w;
    Layout layout;
    PackedWeight packed;
    Matrix x;
  };
  Case make(const Format& format, const ProblemShape& shape, uint64_t turn) const {
    const RowCase& row = GetParam();
    Rng rng(turn + 99);
    WeightExtras extras;
    extras.tensor_scales = static_cast<int>(turn % 2);
    extras.k_perm = row.gathers() && turn % 3 == 0;
    QuantizedTensor w = make_random_weight(format, shape, extras, false, rng);
    const bool paired = row.matmul->row.paired && shape.n % 2 == 0 && turn % 4 == 3;
    const Layout layout{row.matmul->row.layout, paired};
    auto packed = pack(w, layout);
    EXPECT_TRUE(packed.ok()) << packed.status().message();
    const std::vector<DType> dtypes = row.x_dtypes();
    return {std::move(w), layout, std::move(packed).value(),
            make_random_x(dtypes[turn % dtypes.size()], shape, 5, false, rng)};
  }
  Matrix run(const Case& c) const {
    Matrix y(DType::kF32, c.x.rows(), c.packed.info.output_columns(), 2, kGuardByte);
    run_row(GetParam(), c.packed, c.x.view(), y, plain_epilogue(), {});
    return y;
  }
};

TEST_P(Hostile, AnInfOrNanRowTouchesNoOther) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(24))) {
    const int64_t m = GetParam().clamp_m(turn % 2 == 0 ? 11 : 3);
    Case c = make(format, {m, 34, 146}, turn);
    const Matrix clean = run(c);
    const int64_t hostile = static_cast<int64_t>(turn) % m;
    const float value = turn % 3 == 0 ? kInfinity : turn % 3 == 1 ? -kInfinity : kNan;
    c.x.set(hostile, static_cast<int64_t>(turn * 37) % 146, value);
    const Matrix y = run(c);
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t col = 0; col < y.cols(); ++col) {
        if (row == hostile) {
          ASSERT_FALSE(std::isfinite(y.at(row, col)))
              << format.name() << ": " << value << " in x gave y[" << row << ", " << col
              << "] = " << y.at(row, col) << ", m = " << m;
        } else {
          ASSERT_EQ(y.bits(row, col), clean.bits(row, col))
              << format.name() << ": row " << hostile << " of x holds " << value << ", y[" << row
              << ", " << col << "] changed, m = " << m;
        }
      }
    }
    ++turn;
  }
}

TEST_P(Hostile, NothingBeyondTheEndsIsRead) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(24))) {
    // x is surrounded by NaN (make) and the workspace holds NaN (run): K = 33 leaves most of the
    // last block unused. N = 1 leaves most of the panel unused.
    const ProblemShape shape = {GetParam().clamp_m(turn % 2 == 0 ? 1 : 9), turn % 3 == 0 ? 1 : 18,
                                turn % 2 == 0 ? 34 : 162};
    const Case c = make(format, shape, turn);
    const Matrix y = run(c);
    for (int64_t row = 0; row < y.rows(); ++row) {
      for (int64_t col = 0; col < y.cols(); ++col) {
        ASSERT_TRUE(std::isfinite(y.at(row, col)))
            << format.name() << " y[" << row << ", " << col << "] = " << y.at(row, col);
      }
    }
    ++turn;
  }
}

TEST_P(Hostile, AnAllZeroRowGivesZeros) {
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(24))) {
    const int64_t m = GetParam().clamp_m(turn % 2 == 0 ? 1 : 10);
    Case c = make(format, {m, 20, 98}, turn);
    const int64_t zero_row = m - 1;
    for (int64_t j = 0; j < 98; ++j) c.x.set(zero_row, j, j % 2 == 0 ? 0.0f : -0.0f);
    const Matrix y = run(c);
    for (int64_t col = 0; col < y.cols(); ++col) {
      ASSERT_EQ(y.at(zero_row, col), 0.0f) << format.name() << " column " << col;
    }
    ++turn;
  }
}

// Magnitudes near the ends of FP32: blocks below 2^-100 count as zero for int8, subnormals may be
// flushed, and nothing turns into NaN or infinity on the way.
TEST_P(Hostile, TinyAndHugeRowsStayInTolerance) {
  const RowCase& row = GetParam();
  uint64_t turn = 0;
  for (const Format& format : some_formats(GetParam().matmul->row, repetitions(24))) {
    const int64_t m = row.clamp_m(4);
    Case c = make(format, {m, 17, 66}, turn);
    if (c.x.dtype() != DType::kF16 && !c.layout.paired) {
      static constexpr float kFactors[] = {0x1p-130f, 0x1p-99f, 0x1p100f, 1};
      for (int64_t r = 0; r < m; ++r) {
        const float factor = kFactors[(static_cast<uint64_t>(r) + turn) % 4];
        for (int64_t j = 0; j < 66; ++j) c.x.set(r, j, c.x.at(r, j) * factor);
      }
      const Matrix y = run(c);
      const auto sums =
          reference_sums(reference_weight(c.w, row.numerics()),
                         reference_x(c.w, c.x.view(), row.numerics()), row.numerics());
      const auto expected = reference_outputs(sums, {m, 17, false, DType::kF32}, plain_epilogue());
      ASSERT_TRUE(within_tolerance(expected, {row, c.w, c.layout, c.x, y, turn}));
    }
    ++turn;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, Hostile, ::testing::ValuesIn(runnable_rows()), row_name);

}  // namespace
}  // namespace nibble::harness
