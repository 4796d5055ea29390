// On a GPU: products, the first use under graph capture, several streams. Without one, the
// refusals.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "nibble/ops.h"
#include "nibble/pack.h"

namespace nibble {
namespace {

QuantizedTensor exact_weight(const char* format, int64_t n, int64_t k) {
  std::mt19937 random(1);
  QuantizedTensor q = *make_quantized_tensor(*Format::parse(format), n, k);
  for (int64_t i = 0; i < q.codes.bytes(); ++i)
    q.codes.mutable_data()[i] = static_cast<uint8_t>(random());
  for (int64_t i = 0; i < n * q.format.groups(k); ++i) {
    if (q.format.scale == DType::kE8M0) {
      q.scales.mutable_data()[i] = 127;
    } else {
      store_from_f32(q.scales.mutable_data(), q.format.scale, i, random() % 2 == 0 ? 0.5f : 1.0f);
    }
  }
  if (q.format.element == Element::kNF4) {
    for (size_t i = 0; i < 16; ++i) q.codebook[i] = static_cast<float>(i) * 0.25f - 2;  // dyadic
  }
  return q;
}

class LinearOnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const DoctorReport report = doctor();
    if (report.gpus.empty()) GTEST_SKIP() << "no GPU here: cuda " << report.cuda;
    gpu_ = report.gpus.front();
  }

  Result<Linear> linear(const QuantizedTensor& q) const {
    NIBBLE_ASSIGN_OR_RETURN(const PackedWeight packed, pack(q, {LayoutId::kRowMajor, false}));
    NIBBLE_ASSIGN_OR_RETURN(PackedWeight on_gpu, upload(packed, gpu_));
    LinearOptions options;
    options.device = gpu_;
    return Linear::create(std::move(on_gpu), options);
  }

  Device gpu_;
};

struct GpuFloats {
  explicit GpuFloats(const std::vector<float>& host) : count(host.size()) {
    EXPECT_EQ(cudaMalloc(&data, count * 4), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(data, host.data(), count * 4, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~GpuFloats() { cudaFree(data); }
  GpuFloats(const GpuFloats&) = delete;
  GpuFloats& operator=(const GpuFloats&) = delete;
  std::vector<float> host() const {
    std::vector<float> copy(count);
    EXPECT_EQ(cudaMemcpy(copy.data(), data, count * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    return copy;
  }
  void* data = nullptr;
  size_t count;
};

void expect_product(const QuantizedTensor& q, const std::vector<float>& x, int64_t m,
                    const std::vector<float>& y) {
  std::vector<float> w(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, w.data());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < q.n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < q.k; ++c) {
        sum += static_cast<double>(x[static_cast<size_t>(i * q.k + c)]) *
               static_cast<double>(w[static_cast<size_t>(j * q.k + c)]);
      }
      ASSERT_EQ(static_cast<double>(y[static_cast<size_t>(i * q.n + j)]), sum)
          << q.format.name() << " " << i << " " << j;
    }
  }
}

std::vector<float> integers(int64_t count) {
  std::mt19937 random(3);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 5) - 2);
  return values;
}

TEST_F(LinearOnGpu, MultipliesEveryNamedFormatExactlyOnExactData) {
  for (const char* format : named_formats()) {
    const QuantizedTensor q = exact_weight(format, 70, 304);
    auto op = linear(q);
    ASSERT_TRUE(op.ok()) << format << ": " << op.status().message();
    const auto x = integers(5 * 304);
    const GpuFloats gx(x);
    const GpuFloats gy(std::vector<float>(5 * 70, NAN));
    const Status status = op->run(dense_matrix<const void>(gx.data, DType::kF32, 5, 304),
                                  dense_matrix<void>(gy.data, DType::kF32, 5, 70));
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    expect_product(q, x, 5, gy.host());
  }
}

TEST_F(LinearOnGpu, TheFirstUseMayHappenUnderGraphCapture) {
  const QuantizedTensor q = exact_weight("nvfp4", 48, 128);
  auto op = linear(q);
  ASSERT_TRUE(op.ok()) << op.status().message();
  const auto x = integers(3 * 128);
  const GpuFloats gx(x);
  const GpuFloats gy(std::vector<float>(3 * 48, NAN));
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t instance;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  RunContext context;
  context.stream = stream;
  const Status status = op->run(dense_matrix<const void>(gx.data, DType::kF32, 3, 128),
                                dense_matrix<void>(gy.data, DType::kF32, 3, 48), {}, context);
  ASSERT_TRUE(status.ok()) << status.message();
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&instance, graph, 0), cudaSuccess);
  for (const float y : gy.host()) ASSERT_TRUE(std::isnan(y));  // capturing ran nothing
  ASSERT_EQ(cudaGraphLaunch(instance, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  expect_product(q, x, 3, gy.host());
  cudaGraphExecDestroy(instance);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(LinearOnGpu, RefusesAWeightThatIsNotOnTheGpu) {
  LinearOptions options;
  options.device = gpu_;
  const Status status =
      Linear::create(*pack(exact_weight("int4-g32", 16, 32), {LayoutId::kRowMajor, false}), options)
          .status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("needs the weight uploaded"), std::string::npos);
}

TEST(GpuAbsenceTest, UploadingToAGpuThatIsNotThereIsAnError) {
  if (!doctor().gpus.empty()) GTEST_SKIP() << "a GPU is here";
  const auto packed = pack(exact_weight("int4-g32", 16, 32), {LayoutId::kRowMajor, false});
  const Status status = upload(*packed, *Device::named("h200")).status();
  EXPECT_EQ(status.code(), Code::kCuda);
  EXPECT_NE(status.message().find("cudaSetDevice"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace nibble
