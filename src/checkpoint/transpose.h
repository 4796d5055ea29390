// Codes that a file stores along N, made into the canonical rows along K. Blocks of 128 rows and
// 16 words, in plain loops and the compiler's vector extensions: these run at the speed of memory,
// and so opening a model takes no longer than reading it.
#ifndef NIBBLE_CHECKPOINT_TRANSPOSE_H_
#define NIBBLE_CHECKPOINT_TRANSPOSE_H_

#include <array>
#include <cstdint>
#include <span>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// A matrix of integer codes of 4 or 8 bits as little-endian 32-bit words. Every result here is a
/// new buffer of codes [n, ceil(k*bits/8)], low bits first along K, padding bits clear.
struct StoredCodes {
  const uint8_t* words = nullptr;  ///< at any address
  int64_t n = 0, k = 0;            ///< at least 1
  int bits = 4;
  /// The stored code XOR this is the code: 8 or 128 where signed codes are stored with an offset.
  uint8_t flip = 0;
};

/// Words [ceil(k*bits/32), n]; field i of word (r, c) is row c, column r * (32/bits) + i, low
/// first. `order` (empty, or k columns each in [0, k)): column j of the result is column order[j].
Result<Buffer> rows_from_words_along_k(const StoredCodes& stored, std::span<const int32_t> order);

/// Words [k, ceil(n/8)] of 4-bit codes; field i of word (r, c) is row 8c + kAwqOrder[i], column r.
Result<Buffer> rows_from_awq_words(const StoredCodes& stored);
inline constexpr std::array<uint8_t, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

/// 4-bit codes [k, n] one after the other, low nibble first: where n is odd, every other row begins
/// inside a byte.
Result<Buffer> rows_from_nibbles_along_n(const StoredCodes& stored);

/// Rows that are already along K, `row_bytes` apart, at least ceil(k*bits/8): column j of the
/// result is column order[j]; an empty order keeps them.
Result<Buffer> rows_with_columns(const StoredCodes& stored, int64_t row_bytes,
                                 std::span<const int32_t> order);

/// [rows, columns] values of 1, 2 or 4 bytes → [columns, picked.size()]: result (c, j) is value
/// (picked[j], c). Every entry of `picked` is a row.
Result<Buffer> transposed(const uint8_t* values, int64_t columns, int64_t value_bytes,
                          std::span<const int32_t> picked);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TRANSPOSE_H_
