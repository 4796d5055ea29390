#include <algorithm>
#include <mutex>

#include "kernels/table.h"
#include "nibble/ops.h"
#include "ops/cuda_runtime.h"
#include "ops/default_pool.h"

namespace nibble {
namespace {

std::string extent(const char* name, int64_t rows, int64_t cols) {
  return std::string(name) + " is [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
}

template <class Pointer>
Status check_matrix(const char* name, const BasicMatrixView<Pointer>& v, int64_t rows,
                    int64_t cols) {
  if (v.rows != rows || v.cols != cols) {
    return invalid_argument(extent(name, v.rows, v.cols) + ", [" + std::to_string(rows) + ", " +
                            std::to_string(cols) + "] is needed");
  }
  if (!is_activation_dtype(v.dtype)) {
    return invalid_argument(std::string(name) + " is " + dtype_name(v.dtype) +
                            "; f32, f16 and bf16 are taken");
  }
  if (rows > 0 && v.data == nullptr) return invalid_argument(std::string(name) + " has no data");
  if (rows > 1 && v.stride_bytes < cols * dtype_bytes(v.dtype)) {
    return invalid_argument(std::string(name) + " has rows " + std::to_string(v.stride_bytes) +
                            " bytes apart, a row takes " +
                            std::to_string(cols * dtype_bytes(v.dtype)));
  }
  if (v.stride_bytes % dtype_bytes(v.dtype) != 0) {
    return invalid_argument(std::string(name) + " has rows " + std::to_string(v.stride_bytes) +
                            " bytes apart, not a multiple of its value's size");
  }
  return {};
}

/// Rows [begin, begin + rows) of a matrix; no data stays no data.
template <class Pointer>
BasicMatrixView<Pointer> rows_of(BasicMatrixView<Pointer> v, int64_t begin, int64_t rows) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte,
                                  std::byte>;
  if (v.data != nullptr) v.data = static_cast<Byte*>(v.data) + begin * v.stride_bytes;
  v.rows = rows;
  return v;
}

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

/// Splits `items` into contiguous parts, one per task. More tasks than threads let a thread that
/// was held up leave work to the others; the bits of y do not depend on it.
template <class Fn, class Args>
void run_items(ThreadPool& pool, Fn fn, const Args& args, int64_t items) {
  const int64_t threads = pool.num_threads();
  if (threads == 1 || items == 1) {
    fn(args, Range{0, items});
    return;
  }
  const int64_t tasks = std::min(items, items >= 16 * threads ? 4 * threads : threads);
  pool.for_each(tasks,
                [&](int64_t i) { fn(args, Range{items * i / tasks, items * (i + 1) / tasks}); });
}

}  // namespace

struct Linear::State {
  PackedWeight weight;
  LinearOptions options;
  WeightArgs w;
  mutable std::mutex own_workspace_mutex;
  mutable Buffer own_workspace;

  PlanOptions plan_options(DType x_dtype, DType y_dtype, int threads) const {
    PlanOptions p;
    p.compute = options.compute;
    p.x_dtype = x_dtype;
    p.y_dtype = y_dtype;
    p.threads = threads;
    p.max_workspace_bytes = options.max_workspace_bytes;
    p.batch_invariant = options.batch_invariant;
    p.kernel = options.kernel;
    return p;
  }

  Result<Plan> plan_band(int64_t m, DType x_dtype, DType y_dtype, int threads) const {
    const Shape shape{std::min(m, options.band_rows), weight.info.n, weight.info.k};
    return plan(shape, weight.info, options.device, plan_options(x_dtype, y_dtype, threads));
  }

  Status run_band(const Plan& plan, const MatrixView& x, const MutableMatrixView& y,
                  const Epilogue& epilogue, ThreadPool& pool, std::byte* workspace,
                  void* stream) const;
};

Status Linear::State::run_band(const Plan& plan, const MatrixView& x, const MutableMatrixView& y,
                               const Epilogue& epilogue, ThreadPool& pool, std::byte* workspace,
                               void* stream) const {
  MatmulArgs args{};
  args.x = x.data;
  args.x_stride_bytes = x.stride_bytes;
  args.x_dtype = x.dtype;
  args.k_perm = reinterpret_cast<const int32_t*>(weight.section(SectionId::kKPerm));
  args.pre_scale = reinterpret_cast<const float*>(weight.section(SectionId::kPreScale));
  args.w = w;
  args.y = y.data;
  args.y_stride_bytes = y.stride_bytes;
  args.y_dtype = y.dtype;
  args.epilogue.alpha = epilogue.alpha;
  args.epilogue.beta = epilogue.beta;
  args.epilogue.c = epilogue.beta != 0 ? epilogue.c.data : nullptr;
  args.epilogue.c_stride_bytes = epilogue.c.stride_bytes;
  args.epilogue.residual = epilogue.residual.data;
  args.epilogue.residual_stride_bytes = epilogue.residual.stride_bytes;
  args.epilogue.bias = epilogue.bias;
  args.epilogue.bias_dtype = epilogue.bias_dtype;
  args.epilogue.activation = epilogue.activation;
  args.m = x.rows;
  if (options.device.backend == Backend::kCuda) {
    // The op owns the weight, and its upload is complete: kernels may read it early.
    args.device = {options.device.sm, options.device.num_sms, options.device.shared_bytes, true,
                   true};
  }
  for (int32_t i = 0; i < plan.num_steps; ++i) {
    const Step& step = plan.steps[static_cast<size_t>(i)];
    const KernelInfo& kernel = all_kernels()[static_cast<size_t>(step.kernel)];
    switch (step.kind) {
      case StepKind::kPrepareX: {
        const PrepareArgs prepare{
            x.data,      x.stride_bytes,    x.dtype,
            args.k_perm, args.pre_scale,    x.rows,
            w.k,         round_up(w.k, 32), workspace + step.workspace_offset};
        run_items(pool, kernel.cpu_prepare, prepare, step.items_m);
        args.x = prepare.out;
        break;
      }
      case StepKind::kMatmul:
        args.grid = {step.block_m, step.items_m, step.items_n};
        if (kernel.row.backend == Backend::kCpu) {
          run_items(pool, kernel.cpu_matmul, args, step.items_m * step.items_n);
        } else if (const int error = kernel.cuda_matmul(args, stream); error != 0) {
          return {Code::kCuda, std::string(kernel.row.name) + ": " + cuda_error_text(error)};
        }
        break;
      case StepKind::kReduce:
        return internal_error("no CPU plan has a reduce step");
    }
  }
  return {};
}

Result<Linear> Linear::create(PackedWeight weight, LinearOptions options) {
  if (weight.section(SectionId::kCodes) == nullptr ||
      weight.section(SectionId::kScales) == nullptr) {
    return invalid_argument("the packed weight has no codes or no scales");
  }
  const Backend memory = weight.parts[static_cast<size_t>(SectionId::kCodes)].memory();
  if (memory != options.device.backend) {
    return invalid_argument(options.device.name +
                            (memory == Backend::kCpu ? " needs the weight uploaded; see upload()"
                                                     : " cannot read a weight that lies on a GPU"));
  }
  const uint32_t absent = options.device.isas & ~Device::this_cpu().isas;
  if (memory == Backend::kCpu && absent != 0) {
    std::string names;
    for (int i = 0; i < kNumIsas; ++i) {
      const auto isa = static_cast<Isa>(i);
      if ((absent & bit(isa)) != 0) names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
    }
    return unsupported("the device " + options.device.name + " has " + names +
                       ", which this machine lacks");
  }
  if (options.band_rows < 1) {
    return invalid_argument("band_rows = " + std::to_string(options.band_rows) +
                            " must be at least 1");
  }
  if (options.pool == nullptr) options.pool = &default_pool();
  auto state = std::make_unique<State>();
  state->options = std::move(options);
  state->weight = std::move(weight);
  state->w = weight_args(state->weight);
  // A weight that no row takes is an error now, not at the first run. A row that was asked for by
  // name may take another dtype or more rows than the first request.
  if (state->options.kernel.empty()) {
    for (const int64_t rows : {int64_t{1}, state->options.band_rows}) {
      const auto plan = state->plan_band(rows, DType::kF32, DType::kF32, 1);
      if (!plan.ok()) return plan.status();
    }
  }
  if (state->options.device.backend == Backend::kCuda) {
    NIBBLE_RETURN_IF_ERROR(prepare_rows(state->weight.info.layout.id, state->options.device));
  }
  return Linear(std::move(state));
}

Linear::Linear(std::unique_ptr<State> state) : state_(std::move(state)) {}
Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;

const PackedWeightInfo& Linear::info() const { return state_->weight.info; }

Result<Plan> Linear::plan_for(int64_t m, DType x_dtype, DType y_dtype) const {
  return state_->plan_band(m, x_dtype, y_dtype, state_->options.pool->num_threads());
}

Result<int64_t> Linear::workspace_bytes(int64_t m, DType x_dtype, DType y_dtype) const {
  NIBBLE_ASSIGN_OR_RETURN(const Plan plan, plan_for(m, x_dtype, y_dtype));
  return plan.workspace_bytes;
}

Status Linear::run(const MatrixView& x, const MutableMatrixView& y, const Epilogue& epilogue,
                   const RunContext& context) const {
  const PackedWeightInfo& info = state_->weight.info;
  const int64_t m = x.rows, outputs = info.output_columns();
  NIBBLE_RETURN_IF_ERROR(check_matrix("x", x, m, info.k));
  NIBBLE_RETURN_IF_ERROR(check_matrix("y", y, m, outputs));
  const auto check_addend = [&](const char* name, const MatrixView& v) -> Status {
    NIBBLE_RETURN_IF_ERROR(check_matrix(name, v, m, outputs));
    if (v.dtype == y.dtype) return {};
    return invalid_argument(std::string(name) + " is " + dtype_name(v.dtype) + ", y is " +
                            dtype_name(y.dtype) + "; they must agree");
  };
  if (epilogue.beta != 0) NIBBLE_RETURN_IF_ERROR(check_addend("c", epilogue.c));
  if (epilogue.residual.data != nullptr)
    NIBBLE_RETURN_IF_ERROR(check_addend("residual", epilogue.residual));
  if (epilogue.bias != nullptr && !is_activation_dtype(epilogue.bias_dtype)) {
    return invalid_argument(std::string("bias is ") + dtype_name(epilogue.bias_dtype) +
                            "; f32, f16 and bf16 are taken");
  }
  if (m == 0) return {};

  ThreadPool& pool = context.pool != nullptr ? *context.pool : *state_->options.pool;
  NIBBLE_ASSIGN_OR_RETURN(Plan plan, state_->plan_band(m, x.dtype, y.dtype, pool.num_threads()));
  std::byte* workspace = context.workspace.data();
  std::unique_lock<std::mutex> lock(state_->own_workspace_mutex, std::defer_lock);
  if (context.workspace.empty() && plan.workspace_bytes > 0) {
    lock.lock();
    if (state_->own_workspace.bytes() < plan.workspace_bytes) {
      NIBBLE_ASSIGN_OR_RETURN(state_->own_workspace, Buffer::allocate(plan.workspace_bytes));
    }
    workspace = reinterpret_cast<std::byte*>(state_->own_workspace.mutable_data());
  } else if (static_cast<int64_t>(context.workspace.size()) < plan.workspace_bytes) {
    return invalid_argument("the workspace has " + std::to_string(context.workspace.size()) +
                            " bytes, m = " + std::to_string(m) + " needs " +
                            std::to_string(plan.workspace_bytes));
  } else if (plan.workspace_bytes > 0 &&
             reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlign != 0) {
    return invalid_argument("the workspace is not aligned to " + std::to_string(kWorkspaceAlign) +
                            " bytes");
  }

  const int64_t band_rows = state_->options.band_rows;
  for (int64_t begin = 0; begin < m; begin += band_rows) {
    const int64_t rows = std::min(band_rows, m - begin);
    if (begin > 0 && rows < band_rows) {
      NIBBLE_ASSIGN_OR_RETURN(plan, state_->plan_band(rows, x.dtype, y.dtype, pool.num_threads()));
    }
    Epilogue band = epilogue;
    band.c = rows_of(epilogue.c, begin, rows);
    band.residual = rows_of(epilogue.residual, begin, rows);
    NIBBLE_RETURN_IF_ERROR(state_->run_band(plan, rows_of(x, begin, rows), rows_of(y, begin, rows),
                                            band, pool, workspace, context.stream));
  }
  return {};
}

}  // namespace nibble
