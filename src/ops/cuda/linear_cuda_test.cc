// On a GPU: products, the first use under graph capture, several streams. Without one, the
// refusals.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

#include "nibble/ops.h"
#include "nibble/pack.h"

namespace nibble {
namespace {

/// Codes of all kinds; scales and zeros for which every partial sum is exact in FP32.
QuantizedTensor exact_weight(const std::string& format, int64_t n, int64_t k, uint32_t seed = 1) {
  std::mt19937 random(seed);
  QuantizedTensor q = *make_quantized_tensor(*Format::parse(format), n, k);
  for (int64_t i = 0; i < q.codes.bytes(); ++i)
    q.codes.mutable_data()[i] = static_cast<uint8_t>(random());
  if (q.format.bits() == 4 && k % 2 != 0) {
    for (int64_t row = 1; row <= n; ++row)
      q.codes.mutable_data()[row * q.format.code_row_bytes(k) - 1] &= 15;
  }
  for (int64_t i = 0; i < n * q.format.groups(k); ++i) {
    if (q.format.scale == DType::kE8M0) {
      q.scales.mutable_data()[i] = static_cast<uint8_t>(126 + random() % 2);
    } else {
      store_from_f32(q.scales.mutable_data(), q.format.scale, i, random() % 2 == 0 ? 0.5f : -1.0f);
    }
    if (q.format.zero == ZeroKind::kInteger) {
      q.zeros.mutable_data()[i] = static_cast<uint8_t>(random() % (1u << q.format.bits()));
    } else if (q.format.zero != ZeroKind::kNone) {
      store_from_f32(q.zeros.mutable_data(), q.format.scale, i,
                     static_cast<float>(random() % 16) * 0.5f);
    }
  }
  if (q.format.element == Element::kNF4) {
    for (size_t i = 0; i < 16; ++i) q.codebook[i] = static_cast<float>(i) * 0.25f - 2;  // dyadic
  }
  return q;
}

std::vector<float> integers(int64_t count) {
  std::mt19937 random(3);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 5) - 2);
  return values;
}

constexpr Layout kRowMajor{LayoutId::kRowMajor, false}, kFragments{LayoutId::kCudaFrag16, false},
    kPairedFragments{LayoutId::kCudaFrag16, true};

/// A dense matrix on the GPU.
class GpuMatrix {
 public:
  GpuMatrix(DType dtype, int64_t rows, int64_t cols, const std::vector<float>& values)
      : dtype_(dtype), rows_(rows), cols_(cols), host_(bytes()) {
    for (size_t i = 0; i < values.size(); ++i)
      store_from_f32(host_.data(), dtype, static_cast<int64_t>(i), values[i]);
    EXPECT_EQ(cudaMalloc(&data_, bytes()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data_, host_.data(), bytes(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  GpuMatrix(DType dtype, int64_t rows, int64_t cols)
      : GpuMatrix(dtype, rows, cols, std::vector<float>(static_cast<size_t>(rows * cols), NAN)) {}
  ~GpuMatrix() { cudaFree(data_); }
  GpuMatrix(const GpuMatrix&) = delete;
  GpuMatrix& operator=(const GpuMatrix&) = delete;
  MatrixView view() const { return dense_matrix<const void>(data_, dtype_, rows_, cols_); }
  MutableMatrixView mutable_view() { return dense_matrix<void>(data_, dtype_, rows_, cols_); }
  std::vector<float> read() {
    EXPECT_EQ(cudaMemcpy(host_.data(), data_, bytes(), cudaMemcpyDeviceToHost), cudaSuccess);
    std::vector<float> values(static_cast<size_t>(rows_ * cols_));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = load_as_f32(host_.data(), dtype_, static_cast<int64_t>(i));
    return values;
  }

 private:
  size_t bytes() const { return static_cast<size_t>(rows_ * cols_ * dtype_bytes(dtype_)); }
  DType dtype_;
  int64_t rows_, cols_;
  std::vector<uint8_t> host_;
  void* data_ = nullptr;
};

/// x * decode(w) in double, original column order, pre_scale applied.
std::vector<double> product(const QuantizedTensor& q, const std::vector<float>& x, int64_t m) {
  std::vector<float> w(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, w.data());
  std::vector<double> y(static_cast<size_t>(m * q.n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < q.n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < q.k; ++c) {
        const auto column = static_cast<size_t>(c);
        const double scale = q.pre_scale.empty() ? 1 : static_cast<double>(q.pre_scale[column]);
        sum += static_cast<double>(x[static_cast<size_t>(i * q.k) + column]) * scale *
               static_cast<double>(w[static_cast<size_t>(j * q.k) + column]);
      }
      y[static_cast<size_t>(i * q.n + j)] = sum;
    }
  }
  return y;
}

class LinearOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const DoctorReport report = doctor();
    if (report.gpus.empty()) GTEST_SKIP() << "no GPU here: cuda " << report.cuda;
    gpu_ = report.gpus.front();
  }

  Result<Linear> linear(const QuantizedTensor& q, const Layout& layout) const {
    NIBBLE_ASSIGN_OR_RETURN(const PackedWeight packed, pack(q, layout));
    NIBBLE_ASSIGN_OR_RETURN(PackedWeight on_gpu, upload(packed, gpu_));
    LinearOptions options;
    options.device = gpu_;
    return Linear::create(std::move(on_gpu), options);
  }

  /// y == x W^T to the bit, x in `x_dtype`, y in FP32.
  void expect_exact(const QuantizedTensor& q, const Layout& layout, int64_t m, DType x_dtype) {
    auto op = linear(q, layout);
    ASSERT_TRUE(op.ok()) << q.format.name() << ": " << op.status().message();
    expect_exact(*op, q, m, x_dtype);
  }
  void expect_exact(const Linear& op, const QuantizedTensor& q, int64_t m, DType x_dtype) {
    const auto x = integers(m * q.k);
    const GpuMatrix gx(x_dtype, m, q.k, x);
    GpuMatrix gy(DType::kF32, m, q.n);
    const Status status = op.run(gx.view(), gy.mutable_view());
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const auto expected = product(q, x, m);
    const auto y = gy.read();
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_EQ(static_cast<double>(y[i]), expected[i])
          << q.format.name() << " " << op.info().layout.name() << " m=" << m << " n=" << q.n
          << " k=" << q.k << " x=" << dtype_name(x_dtype) << " at " << i / static_cast<size_t>(q.n)
          << ", " << i % static_cast<size_t>(q.n);
    }
  }

  Device gpu_;
};

std::vector<std::string> every_kind_of_format() {
  std::vector<std::string> formats(named_formats().begin(), named_formats().end());
  for (const char* each :
       {"uint4-g32:f16:zfloat", "uint4-g64:f32:zadd", "uint4-channel:bf16:zadd", "uint4-g16:e4m3",
        "uint8-g64:f16", "uint8-g16:f32:zfloat", "uint8-channel", "int4-g32:e8m0", "int4-g16:f32",
        "fp4-g16:bf16", "fp4-g64:f16", "fp4-g128", "fp4-channel", "nf4-g16", "nf4-g32:bf16",
        "nf4-g128", "nf4-channel"}) {
    formats.emplace_back(each);
  }
  return formats;
}

TEST_F(LinearOnGpu, MultipliesEveryFormatExactlyOnExactData) {
  for (const Layout& layout : {kRowMajor, kFragments}) {
    for (const std::string& format : every_kind_of_format()) {
      const QuantizedTensor q = exact_weight(format, 70, 304);
      expect_exact(q, layout, 5, DType::kF32);
    }
  }
}

TEST_F(LinearOnGpu, TakesEveryNumberOfRowsUpToSixteenAndMore) {
  for (const char* format : {"int4-g128", "nvfp4", "uint4-g32", "nf4-g64", "int8-g64"}) {
    const QuantizedTensor q = exact_weight(format, 50, 320);
    const auto op = linear(q, kFragments);
    ASSERT_TRUE(op.ok()) << op.status().message();
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 33, 65}) {
      for (const DType x : {DType::kBF16, DType::kF16, DType::kF32}) expect_exact(*op, q, m, x);
    }
  }
}

TEST_F(LinearOnGpu, TakesOddShapesShortGroupsAndManyBlocks) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 2},
                             {15, 66},
                             {17, 130},
                             {7, 4304},
                             {33, 1000},
                             {2100, 256},
                             {300, 2050},
                             {5000, 128}}) {
    for (const char* format : {"int4-g128", "nvfp4", "uint4-g32:f16:zfloat", "int8-channel"}) {
      for (const int64_t m : {1, 3, 16}) {
        expect_exact(exact_weight(format, n, k), kFragments, m, DType::kBF16);
      }
    }
  }
}

// From 17 rows of BF16 on, an H200 takes the wide kernels: all their tiles, splits of K and ways to
// store, beside the shapes that leave tiles, blocks and panels half empty.
TEST_F(LinearOnGpu, MultipliesManyRowsExactlyOnExactData) {
  for (const auto& [n, k, m] : {std::array<int64_t, 3>{128, 128, 64},
                                {70, 304, 37},
                                {300, 2048, 130},
                                {256, 4304, 300},
                                {48, 64, 17},
                                {33, 66, 20},  // rows of x that the copy engine cannot read
                                {640, 8192, 33}}) {
    for (const char* format :
         {"int4-g128", "int4-g32", "int4-g16:f32", "int4-channel", "int4-g64:f16", "uint4-g32",
          "uint4-g128:f16", "nvfp4", "mxfp4", "fp4-g32", "fp4-g64:f16"}) {
      expect_exact(exact_weight(format, n, k), kFragments, m, DType::kBF16);
    }
  }
}

TEST_F(LinearOnGpu, TheFirstUseWithManyRowsMayHappenUnderGraphCapture) {
  const int64_t m = 200;
  const QuantizedTensor q = exact_weight("nvfp4", 256, 1024);
  auto op = linear(q, kFragments);
  ASSERT_TRUE(op.ok()) << op.status().message();
  const auto x = integers(m * 1024);
  const GpuMatrix gx(DType::kBF16, m, 1024, x);
  GpuMatrix gy(DType::kF32, m, 256);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  RunContext context;
  context.stream = stream;
  const Status status = op->run(gx.view(), gy.mutable_view(), {}, context);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaGraphInstantiate(&instance, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(instance, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const auto expected = product(q, x, m);
  const auto y = gy.read();
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(static_cast<double>(y[i]), expected[i]) << i;
  cudaGraphExecDestroy(instance);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(LinearOnGpu, ManyRowsTakeTensorScalesAndPairedWeights) {
  const int64_t m = 100, n = 2 * 152, k = 1000;
  for (const char* format : {"nvfp4", "int4-g128", "uint4-g32:f16"}) {
    QuantizedTensor q = exact_weight(format, n, k);
    q.tensor_scales = {{0, 0.0625f}, {n / 2, 0.25f}};
    expect_exact(q, kFragments, m, DType::kBF16);
    auto op = linear(q, kPairedFragments);
    ASSERT_TRUE(op.ok()) << op.status().message();
    const auto x = integers(m * k);
    const GpuMatrix gx(DType::kBF16, m, k, x);
    GpuMatrix gy(DType::kF32, m, n / 2);
    ASSERT_TRUE(op->run(gx.view(), gy.mutable_view()).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const auto sums = product(q, x, m);
    const auto y = gy.read();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n / 2; ++j) {
        const auto gate = static_cast<float>(sums[static_cast<size_t>(i * n + j)]);
        const auto up = static_cast<float>(sums[static_cast<size_t>(i * n + n / 2 + j)]);
        ASSERT_EQ(y[static_cast<size_t>(i * (n / 2) + j)], gate * up) << format << i << " " << j;
      }
    }
  }
}

TEST_F(LinearOnGpu, GathersScalesAndTakesTensorScales) {
  for (const Layout& layout : {kRowMajor, kFragments}) {
    QuantizedTensor q = exact_weight("nvfp4", 40, 208);
    q.tensor_scales = {{0, 0.5f}, {23, 4.0f}};
    q.tensor_scale_op = TensorScaleOp::kDivide;
    for (int32_t j = 0; j < 208; ++j) {
      q.k_perm.push_back((j * 5) % 208);
      q.pre_scale.push_back(j % 3 == 0 ? 2.0f : 0.5f);
    }
    for (const DType x : {DType::kBF16, DType::kF32}) expect_exact(q, layout, 3, x);
  }
}

TEST_F(LinearOnGpu, AppliesTheEpilogueInItsOrderAndRoundsOnce) {
  const int64_t m = 3, n = 48, k = 256;
  const QuantizedTensor q = exact_weight("int4-g32", n, k);
  auto op = linear(q, kFragments);
  ASSERT_TRUE(op.ok()) << op.status().message();
  const auto x = integers(m * k);
  std::vector<float> bias(static_cast<size_t>(n)), c(static_cast<size_t>(m * n)), r(c.size());
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i) - 20;
  for (size_t i = 0; i < c.size(); ++i) {
    c[i] = static_cast<float>(i % 7);
    r[i] = static_cast<float>(i % 5) * 0.5f;
  }
  for (const DType y_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const GpuMatrix gx(DType::kBF16, m, k, x), gbias(DType::kF16, 1, n, bias), gr(y_dtype, m, n, r);
    GpuMatrix gy(y_dtype, m, n, c);  // c is y itself
    Epilogue e;
    e.alpha = 0.5f;
    e.beta = 2;
    e.c = gy.view();
    e.bias = gbias.view().data;
    e.bias_dtype = DType::kF16;
    e.residual = gr.view();
    e.activation = Activation::kRelu;
    const Status status = op->run(gx.view(), gy.mutable_view(), e);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const auto sums = product(q, x, m);
    const auto y = gy.read();
    for (size_t i = 0; i < y.size(); ++i) {
      const double t = std::max(0.0, 0.5 * sums[i] + static_cast<double>(bias[i % bias.size()]));
      uint8_t rounded[4];
      store_from_f32(
          rounded, y_dtype, 0,
          static_cast<float>(t + 2.0 * static_cast<double>(c[i]) + static_cast<double>(r[i])));
      ASSERT_EQ(y[i], load_as_f32(rounded, y_dtype, 0)) << dtype_name(y_dtype) << " " << i;
    }
  }
}

TEST_F(LinearOnGpu, MultipliesGateAndUpFromAPairedWeight) {
  for (const char* format : {"int4-g128", "nvfp4", "nf4-g64", "int8-g64", "uint4-g16"}) {
    for (const Activation activation :
         {Activation::kNone, Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
      const int64_t m = 2, n = 2 * 37, k = 192;
      QuantizedTensor q = exact_weight(format, n, k);
      q.tensor_scales = {{0, 0.0625f}, {37, 0.25f}};
      auto op = linear(q, kPairedFragments);
      ASSERT_TRUE(op.ok()) << op.status().message();
      const auto x = integers(m * k);
      const GpuMatrix gx(DType::kF16, m, k, x);
      GpuMatrix gy(DType::kF32, m, n / 2);
      Epilogue e;
      e.activation = activation;
      const Status status = op->run(gx.view(), gy.mutable_view(), e);
      ASSERT_TRUE(status.ok()) << status.message();
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      const auto sums = product(q, x, m);
      const auto y = gy.read();
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n / 2; ++j) {
          const double gate = sums[static_cast<size_t>(i * n + j)],
                       up = sums[static_cast<size_t>(i * n + n / 2 + j)];
          const double expected = activate(activation, gate) * up;
          // docs/numerics.md: 8u of the gate for the activation, u for the product.
          const double tolerance = (8 * std::fabs(gate * up) + std::fabs(expected)) * 0x1p-24;
          ASSERT_NEAR(static_cast<double>(y[static_cast<size_t>(i * (n / 2) + j)]), expected,
                      tolerance)
              << format << " " << activation_name(activation) << " " << i << " " << j;
        }
      }
    }
  }
}

// An Inf or NaN in one row of x stays in that row; an Inf does not become NaN by being split.
TEST_F(LinearOnGpu, ARowWithInfinityTouchesNoOther) {
  const int64_t m = 3, n = 20, k = 128;
  const QuantizedTensor q = exact_weight("int8-g32", n, k);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    auto op = linear(q, kFragments);
    ASSERT_TRUE(op.ok()) << op.status().message();
    auto x = integers(m * k);
    const auto expected = product(q, x, m);
    x[static_cast<size_t>(k + 5)] = INFINITY;
    const GpuMatrix gx(dtype, m, k, x);
    GpuMatrix gy(DType::kF32, m, n);
    ASSERT_TRUE(op->run(gx.view(), gy.mutable_view()).ok());
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const auto y = gy.read();
    for (int64_t j = 0; j < n; ++j) {
      ASSERT_EQ(static_cast<double>(y[static_cast<size_t>(j)]), expected[static_cast<size_t>(j)]);
      ASSERT_EQ(static_cast<double>(y[static_cast<size_t>(2 * n + j)]),
                expected[static_cast<size_t>(2 * n + j)]);
      const float w = q.decode(j, 5);
      const float got = y[static_cast<size_t>(n + j)];
      if (w == 0) {
        ASSERT_TRUE(std::isnan(got));
      } else {
        ASSERT_EQ(got, w > 0 ? INFINITY : -INFINITY) << dtype_name(dtype) << " " << j;
      }
    }
  }
}

TEST_F(LinearOnGpu, TheFirstUseMayHappenUnderGraphCapture) {
  for (const Layout& layout : {kRowMajor, kFragments}) {
    const QuantizedTensor q = exact_weight("nvfp4", 48, 128);
    auto op = linear(q, layout);
    ASSERT_TRUE(op.ok()) << op.status().message();
    const auto x = integers(3 * 128);
    const GpuMatrix gx(DType::kF32, 3, 128, x);
    GpuMatrix gy(DType::kF32, 3, 48);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    RunContext context;
    context.stream = stream;
    for (int i = 0; i < 3; ++i) {  // the second and third are ordered programmatically
      const Status status = op->run(gx.view(), gy.mutable_view(), {}, context);
      ASSERT_TRUE(status.ok()) << status.message();
    }
    ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&instance, graph, 0), cudaSuccess);
    for (const float y : gy.read()) ASSERT_TRUE(std::isnan(y));  // capturing ran nothing
    ASSERT_EQ(cudaGraphLaunch(instance, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const auto expected = product(q, x, 3);
    const auto y = gy.read();
    for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(static_cast<double>(y[i]), expected[i]) << i;
    cudaGraphExecDestroy(instance);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
}

// Layers that feed each other on one stream, many times: a kernel that read its x before the kernel
// before it had finished would show.
TEST_F(LinearOnGpu, AChainOfLayersSeesEveryIntermediate) {
  const int64_t size = 1024, layers = 24;
  // Each layer is a permutation: row j has one code of 1 at column (j * 5 + 3) % size.
  QuantizedTensor q = *make_quantized_tensor(*Format::parse("int8-channel"), size, size);
  for (int64_t j = 0; j < size; ++j) {
    q.codes.mutable_data()[j * size + (j * 5 + 3) % size] = 1;
    store_from_f32(q.scales.mutable_data(), q.format.scale, j, 1);
  }
  auto op = linear(q, kFragments);
  ASSERT_TRUE(op.ok()) << op.status().message();
  for (int repeat = 0; repeat < 50; ++repeat) {
    std::vector<float> x(static_cast<size_t>(size));
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = static_cast<float>((i * 7 + static_cast<size_t>(repeat)) % 251);
    GpuMatrix a(DType::kBF16, 1, size, x), b(DType::kBF16, 1, size);
    for (int64_t layer = 0; layer < layers; ++layer) {
      GpuMatrix &from = layer % 2 == 0 ? a : b, &to = layer % 2 == 0 ? b : a;
      ASSERT_TRUE(op->run(from.view(), to.mutable_view()).ok());
      std::vector<float> next(x.size());
      for (size_t j = 0; j < x.size(); ++j) next[j] = x[(j * 5 + 3) % x.size()];
      x = next;
    }
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    ASSERT_EQ(a.read(), x) << repeat;
  }
}

TEST_F(LinearOnGpu, RefusesAWeightThatIsNotOnTheGpu) {
  LinearOptions options;
  options.device = gpu_;
  const Status status =
      Linear::create(*pack(exact_weight("int4-g32", 16, 32), kRowMajor), options).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("needs the weight uploaded"), std::string::npos);
}

TEST(GpuAbsenceTest, UploadingToAGpuThatIsNotThereIsAnError) {
  if (!doctor().gpus.empty()) GTEST_SKIP() << "a GPU is here";
  const auto packed = pack(exact_weight("int4-g32", 16, 32), kRowMajor);
  const Status status = upload(*packed, *Device::named("h200")).status();
  EXPECT_EQ(status.code(), Code::kCuda);
  EXPECT_NE(status.message().find("cudaSetDevice"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace nibble
