// nibble doctor: what this machine has, and what Nibble will use on it.
#include <fmt/format.h>

#include <array>
#include <memory>

#include "cli.h"
#include "nibble/ops.h"
#include "text.h"

namespace nibble::cli {
namespace {

constexpr std::array<int64_t, 2> kRowCounts = {1, 64};
constexpr int64_t kTypicalN = 14336, kTypicalK = 4096;

// The row that a typical layer would run; "none: why" when there is none.
struct Use {
  std::string format;
  Compute compute;
  DType x_dtype;
  std::array<std::string, kRowCounts.size()> kernels;
};

std::string chosen_kernel(const Device& device, const std::string& format_name, int64_t m,
                          Compute compute, DType x_dtype) {
  const auto choose = [&]() -> Result<std::string> {
    NIBBLE_ASSIGN_OR_RETURN(const Format format, Format::parse(format_name));
    NIBBLE_ASSIGN_OR_RETURN(const Layout layout, preferred_layout(format, device));
    NIBBLE_ASSIGN_OR_RETURN(const PackedWeightInfo weight,
                            described_weight(format, kTypicalN, kTypicalK, layout));
    PlanOptions options;
    options.compute = compute;
    options.x_dtype = options.y_dtype = x_dtype;
    NIBBLE_ASSIGN_OR_RETURN(const Plan chosen,
                            plan({m, kTypicalN, kTypicalK}, weight, device, options));
    return std::string(kernels()[static_cast<size_t>(chosen.matmul().kernel)].name);
  };
  auto kernel = choose();
  return kernel.ok() ? *kernel : "none: " + kernel.status().message();
}

std::vector<Use> uses_of(const Device& device) {
  std::vector<Use> uses;
  for (const char* format : {"int4-g128", "nvfp4", "mxfp4"}) {
    for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
      for (const DType x_dtype : {DType::kBF16, DType::kF32}) {
        if (compute == Compute::kInt8 &&
            (x_dtype == DType::kF32 || device.backend != Backend::kCpu)) {
          continue;  // the same rows for both
        }
        Use use{format, compute, x_dtype, {}};
        for (size_t i = 0; i < kRowCounts.size(); ++i) {
          use.kernels[i] = chosen_kernel(device, format, kRowCounts[i], compute, x_dtype);
        }
        uses.push_back(std::move(use));
      }
    }
  }
  return uses;
}

std::vector<std::string> isa_names(const Device& device) {
  std::vector<std::string> names;
  for (int i = 0; i < kNumIsas; ++i) {
    if (device.has(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
  }
  return names;
}

Json uses_json(const Device& device) {
  Json list = Json::array();
  for (const Use& use : uses_of(device)) {
    Json json = {{"format", use.format},
                 {"compute", compute_name(use.compute)},
                 {"x_dtype", dtype_name(use.x_dtype)}};
    for (size_t i = 0; i < kRowCounts.size(); ++i) {
      json[fmt::format("m{}", kRowCounts[i])] = use.kernels[i];
    }
    list.push_back(std::move(json));
  }
  return list;
}

void print_as_json(const DoctorReport& report) {
  Json json;
  json["version"] = version();
  json["cpu"] = {{"name", report.cpu.name},         {"isas", isa_names(report.cpu)},
                 {"threads", report.cpu.threads},   {"l1_bytes", report.cpu.l1_bytes},
                 {"l2_bytes", report.cpu.l2_bytes}, {"l3_bytes", report.cpu.l3_bytes},
                 {"uses", uses_json(report.cpu)}};
  json["cuda"] = report.cuda;
  Json gpus = Json::array();
  for (const Device& gpu : report.gpus) {
    gpus.push_back({{"index", gpu.index},
                    {"name", gpu.name},
                    {"sm", gpu.sm},
                    {"num_sms", gpu.num_sms},
                    {"shared_bytes", gpu.shared_bytes},
                    {"l2_bytes", gpu.l2_bytes},
                    {"read_gb_per_s", gpu.read_gb_per_s},
                    {"uses", uses_json(gpu)}});
  }
  json["gpus"] = std::move(gpus);
  json["kernel_rows"] = kernels().size();
  print_json(json);
}

void print_uses(const Device& device) {
  std::vector<Table::Column> columns = {{"format"}, {"compute"}, {"x"}};
  for (const int64_t m : kRowCounts) columns.push_back({fmt::format("kernel at m = {}", m)});
  Table table(columns);
  for (const Use& use : uses_of(device)) {
    std::vector<std::string> cells = {use.format, compute_name(use.compute),
                                      dtype_name(use.x_dtype)};
    cells.insert(cells.end(), use.kernels.begin(), use.kernels.end());
    table.add_row(std::move(cells));
  }
  table.print(2);
}

void print_as_text(const DoctorReport& report) {
  fmt::print("nibble {}, {} kernel rows\n", version(), kernels().size());
  fmt::print("CPU: {}\n  instruction sets {}; {} threads; caches {} KiB, {} KiB, {} MiB\n",
             report.cpu.name, join(isa_names(report.cpu), ", "), report.cpu.threads,
             report.cpu.l1_bytes >> 10, report.cpu.l2_bytes >> 10, report.cpu.l3_bytes >> 20);
  print_uses(report.cpu);
  fmt::print("CUDA: {}\n", report.cuda);
  for (const Device& gpu : report.gpus) {
    fmt::print("GPU {}: {}, sm_{}, {} SMs\n", gpu.index, gpu.name, gpu.sm, gpu.num_sms);
    print_uses(gpu);
  }
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  const CommandHelp help = {"Show this machine and what Nibble will use on it",
                            "Instruction sets, caches, GPUs, and the kernels that a typical layer\n"
                            "(4096 -> 14336) will run.",
                            {"nibble doctor", "nibble doctor --json"}};
  CLI::App* command = add_command(app, "doctor", help);
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "print one JSON object");
  command->callback([json, &action] {
    action = [json] {
      const DoctorReport report = doctor();
      if (*json) {
        print_as_json(report);
      } else {
        print_as_text(report);
      }
      return Exit::kOk;
    };
  });
}

}  // namespace nibble::cli
