// The kernel table as data: what every row must say, and that no Format is left without a row.
#include "kernels/table.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "nibble/plan.h"

namespace nibble {
namespace {

bool takes(const KernelRow& row, const Format& format) {
  return (row.elements & bit(format.element)) != 0 && (row.scale_dtypes & bit(format.scale)) != 0 &&
         (row.zero_kinds & bit(format.zero)) != 0 &&
         (format.group == 0 || format.group >= row.min_group);
}

TEST(KernelTable, NamesAreUniqueWords) {
  std::set<std::string> names;
  for (const KernelInfo& info : all_kernels()) {
    ASSERT_NE(info.row.name, nullptr);
    const std::string name = info.row.name;
    EXPECT_EQ(name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_"), std::string::npos)
        << name;
    EXPECT_TRUE(names.insert(name).second) << name << " stands twice";
  }
}

TEST(KernelTable, EveryRowHasExactlyItsEntry) {
  for (const KernelInfo& info : all_kernels()) {
    const KernelRow& row = info.row;
    const bool cpu = row.backend == Backend::kCpu;
    const bool matmul = row.kind == StepKind::kMatmul;
    EXPECT_NE(row.kind, StepKind::kReduce) << row.name;
    const bool prepare = row.kind == StepKind::kPrepareX;
    EXPECT_EQ(info.cpu_matmul != nullptr, cpu && matmul && row.compiled) << row.name;
    EXPECT_EQ(info.cpu_prepare != nullptr, cpu && prepare && row.compiled) << row.name;
    EXPECT_EQ(info.cuda_matmul != nullptr, !cpu && matmul) << row.name;
  }
}

// A build has the code of its own architecture's rows, and the numbers alone of all others.
TEST(KernelTable, RowsOfThisArchitectureAreCompiled) {
  for (const KernelInfo& info : cpu_kernels()) {
    const uint32_t x86 = isas_up_to(Isa::kAvx512Bf16), arm = isas_up_to(Isa::kNeonBf16);
#if defined(__x86_64__)
    const uint32_t here = x86, elsewhere = arm;
#elif defined(__aarch64__)
    const uint32_t here = arm, elsewhere = x86;
#else
    const uint32_t here = bit(Isa::kScalar), elsewhere = x86 | arm;
#endif
    EXPECT_NE((here | elsewhere) & bit(info.row.isa), 0u) << info.row.name;
    EXPECT_EQ(info.row.compiled, (here & bit(info.row.isa)) != 0) << info.row.name;
  }
  EXPECT_EQ(Device::this_cpu().isas & ~isas_up_to(Isa::kAvx512Bf16) & ~isas_up_to(Isa::kNeonBf16),
            0u);
}

TEST(KernelTable, RowsSayWhatTheyTake) {
  for (const KernelInfo& info : all_kernels()) {
    const KernelRow& row = info.row;
    EXPECT_GE(row.block_m, 1) << row.name;
    EXPECT_GT(row.bytes_per_ns, 0) << row.name;
    EXPECT_GT(row.macs_per_ns, 0) << row.name;
    EXPECT_EQ(row.numerics.accumulator, DType::kF32) << row.name;
    if (row.kind == StepKind::kPrepareX || row.x_form == XForm::kRaw) {
      EXPECT_NE(row.x_dtypes, 0u) << row.name;
      EXPECT_EQ(row.x_dtypes & ~bits(DType::kF32, DType::kF16, DType::kBF16), 0u) << row.name;
    }
    if (row.kind == StepKind::kPrepareX) {
      EXPECT_NE(row.x_form, XForm::kRaw) << row.name;
      EXPECT_TRUE(row.gathers) << row.name << ": an act-order weight must not lose its fast rows";
      continue;
    }
    EXPECT_NE(row.elements, 0u) << row.name;
    EXPECT_NE(row.scale_dtypes, 0u) << row.name;
    EXPECT_NE(row.zero_kinds, 0u) << row.name;
    EXPECT_GE(row.min_group, 1) << row.name;
    EXPECT_GE(row.min_m, 1) << row.name;
    EXPECT_TRUE(row.max_m == 0 || row.max_m >= row.min_m) << row.name;
    EXPECT_EQ(row.numerics.x_quant, row.compute) << row.name;
    if (row.compute == Compute::kExact) {
      EXPECT_TRUE(row.x_form != XForm::kInt8Tiles) << row.name << " rounds x";
    }
    EXPECT_FALSE(row.paired && row.layout == LayoutId::kRowMajor) << row.name;
    if (row.backend == Backend::kCuda) {
      EXPECT_LE(row.min_sm, row.max_sm) << row.name;
    }
  }
}

TEST(KernelTable, AllKernelsListsTheCpuFirst) {
  const auto all = all_kernels();
  ASSERT_EQ(all.size(), cpu_kernels().size() + cuda_kernels().size());
  for (size_t i = 0; i < all.size(); ++i) {
    const bool cpu = i < cpu_kernels().size();
    EXPECT_EQ(all[i].row.backend, cpu ? Backend::kCpu : Backend::kCuda) << all[i].row.name;
    const KernelInfo& same = cpu ? cpu_kernels()[i] : cuda_kernels()[i - cpu_kernels().size()];
    EXPECT_STREQ(all[i].row.name, same.row.name);
  }
  EXPECT_EQ(kernels().size(), all.size());
}

// Every form that a matmul row reads has a kPrepareX row of its instruction set or a lower one.
TEST(KernelTable, EveryPreparedFormHasAWriter) {
  for (const KernelInfo& reader : cpu_kernels()) {
    if (reader.row.kind != StepKind::kMatmul || reader.row.x_form == XForm::kRaw) continue;
    bool found = false;
    for (const KernelInfo& writer : cpu_kernels()) {
      found |= writer.row.kind == StepKind::kPrepareX && writer.row.x_form == reader.row.x_form &&
               writer.row.compute == reader.row.compute &&
               (isas_up_to(reader.row.isa) & bit(writer.row.isa)) != 0;
    }
    EXPECT_TRUE(found) << reader.row.name << " reads " << x_form_name(reader.row.x_form);
  }
}

// The planner may pair an exact kF32Rows row with x rounded to int8 beforehand.
bool serves(const KernelRow& row, Compute compute) {
  return row.compute == compute || (compute == Compute::kInt8 && row.compute == Compute::kExact &&
                                    row.x_form == XForm::kF32Rows);
}

TEST(KernelTable, EveryNamedFormatRunsOnEveryInstructionSet) {
  for (const char* name : named_formats()) {
    const auto format = Format::parse(name);
    ASSERT_TRUE(format.ok()) << name;
    for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kNeon}) {
      for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
        for (const bool paired : {false, true}) {
          bool found = false;
          for (const KernelInfo& info : cpu_kernels()) {
            const KernelRow& row = info.row;
            found |= row.kind == StepKind::kMatmul && row.isa == isa &&
                     row.layout == LayoutId::kCpuPanel16 && serves(row, compute) &&
                     takes(row, *format) && (row.paired || !paired) && row.min_m == 1;
          }
          EXPECT_TRUE(found) << name << (paired ? " paired" : "") << " has no "
                             << compute_name(compute) << " row of " << isa_name(isa);
        }
      }
    }
  }
}

// Whatever the weight carries and however little workspace there is, something runs.
TEST(KernelTable, EveryFormatHasAPlanWithoutWorkspaceOnEveryDevice) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512Bf16, Isa::kNeon, Isa::kNeonBf16}) {
    Device device;
    device.name = isa_name(isa);
    device.isas = isas_up_to(isa);
    for (const LayoutId id : {LayoutId::kRowMajor, LayoutId::kCpuPanel16}) {
      for (const char* name : named_formats()) {
        auto info = described_weight(*Format::parse(name), 48, 98, {id, false});
        ASSERT_TRUE(info.ok()) << info.status().message();
        info->section(SectionId::kKPerm).bytes = 98 * 4;
        info->section(SectionId::kPreScale).bytes = 98 * 4;
        for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
          for (const DType x : {DType::kF32, DType::kF16, DType::kBF16}) {
            PlanOptions options;
            options.compute = compute;
            options.x_dtype = x;
            options.max_workspace_bytes = 0;
            const auto made = plan({3, 48, 98}, *info, device, options);
            ASSERT_TRUE(made.ok()) << name << ": " << made.status().message();
            EXPECT_EQ(made->num_steps, 1);
            EXPECT_EQ(made->workspace_bytes, 0);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble
