// (shape, weight, device, options) → Plan. Pure: the same inputs give the same plan; no clock, no
// environment, no GPU is asked.
#ifndef NIBBLE_PLAN_H_
#define NIBBLE_PLAN_H_

#include "nibble/core.h"

namespace nibble {

/// y [m, n] = x [m, k] * W^T.
struct Shape {
  int64_t m = 1, n = 0, k = 0;
};

struct PlanOptions {
  Compute compute = Compute::kExact;
  DType x_dtype = DType::kF32;
  DType y_dtype = DType::kF32;
  int32_t threads = 0;  ///< CPU threads the op will run on; 0: device.threads
  /// Workspace the caller is willing to give. 0 always has a plan.
  int64_t max_workspace_bytes = INT64_MAX;
  bool batch_invariant = false;  ///< a row's bits do not depend on m
  std::string kernel;            ///< only this matmul row (for tests and benches); empty: any
};

inline constexpr int kMaxSteps = 4;
inline constexpr int64_t kWorkspaceAlign = 256;

/// One launch. `kernel` is the index into kernels().
struct Step {
  StepKind kind = StepKind::kMatmul;
  int32_t kernel = -1;
  int64_t workspace_offset = 0;  ///< of what the step writes (kPrepareX) or reads (kMatmul)
  int64_t workspace_bytes = 0;
  int64_t block_m = 0;               ///< rows of x per work item (CPU)
  int64_t items_m = 0, items_n = 0;  ///< work items; CUDA: blocks
};

/// Why a row was passed over, or its estimated cost.
struct Reason {
  int32_t kernel = -1;
  bool accepted = false;
  double cost_us = 0;  ///< accepted rows: the estimate that was compared
  std::string text;    ///< rejected rows: one line with the values and the rule
};

struct Plan {
  std::array<Step, kMaxSteps> steps{};
  int32_t num_steps = 0;
  int64_t workspace_bytes = 0;
  int64_t workspace_align = kWorkspaceAlign;
  std::vector<Reason> reasons;  ///< filled by `explain`, empty from `plan`

  const Step& matmul() const { return steps[static_cast<size_t>(num_steps - 1)]; }
};

/// The cheapest sequence of rows. Errors: kUnsupported with the nearest row's reason when none
/// fits; kInvalidArgument for an impossible shape or option. Allocates nothing when it succeeds.
Result<Plan> plan(const Shape& shape, const PackedWeightInfo& weight, const Device& device,
                  const PlanOptions& options = {});
/// The same with a reason for every row of the table. Where none fits the plan has no steps, so
/// that the reasons can be read.
Result<Plan> explain(const Shape& shape, const PackedWeightInfo& weight, const Device& device,
                     const PlanOptions& options = {});

/// Every kernel of this build, CPU first.
std::span<const KernelRow> kernels();

/// The Layout in which `device` serves this Format fastest for all m.
Result<Layout> preferred_layout(const Format& format, const Device& device);

/// Info of a weight that does not exist yet: for planning from sizes alone.
Result<PackedWeightInfo> described_weight(const Format& format, int64_t n, int64_t k,
                                          const Layout& layout);

}  // namespace nibble

#endif  // NIBBLE_PLAN_H_
