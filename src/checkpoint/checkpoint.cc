#include "nibble/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/json.h"
#include "checkpoint/model_path.h"
#include "checkpoint/safetensors.h"

namespace nibble {

namespace fs = std::filesystem;
using namespace checkpoint;  // NOLINT: this file implements that namespace's front

namespace {

constexpr char kConfig[] = "config.json";
constexpr char kWeights[] = ".safetensors";
constexpr char kIndex[] = ".safetensors.index.json";
constexpr char kHfQuant[] = "hf_quant_config.json";

/// Files of a directory, relative to it, sorted; links to files count as files.
struct Listing {
  std::vector<std::string> files, not_files;
};

Result<Listing> list_directory(const std::string& path) {
  Listing out;
  std::error_code error;
  fs::recursive_directory_iterator entry(path, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().lexically_relative(path).string();
    std::error_code ignored;  // a broken link has no status: it is no file
    if (entry->is_regular_file(ignored)) {
      out.files.push_back(name);
    } else if (!entry->is_directory(ignored) || entry->is_symlink(ignored)) {
      out.not_files.push_back(name);
    }
  }
  if (error) return io_error(path + ": " + error.message());
  std::sort(out.files.begin(), out.files.end());
  return out;
}

/// A file of another container in the directory itself; of a split GGUF the first part.
bool is_model_of_its_own(const std::string& file) {
  if (file.find('/') != std::string::npos) return false;
  const size_t of = file.rfind("-of-");
  if (of != std::string::npos && of >= 6 && file.ends_with(".gguf")) {
    return file.substr(of - 6, 6) == "-00001";
  }
  return file.ends_with(".gguf") || file.ends_with(".onnx");
}

struct Shards {
  std::vector<std::string> names;
  Json weight_map, metadata;  ///< of the index; null without one
};

Result<Shards> read_index(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text(path, kMaxJsonBytes));
  NIBBLE_ASSIGN_OR_RETURN(Json index, parse_json(text, path));
  Shards out;
  out.weight_map = member(index, "weight_map");
  out.metadata = member(index, "metadata");
  if (!out.weight_map.is_object()) return corrupt_file(path + ": has no weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, shard] : out.weight_map.items()) {
    if (!shard.is_string()) {
      return corrupt_file(path + ": tensor " + shown(tensor) + " names no file");
    }
    const auto name = shard.get<std::string>();
    if (!names.insert(name).second) continue;
    const Result<std::string> file = path_inside(fs::path(path).parent_path().string(), name);
    if (!file.ok()) return Status(file.status()).with_context(path);
    if (!name.ends_with(kWeights)) {
      return corrupt_file(path + ": the shard " + shown(name) + " is no .safetensors file");
    }
  }
  out.names.assign(names.begin(), names.end());
  return out;
}

/// Which of a directory's files hold the tensors: model.safetensors, else the shards of its index,
/// else model.gguf or model.onnx, else the only index, safetensors file or model of another
/// container. Sets `stem` to the name before ".safetensors".
Result<Shards> find_shards(const std::string& path, const Listing& listing, std::string& stem) {
  std::vector<std::string> weights, indices;
  for (const std::string& file : listing.files) {
    if (file.find('/') != std::string::npos) continue;
    if (file.ends_with(kWeights)) weights.push_back(file);
    if (file.ends_with(kIndex)) indices.push_back(file);
  }
  const auto has = [](const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const std::string model = std::string("model") + kWeights;
  const std::string model_index = std::string("model") + kIndex;
  Shards one;
  if (has(weights, model)) {
    one.names = {model};
    return one;
  }
  if (has(indices, model_index)) return read_index((fs::path(path) / model_index).string());
  // model.gguf and model.onnx are the model, whatever lies beside it.
  for (const std::string& file : listing.files) {
    if (is_model_of_its_own(file) && fs::path(file).stem() == "model") one.names.push_back(file);
  }
  if (one.names.size() == 1) return one;
  one.names.clear();
  if (indices.size() == 1) {
    stem = *without_suffix(indices[0], kIndex);
    return read_index((fs::path(path) / indices[0]).string());
  }
  if (weights.size() == 1) {
    stem = *without_suffix(weights[0], kWeights);
    one.names = weights;
    return one;
  }
  if (weights.empty() && indices.empty()) {
    for (const std::string& file : listing.files) {
      if (is_model_of_its_own(file)) one.names.push_back(file);
    }
    if (one.names.size() == 1) return one;
    return unsupported(path + ": has no .safetensors file and " + std::to_string(one.names.size()) +
                       " models in .gguf or .onnx files; one is read");
  }
  return unsupported(path + ": has " + std::to_string(weights.size()) + " .safetensors files and " +
                     std::to_string(indices.size()) +
                     " indices; one file, or shards with model.safetensors.index.json are read");
}

/// Every tensor of the index stands in the file that the index says.
Status check_index(const Json& weight_map, const TensorStore& store) {
  for (const auto& [name, shard] : weight_map.items()) {
    const TensorInfo* tensor = store.find(name);
    const auto file = shard.get<std::string>();
    if (tensor == nullptr) {
      return corrupt_file("the index puts tensor " + shown(name) + " in " + shown(file) +
                          ", which does not have it");
    }
    if (store.shards()[static_cast<size_t>(tensor->shard)] != file) {
      return corrupt_file("the index puts tensor " + shown(name) + " in " + shown(file) +
                          ", but it is in " + store.shards()[static_cast<size_t>(tensor->shard)]);
    }
  }
  return {};
}

}  // namespace

Status Checkpoint::Impl::interpret() {
  if (!config_text.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(config, parse_json(config_text, is_directory ? path + "/" + kConfig
                                                                         : path + ": " + kConfig));
    if (!config.is_object()) return corrupt_file(path + ": " + kConfig + " is not a JSON object");
  }
  quantization = member(config, "quantization_config");
  const Json& name = member(quantization, "quant_method");
  if (name.is_string()) method = name.get<std::string>();
  spelling = method;
  for (const ReadSpelling& row : read_spellings()) {
    if (!row.claims(source())) continue;
    reader = &row;
    spelling = row.name;
    break;
  }
  if (reader == nullptr) return {};
  layers = reader->layers(source());
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].status = std::move(layers[i].status).with_context("layer " + shown(layers[i].name));
    layer_index.emplace(layers[i].name, i);
  }
  return {};
}

Status Checkpoint::Impl::open_file(const std::string& file, const std::string& directory) {
  NIBBLE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(file));
  container = &container_of(file, mapped);
  NIBBLE_ASSIGN_OR_RETURN(OpenedModel model, container->open(std::move(mapped), file, directory));
  graph = std::move(model.graph);
  NIBBLE_ASSIGN_OR_RETURN(tensors, TensorStore::of(std::move(model.files), std::move(model.names)));
  return {};
}

Status Checkpoint::Impl::open_directory() {
  NIBBLE_ASSIGN_OR_RETURN(const Listing listing, list_directory(path));
  NIBBLE_ASSIGN_OR_RETURN(Shards shards, find_shards(path, listing, stem));
  if (shards.names.size() == 1 && shards.weight_map.is_null()) {
    NIBBLE_RETURN_IF_ERROR(open_file((fs::path(path) / shards.names[0]).string(), path));
  } else {
    container = &container_of(kWeights, MappedFile::of_memory({}));
    std::vector<TensorFile> files;
    for (const std::string& name : shards.names) {
      const std::string file = (fs::path(path) / name).string();
      NIBBLE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(file));
      NIBBLE_ASSIGN_OR_RETURN(TensorFile opened, parse_safetensors(std::move(mapped), file));
      files.push_back(std::move(opened));
    }
    NIBBLE_ASSIGN_OR_RETURN(tensors, TensorStore::of(std::move(files), shards.names));
  }
  NIBBLE_RETURN_IF_ERROR(check_index(shards.weight_map, tensors).with_context(path));
  const std::string index = shards.weight_map.is_null() ? "" : stem + kIndex;
  const std::vector<std::string>& own = tensors.shards();
  for (const std::string& name : listing.files) {
    const std::string file = (fs::path(path) / name).string();
    if (name == kConfig) {
      NIBBLE_ASSIGN_OR_RETURN(config_text, read_text(file, kMaxJsonBytes));
    } else if (std::find(own.begin(), own.end(), name) == own.end() && name != index) {
      other_files.push_back(name);
    }
    if (name == kHfQuant) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string text, read_text(file, kMaxJsonBytes));
      NIBBLE_ASSIGN_OR_RETURN(hf_quant, parse_json(text, file));
    }
  }
  not_files = listing.not_files;
  index_metadata = std::move(shards.metadata);
  return {};
}

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  auto impl = std::make_shared<Impl>();
  impl->path = path;
  std::error_code error;
  impl->is_directory = fs::is_directory(path, error);
  if (impl->is_directory) {
    NIBBLE_RETURN_IF_ERROR(impl->open_directory());
  } else {
    const fs::path parent = fs::path(path).parent_path();
    NIBBLE_RETURN_IF_ERROR(impl->open_file(path, parent.empty() ? "." : parent.string()));
  }
  NIBBLE_RETURN_IF_ERROR(impl->interpret());
  return Checkpoint(std::move(impl));
}

Result<Checkpoint> Checkpoint::from_memory(Buffer file, std::string config_json, std::string name) {
  auto impl = std::make_shared<Impl>();
  MappedFile bytes = MappedFile::of_memory(std::move(file));
  impl->container = &container_of(name, bytes);
  NIBBLE_ASSIGN_OR_RETURN(OpenedModel model, impl->container->open(std::move(bytes), name, ""));
  impl->graph = std::move(model.graph);
  NIBBLE_ASSIGN_OR_RETURN(impl->tensors,
                          TensorStore::of(std::move(model.files), std::move(model.names)));
  impl->path = std::move(name);
  impl->config_text = std::move(config_json);
  NIBBLE_RETURN_IF_ERROR(impl->interpret());
  return Checkpoint(std::move(impl));
}

const std::string& Checkpoint::path() const { return impl_->path; }
std::span<const std::string> Checkpoint::shards() const { return impl_->tensors.shards(); }
std::span<const TensorInfo> Checkpoint::tensors() const { return impl_->tensors.tensors(); }
const TensorInfo* Checkpoint::find(std::string_view name) const {
  return impl_->tensors.find(name);
}
const std::string& Checkpoint::config_json() const { return impl_->config_text; }
std::span<const std::string> Checkpoint::other_files() const { return impl_->other_files; }
const std::map<std::string, std::string>& Checkpoint::metadata() const {
  return impl_->tensors.metadata();
}
const std::string& Checkpoint::spelling() const { return impl_->spelling; }
std::span<const LayerInfo> Checkpoint::layers() const { return impl_->layers; }

const LayerInfo* Checkpoint::find_layer(std::string_view name) const {
  const auto found = impl_->layer_index.find(std::string(name));
  return found == impl_->layer_index.end() ? nullptr : &impl_->layers[found->second];
}

Result<Buffer> Checkpoint::tensor_bytes(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) return invalid_argument(path() + ": has no tensor " + shown(name));
  return impl_->tensors.bytes(*tensor);
}

Result<Tensor> Checkpoint::tensor(std::string_view name) const {
  const TensorInfo* tensor = find(name);
  if (tensor == nullptr) return invalid_argument(path() + ": has no tensor " + shown(name));
  Result<Buffer> values = impl_->tensors.values(*tensor);
  if (!values.ok()) return std::move(values).status().with_context(path());
  const void* data = values->data();
  return Tensor{{data, *tensor->dtype, tensor->shape}, std::move(values).value()};
}

Result<const LayerInfo*> Checkpoint::Impl::readable_layer(std::string_view name) const {
  const auto found = layer_index.find(std::string(name));
  if (found == layer_index.end()) {
    const std::string why = reader == nullptr && !spelling.empty()
                                ? "; no reader knows quant_method " + shown(spelling)
                                : "";
    return invalid_argument(path + ": has no quantized layer " + shown(name) + why);
  }
  const LayerInfo& layer = layers[found->second];
  if (!layer.status.ok()) return Status(layer.status).with_context(path);
  return &layer;
}

Result<QuantizedTensor> Checkpoint::load(std::string_view name) const {
  NIBBLE_ASSIGN_OR_RETURN(const LayerInfo* layer, impl_->readable_layer(name));
  const std::string context = path() + ": layer " + shown(name);
  if (!layer->dense_only.empty()) return unsupported(layer->dense_only).with_context(context);
  Result<QuantizedTensor> q = impl_->reader->load(impl_->source(), *layer);
  if (!q.ok()) return std::move(q).status().with_context(context);
  // Readers trust the file's values; whatever they break is the file's fault.
  if (Status valid = q->validate(); !valid.ok()) {
    return corrupt_file(context + ": " + valid.message());
  }
  return q;
}

Result<DenseRows> Checkpoint::dense_rows(std::string_view name) const {
  NIBBLE_ASSIGN_OR_RETURN(const LayerInfo* layer, impl_->readable_layer(name));
  if (!layer->dense_only.empty()) {
    Result<DenseRows> rows = impl_->reader->dense(impl_->source(), *layer);
    if (!rows.ok()) {
      return std::move(rows).status().with_context(path() + ": layer " + shown(name));
    }
    return rows;
  }
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, load(name));
  const auto weight = std::make_shared<const QuantizedTensor>(std::move(q));
  return DenseRows{weight->n, weight->k,
                   [weight](int64_t begin, int64_t end, float* out) {
                     weight->dequantize(begin, end, out);
                     return ok_status();
                   },
                   weight->pre_scale};
}

}  // namespace nibble
