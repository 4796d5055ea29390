// The epilogue of every matmul row: each term alone and together, every activation, gating, c in
// place, every dtype of y. Without an activation the bits of finish_tile are the rule.
#include "kernels/cpu/epilogue.h"

#include <cmath>
#include <cstring>

#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

constexpr Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kSilu,
                                       Activation::kGeluTanh, Activation::kGeluErf};
constexpr DType kOutputs[] = {DType::kF32, DType::kBF16, DType::kF16};

// Random terms; bits of `terms`: 1 alpha, 2 beta, 4 bias, 8 residual.
struct Terms {
  EpilogueArgs args = plain_epilogue();
  std::vector<uint8_t> bias;
  Matrix c, residual;

  Terms(unsigned terms, Activation activation, int64_t n, const Matrix& y, uint64_t turn, Rng& rng)
      : c(y.dtype(), y.rows(), y.cols(), 3, kNanByte),
        residual(y.dtype(), y.rows(), y.cols(), 2, kNanByte) {
    args.activation = activation;
    if ((terms & 1) != 0) args.alpha = static_cast<float>(0.3 + rng.real());
    for (int64_t row = 0; row < y.rows(); ++row) {
      for (int64_t col = 0; col < y.cols(); ++col) {
        c.set(row, col, static_cast<float>(rng.gaussian()));
        residual.set(row, col, static_cast<float>(rng.gaussian()));
      }
    }
    if ((terms & 2) != 0) {
      args.beta = static_cast<float>(rng.gaussian());
      args.c = c.view().data;
      args.c_stride_bytes = c.stride_bytes();
    }
    if ((terms & 4) != 0) {
      args.bias_dtype = kOutputs[turn % 3];
      bias.resize(static_cast<size_t>(n * dtype_bytes(args.bias_dtype)));
      for (int64_t i = 0; i < n; ++i) {
        store_from_f32(bias.data(), args.bias_dtype, i, static_cast<float>(rng.gaussian()));
      }
      args.bias = bias.data();
    }
    if ((terms & 8) != 0) {
      args.residual = residual.view().data;
      args.residual_stride_bytes = residual.stride_bytes();
    }
  }
};

void copy_values(const Matrix& from, Matrix& to) {
  for (int64_t row = 0; row < from.rows(); ++row) {
    for (int64_t col = 0; col < from.cols(); ++col) to.set(row, col, from.at(row, col));
  }
}

class RowEpilogue : public ::testing::TestWithParam<RowCase> {
 protected:
  // 16 combinations of terms x 5 activations x 3 dtypes, each with a Format and shape of its own.
  template <class Check>
  void for_each_combination(const Check& check) {
    const std::vector<Format> formats = some_formats(GetParam().matmul->row, 31);
    uint64_t turn = 0;
    for (const Activation activation : kActivations) {
      for (unsigned terms = 0; terms < 16; ++terms) {
        for (const DType y_dtype : kOutputs) {
          ++turn;
          if (repetitions(2) == 1 && turn % 5 != 0) continue;
          check(formats[turn % formats.size()], activation, terms, y_dtype, turn);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
};

TEST_P(RowEpilogue, EveryTermAndActivationIsWithinTolerance) {
  const RowCase& row = GetParam();
  for_each_combination([&](const Format& format, Activation activation, unsigned terms,
                           DType y_dtype, uint64_t turn) {
    Rng rng(turn);
    const bool paired = row.matmul->row.paired && turn % 2 == 0;
    const ProblemShape shape = {row.clamp_m(1 + static_cast<int64_t>(turn % 10)),
                                2 * (1 + static_cast<int64_t>(turn * 5 % 23)), 64};
    WeightExtras extras;
    extras.tensor_scales = static_cast<int>(turn % 3);
    extras.op = turn % 4 < 2 ? TensorScaleOp::kMultiply : TensorScaleOp::kDivide;
    const QuantizedTensor w = make_random_weight(format, shape, extras, false, rng);
    const Layout layout{row.matmul->row.layout, paired};
    const auto packed = pack(w, layout);
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    const Matrix x =
        make_random_x(row.x_dtypes()[turn % row.x_dtypes().size()], shape, 1, false, rng);
    Matrix y(y_dtype, shape.m, paired ? shape.n / 2 : shape.n, static_cast<int64_t>(turn % 3),
             kGuardByte);
    const Terms data(terms, activation, shape.n, y, turn, rng);
    EpilogueArgs args = data.args;
    const bool c_is_y = args.beta != 0 && turn % 2 == 1;
    if (c_is_y) {
      copy_values(data.c, y);
      args.c = y.view().data;
      args.c_stride_bytes = y.stride_bytes();
    } else if (args.residual != nullptr && turn % 5 == 0) {  // the residual in place
      copy_values(data.residual, y);
      args.residual = y.view().data;
      args.residual_stride_bytes = y.stride_bytes();
    }
    run_row(row, *packed, x.view(), y, args, {});
    const auto sums = reference_sums(reference_weight(w, row.numerics()),
                                     reference_x(w, x.view(), row.numerics()), row.numerics());
    const auto expected = reference_outputs(sums, {shape.m, shape.n, paired, y_dtype}, data.args);
    ASSERT_TRUE(within_tolerance(expected, {row, w, layout, x, y, turn}))
        << "activation " << activation_name(activation) << ", terms " << terms
        << (c_is_y ? ", c is y" : "");
  });
}

// The sums come from the same row with FP32 output and no epilogue; finish_tile adds the rest.
TEST_P(RowEpilogue, WithoutActivationHasTheBitsOfFinishTile) {
  const RowCase& row = GetParam();
  for_each_combination([&](const Format& format, Activation activation, unsigned terms,
                           DType y_dtype, uint64_t turn) {
    if (activation != Activation::kNone) return;
    Rng rng(turn);
    const bool paired = row.matmul->row.paired && turn % 2 == 0;
    const ProblemShape shape = {row.clamp_m(1 + static_cast<int64_t>(turn % 9)), 38, 96};
    QuantizedTensor w = make_random_weight(format, shape, {}, false, rng);
    const auto plain = pack(w, {row.matmul->row.layout, false});
    ASSERT_TRUE(plain.ok());
    const Matrix x = make_random_x(row.x_dtypes()[0], shape, 0, false, rng);
    Matrix sums(DType::kF32, shape.m, shape.n, 0, kGuardByte);
    run_row(row, *plain, x.view(), sums, plain_epilogue(), {});

    const int64_t outputs = paired ? shape.n / 2 : shape.n;
    if (format.zero != ZeroKind::kAdditive) w.tensor_scales = {{0, 0.7f}, {11, 1.9f}};
    w.tensor_scale_op = turn % 3 == 0 ? TensorScaleOp::kDivide : TensorScaleOp::kMultiply;
    const auto packed = pack(w, {row.matmul->row.layout, paired});
    ASSERT_TRUE(packed.ok()) << packed.status().message();
    Matrix y(y_dtype, shape.m, outputs, 0, kGuardByte);
    const Terms data(terms, activation, shape.n, y, turn, rng);
    run_row(row, *packed, x.view(), y, data.args, {});

    Matrix want(y_dtype, shape.m, outputs, 0, kGuardByte);
    MatmulArgs args{};
    args.w.n = shape.n;
    args.w.paired = paired;
    args.w.row_scale = reinterpret_cast<const float*>(packed->section(SectionId::kRowScale));
    args.w.row_scale_op = w.tensor_scale_op;
    args.y = want.mutable_view().data;
    args.y_stride_bytes = want.stride_bytes();
    args.y_dtype = y_dtype;
    args.epilogue = data.args;
    args.m = shape.m;
    for (int64_t panel = 0; panel < ceil_div(outputs, paired ? 8 : 16); ++panel) {
      std::vector<float> tile(static_cast<size_t>(shape.m) * 16, 0.0f);
      for (int64_t r = 0; r < shape.m; ++r) {
        for (int64_t n = 0; n < shape.n; ++n) {
          const int64_t packed_row = packed->info.layout.packed_row(n, shape.n);
          if (packed_row / 16 == panel) {
            tile[static_cast<size_t>(r * 16 + packed_row % 16)] = sums.at(r, n);
          }
        }
      }
      finish_tile(args, {tile.data(), 0, shape.m, panel});
    }
    for (int64_t r = 0; r < shape.m; ++r) {
      for (int64_t col = 0; col < outputs; ++col) {
        ASSERT_EQ(y.bits(r, col), want.bits(r, col))
            << row.name() << " " << format.name() << (paired ? " paired" : "") << " y[" << r << ", "
            << col << "] = " << y.at(r, col) << ", finish_tile gives " << want.at(r, col)
            << ", terms " << terms << ", y " << dtype_name(y_dtype);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Rows, RowEpilogue, ::testing::ValuesIn(runnable_rows()), row_name);

TEST(Activation, InFp32IsCloseToTheSpecification) {
  double worst = 0;
  for (const Activation activation : kActivations) {
    for (int i = -200000; i <= 200000; ++i) {
      const float value = static_cast<float>(i) * (i % 7 == 0 ? 1e-3f : 1.37e-4f);
      const double want = activate(activation, static_cast<double>(value));
      const double got = static_cast<double>(activate_f32(activation, value));
      const double units =
          std::fabs(got - want) / (0x1p-24 * std::fabs(static_cast<double>(value)));
      if (value == 0) {
        ASSERT_EQ(got, 0);
        continue;
      }
      ASSERT_LE(units, 8) << activation_name(activation) << "(" << value << ") = " << got
                          << ", expected " << want;
      worst = std::max(worst, units);
    }
    for (const float large : {1e4f, 1e20f, 3e38f}) {
      EXPECT_EQ(activate_f32(activation, large), large) << activation_name(activation);
      const float want = activation == Activation::kNone ? -large : 0.0f;
      EXPECT_EQ(activate_f32(activation, -large), want) << activation_name(activation);
    }
    EXPECT_TRUE(std::isnan(activate_f32(activation, std::nanf("")))) << activation_name(activation);
  }
  RecordProperty("worst_units_of_2_to_minus_24", std::to_string(worst));
}

}  // namespace
}  // namespace nibble::harness
