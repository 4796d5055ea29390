// Random and one-sided data against the oracle, within the tolerance of docs/numerics.md.
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

class Tolerance : public ::testing::TestWithParam<RowCase> {
 protected:
  struct Setting {
    ProblemShape shape;
    uint64_t turn = 0;
    bool one_sided = false;
    DType y_dtype = DType::kF32;
  };

  // Largest error as a share of the tolerance.
  void check(const Format& format, const Setting& setting, double* worst) {
    const RowCase& row = GetParam();
    const uint64_t turn = setting.turn, seed = turn * 7919 + 3;
    Rng rng(seed);
    ProblemShape shape = setting.shape;
    shape.m = row.clamp_m(shape.m);
    const bool paired = row.matmul->row.paired && turn % 5 == 4;
    if (paired) shape.n = round_up(shape.n, 2);
    WeightExtras extras;
    extras.tensor_scales = static_cast<int>(turn % 4);
    extras.op = turn % 8 < 4 ? TensorScaleOp::kMultiply : TensorScaleOp::kDivide;
    extras.k_perm = row.gathers() && turn % 3 >= 1;
    extras.pre_scale = row.pre_scales() && turn % 3 == 2 && !setting.one_sided;

    const QuantizedTensor w = make_random_weight(format, shape, extras, setting.one_sided, rng);
    const Layout layout{row.matmul->row.layout, paired};
    const auto packed = pack(w, layout);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const std::vector<DType> dtypes = row.x_dtypes();
    const Matrix x = make_random_x(dtypes[turn % dtypes.size()], shape,
                                   static_cast<int64_t>(turn % 3), setting.one_sided, rng);
    Matrix y(setting.y_dtype, shape.m, paired ? shape.n / 2 : shape.n,
             static_cast<int64_t>(turn % 4), kGuardByte);
    run_row(row, *packed, x.view(), y, plain_epilogue(), {});
    const auto sums = reference_sums(reference_weight(w, row.numerics()),
                                     reference_x(w, x.view(), row.numerics()), row.numerics());
    const auto expected =
        reference_outputs(sums, {shape.m, shape.n, paired, setting.y_dtype}, plain_epilogue());
    ASSERT_TRUE(within_tolerance(expected, {row, w, layout, x, y, seed}));
    *worst = std::max(*worst, worst_share(expected, y));
  }
};

TEST_P(Tolerance, HoldsForRandomData) {
  double worst = 0;
  Setting setting;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    static constexpr int64_t kM[] = {1, 9, 4, 17, 2};
    static constexpr int64_t kN[] = {17, 40, 16, 24};
    static constexpr int64_t kK[] = {256, 130, 2, 514, 96, 1200, 64};
    for (int i = 0; i < repetitions(2); ++i, ++setting.turn) {
      const uint64_t turn = setting.turn;
      setting.shape = {kM[turn % 5], kN[turn % 4], kK[turn % 7]};
      check(format, setting, &worst);
      if (HasFatalFailure()) return;
    }
  }
  RecordProperty("worst_share_of_tolerance_per_mille", static_cast<int>(1000 * worst));
}

TEST_P(Tolerance, HoldsForOneSidedDataAtLargeK) {
  double worst = 0;
  Setting setting;
  setting.one_sided = true;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    // One scale dtype a Format: sums of one sign are about lengths of chains, not about decoding.
    if (format.scale != DType::kF32 && format.scale != DType::kE4M3) continue;
    static constexpr int64_t kK[] = {4304, 2048, 1088};
    setting.shape = {1 + static_cast<int64_t>(setting.turn % 3) * 4, 19, kK[setting.turn % 3]};
    if (format.group == 0) setting.shape = {2, 48, 4304};
    check(format, setting, &worst);
    if (HasFatalFailure()) return;
    ++setting.turn;
  }
  RecordProperty("worst_share_of_tolerance_per_mille", static_cast<int>(1000 * worst));
}

// The adversarial case of the contract: x >= 0, unsigned codes, one scale a row, long rows.
TEST_P(Tolerance, HoldsForOneSidedRowsOf16384) {
  double worst = 0;
  Setting setting;
  setting.one_sided = true;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    const bool long_chain =
        format.group == 0 && format.element == Element::kUint4 && format.zero == ZeroKind::kInteger;
    const bool many_groups = format.group == 16 && format.scale == DType::kE4M3;
    if (!long_chain && !many_groups) continue;
    setting.shape = {setting.turn % 2 == 0 ? 1 : 8, 32, 16384};
    check(format, setting, &worst);
    if (HasFatalFailure()) return;
    ++setting.turn;
  }
  RecordProperty("worst_share_of_tolerance_per_mille", static_cast<int>(1000 * worst));
}

TEST_P(Tolerance, HoldsForHalfPrecisionOutputs) {
  double worst = 0;
  Setting setting;
  for (const Format& format : formats_of(GetParam().matmul->row)) {
    if (setting.turn++ % 6 != 0) continue;
    setting.y_dtype = setting.turn % 12 == 1 ? DType::kBF16 : DType::kF16;
    setting.shape = {5, 24, 320};
    check(format, setting, &worst);
    if (HasFatalFailure()) return;
  }
  RecordProperty("worst_share_of_tolerance_per_mille", static_cast<int>(1000 * worst));
}

INSTANTIATE_TEST_SUITE_P(Rows, Tolerance, ::testing::ValuesIn(runnable_rows()), row_name);

}  // namespace
}  // namespace nibble::harness
