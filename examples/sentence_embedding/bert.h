// A BERT encoder that turns token ids into one sentence embedding: mean of the last hidden states,
// scaled to length 1. Dense layers are FP32 or 4-bit, as the checkpoint stores them; all the rest
// (embeddings, attention, LayerNorm) is FP32 in both.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_BERT_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_BERT_H_

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dense_layer.h"
#include "nibble/checkpoint.h"
#include "nibble/core.h"

namespace sentence_embedding {

/// config.json, with max_seq_length of sentence_bert_config.json beside it.
struct BertConfig {
  int64_t layers = 0, hidden = 0, heads = 0, intermediate = 0;
  int64_t vocabulary = 0, positions = 0;
  int32_t max_tokens = 0;  ///< <= positions
  float layer_norm_eps = 0;

  /// `sentence_json` may be empty: then max_tokens is `positions`. Errors: what this encoder does
  /// not compute (another activation, relative positions), absent or impossible sizes.
  static nibble::Result<BertConfig> parse(std::string_view config_json,
                                          std::string_view sentence_json);
};

/// Rows of `hidden` floats, in place: (x - mean) / sqrt(variance + eps) * gain + offset.
struct LayerNorm {
  std::vector<float> gain, offset;
  float eps = 0;
  void run(std::span<float> rows) const;
};

/// softmax(q k^T / sqrt(head)) v for each head; q, k, v and out are [tokens, heads * head_columns].
struct AttentionShape {
  int64_t tokens = 0, heads = 0, head_columns = 0;
};
void attend(const AttentionShape& shape, const float* q, const float* k, const float* v, float* out,
            nibble::ThreadPool& pool);

class Bert {
 public:
  /// Reads a Hugging Face directory, FP32 or quantized. `compute` says what the 4-bit layers may do
  /// with activations. The pool must outlive the encoder.
  static nibble::Result<Bert> load(const std::string& directory, nibble::Compute compute,
                                   nibble::ThreadPool* pool);

  /// `ids` holds 1 to config().max_tokens ids of the vocabulary; `embedding` has config().hidden
  /// floats. Uses buffers of its own: one call at a time.
  nibble::Status embed(std::span<const int32_t> ids, std::span<float> embedding);

  const BertConfig& config() const { return config_; }
  /// Of the dense layers that `embed` runs, as the checkpoint stores their weights.
  int64_t dense_bytes() const { return dense_bytes_; }
  int64_t dense_weights() const { return dense_weights_; }
  /// Their Format: "fp32", a name as "int4-g128", or "mixed".
  const std::string& dense_format() const { return dense_format_; }
  /// Of all safetensors files of the checkpoint.
  int64_t file_bytes() const { return file_bytes_; }

 private:
  enum DenseRole { kQuery, kKey, kValue, kAttentionOutput, kIntermediate, kOutput, kNumRoles };
  struct Layer {
    std::array<std::unique_ptr<DenseLayer>, kNumRoles> dense;
    LayerNorm attention_norm, output_norm;
  };

  explicit Bert(nibble::Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}
  nibble::Result<std::vector<float>> floats(const std::string& name, int64_t rows, int64_t cols);
  nibble::Result<LayerNorm> load_norm(const std::string& name);
  nibble::Result<std::unique_ptr<DenseLayer>> load_dense(const std::string& name, int64_t n,
                                                         int64_t k, nibble::Compute compute);
  nibble::Status load_tables();
  nibble::Status run_layer(const Layer& layer, int64_t tokens);

  nibble::Checkpoint checkpoint_;  ///< keeps the mapped word embeddings alive
  BertConfig config_;
  nibble::ThreadPool* pool_ = nullptr;
  nibble::Tensor words_;          ///< [vocabulary, hidden]
  std::vector<float> positions_;  ///< [positions, hidden], token type 0 added
  LayerNorm embedding_norm_;
  std::vector<Layer> layers_;
  int64_t dense_bytes_ = 0, dense_weights_ = 0, file_bytes_ = 0;
  std::string dense_format_;
  /// [max_tokens, hidden] each; wide_ is [max_tokens, intermediate].
  std::vector<float> states_, attended_, query_, key_, value_, wide_;
};

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_BERT_H_
