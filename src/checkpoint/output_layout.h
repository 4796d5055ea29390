// Which tensors a written checkpoint has, and where they lie.
#ifndef NIBBLE_CHECKPOINT_OUTPUT_LAYOUT_H_
#define NIBBLE_CHECKPOINT_OUTPUT_LAYOUT_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/output_container.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {

/// A layer that will be written: quantized in the checkpoint's spelling, or dense.
struct OutputLayer {
  LayerSpec spec;
  std::optional<DType> dense;         ///< then the spec's Format means nothing
  std::vector<std::string> replaced;  ///< the source's tensors that it stands for
};

/// Where one output tensor goes.
struct Place {
  TensorInfo info;                      ///< of the output: name, dtype, shape, bytes, file_offset
  const TensorInfo* carried = nullptr;  ///< the source tensor that is copied; null: from a layer
  size_t shard = 0;
};

struct OutputLayout {
  std::vector<Place> places;  ///< in the order of shards and offsets
  /// For each layer, indices into `places` in the order of the spelling's tensors.
  std::vector<std::vector<size_t>> layer_places;
  std::vector<std::string> shards;  ///< file names
  std::vector<FileHead> heads;      ///< of those
  int64_t total_bytes = 0;          ///< of all tensors
};

/// `spelling` may be null when no layer is quantized. A layer's tensors share a file and stand
/// where its first replaced tensor stood.
/// Errors: kInvalidArgument (a name that is needed twice), those of OutputContainer.
Result<OutputLayout> lay_out(const OutputSource& source, std::span<const OutputLayer> layers,
                             const WriteSpelling* spelling, const OutputContainer& container,
                             int64_t max_shard_bytes);

/// "model.safetensors.index.json" for the shards of a layout.
std::string index_name(const std::vector<std::string>& shards);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_OUTPUT_LAYOUT_H_
