// Writes GGUF: the bytes before the tensors, and quantized weights as ggml blocks. gguf.h says what
// a file looks like.
//
//   NIBBLE_ASSIGN_OR_RETURN(GgufPairs pairs, GgufPairs::of_file(store.file(0), path));
//   NIBBLE_ASSIGN_OR_RETURN(GgufHeader header, gguf_header(infos, pairs));  // sets file_offset
//   file = OutputFile::create(path, header.file_bytes);  // zeros where nothing is written
//   file.write_at(0, header.bytes);  // then each tensor at its file_offset, in any order
#ifndef NIBBLE_CHECKPOINT_GGUF_WRITE_H_
#define NIBBLE_CHECKPOINT_GGUF_WRITE_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/json.h"
#include "checkpoint/mapped_file.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {

/// Key-value pairs as a GGUF file stores them.
class GgufPairs {
 public:
  /// Those of a GGUF file (the first part of a split one) bit for bit and in their order, without
  /// the `split.*` keys: what is written is one file. Errors: kCorruptFile, kUnsupported.
  static Result<GgufPairs> of_file(const MappedFile& file, const std::string& path);
  /// What a Hugging Face config.json says: general.architecture (its model_type, "unknown" without
  /// one), general.name (`name`), and under the architecture's prefix block_count, context_length,
  /// embedding_length, feed_forward_length, attention.head_count, attention.head_count_kv and
  /// vocab_size where the config has them. A tokenizer is not translated.
  static GgufPairs of_config(const Json& config, const std::string& name);

  bool has(std::string_view key) const;
  /// Replaces the pair where it stands, or appends it.
  void set(const std::string& key, uint32_t value);
  void set(const std::string& key, std::string_view text);

  /// general.alignment; 32 without the key.
  int64_t alignment() const;
  size_t size() const { return pairs_.size(); }
  /// All pairs, one after the other.
  std::string bytes() const;

 private:
  struct Pair {
    std::string key, bytes;  ///< `bytes` is the whole pair, key included
  };
  void put(const std::string& key, uint32_t type, std::string_view value);
  std::vector<Pair> pairs_;
};

struct GgufHeader {
  std::string bytes;       ///< up to the first tensor, padding included
  int64_t file_bytes = 0;  ///< of the whole file
};

/// The header of a file (version 3, little-endian) that holds `tensors` in this order. Reads name,
/// dtype_name (of a ggml type: "Q4_0", "F32", "BF16", "I32", …), shape and bytes of each and sets
/// its file_offset, a multiple of the alignment; bytes between tensors are to be zero.
/// general.file_type becomes that of the type with most weights, and general.quantization_version
/// is set to 2 where a tensor is quantized and the key is missing. A tensor without dimensions is
/// written as one of [1].
/// Errors: kUnsupported (a dtype that ggml has not, more than 4 dimensions, a last dimension that
/// is no multiple of the type's block), kInvalidArgument (bytes that do not fit the shape).
Result<GgufHeader> gguf_header(std::span<TensorInfo> tensors, GgufPairs pairs);

/// The ggml type in which a Format is written: "Q4_0" for int4-g32:f16, "Q8_0" for int8-g32:f16,
/// "MXFP4" for mxfp4; null for every other.
const char* gguf_type_of(const Format& format);

/// Weights of those Formats as one tensor `<layer>.weight` of [n, k]; k must be a multiple of 32.
/// Where the layer's own tensor has more dimensions (experts), its shape may be written instead:
/// the bytes are the same. The bytes are the exact inverse of what the reader does. `config` is
/// null: GGUF has no quantization_config. It is no row of write_spellings(), which choose by
/// Format.
extern const WriteSpelling kWriteGguf;

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_GGUF_WRITE_H_
