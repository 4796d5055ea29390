// The GGUF container, versions 2 and 3, little-endian:
//   "GGUF", u32 version, u64 tensors, u64 pairs
//   each pair:    string key, u32 type, value    (string: u64 length, bytes;
//                                                  array: u32 type, u64 count, values)
//   each tensor:  string name, u32 dimensions, u64 extent each (fastest first), u32 ggml type,
//                 u64 offset from the start of the data, a multiple of general.alignment
//   the data, beginning at the next multiple of general.alignment (32 without the key)
// A model may be split into files `stem-00001-of-0000N.gguf`, each with its own tensors.
#ifndef NIBBLE_CHECKPOINT_GGUF_H_
#define NIBBLE_CHECKPOINT_GGUF_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/tensor_file.h"

namespace nibble::checkpoint {

inline constexpr char kGgufMagic[] = "GGUF";
inline constexpr char kGgufAlignment[] = "general.alignment";
inline constexpr int64_t kGgufDefaultAlignment = 32;
inline constexpr int kMaxGgufDepth = 32;  ///< arrays within arrays
inline constexpr size_t kMaxGgufRank = 4;

/// Types of values, as numbered in files.
enum class GgufValue : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

/// A type of tensor. Rows are whole blocks.
struct GgmlType {
  uint32_t id = 0;
  const char* name = "";       ///< as ggml calls it; TensorInfo::dtype_name
  int64_t block = 1;           ///< values a block
  int64_t block_bytes = 0;     ///< 0: no file may have it any more
  std::optional<DType> dtype;  ///< of plain values
};
const GgmlType* ggml_type(uint32_t id);            ///< null for a number that ggml has not given
const GgmlType* ggml_type(std::string_view name);  ///< null for an unknown name
/// Bytes of a tensor of this shape. Errors (without context): kCorruptFile for a last extent that
/// is not whole blocks, or sizes past 63 bits.
Result<int64_t> ggml_bytes(const GgmlType& type, std::span<const int64_t> shape);

/// One key-value pair, as positions in the file.
struct GgufPair {
  std::string_view key;  ///< in the file's memory
  GgufValue type = GgufValue::kU8;
  int64_t begin = 0, value = 0, end = 0;  ///< the pair, its value, the byte after it
};

struct GgufFile {
  TensorFile file;  ///< tensors in the order of offsets; metadata as text
  std::vector<GgufPair> pairs;
  int64_t split_number = 0, split_count = 1;  ///< `split.no` from 0
  int64_t split_tensors = -1;                 ///< of all parts; -1: not said
};

/// Checks the whole header of one file. Errors: kCorruptFile, kUnsupported (another version,
/// big-endian); `path` stands before the message.
Result<GgufFile> parse_gguf(MappedFile file, const std::string& path);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_GGUF_H_
