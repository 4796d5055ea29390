// Every matmul row through Linear, asked for by name: the plan's prepare row, its blocks of rows,
// bands, workspaces given and own, one thread and several.
#include <gtest/gtest.h>

#include "nibble/ops.h"
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

class LinearRow : public ::testing::TestWithParam<RowCase> {
 protected:
  static LinearOptions options(ThreadPool* pool, int64_t band_rows) {
    LinearOptions out;
    out.compute = GetParam().compute;
    out.kernel = GetParam().matmul->row.name;
    out.pool = pool;
    out.band_rows = band_rows;
    return out;
  }
};

TEST_P(LinearRow, HasTheBitsOfTheRowCalledDirectly) {
  const RowCase& row = GetParam();
  const auto one_thread = make_thread_pool(1), three_threads = make_thread_pool(3);
  uint64_t turn = 0;
  for (const Format& format : some_formats(row.matmul->row, repetitions(12))) {
    Rng rng(turn + 31);
    const int64_t m = row.clamp_m(turn % 3 == 0 ? 1 : turn % 3 == 1 ? 21 : 130);
    const ProblemShape shape = {m, 54, 162};
    WeightExtras extras;
    extras.tensor_scales = static_cast<int>(turn % 3);
    extras.k_perm = row.gathers() && turn % 4 == 0;
    extras.pre_scale = row.pre_scales() && turn % 4 == 1;
    const bool paired = row.matmul->row.paired && turn % 2 == 1;
    const QuantizedTensor w = make_random_weight(format, shape, extras, false, rng);
    const Layout layout{row.matmul->row.layout, paired};
    auto packed = pack(w, layout);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const Matrix x =
        make_random_x(row.x_dtypes()[turn % row.x_dtypes().size()], shape, 1, false, rng);
    const int64_t outputs = packed->info.output_columns();

    EpilogueArgs args = plain_epilogue();
    Epilogue epilogue;
    epilogue.alpha = args.alpha = 1.5f;
    std::vector<float> bias(static_cast<size_t>(shape.n));
    for (float& value : bias) value = static_cast<float>(rng.gaussian());
    epilogue.bias = args.bias = bias.data();
    Matrix residual(DType::kF32, m, outputs, 2, kNanByte);
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t col = 0; col < outputs; ++col) {
        residual.set(r, col, static_cast<float>(rng.gaussian()));
      }
    }
    epilogue.residual = residual.view();
    args.residual = residual.view().data;
    args.residual_stride_bytes = residual.stride_bytes();

    Matrix direct(DType::kF32, m, outputs, 0, kGuardByte);
    run_row(row, *packed, x.view(), direct, args, {});
    const auto sums = reference_sums(reference_weight(w, row.numerics()),
                                     reference_x(w, x.view(), row.numerics()), row.numerics());
    const auto expected = reference_outputs(sums, {m, shape.n, paired, DType::kF32}, args);

    for (ThreadPool* pool : {one_thread.get(), three_threads.get()}) {
      // A band shorter than m is another m to the row: bits may differ where it says so.
      const int64_t band_rows = row.clamp_m(turn % 2 == 0 ? 512 : 48);
      const auto linear = Linear::create(*packed, options(pool, band_rows));
      ASSERT_TRUE(linear.ok()) << linear.status().message();
      for (const bool own_workspace : {true, false}) {
        RunContext context;
        const auto bytes = linear->workspace_bytes(m, x.dtype(), DType::kF32);
        ASSERT_TRUE(bytes.ok()) << bytes.status().message();
        const GuardedMemory workspace(round_up(*bytes, kWorkspaceAlign), kNanByte);
        if (!own_workspace) {
          context.workspace = {reinterpret_cast<std::byte*>(workspace.data()),
                               static_cast<size_t>(*bytes)};
        }
        Matrix y(DType::kF32, m, outputs, 3, kGuardByte);
        const Status status = linear->run(x.view(), y.mutable_view(), epilogue, context);
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_TRUE(y.gaps_are_untouched()) << row.name();
        ASSERT_TRUE(within_tolerance(expected, {row, w, layout, x, y, turn}));
        if (row.matmul->row.bits_depend_on_m) continue;
        for (int64_t r = 0; r < m; ++r) {
          for (int64_t col = 0; col < outputs; ++col) {
            ASSERT_EQ(y.bits(r, col), direct.bits(r, col))
                << row.name() << " " << format.name() << " m=" << m << " y[" << r << ", " << col
                << "], " << pool->num_threads() << " threads";
          }
        }
      }
    }
    ++turn;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, LinearRow, ::testing::ValuesIn(runnable_rows()), row_name);

}  // namespace
}  // namespace nibble::harness
