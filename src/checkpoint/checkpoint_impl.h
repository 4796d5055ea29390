// What an opened Checkpoint holds.
#ifndef NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_
#define NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_

#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/spelling.h"

namespace nibble {

struct Checkpoint::Impl {
  std::string path;
  bool is_directory = false;
  std::string stem = "model";  ///< safetensors files are stem.safetensors or stem-00001-of-…
  checkpoint::TensorStore tensors;
  std::string config_text;
  checkpoint::Json config, quantization;
  checkpoint::Json index_metadata;  ///< `metadata` of the index; null without an index
  std::vector<std::string> other_files;
  std::vector<std::string>
      not_files;  ///< entries that cannot be carried over (sockets, links to folders)

  std::string method, spelling;
  const checkpoint::ReadSpelling* reader = nullptr;  ///< null: plain, or a method nobody reads
  std::vector<LayerInfo> layers;
  std::unordered_map<std::string, size_t> layer_index;

  checkpoint::Source source() const { return {tensors, quantization, method}; }
  /// Parses config_text and finds the layers.
  Status interpret();
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_
