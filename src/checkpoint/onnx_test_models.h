// ONNX models for tests, field by field, right or wrong.
#ifndef NIBBLE_CHECKPOINT_ONNX_TEST_MODELS_H_
#define NIBBLE_CHECKPOINT_ONNX_TEST_MODELS_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/test_files.h"
#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

inline std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 128; value >>= 7) out += static_cast<char>(value % 128 + 128);
  return out + static_cast<char>(value);
}
inline std::string number_field(uint32_t tag, int64_t value) {
  return varint(tag << 3) + varint(static_cast<uint64_t>(value));
}
inline std::string bytes_field(uint32_t tag, const std::string& bytes) {
  return varint(tag << 3 | 2) + varint(bytes.size()) + bytes;
}

enum OnnxCode : int64_t {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kString = 8,
  kFloat16 = 10,
  kBfloat16 = 16,
  kE4m3fn = 17,
  kUint4Code = 21,
  kInt4Code = 22,
  kFloat4 = 23,
  kE8m0Code = 24,
};

/// A TensorProto without data.
inline std::string tensor_head(const std::string& name, int64_t type,
                               const std::vector<int64_t>& dims) {
  std::string out;
  for (const int64_t extent : dims) out += number_field(1, extent);
  return out + number_field(2, type) + bytes_field(8, name);
}
inline std::string raw_tensor(const std::string& name, int64_t type,
                              const std::vector<int64_t>& dims, const std::string& raw) {
  return tensor_head(name, type, dims) + bytes_field(9, raw);
}
inline std::string external_tensor(
    const std::string& name, int64_t type, const std::vector<int64_t>& dims,
    const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out = tensor_head(name, type, dims);
  for (const auto& [key, value] : entries) {
    out += bytes_field(13, bytes_field(1, key) + bytes_field(2, value));
  }
  return out + number_field(14, 1);
}

inline std::string integer_attribute(const std::string& name, int64_t value) {
  return bytes_field(1, name) + number_field(3, value) + number_field(20, 2);
}
inline std::string integers_attribute(const std::string& name, const std::vector<int64_t>& values) {
  std::string out = bytes_field(1, name) + number_field(20, 7);
  for (const int64_t value : values) out += number_field(8, value);
  return out;
}
inline std::string tensor_attribute(const std::string& name, const std::string& tensor) {
  return bytes_field(1, name) + bytes_field(5, tensor) + number_field(20, 4);
}
inline std::string graph_attribute(const std::string& name, const std::string& graph) {
  return bytes_field(1, name) + bytes_field(6, graph) + number_field(20, 5);
}

struct NodeText {
  std::string op, domain, name;
  std::vector<std::string> inputs, outputs, attributes;

  std::string text() const {
    std::string out;
    for (const std::string& input : inputs) out += bytes_field(1, input);
    for (const std::string& output : outputs) out += bytes_field(2, output);
    if (!name.empty()) out += bytes_field(3, name);
    out += bytes_field(4, op);
    for (const std::string& attribute : attributes) out += bytes_field(5, attribute);
    if (!domain.empty()) out += bytes_field(7, domain);
    return out;
  }
};

struct GraphText {
  std::vector<std::string> tensors;
  std::vector<NodeText> nodes;

  std::string text() const {
    std::string out;
    for (const NodeText& node : nodes) out += bytes_field(1, node.text());
    for (const std::string& tensor : tensors) out += bytes_field(5, tensor);
    return out;
  }
  /// A ModelProto.
  std::string model() const { return number_field(1, 10) + bytes_field(7, text()); }
};

inline Result<Checkpoint> open_model(const std::string& model) {
  Buffer bytes = Buffer::allocate(static_cast<int64_t>(model.size())).value();
  std::memcpy(bytes.mutable_data(), model.data(), model.size());
  return Checkpoint::from_memory(std::move(bytes), "", "model.onnx");
}

// --------------------------------------------------------------------- what models are filled with

inline std::string random_bytes(int64_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::string out(static_cast<size_t>(count), '\0');
  for (char& byte : out) byte = static_cast<char>(engine() & 255);
  return out;
}
inline int nibble_of(const std::string& bytes, int64_t at) {
  const auto byte = static_cast<uint8_t>(bytes[static_cast<size_t>(at / 2)]);
  return at % 2 == 0 ? byte & 15 : byte >> 4;
}
inline int byte_of(const std::string& bytes, int64_t at) {
  return static_cast<uint8_t>(bytes[static_cast<size_t>(at)]);
}
inline float value_of(const std::string& bytes, DType dtype, int64_t at) {
  return load_as_f32(bytes.data(), dtype, at);
}
inline OnnxCode code_of(DType dtype) {
  return dtype == DType::kF32 ? kFloat : dtype == DType::kF16 ? kFloat16 : kBfloat16;
}

inline std::vector<float> dequantized(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.n * q.k));
  q.dequantize(0, q.n, out.data());
  return out;
}
/// In two bands; empty after an error.
inline std::vector<float> dense(const Checkpoint& checkpoint, const std::string& layer) {
  const Result<DenseRows> rows = checkpoint.dense_rows(layer);
  if (!rows.ok()) return {};
  std::vector<float> out(static_cast<size_t>(rows->n * rows->k));
  const int64_t half = rows->n / 2;
  const bool read = rows->read(0, half, out.data()).ok() &&
                    rows->read(half, rows->n, out.data() + half * rows->k).ok();
  return read ? out : std::vector<float>{};
}

/// "" when the status has this code and its message these words, else what it has.
inline std::string unlike(const Status& status, Code code, const std::string& words) {
  if (status.code() == code && status.message().find(words) != std::string::npos) return "";
  return std::string(code_name(status.code())) + ": " + status.message() + "; not: " + words;
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_ONNX_TEST_MODELS_H_
