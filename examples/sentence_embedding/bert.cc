#include "bert.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>

namespace sentence_embedding {
namespace {

using nibble::Activation;
using nibble::DType;
using nibble::Result;
using nibble::Status;
using Json = nlohmann::json;

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

/// Values of one config file, with errors that name the key.
class Keys {
 public:
  Keys(std::string file, std::string_view text)
      : file_(std::move(file)), json_(Json::parse(text, nullptr, /*allow_exceptions=*/false)) {}

  Status check() const {
    return json_.is_object() ? nibble::ok_status()
                             : nibble::corrupt_file(file_ + ": not a JSON object");
  }
  Status read_size(const char* key, int64_t& out) const {
    constexpr int64_t kLargest = 1 << 24;
    const auto found = json_.find(key);
    if (found == json_.end() || !found->is_number_integer()) {
      return nibble::corrupt_file(file_ + ": '" + key + "' is not an integer");
    }
    out = found->get<int64_t>();
    if (out < 1 || out > kLargest) {
      return nibble::corrupt_file(file_ + ": '" + key + "' is " + std::to_string(out) +
                                  ", not within 1 .. " + std::to_string(kLargest));
    }
    return nibble::ok_status();
  }
  Status require_text(const char* key, std::initializer_list<const char*> allowed) const {
    const auto found = json_.find(key);
    if (found == json_.end())
      return nibble::ok_status();  // the first one allowed is BERT's default
    for (const char* value : allowed) {
      if (*found == value) return nibble::ok_status();
    }
    return nibble::unsupported(file_ + ": '" + key + "' is " + found->dump() +
                               "; this example computes \"" + *allowed.begin() + "\" only");
  }
  double number_or(const char* key, double absent) const {
    const auto found = json_.find(key);
    return found != json_.end() && found->is_number() ? found->get<double>() : absent;
  }

 private:
  std::string file_;
  Json json_;
};

/// The text of a file that may be absent.
std::string text_or_empty(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

Result<BertConfig> BertConfig::parse(std::string_view config_json, std::string_view sentence_json) {
  BertConfig out;
  const Keys config("config.json", config_json);
  NIBBLE_RETURN_IF_ERROR(config.check());
  NIBBLE_RETURN_IF_ERROR(config.require_text("model_type", {"bert"}));
  NIBBLE_RETURN_IF_ERROR(config.require_text("hidden_act", {"gelu"}));
  NIBBLE_RETURN_IF_ERROR(config.require_text("position_embedding_type", {"absolute"}));
  NIBBLE_RETURN_IF_ERROR(config.read_size("num_hidden_layers", out.layers));
  NIBBLE_RETURN_IF_ERROR(config.read_size("hidden_size", out.hidden));
  NIBBLE_RETURN_IF_ERROR(config.read_size("num_attention_heads", out.heads));
  NIBBLE_RETURN_IF_ERROR(config.read_size("intermediate_size", out.intermediate));
  NIBBLE_RETURN_IF_ERROR(config.read_size("vocab_size", out.vocabulary));
  NIBBLE_RETURN_IF_ERROR(config.read_size("max_position_embeddings", out.positions));
  out.layer_norm_eps = static_cast<float>(config.number_or("layer_norm_eps", 1e-12));
  if (out.hidden % out.heads != 0) {
    return nibble::corrupt_file("config.json: hidden_size " + std::to_string(out.hidden) +
                                " is not a multiple of num_attention_heads " +
                                std::to_string(out.heads));
  }
  int64_t max_tokens = out.positions;
  if (!sentence_json.empty()) {
    const Keys sentence("sentence_bert_config.json", sentence_json);
    NIBBLE_RETURN_IF_ERROR(sentence.check());
    NIBBLE_RETURN_IF_ERROR(sentence.read_size("max_seq_length", max_tokens));
  }
  if (max_tokens < 2 || max_tokens > out.positions) {
    return nibble::corrupt_file(
        "max_seq_length " + std::to_string(max_tokens) +
        " is not within 2 .. max_position_embeddings = " + std::to_string(out.positions));
  }
  out.max_tokens = static_cast<int32_t>(max_tokens);
  return out;
}

Result<std::vector<float>> Bert::floats(const std::string& name, int64_t rows, int64_t cols) {
  NIBBLE_ASSIGN_OR_RETURN(const nibble::Tensor tensor, checkpoint_.tensor(name));
  const std::vector<int64_t> wanted =
      rows == 0 ? std::vector<int64_t>{cols} : std::vector<int64_t>{rows, cols};
  if (!nibble::is_activation_dtype(tensor.view.dtype) || tensor.view.shape != wanted) {
    return nibble::corrupt_file(name + ": " + nibble::dtype_name(tensor.view.dtype) + " " +
                                shape_text(tensor.view.shape) + " where a float tensor " +
                                shape_text(wanted) + " belongs");
  }
  std::vector<float> out(static_cast<size_t>(tensor.view.elements()));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = nibble::load_as_f32(tensor.view.data, tensor.view.dtype, static_cast<int64_t>(i));
  }
  return out;
}

Result<LayerNorm> Bert::load_norm(const std::string& name) {
  LayerNorm norm;
  NIBBLE_ASSIGN_OR_RETURN(norm.gain, floats(name + ".weight", 0, config_.hidden));
  NIBBLE_ASSIGN_OR_RETURN(norm.offset, floats(name + ".bias", 0, config_.hidden));
  norm.eps = config_.layer_norm_eps;
  return norm;
}

Result<std::unique_ptr<DenseLayer>> Bert::load_dense(const std::string& name, int64_t n, int64_t k,
                                                     nibble::Compute compute) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> bias, floats(name + ".bias", 0, n));
  dense_weights_ += n * k;
  const nibble::LayerInfo* layer = checkpoint_.find_layer(name);
  const std::string format = layer != nullptr && layer->status.ok() ? layer->format.name() : "fp32";
  dense_format_ = dense_format_.empty() || dense_format_ == format ? format : "mixed";
  if (layer == nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> weight, floats(name + ".weight", n, k));
    dense_bytes_ += checkpoint_.find(name + ".weight")->bytes;
    return std::unique_ptr<DenseLayer>(std::make_unique<F32Dense>(weight, bias));
  }
  NIBBLE_ASSIGN_OR_RETURN(const nibble::QuantizedTensor weight, checkpoint_.load(name));
  if (weight.n != n || weight.k != k) {
    return nibble::corrupt_file(name + ": a quantized weight " +
                                shape_text(std::array{weight.n, weight.k}) + " where " +
                                shape_text(std::array{n, k}) + " belongs");
  }
  dense_bytes_ += layer->stored_bytes;
  nibble::LinearOptions options;
  options.compute = compute;
  options.pool = pool_;
  auto made = FourBitDense::create(weight, bias, options);
  if (!made.ok()) return std::move(made).status().with_context(name);
  return made;
}

Status Bert::load_tables() {
  const int64_t hidden = config_.hidden;
  const std::string words = "embeddings.word_embeddings.weight";
  NIBBLE_ASSIGN_OR_RETURN(words_, checkpoint_.tensor(words));
  if (!nibble::is_activation_dtype(words_.view.dtype) ||
      words_.view.shape != std::vector<int64_t>{config_.vocabulary, hidden}) {
    return nibble::corrupt_file(words + ": " + shape_text(words_.view.shape) +
                                " does not agree with config.json");
  }
  NIBBLE_ASSIGN_OR_RETURN(
      positions_, floats("embeddings.position_embeddings.weight", config_.positions, hidden));
  const nibble::TensorInfo* types = checkpoint_.find("embeddings.token_type_embeddings.weight");
  if (types == nullptr || types->shape.size() != 2) {
    return nibble::corrupt_file("embeddings.token_type_embeddings.weight: absent or no matrix");
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> type_rows,
                          floats(types->name, types->shape[0], hidden));
  // One sentence is all token type 0, so its row joins the positions once and for all.
  for (size_t i = 0; i < positions_.size(); ++i) {
    positions_[i] += type_rows[i % static_cast<size_t>(hidden)];
  }
  NIBBLE_ASSIGN_OR_RETURN(embedding_norm_, load_norm("embeddings.LayerNorm"));
  return nibble::ok_status();
}

Result<Bert> Bert::load(const std::string& directory, nibble::Compute compute,
                        nibble::ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(nibble::Checkpoint checkpoint, nibble::Checkpoint::open(directory));
  Bert bert(std::move(checkpoint));
  bert.pool_ = pool;
  for (const std::string& shard : bert.checkpoint_.shards()) {
    std::error_code ignored;  // it is mapped already; only a race could take it away
    bert.file_bytes_ += static_cast<int64_t>(
        std::filesystem::file_size(std::filesystem::path(directory) / shard, ignored));
  }
  const std::filesystem::path sentence_config =
      std::filesystem::path(directory) / "sentence_bert_config.json";
  auto config = BertConfig::parse(bert.checkpoint_.config_json(), text_or_empty(sentence_config));
  if (!config.ok()) return std::move(config).status().with_context(directory);
  bert.config_ = *config;
  NIBBLE_RETURN_IF_ERROR(bert.load_tables());

  const int64_t hidden = config->hidden, intermediate = config->intermediate;
  struct Role {
    DenseRole role;
    const char* name;
    int64_t n, k;
  };
  const Role roles[] = {{kQuery, "attention.self.query", hidden, hidden},
                        {kKey, "attention.self.key", hidden, hidden},
                        {kValue, "attention.self.value", hidden, hidden},
                        {kAttentionOutput, "attention.output.dense", hidden, hidden},
                        {kIntermediate, "intermediate.dense", intermediate, hidden},
                        {kOutput, "output.dense", hidden, intermediate}};
  for (int64_t i = 0; i < config->layers; ++i) {
    const std::string prefix = "encoder.layer." + std::to_string(i) + ".";
    Layer layer;
    for (const Role& role : roles) {
      NIBBLE_ASSIGN_OR_RETURN(layer.dense[role.role],
                              bert.load_dense(prefix + role.name, role.n, role.k, compute));
    }
    NIBBLE_ASSIGN_OR_RETURN(layer.attention_norm,
                            bert.load_norm(prefix + "attention.output.LayerNorm"));
    NIBBLE_ASSIGN_OR_RETURN(layer.output_norm, bert.load_norm(prefix + "output.LayerNorm"));
    bert.layers_.push_back(std::move(layer));
  }
  const auto rows = static_cast<size_t>(config->max_tokens);
  for (std::vector<float>* buffer :
       {&bert.states_, &bert.attended_, &bert.query_, &bert.key_, &bert.value_}) {
    buffer->resize(rows * static_cast<size_t>(hidden));
  }
  bert.wide_.resize(rows * static_cast<size_t>(intermediate));
  return bert;
}

Status Bert::run_layer(const Layer& layer, int64_t tokens) {
  const auto used = static_cast<size_t>(tokens * config_.hidden);
  const auto dense = [&](DenseRole role, const DenseCall& call) {
    return layer.dense[role]->run(call, *pool_);
  };
  NIBBLE_RETURN_IF_ERROR(dense(kQuery, {states_.data(), query_.data(), tokens}));
  NIBBLE_RETURN_IF_ERROR(dense(kKey, {states_.data(), key_.data(), tokens}));
  NIBBLE_RETURN_IF_ERROR(dense(kValue, {states_.data(), value_.data(), tokens}));
  attend({tokens, config_.heads, config_.hidden / config_.heads}, query_.data(), key_.data(),
         value_.data(), attended_.data(), *pool_);
  // The query's buffer is free again: it takes the block's output before the norm.
  NIBBLE_RETURN_IF_ERROR(dense(kAttentionOutput, {attended_.data(), query_.data(), tokens,
                                                  Activation::kNone, states_.data()}));
  states_.swap(query_);
  layer.attention_norm.run(std::span(states_).first(used));
  NIBBLE_RETURN_IF_ERROR(
      dense(kIntermediate, {states_.data(), wide_.data(), tokens, Activation::kGeluErf, nullptr}));
  NIBBLE_RETURN_IF_ERROR(
      dense(kOutput, {wide_.data(), query_.data(), tokens, Activation::kNone, states_.data()}));
  states_.swap(query_);
  layer.output_norm.run(std::span(states_).first(used));
  return nibble::ok_status();
}

Status Bert::embed(std::span<const int32_t> ids, std::span<float> embedding) {
  const auto tokens = static_cast<int64_t>(ids.size());
  const auto hidden = static_cast<size_t>(config_.hidden);
  if (tokens < 1 || tokens > config_.max_tokens) {
    return nibble::invalid_argument(std::to_string(tokens) + " tokens, not within 1 .. " +
                                    std::to_string(config_.max_tokens));
  }
  if (embedding.size() != hidden) {
    return nibble::invalid_argument("room for " + std::to_string(embedding.size()) +
                                    " values where an embedding has " + std::to_string(hidden));
  }
  for (size_t t = 0; t < ids.size(); ++t) {
    if (ids[t] < 0 || ids[t] >= config_.vocabulary) {
      return nibble::invalid_argument("token id " + std::to_string(ids[t]) +
                                      " is not within the vocabulary of " +
                                      std::to_string(config_.vocabulary));
    }
    for (size_t c = 0; c < hidden; ++c) {
      const int64_t at = ids[t] * config_.hidden + static_cast<int64_t>(c);
      states_[t * hidden + c] =
          positions_[t * hidden + c] + nibble::load_as_f32(words_.view.data, words_.view.dtype, at);
    }
  }
  embedding_norm_.run(std::span(states_).first(ids.size() * hidden));
  for (const Layer& layer : layers_) NIBBLE_RETURN_IF_ERROR(run_layer(layer, tokens));

  double length = 0;
  for (size_t c = 0; c < hidden; ++c) {
    double sum = 0;
    for (size_t t = 0; t < ids.size(); ++t) sum += static_cast<double>(states_[t * hidden + c]);
    embedding[c] = static_cast<float>(sum / static_cast<double>(tokens));
    length += static_cast<double>(embedding[c]) * static_cast<double>(embedding[c]);
  }
  const double scale = length > 0 ? 1 / std::sqrt(length) : 0;
  for (float& value : embedding) value = static_cast<float>(static_cast<double>(value) * scale);
  return nibble::ok_status();
}

}  // namespace sentence_embedding
