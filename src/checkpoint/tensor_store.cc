#include "checkpoint/tensor_store.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "checkpoint/json.h"

namespace nibble::checkpoint {

Result<TensorStore> TensorStore::of(std::vector<TensorFile> files, std::vector<std::string> names) {
  TensorStore store;
  for (size_t i = 0; i < files.size(); ++i) {
    for (TensorInfo& tensor : files[i].tensors) {
      tensor.shard = static_cast<int32_t>(i);
      store.tensors_.push_back(std::move(tensor));
    }
    store.files_.push_back(files[i].file);
    store.metadata_.insert(files[i].metadata.begin(), files[i].metadata.end());
  }
  store.shards_ = std::move(names);
  store.by_name_.resize(store.tensors_.size());
  std::iota(store.by_name_.begin(), store.by_name_.end(), 0);
  const auto name_of = [&store](int32_t i) -> const std::string& {
    return store.tensors_[static_cast<size_t>(i)].name;
  };
  std::sort(store.by_name_.begin(), store.by_name_.end(),
            [&](int32_t a, int32_t b) { return name_of(a) < name_of(b); });
  const auto twice =
      std::adjacent_find(store.by_name_.begin(), store.by_name_.end(),
                         [&](int32_t a, int32_t b) { return name_of(a) == name_of(b); });
  if (twice != store.by_name_.end()) {
    const auto file_of = [&store](int32_t i) {
      return store.shards_[static_cast<size_t>(store.tensors_[static_cast<size_t>(i)].shard)];
    };
    return corrupt_file("tensor " + shown(name_of(*twice)) + " stands in " + file_of(twice[0]) +
                        " and in " + file_of(twice[1]));
  }
  return store;
}

const TensorInfo* TensorStore::find(std::string_view name) const {
  const auto found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                      [this](int32_t i, std::string_view wanted) {
                                        return tensors_[static_cast<size_t>(i)].name < wanted;
                                      });
  if (found == by_name_.end()) return nullptr;
  const TensorInfo& tensor = tensors_[static_cast<size_t>(*found)];
  return tensor.name == name ? &tensor : nullptr;
}

Buffer TensorStore::bytes(const TensorInfo& tensor, int64_t offset, int64_t count) const {
  return files_[static_cast<size_t>(tensor.shard)].view(tensor.file_offset + offset, count);
}

Result<Buffer> TensorStore::values(const TensorInfo& tensor) const {
  if (!tensor.dtype) {
    return unsupported("tensor " + shown(tensor.name) + " has dtype " + shown(tensor.dtype_name) +
                       ", which can be carried over but not read");
  }
  Buffer stored = bytes(tensor);
  const auto address = reinterpret_cast<uintptr_t>(stored.data());
  if (address % static_cast<uintptr_t>(dtype_bytes(*tensor.dtype)) == 0) return stored;
  NIBBLE_ASSIGN_OR_RETURN(Buffer copy, Buffer::allocate(tensor.bytes));
  if (tensor.bytes > 0) {
    std::memcpy(copy.mutable_data(), stored.data(), static_cast<size_t>(tensor.bytes));
  }
  return copy;
}

}  // namespace nibble::checkpoint
