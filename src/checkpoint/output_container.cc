#include "checkpoint/output_container.h"

#include <filesystem>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_write.h"
#include "checkpoint/safetensors.h"

namespace nibble::checkpoint {
namespace {

/// What a file may say of itself is carried over between files of one container only: keys of
/// another mean nothing here.
Result<FileHead> safetensors_head(std::span<TensorInfo> tensors, const OutputSource& source) {
  std::map<std::string, std::string> metadata;
  if (source.container == "safetensors") {
    metadata = source.tensors.metadata();
  }
  metadata.emplace("format", "pt");  // Transformers refuses files without it
  FileHead head;
  head.bytes = safetensors_header(tensors, metadata);
  head.file_bytes = static_cast<int64_t>(head.bytes.size());
  for (TensorInfo& tensor : tensors) {
    tensor.file_offset = head.file_bytes;
    head.file_bytes += tensor.bytes;
  }
  return head;
}

/// The name of a model that has no general.name: that of its directory or file.
std::string model_name(const OutputSource& source) {
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::absolute(source.path, ignored).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return source.is_directory ? path.filename().string() : path.stem().string();
}

Result<FileHead> gguf_head(std::span<TensorInfo> tensors, const OutputSource& source) {
  GgufPairs pairs;
  if (source.container == "gguf") {
    NIBBLE_ASSIGN_OR_RETURN(pairs, GgufPairs::of_file(source.tensors.file(0), source.path));
  } else {
    pairs = GgufPairs::of_config(source.config, model_name(source));
  }
  NIBBLE_ASSIGN_OR_RETURN(GgufHeader header, gguf_header(tensors, std::move(pairs)));
  return FileHead{std::move(header.bytes), header.file_bytes};
}

/// ggml names its types of plain values as safetensors does, but has fewer.
const char* gguf_name(DType dtype) {
  const GgmlType* type = ggml_type(safetensors_name(dtype));
  return type != nullptr && type->dtype == dtype ? type->name : nullptr;
}

constexpr OutputContainer kContainers[] = {
    {.name = "safetensors",
     .extension = ".safetensors",
     .sharded = true,
     .wide_types_first = true,
     .dtype_name = safetensors_name,
     .head = safetensors_head},
    {.name = "gguf",
     .extension = ".gguf",
     .sharded = false,
     .wide_types_first = false,
     .dtype_name = gguf_name,
     .head = gguf_head},
};

}  // namespace

const OutputContainer& output_container(std::string_view name) {
  return name == kContainers[1].name ? kContainers[1] : kContainers[0];
}

Result<TensorInfo> carried_tensor(const TensorInfo& tensor, const OutputSource& source,
                                  const OutputContainer& container) {
  TensorInfo out = tensor;
  if (source.container == container.name) return out;
  const char* name = tensor.dtype ? container.dtype_name(*tensor.dtype) : nullptr;
  if (name == nullptr) {
    return unsupported("tensor " + shown(tensor.name) + " is " + tensor.dtype_name +
                       ", a type that " + container.name + " files have not");
  }
  out.dtype_name = name;
  return out;
}

}  // namespace nibble::checkpoint
