#include "tests/internal/kernel_run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <sstream>

namespace nibble::harness {
namespace {

constexpr int64_t kTileRows = 8;    // rows of a kPrepareX item
constexpr int64_t kPanelRows = 16;  // outputs of a matmul item
constexpr int64_t kBlockColumns = 32;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

bool runnable(const KernelRow& row) {
  return row.backend == Backend::kCpu && Device::this_cpu().has(row.isa);
}

const KernelInfo* scalar_prepare(XForm form, Compute compute) {
  for (const KernelInfo& info : cpu_kernels()) {
    if (info.row.kind == StepKind::kPrepareX && info.row.isa == Isa::kScalar &&
        info.row.x_form == form && info.row.compute == compute) {
      return &info;
    }
  }
  return nullptr;
}

int64_t prepared_bytes(XForm form, int64_t m, int64_t columns) {
  switch (form) {
    case XForm::kRaw:
      return 0;
    case XForm::kF32Rows:
      return m * columns * 4;
    case XForm::kBf16Rows:
      return m * columns * 2;
    case XForm::kInt8Tiles:
      return m * (columns / kBlockColumns) * kInt8RowBlockBytes;
  }
  return 0;
}

// Copies of a weight's arrays that trap reads past their ends, as a caller's own arrays would.
class GuardedWeight {
 public:
  GuardedWeight(const PackedWeight& packed, SectionId id) {
    const Section& section = packed.info.section(id);
    if (section.bytes == 0) return;
    memory_.emplace(section.bytes, kNanByte);
    std::memcpy(memory_->data(), packed.section(id), static_cast<size_t>(section.bytes));
  }
  const uint8_t* data() const { return memory_.has_value() ? memory_->data() : nullptr; }

 private:
  std::optional<GuardedMemory> memory_;
};

WeightArgs weight_args(const PackedWeight& packed) {
  const PackedWeightInfo& info = packed.info;
  WeightArgs w{};
  w.codes = packed.section(SectionId::kCodes);
  w.scales = packed.section(SectionId::kScales);
  w.zeros = packed.section(SectionId::kZeros);
  w.row_scale = reinterpret_cast<const float*>(packed.section(SectionId::kRowScale));
  w.codebook = info.codebook.data();
  w.element = info.format.element;
  w.scale_dtype = info.format.scale;
  w.zero_kind = info.format.zero;
  w.row_scale_op = info.tensor_scale_op;
  w.layout = info.layout.id;
  w.paired = info.paired();
  w.group = info.format.group_columns(info.k_padded);
  w.num_groups = info.num_groups;
  w.n = info.n;
  w.k = info.k;
  w.n_padded = info.n_padded;
  w.k_padded = info.k_padded;
  return w;
}

std::string describe(const CaseLabel& label) {
  std::ostringstream out;
  out << label.row.name() << " " << label.w.format.name() << " " << label.layout.name()
      << " m=" << label.x.rows() << " n=" << label.w.n << " k=" << label.w.k
      << " x=" << dtype_name(label.x.dtype()) << " y=" << dtype_name(label.y.dtype())
      << " tensor_scales=" << label.w.tensor_scales.size()
      << (label.w.tensor_scale_op == TensorScaleOp::kDivide ? " divided" : "")
      << (label.w.k_perm.empty() ? "" : " k_perm")
      << (label.w.pre_scale.empty() ? "" : " pre_scale") << " seed=" << label.seed;
  return out.str();
}

// The worst of all outputs by `excess` (> 0 is wrong; NaN counts as worst).
template <class Excess>
::testing::AssertionResult judge(const std::vector<ReferenceOutput>& expected,
                                 const CaseLabel& label, const Excess& excess) {
  const Matrix& y = label.y;
  int64_t wrong = 0, worst_row = 0, worst_col = 0;
  double worst = 0;
  for (int64_t row = 0; row < y.rows(); ++row) {
    for (int64_t col = 0; col < y.cols(); ++col) {
      const ReferenceOutput& want = expected[static_cast<size_t>(row * y.cols() + col)];
      double over = excess(want, y.at(row, col));
      if (std::isnan(over)) over = std::numeric_limits<double>::infinity();
      if (over <= 0) continue;
      ++wrong;
      if (over > worst) {
        worst = over;
        worst_row = row;
        worst_col = col;
      }
    }
  }
  if (wrong == 0) return ::testing::AssertionSuccess();
  const ReferenceOutput& want = expected[static_cast<size_t>(worst_row * y.cols() + worst_col)];
  std::ostringstream out;
  out.precision(10);
  out << describe(label) << "\n  " << wrong << " of " << y.rows() * y.cols()
      << " outputs are wrong; the worst is y[" << worst_row << ", " << worst_col << "]: expected "
      << want.value << ", got " << static_cast<double>(y.at(worst_row, worst_col)) << ", tolerance "
      << want.tolerance << " (docs/numerics.md)";
  return ::testing::AssertionFailure() << out.str();
}

// FP16 ends at 65504: what rounds to 65520 or more is infinite.
bool overflowed_rightly(const ReferenceOutput& want, float got, DType dtype) {
  return dtype == DType::kF16 && std::isinf(got) && std::signbit(got) == std::signbit(want.value) &&
         std::fabs(want.value) + want.tolerance >= 65520;
}

}  // namespace

std::string RowCase::name() const {
  std::string out = matmul->row.name;
  if (matmul->row.compute != compute) out += std::string("_after_") + prepare->row.name;
  return out;
}

Numerics RowCase::numerics() const {
  Numerics numerics = matmul->row.numerics;
  numerics.x_quant = compute;
  return numerics;
}

std::vector<DType> RowCase::x_dtypes() const {
  const uint32_t set = (prepare == nullptr ? matmul : prepare)->row.x_dtypes;
  std::vector<DType> out;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if ((set & bit(dtype)) != 0) out.push_back(dtype);
  }
  return out;
}

bool RowCase::gathers() const { return (prepare == nullptr ? matmul : prepare)->row.gathers; }
bool RowCase::pre_scales() const { return (prepare == nullptr ? matmul : prepare)->row.pre_scales; }

int64_t RowCase::clamp_m(int64_t m) const {
  const KernelRow& row = matmul->row;
  const int64_t most = row.max_m == 0 ? m : row.max_m;
  return std::max<int64_t>(row.min_m, std::min(m, most));
}

std::vector<RowCase> runnable_rows() {
  std::vector<RowCase> out;
  for (const KernelInfo& info : cpu_kernels()) {
    if (info.row.kind != StepKind::kMatmul || !runnable(info.row)) continue;
    const XForm form = info.row.x_form;
    if (form == XForm::kRaw) {
      out.push_back({&info, nullptr, info.row.compute});
      continue;
    }
    out.push_back({&info, scalar_prepare(form, info.row.compute), info.row.compute});
    if (form == XForm::kF32Rows && info.row.compute == Compute::kExact) {
      out.push_back({&info, scalar_prepare(form, Compute::kInt8), Compute::kInt8});
    }
  }
  return out;
}

void run_row(const RowCase& row, const PackedWeight& packed, const MatrixView& x, Matrix& y,
             const EpilogueArgs& epilogue, const RunSpec& spec) {
  const PackedWeightInfo& info = packed.info;
  const bool caller_arrays = info.layout.id == LayoutId::kRowMajor;
  const GuardedWeight codes(packed, SectionId::kCodes), scales(packed, SectionId::kScales),
      zeros(packed, SectionId::kZeros);

  MatmulArgs args{};
  args.x = x.data;
  args.x_stride_bytes = x.stride_bytes;
  args.x_dtype = x.dtype;
  args.k_perm = reinterpret_cast<const int32_t*>(packed.section(SectionId::kKPerm));
  args.pre_scale = reinterpret_cast<const float*>(packed.section(SectionId::kPreScale));
  args.w = weight_args(packed);
  if (caller_arrays) {
    args.w.codes = codes.data();
    args.w.scales = scales.data();
    args.w.zeros = zeros.data();
  }
  args.y = y.mutable_view().data;
  args.y_stride_bytes = y.stride_bytes();
  args.y_dtype = y.dtype();
  args.epilogue = epilogue;
  args.m = x.rows;

  const XForm form = row.matmul->row.x_form;
  const int64_t columns = round_up(info.k, kBlockColumns);
  // As plan sizes it: whole vectors may be loaded at the end of the last row.
  const int64_t bytes = round_up(prepared_bytes(form, x.rows, columns) + 64, 256);
  const GuardedMemory workspace(bytes, spec.workspace);
  if (row.prepare != nullptr) {
    const PrepareArgs prepare{x.data, x.stride_bytes, x.dtype, args.k_perm,     args.pre_scale,
                              x.rows, info.k,         columns, workspace.data()};
    row.prepare->cpu_prepare(prepare, {0, ceil_div(x.rows, kTileRows)});
    args.x = workspace.data();
  }

  args.grid.block_m = spec.block_m > 0 ? spec.block_m : row.matmul->row.block_m;
  args.grid.items_m = ceil_div(x.rows, args.grid.block_m);
  args.grid.items_n = ceil_div(info.n_padded, kPanelRows);
  const int64_t items = args.grid.items_m * args.grid.items_n;
  if (spec.shuffle == 0) {
    row.matmul->cpu_matmul(args, {0, items});
  } else {
    std::vector<int64_t> order(static_cast<size_t>(items));
    for (int64_t i = 0; i < items; ++i) order[static_cast<size_t>(i)] = i;
    Rng rng(spec.shuffle);
    for (int64_t i = items - 1; i > 0; --i) {
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(rng.between(0, i))]);
    }
    for (const int64_t item : order) row.matmul->cpu_matmul(args, {item, item + 1});
  }
  EXPECT_TRUE(y.gaps_are_untouched()) << row.name() << " wrote outside y: " << info.format.name()
                                      << " n=" << info.n << " k=" << info.k << " m=" << x.rows;
}

::testing::AssertionResult equals_exactly(const std::vector<ReferenceOutput>& expected,
                                          const CaseLabel& label) {
  const DType dtype = label.y.dtype();
  return judge(expected, label, [dtype](const ReferenceOutput& want, float got) {
    uint8_t rounded[4];
    store_from_f32(rounded, dtype, 0, static_cast<float>(want.value));
    const float nearest = load_as_f32(rounded, dtype, 0);
    if (got == nearest) return 0.0;
    return std::fabs(static_cast<double>(got) - static_cast<double>(nearest));
  });
}

::testing::AssertionResult within_tolerance(const std::vector<ReferenceOutput>& expected,
                                            const CaseLabel& label) {
  const DType dtype = label.y.dtype();
  return judge(expected, label, [dtype](const ReferenceOutput& want, float got) {
    if (overflowed_rightly(want, got, dtype)) return 0.0;
    return std::fabs(static_cast<double>(got) - want.value) / want.tolerance - 1;
  });
}

double worst_share(const std::vector<ReferenceOutput>& expected, const Matrix& y) {
  double worst = 0;
  for (int64_t row = 0; row < y.rows(); ++row) {
    for (int64_t col = 0; col < y.cols(); ++col) {
      const ReferenceOutput& want = expected[static_cast<size_t>(row * y.cols() + col)];
      if (overflowed_rightly(want, y.at(row, col), y.dtype())) continue;
      const double error = std::fabs(static_cast<double>(y.at(row, col)) - want.value);
      worst = std::max(worst, error / want.tolerance);
    }
  }
  return worst;
}

int repetitions(int ordinary) { return kSanitized ? 1 : ordinary; }

}  // namespace nibble::harness
