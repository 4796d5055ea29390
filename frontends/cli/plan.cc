// nibble plan: which kernels a product would run on a described machine, and why.
#include "nibble/plan.h"

#include <fmt/format.h>

#include <memory>

#include "cli.h"
#include "text.h"

namespace nibble::cli {
namespace {

struct Arguments {
  int64_t m = 1, n = 0, k = 0;
  std::string format, device = "cpu", isa, compute = "exact", x_dtype = "f32", y_dtype, layout;
  std::string kernel;
  int threads = 0;
  int64_t max_workspace = INT64_MAX;
  bool batch_invariant = false;
  bool explain = false;
  bool json = false;
};

// All inputs of the planner, parsed.
struct Request {
  Shape shape;
  PackedWeightInfo weight;
  Device device;
  PlanOptions options;
};

Result<Request> parse(const Arguments& args) {
  Request request;
  request.shape = {args.m, args.n, args.k};
  NIBBLE_ASSIGN_OR_RETURN(const Format format, Format::parse(args.format));
  NIBBLE_ASSIGN_OR_RETURN(request.device, Device::named(args.device));
  if (!args.isa.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const Isa isa, parse_isa(args.isa));
    NIBBLE_ASSIGN_OR_RETURN(request.device, request.device.with_isa(isa));
  }
  Layout layout;
  if (args.layout.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(layout, preferred_layout(format, request.device));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(layout, Layout::parse(args.layout));
  }
  NIBBLE_ASSIGN_OR_RETURN(request.weight, described_weight(format, args.n, args.k, layout));
  NIBBLE_ASSIGN_OR_RETURN(request.options.compute, parse_compute(args.compute));
  NIBBLE_ASSIGN_OR_RETURN(request.options.x_dtype, parse_dtype(args.x_dtype));
  NIBBLE_ASSIGN_OR_RETURN(request.options.y_dtype,
                          parse_dtype(args.y_dtype.empty() ? args.x_dtype : args.y_dtype));
  request.options.threads = args.threads;
  request.options.max_workspace_bytes = args.max_workspace;
  request.options.batch_invariant = args.batch_invariant;
  NIBBLE_RETURN_IF_ERROR(check_kernel_name(args.kernel));
  request.options.kernel = args.kernel;
  return request;
}

const char* kind_name(StepKind kind) {
  switch (kind) {
    case StepKind::kPrepareX:
      return "prepare x";
    case StepKind::kMatmul:
      return "multiply";
    case StepKind::kReduce:
      return "reduce";
  }
  return "?";
}

const KernelRow& row_of(int32_t kernel) { return kernels()[static_cast<size_t>(kernel)]; }

Json plan_json(const Request& request, const Plan& plan, bool with_reasons) {
  Json json;
  json["m"] = request.shape.m;
  json["n"] = request.shape.n;
  json["k"] = request.shape.k;
  json["format"] = request.weight.format.name();
  json["layout"] = request.weight.layout.name();
  json["device"] = request.device.name;
  json["compute"] = compute_name(request.options.compute);
  json["x_dtype"] = dtype_name(request.options.x_dtype);
  json["y_dtype"] = dtype_name(request.options.y_dtype);
  json["found"] = plan.num_steps > 0;
  Json steps = Json::array();
  for (int32_t i = 0; i < plan.num_steps; ++i) {
    const Step& step = plan.steps[static_cast<size_t>(i)];
    steps.push_back({{"kind", kind_name(step.kind)},
                     {"kernel", row_of(step.kernel).name},
                     {"block_m", step.block_m},
                     {"items_m", step.items_m},
                     {"items_n", step.items_n},
                     {"workspace_bytes", step.workspace_bytes}});
  }
  json["steps"] = std::move(steps);
  json["workspace_bytes"] = plan.workspace_bytes;
  json["weight_bytes"] = request.weight.bytes;
  if (!with_reasons) return json;
  Json rows = Json::array();
  for (const Reason& reason : plan.reasons) {
    Json row = {{"kernel", row_of(reason.kernel).name}, {"accepted", reason.accepted}};
    if (reason.accepted) {
      row["cost_us"] = reason.cost_us;
    } else {
      row["reason"] = reason.text;
    }
    rows.push_back(std::move(row));
  }
  json["rows"] = std::move(rows);
  return json;
}

void print_steps(const Request& request, const Plan& plan) {
  fmt::print("{} x [{}, {}] {} in {} on {}, {} compute, {} -> {}\n", request.shape.m,
             request.shape.n, request.shape.k, request.weight.format.name(),
             request.weight.layout.name(), request.device.name,
             compute_name(request.options.compute), dtype_name(request.options.x_dtype),
             dtype_name(request.options.y_dtype));
  Table table({{"step"}, {"kernel"}, {"block_m", true}, {"items", true}, {"workspace", true}});
  for (int32_t i = 0; i < plan.num_steps; ++i) {
    const Step& step = plan.steps[static_cast<size_t>(i)];
    table.add_row({kind_name(step.kind), row_of(step.kernel).name, std::to_string(step.block_m),
                   fmt::format("{} x {}", step.items_m, step.items_n),
                   human_bytes(step.workspace_bytes)});
  }
  if (!table.empty()) table.print(2);
  fmt::print("  packed weight {}, workspace {}\n", human_bytes(request.weight.bytes),
             human_bytes(plan.workspace_bytes));
}

void print_reasons(const Plan& plan) {
  Table table({{"kernel"}, {"cost us", true}, {"reason"}});
  const int32_t chosen = plan.num_steps > 0 ? plan.matmul().kernel : -1;
  for (const Reason& reason : plan.reasons) {
    table.add_row({row_of(reason.kernel).name,
                   reason.accepted ? fmt::format("{:.1f}", reason.cost_us) : "-",
                   !reason.accepted          ? reason.text
                   : reason.kernel == chosen ? "chosen"
                                             : "fits, costs more or as much"});
  }
  fmt::print("rows:\n");
  if (table.empty()) {
    fmt::print("  this build has none\n");
  } else {
    table.print(2);
  }
}

Exit run_plan(const Arguments& args) {
  auto request = parse(args);
  if (!request.ok()) return fail(request.status());
  const Request& r = *request;
  // Without --explain this is the plan; with it, the sentence for the case that no row fits.
  const auto plain = plan(r.shape, r.weight, r.device, r.options);
  if (!plain.ok() && (!args.explain || plain.status().code() != Code::kUnsupported)) {
    return fail(plain.status());
  }
  const auto chosen = args.explain ? explain(r.shape, r.weight, r.device, r.options) : plain;
  if (!chosen.ok()) return fail(chosen.status());
  if (args.json) {
    print_json(plan_json(r, *chosen, args.explain));
  } else {
    print_steps(r, *chosen);
    if (args.explain) print_reasons(*chosen);
  }
  return plain.ok() ? Exit::kOk : fail(plain.status());
}

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Show which kernels a product would run",
      "y [m, n] = x [m, k] W^T on this machine or on one that is only described. Nothing is\n"
      "measured: the same arguments give the same plan.",
      {"nibble plan --m 1 --n 14336 --k 4096 --format nvfp4",
       "nibble plan --m 64 --n 4096 --k 4304 --format int4-g16 --compute int8 --explain",
       "nibble plan --m 8 --n 4096 --k 4096 --format mxfp4 --device h200 --explain --json"}};
  CLI::App* command = add_command(app, "plan", help);
  auto args = std::make_shared<Arguments>();
  std::vector<std::string> devices(Device::names().begin(), Device::names().end());
  command->add_option("--m", args->m, "rows of x")->capture_default_str();
  command->add_option("--n", args->n, "outputs")->required();
  command->add_option("--k", args->k, "inputs")->required();
  command->add_option("--format", args->format, "format of the weight, such as int4-g128")
      ->required();
  command->add_option("--device", args->device, "one of " + join(devices, ", "))
      ->capture_default_str();
  command->add_option("--isa", args->isa, "CPU: use instruction sets up to this one only");
  command->add_option("--compute", args->compute, "exact, int8 (CPU) or fp8 (CUDA)")
      ->capture_default_str();
  command->add_option("--x-dtype", args->x_dtype, "f32, f16 or bf16")->capture_default_str();
  command->add_option("--y-dtype", args->y_dtype, "default: that of x");
  command->add_option("--layout", args->layout, "default: the one the device prefers");
  command->add_option("--kernel", args->kernel, "allow only this row");
  command->add_option("--threads", args->threads, "CPU threads (default: the device's)")
      ->check(at_least(0));
  command->add_option("--max-workspace", args->max_workspace,
                      "bytes the caller is willing to give");
  command->add_flag("--batch-invariant", args->batch_invariant,
                    "a row's bits must not depend on m");
  command->add_flag("--explain", args->explain,
                    "list every row with its cost or the reason it was rejected");
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_plan(*args); }; });
}

}  // namespace nibble::cli
