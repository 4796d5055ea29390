// ggml's blocks of quantized values and the Formats that hold them exactly.
//
// A block's scale is f16, or f16 times a small integer: at most 11 + 8 bits, so the product is
// exact in f32 and so is the product with the f16 minimum. What is left is one rounding of
// scale * q (or of scale * q - minimum), the same in ggml and in QuantizedTensor::decode.
#ifndef NIBBLE_CHECKPOINT_GGUF_BLOCKS_H_
#define NIBBLE_CHECKPOINT_GGUF_BLOCKS_H_

#include <array>
#include <span>
#include <string_view>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// Where decoded blocks go: parts of a QuantizedTensor. A row is whole blocks, so that every part
/// is as contiguous as the blocks are.
struct BlockParts {
  uint8_t* codes = nullptr;
  uint8_t* scales = nullptr;
  uint8_t* zeros = nullptr;  ///< additive zeros only
};

struct GgmlBlocks {
  const char* type = "";  ///< of GgmlType
  Format format;
  const std::array<float, 16>* codebook = nullptr;  ///< of kNF4 Formats
  /// Decodes `count` blocks that lie one after the other.
  void (*decode)(const uint8_t* blocks, int64_t count, const BlockParts& out) = nullptr;
};

/// All types that are read; ggml's others have no row.
std::span<const GgmlBlocks> ggml_blocks();
const GgmlBlocks* ggml_blocks_of(std::string_view type);  ///< null: not read

/// 16 bytes with codes 0..15 in the low nibbles and 16..31 in the high ones, as 32 codes in order,
/// low nibble first; every byte is XORed with `flip` first.
void split_halves(const uint8_t* in, uint8_t flip, uint8_t* out);
/// The inverse of split_halves.
void join_halves(const uint8_t* in, uint8_t flip, uint8_t* out);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_GGUF_BLOCKS_H_
