// All tensors of a checkpoint's files, found by name.
#ifndef NIBBLE_CHECKPOINT_TENSOR_STORE_H_
#define NIBBLE_CHECKPOINT_TENSOR_STORE_H_

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_file.h"

namespace nibble::checkpoint {

class TensorStore {
 public:
  TensorStore() = default;
  /// `files[i]` is the shard shown as `names[i]`. Errors: kCorruptFile when a tensor stands in two
  /// files.
  static Result<TensorStore> of(std::vector<TensorFile> files, std::vector<std::string> names);

  const std::vector<std::string>& shards() const { return shards_; }
  const MappedFile& file(size_t shard) const { return files_[shard]; }
  /// In the order of shards and offsets.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;
  /// The metadata of all files; the first file that has a key wins.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Bytes [offset, offset + count) of a tensor, mapped; see MappedFile::view.
  Buffer bytes(const TensorInfo& tensor, int64_t offset, int64_t count) const;
  Buffer bytes(const TensorInfo& tensor) const { return bytes(tensor, 0, tensor.bytes); }
  /// The same at an address that is a multiple of the dtype's size: mapped, or a copy.
  /// Errors: kUnsupported for a dtype not in core, kOutOfMemory.
  Result<Buffer> values(const TensorInfo& tensor) const;

 private:
  std::vector<std::string> shards_;
  std::vector<MappedFile> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<int32_t> by_name_;  ///< indices into tensors_, in the order of names
  std::map<std::string, std::string> metadata_;
};

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TENSOR_STORE_H_
