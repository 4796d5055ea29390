// One dense layer of the encoder, y = activation(x W^T + bias) + residual, in FP32 or in 4 bits.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_DENSE_LAYER_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_DENSE_LAYER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "nibble/core.h"
#include "nibble/ops.h"

namespace sentence_embedding {

/// x [m, inputs], y [m, outputs] and residual [m, outputs] (null: none) are dense row-major f32.
struct DenseCall {
  const float* x = nullptr;
  float* y = nullptr;
  int64_t m = 0;
  nibble::Activation activation = nibble::Activation::kNone;  ///< kNone or kGeluErf
  const float* residual = nullptr;
};

class DenseLayer {
 public:
  virtual ~DenseLayer() = default;
  virtual nibble::Status run(const DenseCall& call, nibble::ThreadPool& pool) const = 0;
};

/// The weight [n, k] and the bias [n] stay f32: the yardstick for speed and for embeddings.
/// `isa`, one that this CPU has, chooses the vectors: AVX-512, AVX2 with FMA, else 16 bytes.
class F32Dense final : public DenseLayer {
 public:
  F32Dense(std::span<const float> weight, std::span<const float> bias,
           nibble::Isa isa = nibble::Device::this_cpu().best_isa());
  nibble::Status run(const DenseCall& call, nibble::ThreadPool& pool) const override;

 private:
  nibble::Isa isa_;
  int64_t n_ = 0, k_ = 0;
  /// The weights of 16 outputs for one input.
  struct alignas(64) PanelRow {
    float weights[16] = {};
  };
  std::vector<PanelRow> panels_;  ///< [ceil(n/16)][k]; outputs past n have weight 0
  std::vector<float> bias_;       ///< padded with zeros to whole panels
};

/// The weight is packed for this CPU, the bias stays f32; the work is nibble::Linear's.
class FourBitDense final : public DenseLayer {
 public:
  static nibble::Result<std::unique_ptr<DenseLayer>> create(const nibble::QuantizedTensor& weight,
                                                            std::span<const float> bias,
                                                            const nibble::LinearOptions& options);
  nibble::Status run(const DenseCall& call, nibble::ThreadPool& pool) const override;

 private:
  FourBitDense(nibble::Linear linear, std::span<const float> bias)
      : linear_(std::move(linear)), bias_(bias.begin(), bias.end()) {}
  nibble::Linear linear_;
  std::vector<float> bias_;
};

/// x * 0.5 * (1 + erf(x / sqrt 2)) of each value, with an error of at most 2e-7 * max(1, |x|).
void gelu_erf(std::span<float> values, nibble::Isa isa = nibble::Device::this_cpu().best_isa());

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_DENSE_LAYER_H_
