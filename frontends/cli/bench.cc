// nibble bench: how fast Linear is on this machine, beside what the machine could do.
#include "nibble/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "bench_case.h"
#include "cli.h"
#include "nibble/ops.h"
#include "pinning.h"
#include "progress.h"
#include "text.h"

namespace nibble::cli {
namespace {

struct Arguments {
  std::string device = "cpu", isa, layout, kernel;
  std::vector<std::string> formats = {"int4-g128", "nvfp4", "mxfp4"};
  std::vector<std::string> computes = {"exact", "int8"};
  std::vector<std::string> x_dtypes = {"bf16", "f32"};
  std::vector<int64_t> ms = {1, 16, 256};
  int64_t n = 14336, k = 4096;
  int threads = 1;
  double seconds = 1;
  bool json = false;
};

// Arguments that became values.
struct Request {
  Device device;
  std::vector<Format> formats;
  std::vector<Compute> computes;
  std::vector<DType> x_dtypes;
};

Result<Request> parse(const Arguments& args) {
  Request request;
  if (args.device != "cpu") {
    return unsupported("--device " + args.device + ": this build measures the CPU only");
  }
  request.device = Device::this_cpu();
  if (!args.isa.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const Isa isa, parse_isa(args.isa));
    NIBBLE_ASSIGN_OR_RETURN(request.device, request.device.with_isa(isa));
  }
  NIBBLE_ASSIGN_OR_RETURN(request.formats, parse_all(args.formats, Format::parse));
  NIBBLE_ASSIGN_OR_RETURN(request.computes, parse_all(args.computes, parse_compute));
  NIBBLE_ASSIGN_OR_RETURN(request.x_dtypes, parse_all(args.x_dtypes, parse_dtype));
  for (const DType dtype : request.x_dtypes) {
    if (!is_activation_dtype(dtype)) {
      return invalid_argument(std::string("--x-dtype ") + dtype_name(dtype) +
                              ": activations are f32, f16 or bf16");
    }
  }
  if (args.n < 1 || args.k < 1) {
    return invalid_argument(fmt::format("--n {} and --k {} must be at least 1", args.n, args.k));
  }
  constexpr int64_t kLargestSize = int64_t{1} << 46;  // elements: far above any memory
  for (const int64_t m : args.ms) {
    if (m < 1) return invalid_argument(fmt::format("--m {} must be at least 1", m));
    for (const auto& [a, b] : {std::pair{args.n, args.k}, {m, args.k}, {m, args.n}}) {
      if (checked_product(a, b).value_or(INT64_MAX) > kLargestSize) {
        return invalid_argument(fmt::format("a matrix of {} x {} is too large", a, b));
      }
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_kernel_name(args.kernel));
  return request;
}

Json result_json(const Arguments& args, const Format& format, const Layout& layout,
                 const ColdWeights& weights, const BenchCase& bench, const BenchResult& r) {
  Json json;
  json["format"] = format.name();
  json["compute"] = compute_name(bench.compute);
  json["x_dtype"] = dtype_name(bench.x_dtype);
  json["isa"] = isa_name(r.isa);
  json["m"] = bench.m;
  json["n"] = args.n;
  json["k"] = args.k;
  json["threads"] = args.threads;
  json["us_median"] = r.us_median;
  json["us_p10"] = r.us_p10;
  json["us_p90"] = r.us_p90;
  json["weight_bytes"] = weights.weight_bytes;
  json["weight_gbps"] = r.weight_gbps;
  json["gflops"] = r.gflops;
  json["read_roof_gbps"] = r.read_roof_gbps;
  json["compute_roof_gflops"] = r.compute_roof_gflops;
  json["share_of_read_roof"] = r.share_of_read_roof;
  json["share_of_compute_roof"] = r.share_of_compute_roof;
  json["kernel"] = r.kernel;
  json["layout"] = layout.name();
  json["device"] = bench.device.name;
  json["runs"] = r.runs;
  json["preempted_runs"] = r.preempted_runs;
  json["rounds"] = r.rounds;
  json["dropped_rounds"] = r.dropped_rounds;
  json["weight_copies"] = weights.copies.size();
  return json;
}

// Rows appear as they are measured, so the columns have fixed widths.
void print_title() {
  fmt::print("{:<14} {:<7} {:<5} {:>5} {:>11} {:>19} {:>7} {:>6} {:>8} {:>6}  {}\n", "format",
             "compute", "x", "m", "us", "p10 - p90", "GB/s", "% read", "GFLOP/s", "% peak",
             "kernel");
}

void print_row(const Format& format, const BenchCase& bench, const BenchResult& r) {
  fmt::print(
      "{:<14} {:<7} {:<5} {:>5} {:>11.1f} {:>19} {:>7.2f} {:>6.1f} {:>8.1f} {:>6.1f}  {}{}\n",
      format.name(), compute_name(bench.compute), dtype_name(bench.x_dtype), bench.m, r.us_median,
      fmt::format("{:.1f} - {:.1f}", r.us_p10, r.us_p90), r.weight_gbps, 100 * r.share_of_read_roof,
      r.gflops, 100 * r.share_of_compute_roof, r.kernel,
      r.dropped_rounds > 0 ? fmt::format("  ({} of {} rounds dropped)", r.dropped_rounds,
                                         r.rounds + r.dropped_rounds)
                           : "");
  std::fflush(stdout);
}

Layout choose_layout(const Format& format, const Device& device) {
  const auto layout = preferred_layout(format, device);
  return layout.ok() ? *layout : Layout{};
}

// What the cases of a call share.
struct Session {
  const Arguments& args;
  const Request& request;
  ThreadPool* pool;
  RoofMeter* meter;
  Progress progress;
  int64_t done = 0;
  Status refused;  // of the last case that no row runs
};

// All cases of one format. One that no row runs is said and passed over.
Status bench_format(Session& session, const Format& format) {
  const Arguments& args = session.args;
  const Request& request = session.request;
  Layout layout = choose_layout(format, request.device);
  if (!args.layout.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(layout, Layout::parse(args.layout));
  }
  if (layout.paired) {
    return unsupported("--layout " + layout.name() + ": Linear is measured with plain weights");
  }
  const int64_t cold_bytes = 3 * request.device.l3_bytes + args.n * args.k / 2;
  NIBBLE_ASSIGN_OR_RETURN(
      const ColdWeights weights,
      make_cold_weights(format, args.n, args.k, layout, cold_bytes, session.pool));
  for (const Compute compute : request.computes) {
    for (const DType x_dtype : request.x_dtypes) {
      for (const int64_t m : args.ms) {
        BenchCase bench;
        bench.device = request.device;
        bench.compute = compute;
        bench.x_dtype = x_dtype;
        bench.m = m;
        bench.kernel = args.kernel;
        bench.seconds = args.seconds;
        const auto result = run_bench_case(bench, weights, session.pool, session.meter);
        session.progress.clear();
        if (!result.ok()) {
          if (result.status().code() != Code::kUnsupported) return result.status();
          session.refused = result.status();
          warn(result.status().message());
        } else if (args.json) {
          print_json_line(result_json(args, format, layout, weights, bench, *result));
        } else {
          print_row(format, bench, *result);
        }
        session.progress.update(++session.done);
      }
    }
  }
  return ok_status();
}

Status run_cases(const Arguments& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Request request, parse(args));
  const std::unique_ptr<ThreadPool> pool = make_thread_pool(args.threads);
  if (Status pinned = pin_threads(pool.get()); !pinned.ok()) {
    if (pinned.code() == Code::kInvalidArgument) return pinned;
    warn("threads are not pinned: " + pinned.message());
  }
  NIBBLE_ASSIGN_OR_RETURN(RoofMeter meter, RoofMeter::create(pool.get(), request.device));
  if (!args.json) {
    fmt::print("{}: {} threads, k = {}, n = {}; reading alone reaches {:.1f} GB/s\n",
               request.device.name, args.threads, args.k, args.n, meter.measure(Roof::kRead, 0.05));
    print_title();
  }
  const size_t cases =
      request.formats.size() * request.computes.size() * request.x_dtypes.size() * args.ms.size();
  Session session{args,
                  request,
                  pool.get(),
                  &meter,
                  Progress("measuring", {"cases", 1}, static_cast<int64_t>(cases)),
                  0,
                  {}};
  for (const Format& format : request.formats) {
    NIBBLE_RETURN_IF_ERROR(bench_format(session, format));
  }
  return session.refused;
}

Exit run_bench(const Arguments& args) {
  const Status status = run_cases(args);
  return status.ok() ? Exit::kOk : fail(status);
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Measure this machine's speed and its share of the roof",
      "Times y = x W^T from the caller's x to y, with weights that no cache holds, between\n"
      "measurements of what the machine can read and compute at that moment. Threads are bound to\n"
      "cores. docs/benchmarking.md says how to read the figures.",
      {"nibble bench", "nibble bench --format int4-g128 --compute int8 --x-dtype bf16 --m 1,4,16",
       "nibble bench --k 2048 --n 16384 --threads 2 --json > result.jsonl",
       "nibble bench --format nvfp4 --layout row_major --isa avx2 --m 1"}};
  CLI::App* command = add_command(app, "bench", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("--device", args->device, "cpu")->capture_default_str();
  command->add_option("--threads", args->threads, "threads, each on a core of its own")
      ->capture_default_str()
      ->check(at_least(1));
  command->add_option("--format", args->formats, "formats of the weight")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--compute", args->computes, "exact, int8")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--x-dtype", args->x_dtypes, "f32, f16, bf16; y has the same")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--k", args->k, "inputs")->capture_default_str();
  command->add_option("--n", args->n, "outputs")->capture_default_str();
  command->add_option("--m", args->ms, "rows of x")->delimiter(',')->capture_default_str();
  command->add_option("--layout", args->layout,
                      "cpu_panel16 or row_major (default: the preferred)");
  command->add_option("--isa", args->isa, "use instruction sets up to this one only");
  command->add_option("--kernel", args->kernel, "only this row of `nibble kernels`");
  command->add_option("--seconds", args->seconds, "time in each case; its roofs take about as long")
      ->capture_default_str()
      ->check(at_least(0.001));
  command->add_flag("--json", args->json, "print one JSON object a case, one a line");
  command->callback([args, &action] { action = [args] { return run_bench(*args); }; });
}

}  // namespace nibble::cli
