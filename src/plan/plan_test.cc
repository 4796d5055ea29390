#include "nibble/plan.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <set>

namespace nibble {
namespace {

PackedWeightInfo weight(const char* format, int64_t n, int64_t k,
                        const char* layout = "cpu_panel16") {
  return *described_weight(*Format::parse(format), n, k, *Layout::parse(layout));
}

const KernelRow& row_of(const Plan& plan) {
  return kernels()[static_cast<size_t>(plan.matmul().kernel)];
}

TEST(PlanTest, EveryNamedFormatHasAPlanOnEveryCpuIsaForEveryCompute) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kNeon,
                        Isa::kNeonDotprod, Isa::kNeonI8mm, Isa::kNeonBf16}) {
    Device device = *Device::named("avx2-laptop");
    device.isas = isas_up_to(isa);
    for (const char* format : named_formats()) {
      for (const char* layout : {"cpu_panel16", "cpu_panel16-paired", "row_major"}) {
        for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
          for (const DType x : {DType::kF32, DType::kBF16, DType::kF16}) {
            for (const int64_t m : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{3000}}) {
              PlanOptions options;
              options.compute = compute;
              options.x_dtype = x;
              const auto made =
                  plan({m, 50, 4304}, weight(format, 50, 4304, layout), device, options);
              ASSERT_TRUE(made.ok()) << format << " " << layout << " " << isa_name(isa) << ": "
                                     << made.status().message();
            }
          }
        }
      }
    }
  }
}

TEST(PlanTest, ACallerWithoutWorkspaceAlwaysHasAPlan) {
  for (const char* format : named_formats()) {
    for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
      PlanOptions options;
      options.compute = compute;
      options.max_workspace_bytes = 0;
      const auto made = plan({5, 48, 256}, weight(format, 48, 256), Device::this_cpu(), options);
      ASSERT_TRUE(made.ok()) << format << ": " << made.status().message();
      EXPECT_EQ(made->workspace_bytes, 0);
      EXPECT_EQ(row_of(*made).x_form, XForm::kRaw);
    }
  }
}

TEST(PlanTest, TheSameInputsGiveTheSamePlan) {
  const auto a = plan({3, 64, 512}, weight("nvfp4", 64, 512), Device::this_cpu());
  const auto b = plan({3, 64, 512}, weight("nvfp4", 64, 512), Device::this_cpu());
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->num_steps, b->num_steps);
  for (int i = 0; i < a->num_steps; ++i) {
    EXPECT_EQ(a->steps[static_cast<size_t>(i)].kernel, b->steps[static_cast<size_t>(i)].kernel);
  }
}

TEST(PlanTest, PlansForAMachineThatIsNotHereUseOnlyWhatItHas) {
  const Device laptop = *Device::named("avx2-laptop");
  const auto made = plan({1, 4096, 4096}, weight("int4-g128", 4096, 4096), laptop);
  ASSERT_TRUE(made.ok()) << made.status().message();
  for (int i = 0; i < made->num_steps; ++i) {
    EXPECT_LE(kernels()[static_cast<size_t>(made->steps[static_cast<size_t>(i)].kernel)].isa,
              Isa::kAvx2);
  }
}

// Plans are pure: those for ARM CPUs are made, and tested, on any machine.
TEST(PlanTest, ArmCpusGetTheRowsOfTheirInstructionSets) {
  const auto kernel_of = [](const char* name, Compute compute, DType x, int64_t m) {
    PlanOptions options;
    options.compute = compute;
    options.x_dtype = x;
    const auto made =
        plan({m, 4096, 4096}, weight("int4-g128", 4096, 4096), *Device::named(name), options);
    EXPECT_TRUE(made.ok()) << name << ": " << made.status().message();
    return made.ok() ? std::string(row_of(*made).name) : std::string();
  };
  EXPECT_EQ(kernel_of("orin-cpu", Compute::kInt8, DType::kF32, 1), "neon_int8_dotprod_panel16");
  EXPECT_EQ(kernel_of("orin-cpu", Compute::kInt8, DType::kF32, 64), "neon_int8_dotprod_panel16");
  EXPECT_EQ(kernel_of("thor-cpu", Compute::kInt8, DType::kF32, 64), "neon_int8_i8mm_panel16");
  EXPECT_EQ(kernel_of("grace", Compute::kExact, DType::kBF16, 64), "neon_bf16_panel16");
  EXPECT_EQ(kernel_of("grace", Compute::kExact, DType::kF32, 64), "neon_any_panel16");
  EXPECT_EQ(kernel_of("orin-cpu", Compute::kExact, DType::kBF16, 1), "neon_few_rows_panel16");
}

TEST(PlanTest, ExplainGivesEveryMatmulRowAReason) {
  PlanOptions options;
  options.compute = Compute::kInt8;
  const auto made =
      explain({4, 64, 4304}, weight("int4-g128", 64, 4304), *Device::named("avx2-laptop"), options);
  ASSERT_TRUE(made.ok());
  std::set<int32_t> seen;
  for (const Reason& reason : made->reasons) {
    EXPECT_TRUE(seen.insert(reason.kernel).second);
    EXPECT_EQ(reason.accepted, reason.text.empty()) << reason.text;
    if (reason.accepted) {
      EXPECT_GT(reason.cost_us, 0);
    }
  }
  size_t rows = 0;
  for (const KernelRow& row : kernels()) rows += row.kind == StepKind::kMatmul ? 1 : 0;
  EXPECT_EQ(seen.size(), rows);
}

TEST(PlanTest, TheCheapestAcceptedRowIsChosen) {
  const auto made = explain({1, 4096, 4096}, weight("int4-g128", 4096, 4096), Device::this_cpu());
  ASSERT_TRUE(made.ok());
  double cheapest = 1e300;
  int32_t best = -1;
  for (const Reason& reason : made->reasons) {
    if (reason.accepted && reason.cost_us < cheapest) {
      cheapest = reason.cost_us;
      best = reason.kernel;
    }
  }
  EXPECT_EQ(made->matmul().kernel, best);
}

TEST(PlanTest, BatchInvarianceFixesTheKernelForEveryM) {
  PlanOptions options;
  options.batch_invariant = true;
  std::set<int32_t> chosen;
  for (const int64_t m : {1, 2, 5, 8, 16, 100, 256, 5000}) {
    const auto made =
        plan({m, 4096, 4096}, weight("int4-g128", 4096, 4096), Device::this_cpu(), options);
    ASSERT_TRUE(made.ok());
    chosen.insert(made->matmul().kernel);
    EXPECT_FALSE(row_of(*made).bits_depend_on_m);
  }
  EXPECT_EQ(chosen.size(), 1u);
}

TEST(PlanTest, WorkspaceHoldsThePreparedActivations) {
  for (const KernelRow& row : kernels()) {
    if (row.kind != StepKind::kMatmul || row.backend != Backend::kCpu || row.x_form == XForm::kRaw)
      continue;
    if (!Device::this_cpu().has(row.isa) || (row.elements & bit(Element::kInt4)) == 0) continue;
    PlanOptions options;
    options.kernel = row.name;
    options.compute = row.compute;
    options.x_dtype = row.x_form == XForm::kBf16Rows ? DType::kBF16 : DType::kF32;
    const int64_t m = row.max_m == 0 ? 10 : row.max_m;
    const auto made = plan({m, 64, 4304}, weight("int4-g128", 64, 4304, layout_name(row.layout)),
                           Device::this_cpu(), options);
    ASSERT_TRUE(made.ok()) << row.name << ": " << made.status().message();
    ASSERT_EQ(made->num_steps, 2);
    const int64_t per_value = row.x_form == XForm::kF32Rows    ? 4
                              : row.x_form == XForm::kBf16Rows ? 2
                                                               : 1;
    EXPECT_GE(made->workspace_bytes, m * 4320 * per_value) << row.name;
    EXPECT_EQ(made->workspace_bytes % kWorkspaceAlign, 0);
  }
}

TEST(PlanTest, WorkItemsCoverTheMatrix) {
  for (const int64_t m : {1, 8, 9, 100, 4096}) {
    for (const int32_t threads : {1, 2, 64}) {
      PlanOptions options;
      options.threads = threads;
      const auto made =
          plan({m, 1000, 2048}, weight("nvfp4", 1000, 2048), Device::this_cpu(), options);
      ASSERT_TRUE(made.ok());
      EXPECT_GE(made->matmul().items_m * made->matmul().block_m, m);
      EXPECT_LT((made->matmul().items_m - 1) * made->matmul().block_m, m);
      EXPECT_EQ(made->matmul().items_n, 63);
    }
  }
}

TEST(PlanTest, ErrorsNameTheValuesAndTheRule) {
  const Device cpu = Device::this_cpu();
  const PackedWeightInfo w = weight("int4-g128", 64, 128);
  EXPECT_NE(plan({-1, 64, 128}, w, cpu).status().message().find("m = -1"), std::string::npos);
  EXPECT_NE(plan({1, 63, 128}, w, cpu).status().message().find("n = 63"), std::string::npos);
  PlanOptions options;
  options.x_dtype = DType::kE4M3;
  EXPECT_NE(plan({1, 64, 128}, w, cpu, options)
                .status()
                .message()
                .find("e4m3 is not an activation dtype"),
            std::string::npos);
  options = {};
  options.compute = Compute::kFp8;
  const Status fp8 = plan({1, 64, 128}, w, cpu, options).status();
  EXPECT_EQ(fp8.code(), Code::kUnsupported);
  EXPECT_NE(fp8.message().find("fp8 is asked for"), std::string::npos) << fp8.message();
  options = {};
  options.kernel = "no_such_row";
  EXPECT_NE(
      plan({1, 64, 128}, w, cpu, options).status().message().find("only no_such_row is allowed"),
      std::string::npos);
  EXPECT_FALSE(plan({INT64_MAX / 4, 64, 128}, w, cpu).ok());
}

TEST(PlanTest, DescribedWeightsCarryWhatTheFormatImplies) {
  EXPECT_TRUE(weight("nvfp4", 64, 128).has(SectionId::kRowScale));
  EXPECT_FALSE(weight("mxfp4", 64, 128).has(SectionId::kRowScale));
  EXPECT_FALSE(described_weight(*Format::parse("mxfp4"), 0, 128, {}).ok());
  EXPECT_FALSE(described_weight(*Format::parse("mxfp4"), INT64_MAX / 2, INT64_MAX / 2, {}).ok());
}

}  // namespace
}  // namespace nibble
