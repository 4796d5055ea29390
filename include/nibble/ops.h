// What a model calls: Linear and GatedMlp. They plan once and run many times without allocating.
#ifndef NIBBLE_OPS_H_
#define NIBBLE_OPS_H_

#include "nibble/plan.h"

namespace nibble {

/// y = activation(alpha * x W^T + bias) + beta * c + residual, computed in FP32 and rounded once.
struct Epilogue {
  float alpha = 1;
  float beta = 0;
  MatrixView c;                ///< [m, n] in y's dtype; may be y itself; needed when beta != 0
  const void* bias = nullptr;  ///< [n], `bias_dtype`
  DType bias_dtype = DType::kF32;
  MatrixView residual;  ///< [m, n] in y's dtype; no data: none
  Activation activation = Activation::kNone;
};

/// Where and with what a call runs. CPU: `pool` (null: the op's). CUDA: `stream`.
struct RunContext {
  ThreadPool* pool = nullptr;
  void* stream = nullptr;  ///< a cudaStream_t
  /// At least workspace_bytes(m, …), aligned to kWorkspaceAlign. Empty: the op's own workspace,
  /// which grows at the first calls; concurrent calls then wait for each other.
  std::span<std::byte> workspace;
};

struct LinearOptions {
  Device device = Device::this_cpu();
  Compute compute = Compute::kExact;
  bool batch_invariant = false;
  int64_t max_workspace_bytes = INT64_MAX;
  int64_t band_rows = 512;  ///< more rows of x run in bands of this many, which bounds workspaces
  ThreadPool* pool = nullptr;  ///< null: one pool of all cores, shared by all ops of the process
  std::string kernel;          ///< only this matmul row; empty: any
};

/// Copies a packed weight to a GPU and waits until it is there. Errors: kUnsupported where this
/// build has no CUDA or `device` is a CPU; kCuda with the driver's words.
Result<PackedWeight> upload(const PackedWeight& weight, const Device& device);

/// Loads what the plan's kernels need on the device (modules, attributes), so that no later call
/// does. Linear::create does so for every row that its calls may take. CPU plans need nothing.
Status prepare(const Plan& plan, const Device& device);

/// y = x W^T for one packed weight. `run` is const and re-entrant when every caller brings its
/// workspace; copies share the weight.
class Linear {
 public:
  static Result<Linear> create(PackedWeight weight, LinearOptions options = {});
  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

  /// x [m, k], y [m, n] ([m, n/2] for paired weights: activation(gate) * up). x and y are f32, f16
  /// or bf16, rows may be strided. m = 0 does nothing. Errors name the value and the rule.
  Status run(const MatrixView& x, const MutableMatrixView& y, const Epilogue& epilogue = {},
             const RunContext& context = {}) const;
  /// Workspace that `run` with m rows uses for x of this dtype.
  Result<int64_t> workspace_bytes(int64_t m, DType x_dtype, DType y_dtype) const;
  const PackedWeightInfo& info() const;
  /// The plan that `run` would follow.
  Result<Plan> plan_for(int64_t m, DType x_dtype, DType y_dtype) const;

 private:
  struct State;
  explicit Linear(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// y = down(activation(gate(x)) * up(x)), gate and up computed together from a paired weight.
class GatedMlp {
 public:
  /// `gate_up` is packed in a paired layout with n = 2 * intermediate rows; `down` has
  /// k = intermediate columns.
  static Result<GatedMlp> create(PackedWeight gate_up, PackedWeight down, Activation activation,
                                 LinearOptions options = {});
  GatedMlp(GatedMlp&&) noexcept;
  GatedMlp& operator=(GatedMlp&&) noexcept;
  ~GatedMlp();

  /// x [m, k], y [m, n_down]. The intermediate has x's dtype.
  Status run(const MatrixView& x, const MutableMatrixView& y, const MatrixView& residual = {},
             const RunContext& context = {}) const;
  Result<int64_t> workspace_bytes(int64_t m, DType x_dtype, DType y_dtype) const;
  int64_t intermediate() const;
  int64_t outputs() const;
  int64_t inputs() const;

 private:
  struct State;
  explicit GatedMlp(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// What `nibble doctor` prints: the machine and what will be used on it.
struct DoctorReport {
  Device cpu;
  std::vector<Device> gpus;
  std::string cuda;  ///< "not built", "no driver: …", or the driver's version
};
DoctorReport doctor();

}  // namespace nibble

#endif  // NIBBLE_OPS_H_
