#include "bench_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "pinning.h"

#ifdef __linux__
#include <sched.h>
#endif

namespace nibble::cli {
namespace {

constexpr int64_t kN = 64, kK = 160;

ColdWeights weights_of(const char* format, LayoutId layout, ThreadPool* pool,
                       int64_t cold_bytes = 1) {
  auto weights =
      make_cold_weights(*Format::parse(format), kN, kK, Layout{layout, false}, cold_bytes, pool);
  EXPECT_TRUE(weights.ok()) << format << ": " << weights.status().message();
  return std::move(weights).value();
}

BenchCase quick_case(Compute compute, DType x_dtype, int64_t m) {
  BenchCase bench;
  bench.device = Device::this_cpu();
  bench.compute = compute;
  bench.x_dtype = x_dtype;
  bench.m = m;
  bench.seconds = 0.001;
  return bench;
}

TEST(ColdWeights, CopiesExceedTheAskedSizeAndCountTrueBytes) {
  auto pool = make_thread_pool(1);
  const ColdWeights weights = weights_of("nvfp4", LayoutId::kCpuPanel16, pool.get(), 1 << 20);
  EXPECT_EQ(weights.weight_bytes, kN * kK / 2 + kN * kK / 16);
  int64_t total = 0;
  std::set<const uint8_t*> addresses;
  for (const PackedWeight& copy : weights.copies) {
    total += copy.info.bytes;
    addresses.insert(copy.section(SectionId::kCodes));
  }
  EXPECT_GE(total, 1 << 20);
  EXPECT_EQ(addresses.size(), weights.copies.size());
}

TEST(BenchCase, EveryFormatComputesWhatItsWeightSays) {
  auto pool = make_thread_pool(1);
  auto meter = RoofMeter::create(pool.get(), Device::this_cpu(), 32 << 20);
  ASSERT_TRUE(meter.ok());
  for (const char* format : {"int4-g32", "uint4-g16", "uint4-g32:f16:zfloat", "int4-g32:f32:zadd",
                             "int8-channel", "nvfp4", "mxfp4", "fp4-g32", "nf4-g64"}) {
    for (const LayoutId layout : {LayoutId::kCpuPanel16, LayoutId::kRowMajor}) {
      const ColdWeights weights = weights_of(format, layout, pool.get());
      const auto result =
          run_bench_case(quick_case(Compute::kExact, DType::kF32, 3), weights, pool.get(), &*meter);
      EXPECT_TRUE(result.ok()) << format << ": " << result.status().message();
    }
  }
}

TEST(BenchCase, AWrongProductIsAnErrorAndNoFigure) {
  auto pool = make_thread_pool(1);
  auto meter = RoofMeter::create(pool.get(), Device::this_cpu(), 32 << 20);
  ASSERT_TRUE(meter.ok());
  ColdWeights weights = weights_of("int4-g32", LayoutId::kCpuPanel16, pool.get());
  // The packed copies no longer hold what the tensor says: as if a kernel swapped nibbles.
  uint8_t* codes = weights.tensor.codes.mutable_data();
  for (int64_t i = 0; i < weights.tensor.codes.bytes(); ++i) {
    codes[i] = static_cast<uint8_t>(codes[i] >> 4 | codes[i] << 4);
  }
  for (const Compute compute : {Compute::kExact, Compute::kInt8}) {
    const auto result =
        run_bench_case(quick_case(compute, DType::kF32, 2), weights, pool.get(), &*meter);
    EXPECT_EQ(result.status().code(), Code::kInternal);
  }
}

TEST(BenchCase, FiguresBelongTogether) {
  auto pool = make_thread_pool(1);
  auto meter = RoofMeter::create(pool.get(), Device::this_cpu(), 32 << 20);
  ASSERT_TRUE(meter.ok());
  const ColdWeights weights = weights_of("int4-g32", LayoutId::kCpuPanel16, pool.get());
  const auto result =
      run_bench_case(quick_case(Compute::kInt8, DType::kBF16, 2), weights, pool.get(), &*meter);
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_LE(result->us_p10, result->us_median);
  EXPECT_LE(result->us_median, result->us_p90);
  EXPECT_EQ(result->compute_roof, Roof::kInt8);
  EXPECT_NEAR(result->gflops * result->us_median, 2e-3 * 2 * kN * kK, 1e-6);
  EXPECT_GE(result->rounds + result->dropped_rounds, 12);
  EXPECT_GE(result->runs, result->rounds);
}

#ifdef __linux__
TEST(PinThreads, EveryThreadStaysOnACoreOfItsOwn) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  const int cores = CPU_COUNT(&before);
  {
    auto pool = make_thread_pool(std::min(cores, 4));
    ASSERT_TRUE(pin_threads(pool.get()).ok());
    std::mutex mutex;
    std::set<int> used;
    for (int round = 0; round < 50; ++round) {
      pool->for_each(pool->num_threads(), [&](int64_t) {
        cpu_set_t mine;
        if (sched_getaffinity(0, sizeof(mine), &mine) != 0 || CPU_COUNT(&mine) != 1) return;
        const std::lock_guard<std::mutex> lock(mutex);
        used.insert(sched_getcpu());
      });
    }
    EXPECT_GE(used.size(), 1u);
    EXPECT_LE(used.size(), static_cast<size_t>(pool->num_threads()));
  }
  sched_setaffinity(0, sizeof(before), &before);

  auto too_many = make_thread_pool(cores + 1);
  EXPECT_EQ(pin_threads(too_many.get()).code(), Code::kInvalidArgument);
}
#endif

}  // namespace
}  // namespace nibble::cli
