#include "nibble/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/json.h"

namespace nibble {

namespace fs = std::filesystem;
using namespace checkpoint;  // NOLINT: this file implements that namespace's front

namespace {

constexpr char kConfig[] = "config.json";
constexpr char kWeights[] = ".safetensors";
constexpr char kIndex[] = ".safetensors.index.json";

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

/// A file name of an index: relative, and never above the directory.
Status check_shard_name(const std::string& name) {
  const fs::path path(name);
  bool inside = !name.empty() && path.is_relative() && name.find('\0') == std::string::npos;
  for (const fs::path& part : path) inside &= part != "..";
  if (inside && name.ends_with(kWeights)) return {};
  return corrupt_file("the shard " + shown(name) + " is not a .safetensors file of this directory");
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
    if (names.insert(shard.get<std::string>()).second) {
      NIBBLE_RETURN_IF_ERROR(check_shard_name(shard.get<std::string>()).with_context(path));
    }
  }
  out.names.assign(names.begin(), names.end());
  return out;
}

/// Which of a directory's files hold the tensors: model.safetensors, else the shards of an index,
/// else the only safetensors file. Sets `stem` to the name before ".safetensors".
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
  if (indices.size() == 1) {
    stem = *without_suffix(indices[0], kIndex);
    return read_index((fs::path(path) / indices[0]).string());
  }
  if (weights.size() == 1) {
    stem = *without_suffix(weights[0], kWeights);
    one.names = weights;
    return one;
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

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  auto impl = std::make_shared<Impl>();
  impl->path = path;
  std::error_code error;
  impl->is_directory = fs::is_directory(path, error);
  Shards shards;
  std::vector<SafetensorsFile> files;
  if (impl->is_directory) {
    NIBBLE_ASSIGN_OR_RETURN(const Listing listing, list_directory(path));
    NIBBLE_ASSIGN_OR_RETURN(shards, find_shards(path, listing, impl->stem));
    for (const std::string& name : shards.names) {
      NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile file,
                              SafetensorsFile::open((fs::path(path) / name).string()));
      files.push_back(std::move(file));
    }
    const std::string index = shards.weight_map.is_null() ? "" : impl->stem + kIndex;
    for (const std::string& name : listing.files) {
      const bool shard =
          std::find(shards.names.begin(), shards.names.end(), name) != shards.names.end();
      if (name == kConfig) {
        NIBBLE_ASSIGN_OR_RETURN(impl->config_text,
                                read_text((fs::path(path) / name).string(), kMaxJsonBytes));
      } else if (!shard && name != index) {
        impl->other_files.push_back(name);
      }
    }
    impl->not_files = listing.not_files;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(path));
    files.push_back(std::move(file));
    shards.names = {fs::path(path).filename().string()};
  }
  NIBBLE_ASSIGN_OR_RETURN(impl->tensors,
                          TensorStore::of(std::move(files), std::move(shards.names)));
  NIBBLE_RETURN_IF_ERROR(check_index(shards.weight_map, impl->tensors).with_context(path));
  impl->index_metadata = std::move(shards.metadata);
  NIBBLE_RETURN_IF_ERROR(impl->interpret());
  return Checkpoint(std::move(impl));
}

Result<Checkpoint> Checkpoint::from_memory(Buffer safetensors, std::string config_json,
                                           std::string name) {
  auto impl = std::make_shared<Impl>();
  std::vector<SafetensorsFile> files;
  NIBBLE_ASSIGN_OR_RETURN(
      SafetensorsFile file,
      SafetensorsFile::parse(MappedFile::of_memory(std::move(safetensors)), name));
  files.push_back(std::move(file));
  NIBBLE_ASSIGN_OR_RETURN(impl->tensors, TensorStore::of(std::move(files), {name}));
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

Result<QuantizedTensor> Checkpoint::load(std::string_view layer) const {
  const LayerInfo* info = find_layer(layer);
  if (info == nullptr) {
    const std::string why = impl_->reader == nullptr && !spelling().empty()
                                ? "; no reader knows quant_method " + shown(spelling())
                                : "";
    return invalid_argument(path() + ": has no quantized layer " + shown(layer) + why);
  }
  if (!info->status.ok()) return Status(info->status).with_context(path());
  const std::string context = path() + ": layer " + shown(layer);
  Result<QuantizedTensor> q = impl_->reader->load(impl_->source(), *info);
  if (!q.ok()) return std::move(q).status().with_context(context);
  // Readers trust the file's values; whatever they break is the file's fault.
  if (Status valid = q->validate(); !valid.ok()) {
    return corrupt_file(context + ": " + valid.message());
  }
  return q;
}

}  // namespace nibble
