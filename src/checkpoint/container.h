// The file formats that hold tensors. A container is one .cc file with a Container row and a line
// in container.cc; what the tensors mean is the business of a spelling.
#ifndef NIBBLE_CHECKPOINT_CONTAINER_H_
#define NIBBLE_CHECKPOINT_CONTAINER_H_

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_file.h"

namespace nibble::checkpoint {

struct OnnxGraph;  ///< onnx.h

/// A model file with all files that it refers to.
struct OpenedModel {
  std::vector<TensorFile> files;
  std::vector<std::string> names;          ///< of those files, relative to their directory
  std::shared_ptr<const OnnxGraph> graph;  ///< null for containers that hold tensors alone
};

struct Container {
  const char* name;       ///< "gguf"
  const char* extension;  ///< ".gguf"
  const char* magic;      ///< the first bytes of every file; "" where there are none
  /// Checks the headers of `file` and of what it refers to; reads no tensor. `path` is the file's,
  /// for messages and for its name; `directory` the folder in which everything it refers to must
  /// lie, links resolved, or empty where it may refer to nothing (a file in memory).
  /// Errors: kCorruptFile, kUnsupported, kIo.
  Result<OpenedModel> (*open)(MappedFile file, const std::string& path,
                              const std::string& directory);
};

std::span<const Container> containers();
/// By the first bytes, else by the end of the name, else safetensors.
const Container& container_of(std::string_view name, const MappedFile& file);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_CONTAINER_H_
