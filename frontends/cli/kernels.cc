// nibble kernels: the kernel table as text, JSON, or the page docs/SUPPORTED.md.
#include <fmt/format.h>

#include <array>
#include <memory>

#include "cli.h"
#include "nibble/plan.h"
#include "text.h"

namespace nibble::cli {
namespace {

struct Arguments {
  bool json = false;
  bool markdown = false;
};

constexpr std::array<Element, 6> kElements = {Element::kInt4, Element::kUint4, Element::kE2M1,
                                              Element::kNF4,  Element::kInt8,  Element::kUint8};
constexpr std::array<DType, 5> kScaleDtypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3,
                                               DType::kE8M0};
constexpr std::array<DType, 3> kXDtypes = {DType::kF32, DType::kF16, DType::kBF16};
constexpr std::array<ZeroKind, 4> kZeroKinds = {ZeroKind::kNone, ZeroKind::kInteger,
                                                ZeroKind::kFloatCode, ZeroKind::kAdditive};

const char* zero_name(ZeroKind kind) {
  switch (kind) {
    case ZeroKind::kNone:
      return "none";
    case ZeroKind::kInteger:
      return "zint";
    case ZeroKind::kFloatCode:
      return "zfloat";
    case ZeroKind::kAdditive:
      return "zadd";
  }
  return "?";
}

const char* kind_name(StepKind kind) {
  switch (kind) {
    case StepKind::kPrepareX:
      return "prepare_x";
    case StepKind::kMatmul:
      return "matmul";
    case StepKind::kReduce:
      return "reduce";
  }
  return "?";
}

const char* scale_at_name(ScaleAt at) {
  switch (at) {
    case ScaleAt::kWeight:
      return "weight";
    case ScaleAt::kGroupSum:
      return "group sum";
  }
  return "?";
}

// Names of the members of a bit set.
template <class E, size_t kCount, class Name>
std::vector<std::string> set_names(uint32_t set, const std::array<E, kCount>& all, Name name) {
  std::vector<std::string> names;
  for (const E each : all) {
    if ((set & bit(each)) != 0) names.emplace_back(name(each));
  }
  return names;
}

std::string architecture(const KernelRow& row) {
  if (row.backend == Backend::kCpu) return isa_name(row.isa);
  return fmt::format("sm_{}-{}", row.min_sm, row.max_sm);
}

std::string m_range(const KernelRow& row) {
  return row.max_m == 0 ? fmt::format("{}+", row.min_m)
                        : fmt::format("{}-{}", row.min_m, row.max_m);
}

// What the row says of itself in one cell each; the order of kColumns.
constexpr std::array<const char*, 11> kColumns = {
    "kernel", "kind",  "architecture", "layout", "compute", "elements",
    "scales", "zeros", "min group",    "x",      "m"};

std::array<std::string, kColumns.size()> cells_of(const KernelRow& row) {
  const bool matmul = row.kind == StepKind::kMatmul;
  const std::string x_types = join(set_names(row.x_dtypes, kXDtypes, dtype_name), " ");
  const std::string form = x_form_name(row.x_form);
  return {row.name,
          kind_name(row.kind),
          architecture(row),
          matmul ? std::string(layout_name(row.layout)) + (row.paired ? " (paired too)" : "") : "-",
          compute_name(row.compute),
          matmul ? join(set_names(row.elements, kElements, element_name), " ") : "-",
          matmul ? join(set_names(row.scale_dtypes, kScaleDtypes, dtype_name), " ") : "-",
          matmul ? join(set_names(row.zero_kinds, kZeroKinds, zero_name), " ") : "-",
          matmul ? std::to_string(row.min_group) : "-",
          row.x_form == XForm::kRaw         ? x_types
          : row.kind == StepKind::kPrepareX ? x_types + " -> " + form
                                            : form,
          m_range(row)};
}

Json row_json(const KernelRow& row) {
  return {{"name", row.name},
          {"kind", kind_name(row.kind)},
          {"backend", row.backend == Backend::kCpu ? "cpu" : "cuda"},
          {"architecture", architecture(row)},
          {"compiled", row.compiled},
          {"layout", layout_name(row.layout)},
          {"elements", set_names(row.elements, kElements, element_name)},
          {"scale_dtypes", set_names(row.scale_dtypes, kScaleDtypes, dtype_name)},
          {"zero_kinds", set_names(row.zero_kinds, kZeroKinds, zero_name)},
          {"min_group", row.min_group},
          {"paired", row.paired},
          {"compute", compute_name(row.compute)},
          {"x_form", x_form_name(row.x_form)},
          {"x_dtypes", set_names(row.x_dtypes, kXDtypes, dtype_name)},
          {"gathers", row.gathers},
          {"pre_scales", row.pre_scales},
          {"min_m", row.min_m},
          {"max_m", row.max_m},
          {"block_m", row.block_m},
          {"block_n", row.block_n},
          {"w_rounds_to", dtype_name(row.numerics.w_rounds_to)},
          {"scale_applied_at", scale_at_name(row.numerics.scale_applied_at)},
          {"accumulator", dtype_name(row.numerics.accumulator)},
          {"promote_every_k", row.numerics.promote_every_k},
          {"bytes_per_ns", row.bytes_per_ns},
          {"macs_per_ns", row.macs_per_ns}};
}

void print_as_json() {
  Json json;
  json["version"] = version();
  Json rows = Json::array();
  for (const KernelRow& row : kernels()) rows.push_back(row_json(row));
  json["rows"] = std::move(rows);
  print_json(json);
}

void print_as_text() {
  std::vector<Table::Column> columns;
  for (const char* title : kColumns) columns.push_back({title});
  Table table(columns);
  for (const KernelRow& row : kernels()) {
    const auto cells = cells_of(row);
    table.add_row({cells.begin(), cells.end()});
  }
  table.print();
}

// A machine that has exactly the instruction sets up to `isa`, with a plain laptop's caches.
Device cpu_with(Isa isa) {
  Device device;
  device.name = isa_name(isa);
  device.isas = isas_up_to(isa);
  // A machine with AVX-512 VNNI need not have AVX-VNNI; rows of the latter would hide its own.
  if (isa > Isa::kAvxVnni) device.isas &= ~bit(Isa::kAvxVnni);
  device.threads = 1;
  return device;
}

// The matmul row for one case of the support matrix; "-" when there is none.
std::string row_for(const char* format_name, const Device& device, int64_t m, Compute compute,
                    DType x_dtype, LayoutId layout) {
  constexpr int64_t kN = 4096, kK = 4096;
  const auto format = Format::parse(format_name);
  if (!format.ok()) return "-";
  const auto weight = described_weight(*format, kN, kK, Layout{layout, false});
  if (!weight.ok()) return "-";
  PlanOptions options;
  options.compute = compute;
  options.x_dtype = options.y_dtype = x_dtype;
  const auto chosen = plan({m, kN, kK}, *weight, device, options);
  if (!chosen.ok()) return "-";
  return fmt::format("`{}`", kernels()[static_cast<size_t>(chosen->matmul().kernel)].name);
}

// The instruction sets of one architecture, scalar first.
std::vector<Isa> family_up_to(Isa best) {
  std::vector<Isa> isas;
  for (int i = 0; i < kNumIsas; ++i) {
    const auto isa = static_cast<Isa>(i);
    if ((isas_up_to(best) & bit(isa)) != 0) isas.push_back(isa);
  }
  return isas;
}

struct MatrixCase {
  const char* title;
  int64_t m;
  Compute compute;
  DType x_dtype;
  LayoutId layout;
};

void print_matrix(const MatrixCase& c, const std::vector<Isa>& isas) {
  fmt::print("\n### {}\n\n| format |", c.title);
  for (const Isa isa : isas) fmt::print(" {} |", isa_name(isa));
  fmt::print("\n|---|");
  for (size_t i = 0; i < isas.size(); ++i) fmt::print("---|");
  fmt::print("\n");
  // Neighbours that the same rows serve share a line.
  std::string formats, cells;
  const auto flush = [&] {
    if (!formats.empty()) fmt::print("| {} |{}\n", formats, cells);
  };
  for (const char* format : named_formats()) {
    std::string line;
    for (const Isa isa : isas) {
      const Device device = cpu_with(isa);
      line += fmt::format(" {} |", row_for(format, device, c.m, c.compute, c.x_dtype, c.layout));
    }
    if (line == cells) {
      formats += std::string(", ") + format;
    } else {
      flush();
      formats = format;
      cells = line;
    }
  }
  flush();
}

void print_rows(Backend backend) {
  fmt::print("\n|");
  for (const char* title : kColumns) fmt::print(" {} |", title);
  fmt::print("\n|");
  for (size_t i = 0; i < kColumns.size(); ++i) fmt::print("---|");
  fmt::print("\n");
  for (const KernelRow& row : kernels()) {
    if (row.backend != backend) continue;
    fmt::print("|");
    for (const std::string& cell : cells_of(row)) fmt::print(" {} |", cell);
    fmt::print("\n");
  }
}

bool has_rows_of(Backend backend) {
  for (const KernelRow& row : kernels()) {
    if (row.backend == backend) return true;
  }
  return false;
}

const char* how_tested(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "run on every machine";
    case Isa::kAvx2:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
      return "run on every machine that has it; each test walks all rows the machine can run";
    case Isa::kAvxVnni:
      return "compiled";
    case Isa::kNeon:
    case Isa::kNeonDotprod:
    case Isa::kNeonI8mm:
    case Isa::kNeonBf16:
      return "emulated, not run on hardware: the same tests under qemu-user (`make nightly`)";
  }
  return "?";
}

void print_architectures() {
  fmt::print("\n| architecture | rows | tests |\n|---|---|---|\n");
  for (int i = 0; i < kNumIsas; ++i) {
    const auto isa = static_cast<Isa>(i);
    int64_t count = 0;
    for (const KernelRow& row : kernels()) {
      if (row.backend == Backend::kCpu && row.isa == isa) ++count;
    }
    fmt::print("| {} | {} | {} |\n", isa_name(isa), count,
               count > 0 ? how_tested(isa) : "served by the rows of the sets below it");
  }
}

void print_as_markdown() {
  constexpr std::array<MatrixCase, 5> kCases = {{
      {"exact, BF16 x, m = 1", 1, Compute::kExact, DType::kBF16, LayoutId::kCpuPanel16},
      {"exact, FP32 x, m = 1", 1, Compute::kExact, DType::kF32, LayoutId::kCpuPanel16},
      {"exact, BF16 x, m = 64", 64, Compute::kExact, DType::kBF16, LayoutId::kCpuPanel16},
      {"int8, m = 64", 64, Compute::kInt8, DType::kBF16, LayoutId::kCpuPanel16},
      {"int8, m = 1, row_major", 1, Compute::kInt8, DType::kBF16, LayoutId::kRowMajor},
  }};
  fmt::print(
      "# Supported\n\n"
      "Generated by `nibble kernels --markdown` from the kernel table; do not edit. Any n and k "
      "run;\n"
      "a Format's smaller and larger groups (g16, g32, g64, g128, channel) run through the same "
      "rows\n"
      "where \"min group\" allows, through the general row of the instruction set otherwise.\n\n"
      "## CPU: instruction sets\n");
  print_architectures();
  fmt::print(
      "\n## x86-64: which row serves a Format\n\n"
      "One thread, weight [4096, 4096] in cpu_panel16 unless said otherwise. Each column is a "
      "machine\n"
      "whose best instruction set is the title.\n");
  for (const MatrixCase& each : kCases) print_matrix(each, family_up_to(Isa::kAvx512Bf16));
  fmt::print(
      "\n## AArch64: which row serves a Format\n\n"
      "The same for ARM. These rows are emulated, not run on hardware, and their rates are not\n"
      "measured: multiply-adds an instruction order them.\n");
  for (const MatrixCase& each : kCases) print_matrix(each, family_up_to(Isa::kNeonBf16));
  fmt::print("\n## CPU rows\n");
  print_rows(Backend::kCpu);
  // Last, so that a build without CUDA prints a prefix of the page.
  if (has_rows_of(Backend::kCuda)) {
    fmt::print(
        "\n## CUDA rows\n\n"
        "Compiled where nvcc is found. Planning and the arithmetic of a row are tested on the "
        "host,\n"
        "the row itself where a GPU is.\n");
    print_rows(Backend::kCuda);
  }
}

Exit run_kernels(const Arguments& args) {
  if (args.json) {
    print_as_json();
  } else if (args.markdown) {
    print_as_markdown();
  } else {
    print_as_text();
  }
  return Exit::kOk;
}

}  // namespace

void add_kernels(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "List every kernel of this build",
      "One line a row of the kernel table, with what it accepts.",
      {"nibble kernels", "nibble kernels --json", "nibble kernels --markdown > docs/SUPPORTED.md"}};
  CLI::App* command = add_command(app, "kernels", help);
  auto args = std::make_shared<Arguments>();
  CLI::Option* json = command->add_flag("--json", args->json, "print one JSON object");
  command->add_flag("--markdown", args->markdown, "print the page docs/SUPPORTED.md")
      ->excludes(json);
  command->callback([args, &action] { action = [args] { return run_kernels(*args); }; });
}

}  // namespace nibble::cli
