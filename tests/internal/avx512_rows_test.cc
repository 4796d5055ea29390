// What the AVX-512 rows do beyond what every row is tested for: zero points that their tables do
// not index, K longer than they lay out at once, and bits that do not depend on how K is cut for a
// given m.
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

bool is_avx512(const RowCase& row) {
  return row.matmul->row.isa == Isa::kAvx512Vnni || row.matmul->row.isa == Isa::kAvx512Bf16;
}

bool takes(const RowCase& row, const Format& format) {
  const KernelRow& r = row.matmul->row;
  return (r.elements & bit(format.element)) != 0 && (r.scale_dtypes & bit(format.scale)) != 0 &&
         (r.zero_kinds & bit(format.zero)) != 0;
}

// Rows of this machine; none where it has no AVX-512.
std::vector<RowCase> avx512_rows_here() {
  std::vector<RowCase> rows;
  for (const RowCase& row : runnable_rows()) {
    if (is_avx512(row)) rows.push_back(row);
  }
  return rows;
}

void check_against_oracle(const RowCase& row, const QuantizedTensor& w, int64_t m, uint64_t seed) {
  Rng rng(seed);
  const ProblemShape shape = {row.clamp_m(m), w.n, w.k};
  const Matrix x = make_random_x(row.x_dtypes()[0], shape, 1, false, rng);
  const Layout layout{row.matmul->row.layout, false};
  const auto packed = pack(w, layout);
  ASSERT_TRUE(packed.ok()) << packed.status().message();
  Matrix y(DType::kF32, shape.m, shape.n, 1, kGuardByte);
  run_row(row, *packed, x.view(), y, plain_epilogue(), {});
  const auto sums = reference_sums(reference_weight(w, row.numerics()),
                                   reference_x(w, x.view(), row.numerics()), row.numerics());
  const auto expected =
      reference_outputs(sums, {shape.m, shape.n, false, DType::kF32}, plain_epilogue());
  ASSERT_TRUE(within_tolerance(expected, {row, w, layout, x, y, seed}));
}

// A stored zero is a byte: 4-bit codes may come with zeros above 15.
TEST(Avx512Rows, TakeZerosAboveFifteen) {
  for (const RowCase& row : avx512_rows_here()) {
    for (const char* name : {"uint4-g16", "uint4-g32", "uint4-g128", "uint4-channel"}) {
      const auto format = Format::parse(name);
      ASSERT_TRUE(format.ok());
      if (!takes(row, *format)) continue;
      for (const int64_t m : {1, 3, 6}) {
        Rng rng(11);
        QuantizedTensor w = make_random_weight(*format, {m, 35, 1090}, {}, false, rng);
        uint8_t* zeros = w.zeros.mutable_data();
        for (int64_t i = 0; i < w.zeros.bytes(); ++i) {
          zeros[i] = static_cast<uint8_t>(rng.between(0, i % 3 == 0 ? 255 : 17));
        }
        check_against_oracle(row, w, m, 5);
        if (HasFatalFailure()) FAIL() << row.name() << " " << name << " m = " << m;
      }
    }
  }
}

// 16384 columns of x are laid out at once for row-major weights; here are more, and a ragged end.
TEST(Avx512Rows, TakeLongRows) {
  for (const RowCase& row : avx512_rows_here()) {
    for (const char* name : {"nvfp4", "int4-g32", "int4-g64", "int4-g128", "int4-channel"}) {
      const auto format = Format::parse(name);
      ASSERT_TRUE(format.ok());
      if (!takes(row, *format)) continue;
      Rng rng(12);
      const QuantizedTensor w = make_random_weight(*format, {1, 19, 33010}, {}, false, rng);
      check_against_oracle(row, w, 1, 6);
      if (HasFatalFailure()) FAIL() << row.name() << " " << name;
    }
  }
}

// A few rows of x go through K in longer chunks than many: the sums must end at the same columns.
TEST(Avx512Rows, CutKAtTheSameColumnsForEveryM) {
  for (const RowCase& row : avx512_rows_here()) {
    if (row.matmul->row.max_m != 0) continue;
    for (const char* name :
         {"nvfp4", "mxfp4", "int4-g128", "int4-channel", "uint4-g64:zadd", "uint4-channel:zadd"}) {
      const auto format = Format::parse(name);
      ASSERT_TRUE(format.ok()) << name;
      if (!takes(row, *format)) continue;
      constexpr int64_t kM = 13;
      Rng rng(13);
      const ProblemShape shape = {kM, 33, 9250};
      const QuantizedTensor w = make_random_weight(*format, shape, {}, false, rng);
      const Matrix x = make_random_x(row.x_dtypes()[0], shape, 0, false, rng);
      const auto packed = pack(w, {row.matmul->row.layout, false});
      ASSERT_TRUE(packed.ok());
      Matrix all(DType::kF32, kM, shape.n, 0, kGuardByte);
      run_row(row, *packed, x.view(), all, plain_epilogue(), {});
      for (const int64_t m : {1, 2, 4, 5, 8}) {
        MatrixView some = x.view();
        some.rows = m;
        Matrix y(DType::kF32, m, shape.n, 0, kGuardByte);
        run_row(row, *packed, some, y, plain_epilogue(), {});
        for (int64_t r = 0; r < m; ++r) {
          for (int64_t n = 0; n < shape.n; ++n) {
            ASSERT_EQ(y.bits(r, n), all.bits(r, n))
                << row.name() << " " << name << " m = " << m << " y[" << r << ", " << n << "]";
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::harness
