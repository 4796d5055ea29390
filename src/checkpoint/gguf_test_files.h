// GGUF files for tests, right or wrong.
#ifndef NIBBLE_CHECKPOINT_GGUF_TEST_FILES_H_
#define NIBBLE_CHECKPOINT_GGUF_TEST_FILES_H_

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/gguf.h"
#include "checkpoint/test_files.h"

namespace nibble::checkpoint {

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
inline std::string gguf_string(const std::string& text) {
  return raw<uint64_t>(text.size()) + text;
}
/// The bytes of an array's value.
inline std::string gguf_array(GgufValue type, uint64_t count, const std::string& values) {
  return raw(type) + raw(count) + values;
}

/// Builds a file; every count, offset and type can be overridden to be wrong.
class GgufBuilder {
 public:
  GgufBuilder& pair(const std::string& key, GgufValue type, const std::string& value) {
    pairs_ += gguf_string(key) + raw(type) + value;
    ++num_pairs;
    return *this;
  }
  GgufBuilder& pair(const std::string& key, uint32_t value) {
    return pair(key, GgufValue::kU32, raw(value));
  }
  GgufBuilder& pair(const std::string& key, const std::string& text) {
    return pair(key, GgufValue::kString, gguf_string(text));
  }
  /// `extents` as ggml orders them: the fastest first.
  GgufBuilder& tensor(const std::string& name, const std::vector<uint64_t>& extents, uint32_t type,
                      const std::string& bytes) {
    pad(data_);
    return tensor_at(name, extents, type, data_.size(), bytes);
  }
  GgufBuilder& tensor_at(const std::string& name, const std::vector<uint64_t>& extents,
                         uint32_t type, uint64_t offset, const std::string& bytes) {
    infos_ += gguf_string(name) + raw(static_cast<uint32_t>(extents.size())) + bytes_of(extents) +
              raw(type) + raw(offset);
    ++num_tensors;
    data_ += bytes;
    return *this;
  }
  GgufBuilder& floats(const std::string& name, uint64_t count) {
    return tensor(name, {count}, 0, values_of(DType::kF32, random_floats(count, 7)));
  }
  /// Ends with the last byte of the last tensor: nothing can be cut off.
  std::string build() const {
    std::string out = magic + raw(version) + raw(num_tensors) + raw(num_pairs) + pairs_ + infos_;
    pad(out);
    return out + data_;
  }

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t num_tensors = 0, num_pairs = 0;
  size_t alignment = 32;

 private:
  void pad(std::string& bytes) const {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  }
  std::string pairs_, infos_, data_;
};

/// Opens bytes as a file in memory. The checkpoint keeps them alive.
inline Result<Checkpoint> open_gguf_bytes(const std::string& bytes) {
  auto owned = std::make_shared<std::string>(bytes);
  const auto size = static_cast<int64_t>(owned->size());
  const char* data = owned->data();
  return Checkpoint::from_memory(Buffer::view(data, size, std::move(owned)), "", "model.gguf");
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_GGUF_TEST_FILES_H_
