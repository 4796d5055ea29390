#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "nibble/core.h"

namespace nibble {
namespace {

TEST(DeviceTest, EveryNamedDeviceExists) {
  for (const char* name : Device::names()) {
    const auto device = Device::named(name);
    ASSERT_TRUE(device.ok()) << name;
    if (device->backend == Backend::kCuda) {
      EXPECT_GE(device->sm, 75);
      EXPECT_GT(device->num_sms, 0);
      EXPECT_GT(device->read_gb_per_s, 0);
    } else {
      EXPECT_TRUE(device->has(Isa::kScalar));
      EXPECT_GE(device->threads, 1);
    }
  }
  EXPECT_NE(Device::named("h100").status().message().find("known: cpu, h200"), std::string::npos);
}

TEST(DeviceTest, LimitingTheInstructionSetKeepsTheLowerOnes) {
  const Device& cpu = Device::this_cpu();
  for (int i = 0; i < kNumIsas; ++i) {
    const auto isa = static_cast<Isa>(i);
    const auto limited = cpu.with_isa(isa);
    ASSERT_EQ(limited.ok(), cpu.has(isa));
    if (!limited.ok()) continue;
    EXPECT_EQ(limited->best_isa(), isa);
    for (int j = 0; j < kNumIsas; ++j) {
      EXPECT_EQ(limited->has(static_cast<Isa>(j)), j <= i && cpu.has(static_cast<Isa>(j)));
    }
  }
  EXPECT_EQ(Device::named("avx2-laptop")->with_isa(Isa::kAvx512Vnni).status().code(),
            Code::kUnsupported);
  EXPECT_FALSE(Device::named("h200")->with_isa(Isa::kScalar).ok());
}

TEST(DeviceTest, InstructionSetsOfOneFamilyNeverMix) {
  const uint32_t x86 = isas_up_to(Isa::kAvx512Bf16), arm = isas_up_to(Isa::kNeonBf16);
  EXPECT_EQ(x86 & arm, bit(Isa::kScalar));
  EXPECT_EQ(x86 | arm, (1u << kNumIsas) - 1);
  EXPECT_EQ(isas_up_to(Isa::kScalar), bit(Isa::kScalar));
  EXPECT_EQ(isas_up_to(Isa::kNeonDotprod), bits(Isa::kScalar, Isa::kNeon, Isa::kNeonDotprod));
  EXPECT_EQ(isas_up_to(Isa::kAvxVnni), bits(Isa::kScalar, Isa::kAvx2, Isa::kAvxVnni));
  const uint32_t here = Device::this_cpu().isas;
  EXPECT_TRUE((here & ~x86) == 0 || (here & ~arm) == 0);
#if defined(__aarch64__)
  EXPECT_TRUE(Device::this_cpu().has(Isa::kNeon));
#endif
}

TEST(DeviceTest, ArmCpusAreDescribedOnAnyMachine) {
  const Device orin = *Device::named("orin-cpu"), grace = *Device::named("grace");
  EXPECT_EQ(orin.best_isa(), Isa::kNeonDotprod);
  EXPECT_EQ(grace.best_isa(), Isa::kNeonBf16);
  EXPECT_EQ(Device::named("thor-cpu")->best_isa(), Isa::kNeonBf16);
  EXPECT_FALSE(grace.has(Isa::kAvx2));
  const auto limited = grace.with_isa(Isa::kNeonI8mm);
  ASSERT_TRUE(limited.ok());
  EXPECT_EQ(limited->isas, isas_up_to(Isa::kNeonI8mm));
  EXPECT_EQ(orin.with_isa(Isa::kNeonI8mm).status().code(), Code::kUnsupported);
}

TEST(DeviceTest, NamesOfEnumerationsAreDistinctAndParse) {
  std::set<std::string> names;
  for (int i = 0; i < kNumIsas; ++i) {
    const char* name = isa_name(static_cast<Isa>(i));
    EXPECT_TRUE(names.insert(name).second);
    EXPECT_EQ(*parse_isa(name), static_cast<Isa>(i));
  }
  for (const Compute compute : {Compute::kExact, Compute::kInt8, Compute::kFp8}) {
    EXPECT_EQ(*parse_compute(compute_name(compute)), compute);
  }
}

TEST(ActivationTest, MatchesKnownValues) {
  EXPECT_EQ(activate(Activation::kNone, -3.5), -3.5);
  EXPECT_EQ(activate(Activation::kRelu, -3.5), 0);
  EXPECT_EQ(activate(Activation::kRelu, 3.5), 3.5);
  EXPECT_TRUE(std::isnan(activate(Activation::kRelu, NAN)));
  EXPECT_NEAR(activate(Activation::kSilu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(activate(Activation::kGeluErf, 1.0), 0.8413447460685429, 1e-15);
  EXPECT_NEAR(activate(Activation::kGeluTanh, 1.0), 0.8411919906082768, 1e-15);
  EXPECT_EQ(activate(Activation::kSilu, -1e4), 0);
}

}  // namespace
}  // namespace nibble
