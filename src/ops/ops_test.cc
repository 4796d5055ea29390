// Behaviour of the ops that the walk over the kernel table (tests/internal) does not see: checks at
// the border, bands, workspaces, pools, chains of two products.
#include "nibble/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "nibble/pack.h"

namespace nibble {
namespace {

QuantizedTensor weight(const char* format, int64_t n, int64_t k, uint32_t seed = 1) {
  std::mt19937 random(seed);
  QuantizedTensor q = *make_quantized_tensor(*Format::parse(format), n, k);
  for (int64_t i = 0; i < q.codes.bytes(); ++i)
    q.codes.mutable_data()[i] = static_cast<uint8_t>(random());
  if (q.format.bits() == 4 && k % 2 != 0) {
    for (int64_t r = 1; r <= n; ++r)
      q.codes.mutable_data()[r * q.format.code_row_bytes(k) - 1] &= 15;
  }
  // Powers of two: with small integers in x every order of summation gives the same bits.
  for (int64_t i = 0; i < n * q.format.groups(k); ++i) {
    store_from_f32(q.scales.mutable_data(), q.format.scale, i, random() % 2 == 0 ? 0.5f : 1.0f);
  }
  return q;
}

std::vector<float> integers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 5) - 2);
  return values;
}

/// x W^T by the specification: dequantize, gather and pre-scale in double.
std::vector<double> product(const QuantizedTensor& q, const std::vector<float>& x, int64_t m) {
  std::vector<float> w(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, w.data());
  std::vector<double> y(static_cast<size_t>(m * q.n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < q.n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < q.k; ++c) {
        const double scale =
            q.pre_scale.empty() ? 1.0 : static_cast<double>(q.pre_scale[static_cast<size_t>(c)]);
        sum += static_cast<double>(x[static_cast<size_t>(i * q.k + c)]) * scale *
               static_cast<double>(w[static_cast<size_t>(j * q.k + c)]);
      }
      y[static_cast<size_t>(i * q.n + j)] = sum;
    }
  }
  return y;
}

TEST(LinearTest, MultipliesAnyShape) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 2}, {17, 34}, {48, 4304}, {33, 4303}}) {
    const QuantizedTensor q = weight("int4-g16", n, k);
    const Linear linear = *Linear::create(*pack(q, {LayoutId::kCpuPanel16, false}));
    for (const int64_t m : {int64_t{1}, int64_t{3}, int64_t{19}}) {
      const auto x = integers(m * k, 7);
      std::vector<float> y(static_cast<size_t>(m * n), NAN);
      const Status status = linear.run(dense_matrix<const void>(x.data(), DType::kF32, m, k),
                                       dense_matrix<void>(y.data(), DType::kF32, m, n));
      ASSERT_TRUE(status.ok()) << status.message();
      const auto expected = product(q, x, m);
      for (size_t i = 0; i < y.size(); ++i)
        ASSERT_EQ(static_cast<double>(y[i]), expected[i]) << n << " " << k << " " << m << " " << i;
    }
  }
}

TEST(LinearTest, GathersAndPreScalesWithEveryLayout) {
  QuantizedTensor q = weight("int4-g32", 24, 96);
  for (int32_t j = 0; j < 96; ++j) q.k_perm.push_back((j * 7) % 96);
  for (int32_t j = 0; j < 96; ++j) q.pre_scale.push_back(j % 3 == 0 ? 2.0f : 0.5f);
  const auto x = integers(5 * 96, 3);
  const auto expected = product(q, x, 5);
  for (const char* layout : {"cpu_panel16", "row_major"}) {
    const Linear linear = *Linear::create(*pack(q, *Layout::parse(layout)));
    std::vector<float> y(5 * 24);
    ASSERT_TRUE(linear
                    .run(dense_matrix<const void>(x.data(), DType::kF32, 5, 96),
                         dense_matrix<void>(y.data(), DType::kF32, 5, 24))
                    .ok());
    for (size_t i = 0; i < y.size(); ++i)
      ASSERT_EQ(static_cast<double>(y[i]), expected[i]) << layout << " " << i;
  }
}

TEST(LinearTest, ManyRowsRunInBandsWithTheSameResult) {
  const QuantizedTensor q = weight("int4-g32", 40, 64);
  LinearOptions options;
  options.band_rows = 8;
  const Linear banded = *Linear::create(*pack(q, {LayoutId::kCpuPanel16, false}), options);
  const int64_t m = 29;
  const auto x = integers(m * 64, 5);
  const auto addend = integers(m * 40, 6);
  std::vector<float> y = addend;
  Epilogue epilogue;
  epilogue.beta = 2;
  epilogue.c = dense_matrix<const void>(y.data(), DType::kF32, m, 40);
  epilogue.residual = dense_matrix<const void>(addend.data(), DType::kF32, m, 40);
  ASSERT_TRUE(banded
                  .run(dense_matrix<const void>(x.data(), DType::kF32, m, 64),
                       dense_matrix<void>(y.data(), DType::kF32, m, 40), epilogue)
                  .ok());
  const auto expected = product(q, x, m);
  for (size_t i = 0; i < y.size(); ++i)
    ASSERT_EQ(static_cast<double>(y[i]), expected[i] + 3 * static_cast<double>(addend[i]));
  EXPECT_LE(*banded.workspace_bytes(m, DType::kF32, DType::kF32), 8 * 64 * 4 + 512);
}

TEST(LinearTest, TakesTheCallersPoolAndWorkspaceAndIsReentrant) {
  const QuantizedTensor q = weight("int4-g128", 64, 256);
  const Linear linear = *Linear::create(*pack(q, {LayoutId::kCpuPanel16, false}));
  const auto x = integers(4 * 256, 5);
  const auto expected = product(q, x, 4);
  const int64_t bytes = *linear.workspace_bytes(4, DType::kF32, DType::kF32);
  std::vector<std::thread> callers;
  std::vector<int> wrong(4);
  for (size_t c = 0; c < 4; ++c) {
    callers.emplace_back([&, c] {
      const auto pool = make_thread_pool(2);
      Buffer workspace = *Buffer::allocate(bytes);
      RunContext context;
      context.pool = pool.get();
      context.workspace = {reinterpret_cast<std::byte*>(workspace.mutable_data()),
                           static_cast<size_t>(bytes)};
      for (int round = 0; round < 20; ++round) {
        std::vector<float> y(4 * 64);
        const Status status = linear.run(dense_matrix<const void>(x.data(), DType::kF32, 4, 256),
                                         dense_matrix<void>(y.data(), DType::kF32, 4, 64), {},
                                         round % 2 == 0 ? context : RunContext{});
        wrong[c] += status.ok() ? 0 : 1;
        for (size_t i = 0; i < y.size(); ++i)
          wrong[c] += static_cast<double>(y[i]) == expected[i] ? 0 : 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const int count : wrong) EXPECT_EQ(count, 0);
}

TEST(LinearTest, ZeroWorkspaceIsLegal) {
  const QuantizedTensor q = weight("nvfp4", 20, 48);
  LinearOptions options;
  options.max_workspace_bytes = 0;
  const Linear linear = *Linear::create(*pack(q, {LayoutId::kCpuPanel16, false}), options);
  EXPECT_EQ(*linear.workspace_bytes(9, DType::kF32, DType::kF32), 0);
  const auto x = integers(9 * 48, 2);
  std::vector<float> y(9 * 20);
  ASSERT_TRUE(linear
                  .run(dense_matrix<const void>(x.data(), DType::kF32, 9, 48),
                       dense_matrix<void>(y.data(), DType::kF32, 9, 20))
                  .ok());
  const auto expected = product(q, x, 9);
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(static_cast<double>(y[i]), expected[i]);
}

// A described CPU is for plans; its rows may not even be compiled into this build.
TEST(LinearTest, RefusesACpuWithInstructionSetsThisMachineLacks) {
  for (const char* name : {"grace", "avx2-laptop"}) {
    LinearOptions options;
    options.device = *Device::named(name);
    const uint32_t absent = options.device.isas & ~Device::this_cpu().isas;
    const auto linear =
        Linear::create(*pack(weight("int4-g32", 16, 64), {LayoutId::kCpuPanel16, false}), options);
    EXPECT_EQ(linear.ok(), absent == 0) << name;
    if (absent == 0) continue;
    EXPECT_EQ(linear.status().code(), Code::kUnsupported);
    EXPECT_NE(linear.status().message().find("which this machine lacks"), std::string::npos)
        << linear.status().message();
  }
}

TEST(LinearTest, NoRowsDoNothing) {
  const Linear linear =
      *Linear::create(*pack(weight("int4-g32", 16, 32), {LayoutId::kCpuPanel16, false}));
  EXPECT_TRUE(linear.run({nullptr, DType::kF32, 0, 32, 0}, {nullptr, DType::kF32, 0, 16, 0}).ok());
}

TEST(LinearTest, BorderChecksNameTheValueAndTheRule) {
  const Linear linear =
      *Linear::create(*pack(weight("int4-g32", 16, 32), {LayoutId::kCpuPanel16, false}));
  std::vector<float> x(64), y(32);
  const auto run = [&](MatrixView vx, MutableMatrixView vy, Epilogue epilogue = {},
                       RunContext context = {}) {
    return linear.run(vx, vy, epilogue, context).message();
  };
  const MatrixView good_x = dense_matrix<const void>(x.data(), DType::kF32, 2, 32);
  const MutableMatrixView good_y = dense_matrix<void>(y.data(), DType::kF32, 2, 16);
  EXPECT_EQ(run(good_x, good_y), "");
  EXPECT_NE(run(dense_matrix<const void>(x.data(), DType::kF32, 2, 31), good_y)
                .find("x is [2, 31], [2, 32] is needed"),
            std::string::npos);
  EXPECT_NE(run(good_x, dense_matrix<void>(y.data(), DType::kF32, 1, 16)).find("y is [1, 16]"),
            std::string::npos);
  EXPECT_NE(run({x.data(), DType::kI32, 2, 32, 128}, good_y).find("x is i32"), std::string::npos);
  EXPECT_NE(run({x.data(), DType::kF32, 2, 32, 124}, good_y).find("124 bytes apart"),
            std::string::npos);
  EXPECT_NE(run({x.data(), DType::kF32, 2, 32, 130}, good_y).find("not a multiple"),
            std::string::npos);
  EXPECT_NE(run({nullptr, DType::kF32, 2, 32, 128}, good_y).find("no data"), std::string::npos);
  Epilogue epilogue;
  epilogue.beta = 1;
  EXPECT_NE(run(good_x, good_y, epilogue).find("c is [0, 0]"), std::string::npos);
  epilogue.c = {y.data(), DType::kBF16, 2, 16, 64};
  EXPECT_NE(run(good_x, good_y, epilogue).find("c is bf16, y is f32"), std::string::npos);
  epilogue = {};
  epilogue.bias = x.data();
  epilogue.bias_dtype = DType::kI8;
  EXPECT_NE(run(good_x, good_y, epilogue).find("bias is i8"), std::string::npos);
  alignas(256) std::byte small[256];
  if (*linear.workspace_bytes(2, DType::kF32, DType::kF32) > 256) {
    RunContext context;
    context.workspace = small;
    EXPECT_NE(run(good_x, good_y, {}, context).find("the workspace has 256 bytes"),
              std::string::npos);
  }
  LinearOptions options;
  options.compute = Compute::kFp8;
  EXPECT_EQ(
      Linear::create(*pack(weight("int4-g32", 16, 32), {LayoutId::kCpuPanel16, false}), options)
          .status()
          .code(),
      Code::kUnsupported);
  EXPECT_EQ(Linear::create(PackedWeight{}).status().code(), Code::kInvalidArgument);
}

TEST(GatedMlpTest, EqualsItsPartsComputedApart) {
  const int64_t k = 64, hidden = 40, outputs = 24;
  const QuantizedTensor gate_up = weight("int4-g32", 2 * hidden, k, 11),
                        down = weight("int4-g32", outputs, hidden, 12);
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    LinearOptions options;
    options.band_rows = 3;
    const GatedMlp mlp =
        *GatedMlp::create(*pack(gate_up, {LayoutId::kCpuPanel16, true}),
                          *pack(down, {LayoutId::kCpuPanel16, false}), activation, options);
    EXPECT_EQ(mlp.inputs(), k);
    EXPECT_EQ(mlp.intermediate(), hidden);
    EXPECT_EQ(mlp.outputs(), outputs);
    for (const int64_t m : {int64_t{1}, int64_t{7}}) {
      auto x = integers(m * k, 13);
      for (float& v : x) v *= 0.0625f;
      const auto residual = integers(m * outputs, 14);
      const auto both = product(gate_up, x, m);
      std::vector<float> middle;
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < hidden; ++j) {
          const double gate = both[static_cast<size_t>(i * 2 * hidden + j)];
          middle.push_back(static_cast<float>(
              activate(activation, gate) * both[static_cast<size_t>(i * 2 * hidden + hidden + j)]));
        }
      }
      const auto expected = product(down, middle, m);
      std::vector<float> y(static_cast<size_t>(m * outputs), NAN);
      const Status status =
          mlp.run(dense_matrix<const void>(x.data(), DType::kF32, m, k),
                  dense_matrix<void>(y.data(), DType::kF32, m, outputs),
                  dense_matrix<const void>(residual.data(), DType::kF32, m, outputs));
      ASSERT_TRUE(status.ok()) << status.message();
      std::vector<float> w(static_cast<size_t>(outputs * hidden));
      down.dequantize(0, outputs, w.data());
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < outputs; ++j) {
          // Each intermediate carries a few roundings (docs/numerics.md); they meet |w| linearly.
          double magnitude =
              std::fabs(static_cast<double>(residual[static_cast<size_t>(i * outputs + j)]));
          for (int64_t c = 0; c < hidden; ++c) {
            magnitude +=
                std::fabs(static_cast<double>(middle[static_cast<size_t>(i * hidden + c)]) *
                          static_cast<double>(w[static_cast<size_t>(j * hidden + c)]));
          }
          const size_t at = static_cast<size_t>(i * outputs + j);
          ASSERT_NEAR(static_cast<double>(y[at]), expected[at] + static_cast<double>(residual[at]),
                      0x1p-19 * magnitude)
              << activation_name(activation);
        }
      }
    }
  }
}

TEST(GatedMlpTest, RefusesPartsThatDoNotFit) {
  const auto paired = *pack(weight("int4-g32", 80, 64), {LayoutId::kCpuPanel16, true});
  const auto plain = *pack(weight("int4-g32", 80, 64), {LayoutId::kCpuPanel16, false});
  const auto down = *pack(weight("int4-g32", 24, 48), {LayoutId::kCpuPanel16, false});
  EXPECT_NE(GatedMlp::create(plain, down, Activation::kSilu)
                .status()
                .message()
                .find("a paired layout is needed"),
            std::string::npos);
  EXPECT_NE(GatedMlp::create(paired, down, Activation::kSilu)
                .status()
                .message()
                .find("gate_up has 40 intermediate columns, down has k = 48"),
            std::string::npos);
}

}  // namespace
}  // namespace nibble
