// The safetensors container: 8 bytes of header length, a JSON header, then the tensors' bytes
// without holes.
#ifndef NIBBLE_CHECKPOINT_SAFETENSORS_H_
#define NIBBLE_CHECKPOINT_SAFETENSORS_H_

#include <map>
#include <string>
#include <vector>

#include "checkpoint/tensor_file.h"

namespace nibble::checkpoint {

inline constexpr int64_t kMaxHeaderBytes = 100'000'000;  ///< the reference implementation's limit
inline constexpr size_t kMaxRank = 32;

/// One file with a checked header: every tensor lies inside the file, none overlaps another, for
/// known dtypes the size is that of the shape; tensors are in the order of their offsets.
/// `name` stands for the path in messages. Errors: kCorruptFile.
Result<TensorFile> parse_safetensors(MappedFile file, const std::string& name);

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
