// Files for the tests of this stage: hand-made safetensors, temporary directories, random weights.
#ifndef NIBBLE_CHECKPOINT_TEST_FILES_H_
#define NIBBLE_CHECKPOINT_TEST_FILES_H_

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

class TempDirectory {
 public:
  TempDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "nibble-test-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string path(const std::string& name = "") const {
    return name.empty() ? path_ : path_ + "/" + name;
  }

 private:
  std::string path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Names of all files below a directory with their bytes.
inline std::vector<std::pair<std::string, std::string>> tree(const std::string& root) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file()) continue;
    out.emplace_back(entry.path().lexically_relative(root).string(),
                     read_bytes(entry.path().string()));
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// A file from the text of its header and its data, right or wrong.
inline std::string raw_safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string out(sizeof(length), '\0');
  std::memcpy(out.data(), &length, sizeof(length));
  return out + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// Builds a well-formed file tensor by tensor.
class FileBuilder {
 public:
  FileBuilder& add(const std::string& name, const std::string& dtype,
                   const std::vector<int64_t>& shape, const std::string& bytes) {
    std::string extents;
    for (const int64_t extent : shape)
      extents += (extents.empty() ? "" : ",") + std::to_string(extent);
    header_ += (header_.empty() ? "" : ",") + ("\"" + name) + "\":{\"dtype\":\"" + dtype +
               "\",\"shape\":[" + extents + "],\"data_offsets\":[" + std::to_string(data_.size()) +
               "," + std::to_string(data_.size() + bytes.size()) + "]}";
    data_ += bytes;
    return *this;
  }
  /// Spaces before the closing brace of the header move every tensor.
  std::string build(size_t spaces = 0) const {
    return raw_safetensors("{" + header_ + std::string(spaces, ' ') + "}", data_);
  }

 private:
  std::string header_, data_;
};

/// Bytes of a dtype's values from floats.
inline std::string values_of(DType dtype, const std::vector<float>& values) {
  std::string out(values.size() * static_cast<size_t>(dtype_bytes(dtype)), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    store_from_f32(out.data(), dtype, static_cast<int64_t>(i), values[i]);
  }
  return out;
}

inline std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& value : out) value = normal(engine);
  return out;
}

/// Random codes, finite random scales (0 among them), zeros over the whole range of codes.
inline QuantizedTensor random_weight(const Format& format, int64_t n, int64_t k, uint32_t seed) {
  QuantizedTensor q = make_quantized_tensor(format, n, k).value();
  std::mt19937 engine(seed);
  const auto fill = [&engine](Buffer& buffer, uint32_t limit) {
    for (int64_t i = 0; i < buffer.bytes(); ++i) {
      buffer.mutable_data()[i] = static_cast<uint8_t>(engine() % limit);
    }
  };
  fill(q.codes, 256);
  if (format.bits() == 4 && k % 2 != 0) {
    for (int64_t row = 1; row <= n; ++row) q.codes.mutable_data()[row * ((k + 1) / 2) - 1] &= 15;
  }
  if (format.zero == ZeroKind::kInteger) fill(q.zeros, 1u << format.bits());
  const int64_t count = n * format.groups(k);
  for (int64_t i = 0; i < count; ++i) {
    if (format.scale == DType::kE8M0) {
      q.scales.mutable_data()[i] = static_cast<uint8_t>(engine() % 255);
    } else {
      const float value = i % 11 == 5 ? 0.0f : 0.001f * static_cast<float>(engine() % 4000 + 1);
      store_from_f32(q.scales.mutable_data(), format.scale, i, value);
    }
  }
  if (format.name() == "nvfp4") {
    q.tensor_scales = {{0, 417.3f}};
    q.tensor_scale_op = TensorScaleOp::kDivide;
  }
  return q;
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TEST_FILES_H_
