// What an opened Checkpoint holds.
#ifndef NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_
#define NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "checkpoint/spelling.h"

namespace nibble {

struct Checkpoint::Impl {
  std::string path;
  bool is_directory = false;
  std::string stem = "model";  ///< safetensors shards are stem.safetensors or stem-00001-of-…
  const checkpoint::Container* container = nullptr;
  checkpoint::TensorStore tensors;
  std::shared_ptr<const checkpoint::OnnxGraph> graph;
  std::string config_text;
  checkpoint::Json config, quantization, hf_quant;
  checkpoint::Json index_metadata;  ///< `metadata` of the index; null without an index
  std::vector<std::string> other_files;
  std::vector<std::string>
      not_files;  ///< entries that cannot be carried over (sockets, links to folders)

  std::string method, spelling;
  const checkpoint::ReadSpelling* reader = nullptr;  ///< null: plain, or a method nobody reads
  std::vector<LayerInfo> layers;
  std::unordered_map<std::string, size_t> layer_index;

  checkpoint::Source source() const {
    return {tensors, container->name, graph.get(), config, quantization, hf_quant, method};
  }
  /// Opens a model file; what it refers to must lie in `directory`.
  Status open_file(const std::string& file, const std::string& directory);
  Status open_directory();
  /// A layer whose status is ok. Errors: kInvalidArgument (no such layer), its own status.
  Result<const LayerInfo*> readable_layer(std::string_view name) const;
  /// Parses config_text and finds the layers.
  Status interpret();
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CHECKPOINT_IMPL_H_
