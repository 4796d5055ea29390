// The container of ONNX models: initializers and constants as tensors. Data inside the file is
// viewed where it lies; values in typed fields are decoded once, into memory; external data is
// mapped from the files beside the model.
#include "checkpoint/onnx.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/container.h"
#include "checkpoint/json.h"
#include "checkpoint/model_path.h"

namespace nibble::checkpoint {
namespace {

TensorInfo described(const OnnxTensor& tensor) {
  TensorInfo info;
  info.name = tensor.name;
  const OnnxType* type = tensor.type();
  info.dtype_name = type != nullptr ? type->name : "type " + std::to_string(tensor.data_type);
  if (type != nullptr) info.dtype = type->dtype;
  info.shape = tensor.dims;
  info.bytes = tensor.bytes();
  return info;
}

/// Files of external data, each mapped once.
class ExternalFiles {
 public:
  /// `directory` is empty for a model in memory.
  ExternalFiles(OpenedModel& model, const std::string& directory)
      : model_(model), directory_(directory) {}

  /// The tensor's place in model.files.
  Result<size_t> find(const OnnxTensor& tensor) {
    const std::string location(tensor.location);
    if (directory_.empty()) {
      return corrupt_file("its data is in the file " + shown(location) +
                          ", but a model in memory has no other files");
    }
    const auto known = by_location_.find(location);
    if (known != by_location_.end()) return known->second;
    NIBBLE_ASSIGN_OR_RETURN(const std::string path, path_inside(directory_, location));
    const std::string name = std::filesystem::path(location).lexically_normal().string();
    auto [entry, is_first] = by_name_.try_emplace(name, model_.files.size());
    if (is_first) {
      NIBBLE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
      model_.files.push_back({std::move(file), {}, {}});
      model_.names.push_back(name);
    }
    by_location_.emplace(location, entry->second);
    return entry->second;
  }

 private:
  OpenedModel& model_;
  const std::string& directory_;
  std::map<std::string, size_t> by_location_, by_name_;
};

Status place_external(const OnnxTensor& tensor, TensorInfo& info, ExternalFiles& external,
                      OpenedModel& model) {
  NIBBLE_ASSIGN_OR_RETURN(const size_t index, external.find(tensor));
  TensorFile& file = model.files[index];
  info.file_offset = tensor.offset;
  if (info.bytes < 0) info.bytes = tensor.length;
  if (tensor.offset > file.file.bytes() || info.bytes > file.file.bytes() - tensor.offset) {
    return corrupt_file("bytes " + std::to_string(tensor.offset) + " to " +
                        std::to_string(tensor.offset) + " + " + std::to_string(info.bytes) +
                        " pass the end of " + model.names[index] + ", which has " +
                        std::to_string(file.file.bytes()));
  }
  file.tensors.push_back(std::move(info));
  return {};
}

/// The tensors of `typed` (indices into graph.tensors), one after the other in memory.
Result<TensorFile> decode_typed(const OnnxGraph& graph, const std::vector<size_t>& typed) {
  constexpr int64_t kAlignment = 8;
  TensorFile out;
  int64_t bytes = 0;
  for (const size_t i : typed) {
    TensorInfo info = described(graph.tensors[i]);
    info.file_offset = bytes;
    bytes += round_up(info.bytes, kAlignment);  // at most 8 times the model's own size
    out.tensors.push_back(std::move(info));
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer memory, Buffer::allocate(bytes));
  for (size_t i = 0; i < typed.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(decode_onnx_values(graph.tensors[typed[i]],
                                              memory.mutable_data() + out.tensors[i].file_offset));
  }
  out.file = MappedFile::of_memory(std::move(memory));
  return out;
}

Result<OpenedModel> open_onnx(MappedFile file, const std::string& path,
                              const std::string& directory) {
  NIBBLE_ASSIGN_OR_RETURN(OnnxGraph parsed, parse_onnx(std::move(file), path));
  OpenedModel model;
  model.files.push_back({parsed.file, {}, parsed.metadata});
  model.names.push_back(std::filesystem::path(path).filename().string());
  const auto* begin = reinterpret_cast<const char*>(parsed.file.data());
  ExternalFiles external(model, directory);
  std::vector<size_t> typed;
  for (size_t i = 0; i < parsed.tensors.size(); ++i) {
    const OnnxTensor& tensor = parsed.tensors[i];
    if (tensor.type() != nullptr && !tensor.type()->is_numeric()) continue;
    TensorInfo info = described(tensor);
    switch (tensor.storage) {
      case OnnxTensor::Storage::kRaw:
        info.bytes = static_cast<int64_t>(tensor.raw.size());
        info.file_offset = info.bytes > 0 ? tensor.raw.data() - begin : 0;
        model.files[0].tensors.push_back(std::move(info));
        break;
      case OnnxTensor::Storage::kValues:
        typed.push_back(i);
        break;
      case OnnxTensor::Storage::kExternal:
        if (Status status = place_external(tensor, info, external, model); !status.ok()) {
          return std::move(status).with_context(path + ": tensor " + shown(tensor.name));
        }
        break;
    }
  }
  for (TensorFile& part : model.files) {
    std::stable_sort(
        part.tensors.begin(), part.tensors.end(),
        [](const TensorInfo& a, const TensorInfo& b) { return a.file_offset < b.file_offset; });
  }
  if (!typed.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(TensorFile decoded, decode_typed(parsed, typed));
    model.files.push_back(std::move(decoded));
    model.names.push_back(model.names[0] + " (typed fields)");
  }
  model.graph = std::make_shared<const OnnxGraph>(std::move(parsed));
  return model;
}

}  // namespace

extern const Container kOnnx;
const Container kOnnx = {"onnx", ".onnx", "", open_onnx};

}  // namespace nibble::checkpoint
