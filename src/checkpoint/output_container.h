// The file formats in which tensors are written.
#ifndef NIBBLE_CHECKPOINT_OUTPUT_CONTAINER_H_
#define NIBBLE_CHECKPOINT_OUTPUT_CONTAINER_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/tensor_store.h"
#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

/// What is looked at of the checkpoint that is written anew.
struct OutputSource {
  const std::string& path;
  bool is_directory;
  std::string_view container;  ///< "safetensors", "gguf" or "onnx"
  const std::string& stem;     ///< of its safetensors files
  const TensorStore& tensors;
  const Json& config;  ///< config.json; null when there is none
  const std::vector<std::string>& other_files;
};

/// The bytes before the tensors, and the size of the whole file.
struct FileHead {
  std::string bytes;
  int64_t file_bytes = 0;
};

struct OutputContainer {
  const char* name;       ///< as Container::name
  const char* extension;  ///< ".gguf"
  bool sharded;           ///< a large checkpoint becomes several files with an index
  bool wide_types_first;  ///< tensors lie aligned only when ordered by the size of their values
  /// What the container calls a type; null when it has none such.
  const char* (*dtype_name)(DType dtype);
  /// The head of a file that holds `tensors` (name, dtype_name, shape, bytes) in this order; sets
  /// the file_offset of each. Bytes between tensors are zero. Errors: kUnsupported,
  /// kInvalidArgument, and those of reading what is carried over from the source's own head.
  Result<FileHead> (*head)(std::span<TensorInfo> tensors, const OutputSource& source);
};

/// By name; safetensors for any but "gguf".
const OutputContainer& output_container(std::string_view name);

/// A source tensor as this container describes it: the same name, shape and bytes, its dtype_name
/// translated where the source is another container. Errors: kUnsupported.
Result<TensorInfo> carried_tensor(const TensorInfo& tensor, const OutputSource& source,
                                  const OutputContainer& container);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_OUTPUT_CONTAINER_H_
