// Enumerate the rows → filter with one-line reasons → cost → derive the launch. Nothing here reads
// a clock, the environment or a GPU.
#include "nibble/plan.h"

#include <algorithm>

#include "kernels/table.h"

namespace nibble {
namespace {

/// The inputs of one planning, gathered so that checks take one argument.
struct Request {
  const Shape& shape;
  const PackedWeightInfo& weight;
  const Device& device;
  const PlanOptions& options;
  int32_t threads;
};

std::string number(int64_t value) { return std::to_string(value); }

/// Counts the rules a row passes; the row that passes most explains a failure best. Messages are
/// made only when somebody reads them, so that planning inside `run` allocates nothing.
class Checks {
 public:
  explicit Checks(std::string* why) : why_(why) {}
  /// Returns true while no rule has been broken.
  template <class Message>
  bool rule(bool holds, const Message& message) {
    if (!ok_) return false;
    if (holds) {
      ++passed_;
    } else {
      ok_ = false;
      if (why_ != nullptr) *why_ = message();
    }
    return ok_;
  }
  bool ok() const { return ok_; }
  int passed() const { return passed_; }

 private:
  std::string* why_;
  bool ok_ = true;
  int passed_ = 0;
};

void check_device(const KernelRow& row, const Device& device, Checks& checks) {
  checks.rule(row.backend == device.backend, [&] {
    return std::string(row.backend == Backend::kCpu ? "runs on a CPU" : "runs on a GPU") + ", " +
           device.name + " is not one";
  });
  if (row.backend == Backend::kCpu) {
    checks.rule(device.has(row.isa), [&] {
      return "needs " + std::string(isa_name(row.isa)) + ", " + device.name + " offers up to " +
             isa_name(device.best_isa());
    });
  } else {
    checks.rule(device.sm >= row.min_sm && device.sm <= row.max_sm, [&] {
      return "runs on sm_" + number(row.min_sm) + " to sm_" + number(row.max_sm) + ", " +
             device.name + " is sm_" + number(device.sm);
    });
  }
}

/// Everything but the activation's form.
void check_matmul(const KernelRow& row, const Request& r, Checks& checks) {
  const Format& format = r.weight.format;
  check_device(row, r.device, checks);
  checks.rule(row.layout == r.weight.layout.id, [&] {
    return std::string("reads ") + layout_name(row.layout) + ", the weight is " +
           r.weight.layout.name();
  });
  checks.rule((row.elements & bit(format.element)) != 0,
              [&] { return std::string("does not decode ") + element_name(format.element); });
  checks.rule((row.scale_dtypes & bit(format.scale)) != 0,
              [&] { return std::string("does not take ") + dtype_name(format.scale) + " scales"; });
  checks.rule((row.zero_kinds & bit(format.zero)) != 0,
              [&] { return "does not take the zero kind of " + format.name(); });
  checks.rule(format.group == 0 || format.group >= row.min_group, [&] {
    return "group " + number(format.group) + " is below its smallest, " + number(row.min_group);
  });
  checks.rule(row.paired || !r.weight.paired(),
              [&] { return std::string("does not take paired weights"); });
  const bool rounds_x = row.compute != Compute::kExact;
  // FP32 rows also take x that was rounded to int8 before; no row prepares them for FP8.
  const bool takes_rounded =
      !rounds_x && row.x_form == XForm::kF32Rows && r.options.compute == Compute::kInt8;
  checks.rule(row.compute == r.options.compute || takes_rounded, [&] {
    return std::string("computes ") + compute_name(row.compute) + ", " +
           compute_name(r.options.compute) + " is asked for";
  });
  const int64_t m = std::max<int64_t>(1, r.shape.m);  // no rows: any kernel will do
  checks.rule(m >= row.min_m && (row.max_m == 0 || m <= row.max_m), [&] {
    return "m = " + number(m) + " is outside " + number(row.min_m) + " to " +
           (row.max_m == 0 ? "any" : number(row.max_m));
  });
  checks.rule(
      !r.options.batch_invariant || (row.min_m <= 1 && row.max_m == 0 && !row.bits_depend_on_m),
      [&] { return std::string("its bits depend on m and batch_invariant is asked for"); });
  checks.rule(r.options.kernel.empty() || r.options.kernel == row.name,
              [&] { return "only " + r.options.kernel + " is allowed"; });
}

/// Can `row` take the caller's x as it is?
void check_raw_x(const KernelRow& row, const Request& r, Checks& checks) {
  checks.rule((row.x_dtypes & bit(r.options.x_dtype)) != 0, [&] {
    return std::string("does not read ") + dtype_name(r.options.x_dtype) + " activations";
  });
  checks.rule(row.gathers || !r.weight.has(SectionId::kKPerm),
              [&] { return std::string("does not gather x by k_perm"); });
  checks.rule(row.pre_scales || !r.weight.has(SectionId::kPreScale),
              [&] { return std::string("does not multiply x by pre_scale"); });
}

int64_t form_bytes(XForm form, int64_t m, int64_t k_padded) {
  int64_t bytes = 0;
  switch (form) {
    case XForm::kRaw:
      return 0;
    case XForm::kF32Rows:
      bytes = m * k_padded * 4;
      break;
    case XForm::kBf16Rows:
      bytes = m * k_padded * 2;
      break;
    case XForm::kInt8Tiles:
      bytes = m * ceil_div(k_padded, 32) * kInt8RowBlockBytes;
      break;
  }
  // Kernels load whole vectors at the end of the last row.
  return round_up(bytes + 64, kWorkspaceAlign);
}

/// Columns of x as prepared: whole blocks of 32, also for layouts that do not pad K.
int64_t prepared_columns(const PackedWeightInfo& weight) { return round_up(weight.k, 32); }

/// The kPrepareX row that writes `form` for this request, or -1 with the reason.
int32_t find_prepare(const KernelRow& matmul, const Request& r, std::string* why) {
  const auto rows = all_kernels();
  const Compute rounding = r.options.compute;
  int32_t best = -1;
  int most_passed = -1;
  for (size_t i = 0; i < rows.size(); ++i) {
    const KernelRow& row = rows[i].row;
    if (row.kind != StepKind::kPrepareX || row.x_form != matmul.x_form) continue;
    std::string reason;
    Checks checks(why == nullptr ? nullptr : &reason);
    check_device(row, r.device, checks);
    checks.rule(row.compute == rounding,
                [&] { return std::string("prepares x for ") + compute_name(row.compute); });
    check_raw_x(row, r, checks);
    if (checks.ok()) {
      if (best < 0 || row.isa >= rows[static_cast<size_t>(best)].row.isa)
        best = static_cast<int32_t>(i);
    } else if (why != nullptr && best < 0 && checks.passed() > most_passed) {
      most_passed = checks.passed();
      *why =
          std::string("reads x as ") + x_form_name(matmul.x_form) + "; " + row.name + " " + reason;
    }
  }
  if (best < 0 && why != nullptr && why->empty())
    *why = std::string("no row prepares x as ") + x_form_name(matmul.x_form);
  return best;
}

int64_t stored_bytes(const PackedWeightInfo& weight) {
  return weight.section(SectionId::kCodes).bytes + weight.section(SectionId::kScales).bytes +
         weight.section(SectionId::kZeros).bytes;
}

/// Streaming and arithmetic overlap, so the longer one counts; preparing x comes before.
double cost_us(const KernelRow& row, const KernelRow* prepare, const Request& r, int64_t m) {
  const double threads = r.device.backend == Backend::kCpu ? r.threads : 1;
  const double macs = static_cast<double>(m) * static_cast<double>(r.weight.n_padded) *
                      static_cast<double>(r.weight.k_padded);
  const double ns =
      std::max(static_cast<double>(stored_bytes(r.weight)) / static_cast<double>(row.bytes_per_ns),
               macs / static_cast<double>(row.macs_per_ns));
  const double values = static_cast<double>(m) * static_cast<double>(r.weight.k_padded);
  const double prepare_ns =
      prepare == nullptr ? 0 : values / static_cast<double>(prepare->macs_per_ns);
  return (ns + prepare_ns) / threads * 1e-3;
}

/// Rows of x per work item: whole register tiles, few enough that the prepared block stays in L2
/// beside the weights, and small enough that every thread gets work.
int64_t choose_block_m(const KernelRow& row, const Request& r) {
  const int64_t tile = row.block_m;
  const int64_t bytes_per_row =
      std::max<int64_t>(1, form_bytes(row.x_form, 1, prepared_columns(r.weight)));
  const int64_t fitting = r.device.l2_bytes / 2 / bytes_per_row / tile * tile;
  int64_t block = std::clamp<int64_t>(fitting, tile, 256);
  const int64_t panels = ceil_div(r.weight.n_padded, 16);
  while (block > tile && ceil_div(r.shape.m, block) * panels < 4 * r.threads)
    block = round_up(block / 2, tile);
  return std::max(block, tile);
}

void derive(Plan& plan, int32_t matmul, int32_t prepare, const Request& r) {
  const KernelRow& row = all_kernels()[static_cast<size_t>(matmul)].row;
  const int64_t m = r.shape.m;
  plan.num_steps = 0;
  plan.workspace_bytes = 0;
  if (prepare >= 0) {
    Step& step = plan.steps[static_cast<size_t>(plan.num_steps++)];
    step = {};
    step.kind = StepKind::kPrepareX;
    step.kernel = prepare;
    step.workspace_bytes = form_bytes(row.x_form, m, prepared_columns(r.weight));
    step.block_m = 8;
    step.items_m = ceil_div(m, 8);
    step.items_n = 1;
    plan.workspace_bytes = step.workspace_bytes;
  }
  Step& step = plan.steps[static_cast<size_t>(plan.num_steps++)];
  step = {};
  step.kind = StepKind::kMatmul;
  step.kernel = matmul;
  step.workspace_bytes = plan.workspace_bytes;
  if (row.backend == Backend::kCpu) {
    step.block_m = choose_block_m(row, r);
    step.items_m = ceil_div(m, step.block_m);
    step.items_n = ceil_div(r.weight.n_padded, 16);
  } else {
    step.block_m = row.block_m;
    step.items_m = ceil_div(m, row.block_m);
    step.items_n = ceil_div(r.weight.n_padded, row.block_n);
  }
}

Status check_request(const Request& r) {
  if (r.shape.m < 0 || r.shape.n < 1 || r.shape.k < 1) {
    return invalid_argument("m = " + number(r.shape.m) + ", n = " + number(r.shape.n) + ", k = " +
                            number(r.shape.k) + ": m must be at least 0, n and k at least 1");
  }
  if (r.shape.n != r.weight.n || r.shape.k != r.weight.k) {
    return invalid_argument("the shape says n = " + number(r.shape.n) +
                            ", k = " + number(r.shape.k) + "; the weight is [" +
                            number(r.weight.n) + ", " + number(r.weight.k) + "]");
  }
  for (const DType dtype : {r.options.x_dtype, r.options.y_dtype}) {
    if (!is_activation_dtype(dtype)) {
      return invalid_argument(std::string(dtype_name(dtype)) +
                              " is not an activation dtype; f32, f16 and bf16 are");
    }
  }
  if (r.options.max_workspace_bytes < 0) {
    return invalid_argument("max_workspace_bytes = " + number(r.options.max_workspace_bytes) +
                            " is negative");
  }
  if (!checked_product(r.shape.m, r.weight.k_padded * 4) ||
      !checked_product(r.shape.m, r.weight.n_padded * 4)) {
    return invalid_argument("m = " + number(r.shape.m) + " overflows the size of x or y");
  }
  return {};
}

Result<Plan> make(const Shape& shape, const PackedWeightInfo& weight, const Device& device,
                  const PlanOptions& options, bool with_reasons) {
  const Request r{shape, weight, device, options,
                  options.threads > 0 ? options.threads : device.threads};
  NIBBLE_RETURN_IF_ERROR(check_request(r));
  Plan plan;
  int32_t best = -1, best_prepare = -1;
  double best_cost = 0;
  std::string nearest;
  int most_passed = -1;
  // Batch invariance fixes the choice for every m by choosing as for one row.
  const int64_t m = options.batch_invariant ? 1 : std::max<int64_t>(1, shape.m);
  const auto rows = all_kernels();
  const auto consider = [&](bool explain) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const KernelRow& row = rows[i].row;
      if (row.kind != StepKind::kMatmul) continue;
      std::string why;
      Checks checks(explain ? &why : nullptr);
      check_matmul(row, r, checks);
      int32_t prepare = -1;
      if (checks.ok() && row.x_form == XForm::kRaw) check_raw_x(row, r, checks);
      if (checks.ok() && row.x_form != XForm::kRaw) {
        prepare = find_prepare(row, r, explain ? &why : nullptr);
        std::string reason = std::move(why);
        checks.rule(prepare >= 0, [&] { return reason; });
        const int64_t bytes = form_bytes(row.x_form, shape.m, prepared_columns(weight));
        checks.rule(bytes <= options.max_workspace_bytes, [&] {
          return "needs a workspace of " + number(bytes) + " bytes, " +
                 number(options.max_workspace_bytes) + " are allowed";
        });
      }
      Reason reason{static_cast<int32_t>(i), checks.ok(), 0, {}};
      if (checks.ok()) {
        const KernelRow* first = prepare < 0 ? nullptr : &rows[static_cast<size_t>(prepare)].row;
        reason.cost_us = cost_us(row, first, r, m);
        if (best < 0 || reason.cost_us < best_cost) {
          best = static_cast<int32_t>(i);
          best_prepare = prepare;
          best_cost = reason.cost_us;
        }
      } else if (explain && checks.passed() > most_passed) {
        most_passed = checks.passed();
        nearest = std::string(row.name) + " " + why;
      }
      if (with_reasons) {
        reason.text = why;
        plan.reasons.push_back(std::move(reason));
      }
    }
  };
  consider(with_reasons);
  if (best < 0 && with_reasons) return plan;
  if (best < 0) {
    consider(true);
    return unsupported(
        "no kernel for " + weight.format.name() + " [" + number(weight.n) + ", " +
        number(weight.k) + "] in " + weight.layout.name() + " with " +
        compute_name(options.compute) + " compute on " + device.name +
        "; nearest: " + (nearest.empty() ? "none of this backend is in this build" : nearest));
  }
  derive(plan, best, best_prepare, r);
  return plan;
}

}  // namespace

Result<Plan> plan(const Shape& shape, const PackedWeightInfo& weight, const Device& device,
                  const PlanOptions& options) {
  return make(shape, weight, device, options, false);
}

Result<Plan> explain(const Shape& shape, const PackedWeightInfo& weight, const Device& device,
                     const PlanOptions& options) {
  return make(shape, weight, device, options, true);
}

std::span<const KernelRow> kernels() {
  static const std::vector<KernelRow> rows = [] {
    std::vector<KernelRow> all;
    for (const KernelInfo& info : all_kernels()) all.push_back(info.row);
    return all;
  }();
  return rows;
}

Result<Layout> preferred_layout(const Format& format, const Device& device) {
  NIBBLE_RETURN_IF_ERROR(format.validate());
  // One layout per architecture class: every CPU row but the row-major ones reads panels, every GPU
  // row from sm_80 on fragments.
  if (device.backend == Backend::kCpu) return Layout{LayoutId::kCpuPanel16, false};
  return Layout{device.sm >= 80 ? LayoutId::kCudaFrag16 : LayoutId::kRowMajor, false};
}

Result<PackedWeightInfo> described_weight(const Format& format, int64_t n, int64_t k,
                                          const Layout& layout) {
  NIBBLE_RETURN_IF_ERROR(format.validate());
  if (n < 1 || k < 1)
    return invalid_argument("n = " + number(n) + ", k = " + number(k) +
                            ": both must be at least 1");
  PackedWeightInfo info;
  info.format = format;
  info.layout = layout;
  info.n = n;
  info.k = k;
  if (format.element == Element::kNF4) info.codebook = kNf4Codebook;
  if (format == Format{Element::kE2M1, 16, DType::kE4M3, ZeroKind::kNone}) {
    info.num_tensor_scales = 1;  // nvfp4 carries one
  }
  NIBBLE_RETURN_IF_ERROR(lay_out(info, false, false));
  return info;
}

}  // namespace nibble
