// Exact data: every partial sum is representable, so any order of summation must give the same bits
// and one dropped, doubled or misplaced product shows.
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

constexpr int64_t kM[] = {1, 2, 3, 7, 8, 9, 16, 17, 33, 100};
constexpr int64_t kN[] = {16, 1, 15, 17, 33, 8, 31, 48, 7, 32, 50};
constexpr int64_t kK[] = {32,  2,   31,  34, 64,  128, 30,  66,  96,  1,  126,  160,  130, 256,
                          192, 258, 384, 16, 514, 33,  640, 240, 129, 62, 1040, 1104, 2064};

template <size_t kSize>
int64_t pick(const int64_t (&list)[kSize], uint64_t index) {
  return list[index % kSize];
}

// Bias, c and residual in units, alpha and beta powers of two: sums stay exact.
struct ExactEpilogue {
  EpilogueArgs args = plain_epilogue();
  std::vector<uint8_t> bias;
  Matrix c, residual;

  ExactEpilogue(const ExactProblem& problem, const Matrix& y, Rng& rng)
      : c(y.dtype(), y.rows(), y.cols(), 3, kNanByte),
        residual(y.dtype(), y.rows(), y.cols(), 1, kNanByte) {
    const auto small = [&] { return static_cast<float>(rng.between(-60, 60)) * problem.unit; };
    static constexpr float kFactors[] = {1, 2, -1, 0.5f};
    args.alpha = kFactors[rng.between(0, 3)];
    if (rng.one_in(2)) {
      static constexpr DType kBias[] = {DType::kF32, DType::kBF16, DType::kF16};
      args.bias_dtype = kBias[rng.between(0, 2)];
      bias.resize(static_cast<size_t>(problem.w.n * dtype_bytes(args.bias_dtype)));
      for (int64_t i = 0; i < problem.w.n; ++i) {
        store_from_f32(bias.data(), args.bias_dtype, i, small());
      }
      args.bias = bias.data();
    }
    for (int64_t row = 0; row < y.rows(); ++row) {
      for (int64_t col = 0; col < y.cols(); ++col) {
        c.set(row, col, small());
        residual.set(row, col, small());
      }
    }
    if (rng.one_in(2)) {
      args.beta = kFactors[rng.between(0, 3)];
      args.c = c.view().data;
      args.c_stride_bytes = c.stride_bytes();
    }
    if (rng.one_in(2)) {
      args.residual = residual.view().data;
      args.residual_stride_bytes = residual.stride_bytes();
    }
  }
};

class ExactData : public ::testing::TestWithParam<RowCase> {
 protected:
  // One problem of this Format; `turn` picks the shape and everything else that varies.
  void check(const Format& format, ProblemShape shape, uint64_t turn, bool with_epilogue) {
    const RowCase& row = GetParam();
    shape.m = row.clamp_m(shape.m);
    const uint64_t seed = turn * 1000003 + 17;
    Rng rng(seed);
    const bool paired = row.matmul->row.paired && turn % 3 == 2;
    if (paired) shape.n = round_up(shape.n, 2);
    WeightExtras extras;
    extras.tensor_scales = static_cast<int>(turn % 4);
    extras.op = turn % 8 < 4 ? TensorScaleOp::kMultiply : TensorScaleOp::kDivide;
    extras.k_perm = row.gathers() && turn % 5 >= 3;
    extras.pre_scale = row.pre_scales() && turn % 7 >= 4;

    const ExactProblem problem =
        make_exact(format, shape, row.compute, extras, with_epilogue ? kEpilogueOctaves : 0, rng);
    const Layout layout{row.matmul->row.layout, paired};
    const auto packed = pack(problem.w, layout);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const std::vector<DType> dtypes = row.x_dtypes();
    const Matrix x = make_matrix(dtypes[turn % dtypes.size()], problem.x, shape.m, shape.k,
                                 static_cast<int64_t>(turn % 3));
    // One in eight outputs is BF16 and one FP16; FP32 shows every bit of the sum.
    const DType y_dtype = turn % 8 == 5 ? DType::kBF16 : turn % 8 == 6 ? DType::kF16 : DType::kF32;
    Matrix y(y_dtype, shape.m, paired ? shape.n / 2 : shape.n, static_cast<int64_t>(turn % 4),
             kGuardByte);
    ExactEpilogue epilogue(problem, y, rng);
    if (!with_epilogue) epilogue.args = plain_epilogue();
    // A product of two 24-bit sums is not exact: gating has its own tests.
    if (paired) return check_gated(row, problem, *packed, x, y, seed);

    RunSpec spec;
    if (turn % 4 == 1) spec.block_m = 4 * row.matmul->row.block_m;
    run_row(row, *packed, x.view(), y, epilogue.args, spec);
    const auto sums =
        reference_sums(reference_weight(problem.w, row.numerics()),
                       reference_x(problem.w, x.view(), row.numerics()), row.numerics());
    const auto expected =
        reference_outputs(sums, {shape.m, shape.n, false, y_dtype}, epilogue.args);
    ASSERT_TRUE(equals_exactly(expected, {row, problem.w, layout, x, y, seed}));
  }

  // Paired: FP32(gate) * FP32(up), both exact, rounded once, then rounded to y.
  void check_gated(const RowCase& row, const ExactProblem& problem, const PackedWeight& packed,
                   const Matrix& x, Matrix& y, uint64_t seed) {
    run_row(row, packed, x.view(), y, plain_epilogue(), {});
    const auto sums =
        reference_sums(reference_weight(problem.w, row.numerics()),
                       reference_x(problem.w, x.view(), row.numerics()), row.numerics());
    std::vector<ReferenceOutput> expected;
    for (int64_t r = 0; r < y.rows(); ++r) {
      for (int64_t col = 0; col < y.cols(); ++col) {
        const auto gate = static_cast<size_t>(r * problem.w.n + col);
        const auto up = gate + static_cast<size_t>(y.cols());
        const float product =
            static_cast<float>(sums[gate].value) * static_cast<float>(sums[up].value);
        expected.push_back({static_cast<double>(product), 0});
      }
    }
    ASSERT_TRUE(equals_exactly(expected, {row, problem.w, packed.info.layout, x, y, seed}));
  }
};

TEST_P(ExactData, EveryFormatInManyShapes) {
  uint64_t turn = 0;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    for (int i = 0; i < repetitions(4); ++i, ++turn) {
      // Lists of coprime lengths: their combinations do not repeat within a row of the table.
      const ProblemShape shape = {pick(kM, turn), pick(kN, turn), pick(kK, turn)};
      // Above K = 1100 the octaves that an epilogue needs are not left.
      check(format, shape, turn, turn % 2 == 1 && shape.k < 1100);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(ExactData, LargeKWithAShortLastGroup) {
  uint64_t turn = 0;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    // One scale dtype and zero kind an element and group is enough here; the turn varies the rest.
    const bool plain = format.scale == DType::kBF16 &&
                       (format.zero == ZeroKind::kNone || format.zero == ZeroKind::kInteger);
    const bool fp4 = format.scale == DType::kE4M3 || format.scale == DType::kE8M0;
    if (!plain && !(fp4 && format.element == Element::kE2M1)) continue;
    check(format, {1 + static_cast<int64_t>(turn % 3), 17, 4304}, 4 * turn, false);
    if (HasFatalFailure()) return;
    ++turn;
  }
}

TEST_P(ExactData, EveryMWithOneFormat) {
  const std::vector<Format> formats = formats_of(GetParam().matmul->row);
  uint64_t turn = 0;
  for (int64_t m = 1; m <= repetitions(36); ++m) {
    check(formats[static_cast<size_t>(m) * 7 % formats.size()], {m, 33, 160}, 3 * turn++, false);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, ExactData, ::testing::ValuesIn(runnable_rows()), row_name);

}  // namespace
}  // namespace nibble::harness
