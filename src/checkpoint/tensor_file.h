// One file of a checkpoint: its bytes and what its header says of them. Every container's reader
// makes these.
#ifndef NIBBLE_CHECKPOINT_TENSOR_FILE_H_
#define NIBBLE_CHECKPOINT_TENSOR_FILE_H_

#include <map>
#include <string>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

struct TensorFile {
  MappedFile file = MappedFile::of_memory({});
  /// Checked: each tensor's bytes lie inside the file, and for a known dtype their number is that
  /// of the shape. `shard` is not yet set.
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;
};

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TENSOR_FILE_H_
