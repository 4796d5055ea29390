// Every ggml type that is read runs through Linear: the Formats that k-quants become are ones that
// no other checkpoint has.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/json.h"
#include "nibble/checkpoint.h"
#include "nibble/ops.h"
#include "nibble/pack.h"

namespace nibble {
namespace {

TEST(GgufTypes, RunThroughLinear) {
  const std::string root = std::string(NIBBLE_TEST_DATA_DIR) + "/gguf/all-types";
  const Checkpoint source = Checkpoint::open(root + ".gguf").value();
  const Checkpoint golden = Checkpoint::open(root + ".safetensors").value();
  int layers = 0;
  for (const TensorInfo& info : golden.tensors()) {
    SCOPED_TRACE(info.name);
    const QuantizedTensor q =
        source.load(checkpoint::without_suffix(info.name, ".weight").value()).value();
    const auto linear = Linear::create(pack(q, {LayoutId::kCpuPanel16}).value());
    ASSERT_TRUE(linear.ok()) << linear.status().message();
    ++layers;
    for (const int64_t m : {1, 5}) {
      std::vector<float> x, y(static_cast<size_t>(m * q.n));
      for (int64_t i = 0; i < m * q.k; ++i) {
        x.push_back(static_cast<float>((i * 2654435761 >> 7) % 256 - 128) / 64);
      }
      ASSERT_TRUE(linear
                      ->run(dense_matrix<const void>(x.data(), DType::kF32, m, q.k),
                            dense_matrix<void>(y.data(), DType::kF32, m, q.n))
                      .ok());
      const Tensor weight = golden.tensor(info.name).value();
      const auto* w = static_cast<const float*>(weight.view.data);
      for (int64_t row = 0; row < m; ++row) {
        for (int64_t out = 0; out < q.n; ++out) {
          double sum = 0, absolute = 0;
          for (int64_t k = 0; k < q.k; ++k) {
            const double each =
                static_cast<double>(x[static_cast<size_t>(row * q.k + k)]) * w[out * q.k + k];
            sum += each;
            absolute += std::abs(each);
          }
          EXPECT_NEAR(y[static_cast<size_t>(row * q.n + out)], sum, std::ldexp(absolute, -20));
        }
      }
    }
  }
  EXPECT_EQ(layers, 14);
}

}  // namespace
}  // namespace nibble
