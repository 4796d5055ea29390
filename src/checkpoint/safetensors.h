// The safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes
// without holes.
#ifndef NIBBLE_CHECKPOINT_SAFETENSORS_H_
#define NIBBLE_CHECKPOINT_SAFETENSORS_H_

#include <map>
#include <string>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

inline constexpr int64_t kMaxHeaderBytes = 100'000'000;  ///< the reference implementation's limit
inline constexpr size_t kMaxRank = 32;

/// One file with a checked header: every tensor lies inside the file, none overlaps another, and
/// for known dtypes the size is that of the shape.
class SafetensorsFile {
 public:
  /// Errors: kIo, kCorruptFile.
  static Result<SafetensorsFile> open(const std::string& path);
  /// `name` stands for the path in messages.
  static Result<SafetensorsFile> parse(MappedFile file, std::string name);

  const std::string& path() const { return path_; }
  const MappedFile& file() const { return file_; }
  /// In the order of their offsets.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  std::vector<TensorInfo>& tensors() { return tensors_; }
  /// The `__metadata__` of the header.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::string path_;
  MappedFile file_ = MappedFile::of_memory({});
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The DType of a name as safetensors writes it ("BF16"), or nullopt for one that is not in core.
std::optional<DType> safetensors_dtype(std::string_view name);
/// "BF16"
const char* safetensors_name(DType dtype);

/// The first bytes of a file that holds `tensors` (name, dtype_name, shape, bytes are read) in this
/// order: length and header, padded so that the data begins at a multiple of 8.
std::string safetensors_header(std::span<const TensorInfo> tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_SAFETENSORS_H_
