#include <gtest/gtest.h>

#include <cmath>

#include "kernels/table.h"
#include "nibble/bench.h"

namespace nibble {
namespace {

constexpr int64_t kReadBytes = 64 << 20;
constexpr double kSeconds = 0.01;

RoofMeter meter_for(ThreadPool* pool, const Device& device) {
  auto meter = RoofMeter::create(pool, device, kReadBytes);
  EXPECT_TRUE(meter.ok()) << meter.status().message();
  return std::move(meter).value();
}

TEST(RoofMeter, EveryRoofOfThisMachineIsPlausible) {
  auto pool = make_thread_pool(1);
  RoofMeter meter = meter_for(pool.get(), Device::this_cpu());
  const double read = meter.measure(Roof::kRead, kSeconds);
  EXPECT_GT(read, 0.2);
  EXPECT_LT(read, 2000);
  for (Roof roof : {Roof::kInt8, Roof::kF32}) {
    const double rate = meter.measure(roof, kSeconds);
    EXPECT_GT(rate, 0.5) << static_cast<int>(roof);
    EXPECT_LT(rate, 20000) << static_cast<int>(roof);
  }
}

// A wrong count of operations in the table would show here: the units are known multiples. A busy
// machine may spoil a measurement, so one of several has to be undisturbed.
TEST(RoofMeter, PeaksStandInTheRatioOfTheirInstructions) {
  const Device& cpu = Device::this_cpu();
  if (!cpu.has(Isa::kAvx512Vnni)) GTEST_SKIP() << "needs AVX-512 VNNI";
  auto pool = make_thread_pool(1);
  RoofMeter meter = meter_for(pool.get(), cpu);
  const auto nearest_ratio = [&meter](Roof roof, double expected) {
    double nearest = 0;
    for (int attempt = 0; attempt < 20 && std::abs(nearest - expected) > 0.2 * expected;
         ++attempt) {
      const double f32 = meter.measure(Roof::kF32, kSeconds);
      const double ratio = meter.measure(roof, kSeconds) / f32;
      if (std::abs(ratio - expected) < std::abs(nearest - expected)) nearest = ratio;
    }
    return nearest;
  };
  EXPECT_NEAR(nearest_ratio(Roof::kInt8, 4), 4, 1);
  if (cpu.has(Isa::kAvx512Bf16)) {
    EXPECT_NEAR(nearest_ratio(Roof::kBf16, 2), 2, 0.5);
  }
}

TEST(RoofMeter, ALowerIsaHasALowerPeakAndNoBf16) {
  auto scalar = Device::this_cpu().with_isa(Isa::kScalar);
  ASSERT_TRUE(scalar.ok());
  auto pool = make_thread_pool(1);
  RoofMeter limited = meter_for(pool.get(), scalar.value());
  EXPECT_EQ(limited.measure(Roof::kBf16, kSeconds), 0);
  if (!Device::this_cpu().has(Isa::kAvx2)) return;
  RoofMeter full = meter_for(pool.get(), Device::this_cpu());
  EXPECT_LT(limited.measure(Roof::kF32, kSeconds), full.measure(Roof::kF32, kSeconds));
}

TEST(RoofMeter, RefusesWhatItCannotMeasure) {
  auto pool = make_thread_pool(1);
  EXPECT_EQ(RoofMeter::create(nullptr, Device::this_cpu()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(RoofMeter::create(pool.get(), Device::this_cpu(), -1).status().code(),
            Code::kInvalidArgument);
  auto gpu = Device::named("h200");
  ASSERT_TRUE(gpu.ok());
  EXPECT_EQ(RoofMeter::create(pool.get(), gpu.value()).status().code(), Code::kUnsupported);
  Device foreign = Device::this_cpu();
  foreign.isas = bits(Isa::kScalar, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni, Isa::kAvx512Bf16);
  if (foreign.isas != Device::this_cpu().isas) {
    EXPECT_EQ(RoofMeter::create(pool.get(), foreign).status().code(), Code::kUnsupported);
  }
}

// Every read loop reads every byte once: its result is the xor of all of them.
TEST(RoofLoops, ReadLoopsSeeTheWholeBuffer) {
  constexpr int64_t kBytes = 64 << 10;
  auto buffer = Buffer::allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  uint8_t* data = buffer->mutable_data();
  uint32_t state = 1;
  for (int64_t i = 0; i < kBytes; ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<uint8_t>(state >> 24);
  }
  uint64_t expected = 0;
  for (int64_t i = 0; i < kBytes; ++i) {
    expected ^= static_cast<uint64_t>(data[i]) << (8 * (i % 8));
  }
  int loops = 0;
  for (const RoofInfo& roof : cpu_roofs()) {
    if (roof.kind != RoofKind::kRead || !Device::this_cpu().has(roof.isa)) continue;
    EXPECT_EQ(roof.run(data, kBytes, 0), expected) << roof.name;
    ++loops;
  }
  EXPECT_GE(loops, 1);
}

}  // namespace
}  // namespace nibble
