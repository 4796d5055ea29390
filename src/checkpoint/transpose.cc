// Every stored order becomes rows in the same two steps. A tile holds 16 words along K of 128 rows,
// `tile[word][slot]`; each order fills it in its own way:
//
//   along K            16 pieces of 512 bytes are copied
//   along K, gathered  a word is put together from fields of 8 (or 4) words, 4 slots at a time, out
//                      of a strip that holds all words of 64 rows close together
//   along N (and AWQ)  the 8 x 8 nibbles of 8 words are transposed, 4 slots at a time
//
// and store_tile transposes its 32-bit words into the 128 rows, a cache line of 64 bytes each.
#include "checkpoint/transpose.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace nibble::checkpoint {
namespace {

constexpr int64_t kTileWords = 16, kTileRows = 128, kTileBytes = 4 * kTileWords;
constexpr int64_t kLanes = 4;
/// Rows that are read together: one word (4 KB) or nibble (512 bytes) of each lies side by side in
/// the file, the next of them on another page. Read in pieces of a tile's width they come three
/// times slower.
constexpr int64_t kWideRows = 1024;
using Words = uint32_t __attribute__((vector_size(16)));
struct Tile {
  alignas(64) uint32_t words[kTileWords][kTileRows];
};

Words load(const void* p) {
  Words v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
void store(void* p, Words v) { std::memcpy(p, &v, sizeof(v)); }

/// in[i] lane j → out[j] lane i.
void transpose_lanes(const Words in[4], Words out[4]) {
  const Words ab_low = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5);
  const Words ab_high = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
  const Words cd_low = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5);
  const Words cd_high = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

/// Slot s < slots of the tile goes to the 64 bytes at to[s].
void store_words(const Tile& tile, int64_t slots, uint32_t flip, uint8_t* const to[kTileRows]) {
  const Words flips = Words{} + flip;
  for (int64_t s = 0; s < slots; s += kLanes) {
    for (int64_t w = 0; w < kTileWords; w += kLanes) {
      Words in[4], out[4];
      for (int64_t i = 0; i < kLanes; ++i) in[i] = load(&tile.words[w + i][s]) ^ flips;
      transpose_lanes(in, out);
      for (int64_t i = 0; i < kLanes; ++i) store(to[s + i] + 4 * w, out[i]);
    }
  }
}

/// The rows that a matrix of codes consists of while it is written tile by tile.
class CodeRows {
 public:
  static Result<CodeRows> of(const StoredCodes& stored) {
    CodeRows rows;
    rows.stored_ = stored;
    rows.row_bytes_ = ceil_div(stored.k * stored.bits, 8);
    rows.flip_ = stored.flip * (stored.bits == 4 ? 0x11111111u : 0x01010101u);
    const auto bytes = checked_product(stored.n, rows.row_bytes_);
    if (!bytes) return invalid_argument("the codes' size overflows 63 bits");
    NIBBLE_ASSIGN_OR_RETURN(rows.codes_, Buffer::allocate(*bytes));
    return rows;
  }
  int64_t words() const { return ceil_div(row_bytes_, 4); }

  /// Words [word, word + 16) of the rows `row + slot_rows[s]`, s < slots; what lies past the matrix
  /// is dropped.
  void store_tile(const Tile& tile, int64_t slots, int64_t row, int64_t word,
                  const std::array<uint8_t, kTileRows>& slot_rows) {
    uint8_t* const codes = codes_.mutable_data() + 4 * word;
    const int64_t bytes = std::min(kTileBytes, row_bytes_ - 4 * word);
    alignas(64) uint8_t scratch[kTileRows][kTileBytes];
    uint8_t* to[kTileRows];
    for (size_t s = 0; s < static_cast<size_t>(slots); ++s) {
      const int64_t target = row + slot_rows[s];
      const bool whole = target < stored_.n && bytes == kTileBytes;
      to[s] = whole ? codes + target * row_bytes_ : scratch[s];
    }
    store_words(tile, slots, flip_, to);
    if (bytes == kTileBytes) return;
    for (size_t s = 0; s < static_cast<size_t>(slots); ++s) {
      const int64_t target = row + slot_rows[s];
      if (target >= stored_.n) continue;
      std::memcpy(codes + target * row_bytes_, scratch[s], static_cast<size_t>(bytes));
    }
  }

  /// Rows that lie `row_bytes` apart and are in order as they stand.
  void copy_rows(int64_t row_bytes) {
    const auto flip = static_cast<uint8_t>(flip_);
    for (int64_t row = 0; row < stored_.n; ++row) {
      const uint8_t* from = stored_.words + row * row_bytes;
      uint8_t* to = codes_.mutable_data() + row * row_bytes_;
      for (int64_t i = 0; i < row_bytes_; ++i) to[i] = static_cast<uint8_t>(from[i] ^ flip);
    }
  }

  Buffer take() {
    if (stored_.bits == 4 && stored_.k % 2 != 0) {
      for (int64_t row = 1; row <= stored_.n; ++row) {
        codes_.mutable_data()[row * row_bytes_ - 1] &= 15;
      }
    }
    return std::move(codes_);
  }

 private:
  StoredCodes stored_;
  int64_t row_bytes_ = 0;
  uint32_t flip_ = 0;
  Buffer codes_;
};

constexpr auto kSlotsInOrder = [] {
  std::array<uint8_t, kTileRows> rows{};
  for (size_t s = 0; s < kTileRows; ++s) rows[s] = static_cast<uint8_t>(s);
  return rows;
}();

/// Slot 16 i + c holds field i of word c.
constexpr auto kAwqSlots = [] {
  std::array<uint8_t, kTileRows> rows{};
  for (size_t s = 0; s < kTileRows; ++s) {
    rows[s] = static_cast<uint8_t>(8 * (s % 16) + kAwqOrder[s / 16]);
  }
  return rows;
}();

/// The same where field i of a word is row i.
constexpr auto kNibbleSlots = [] {
  std::array<uint8_t, kTileRows> rows{};
  for (size_t s = 0; s < kTileRows; ++s) rows[s] = static_cast<uint8_t>(8 * (s % 16) + s / 16);
  return rows;
}();

/// All words along K of up to 64 rows, which a second-level cache holds: words[word * slots +
/// slot].
struct Strip {
  /// Few rows have a narrow strip, so that it is never much larger than what it is made from.
  Strip(int64_t n, int64_t num_words)
      : slots(round_up(std::min<int64_t>(64, n), kStep)),
        words(static_cast<size_t>(num_words * slots)) {}
  static constexpr int64_t kStep = 4 * kLanes;  ///< slots that are gathered together
  uint32_t* word(int64_t index) { return words.data() + index * slots; }

  int64_t slots;
  std::vector<uint32_t> words;
};

/// One word of every slot, whose fields are the strip's columns columns[0 .. count).
template <int kBits>
void gather_word(const Strip& strip, const int32_t* columns, int64_t count, uint32_t* out) {
  constexpr int32_t kFields = 32 / kBits;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  constexpr int64_t kVectors = Strip::kStep / kLanes;
  for (int64_t s = 0; s < strip.slots; s += Strip::kStep) {
    Words sum[kVectors] = {};
    for (int32_t j = 0; j < count; ++j) {
      const uint32_t* from = strip.words.data() + columns[j] / kFields * strip.slots + s;
      const int shift = columns[j] % kFields * kBits;
      for (int64_t v = 0; v < kVectors; ++v) {
        sum[v] |= (load(from + kLanes * v) >> shift & kMask) << (kBits * j);
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) store(out + s + kLanes * v, sum[v]);
  }
}

/// Writes the rows from `row` on from their strip.
void store_gathered(const StoredCodes& stored, const Strip& strip, std::span<const int32_t> order,
                    int64_t row, CodeRows& rows) {
  const auto gather = stored.bits == 4 ? gather_word<4> : gather_word<8>;
  const int64_t fields = 32 / stored.bits, words = rows.words();
  Tile tile{};
  for (int64_t word = 0; word < words; word += kTileWords) {
    for (int64_t w = word; w < std::min(word + kTileWords, words); ++w) {
      gather(strip, order.data() + w * fields, std::min(fields, stored.k - w * fields),
             tile.words[w - word]);
    }
    rows.store_tile(tile, strip.slots, row, word, kSlotsInOrder);
  }
}

/// a[r] nibble i → a[i] nibble r, in every lane.
void transpose_nibbles(Words a[8]) {
  const auto swap = [](Words& low, Words& high, int shift, uint32_t mask) {
    const Words t = ((low >> shift) ^ high) & mask;
    high ^= t;
    low ^= t << shift;
  };
  for (int i = 0; i < 4; ++i) swap(a[i], a[i + 4], 16, 0x0000FFFF);
  for (const int i : {0, 1, 4, 5}) swap(a[i], a[i + 2], 8, 0x00FF00FF);
  for (const int i : {0, 2, 4, 6}) swap(a[i], a[i + 1], 4, 0x0F0F0F0F);
}

/// Codes along N, 4 bits each. load_nibbles(column, row, count, to): the nibbles of rows [row, row
/// + count) of the column's N, as bytes; slot_rows: the row of each nibble of 128, slot 16 i + c
/// being field i of word c.
template <class LoadNibbles>
Result<Buffer> rows_from_columns(const StoredCodes& stored,
                                 const std::array<uint8_t, kTileRows>& slot_rows,
                                 const LoadNibbles& load_nibbles) {
  NIBBLE_ASSIGN_OR_RETURN(CodeRows rows, CodeRows::of(stored));
  const int64_t words = rows.words();
  constexpr int64_t kColumns = 8 * kTileWords;            // of a tile
  constexpr int64_t kPitch = kWideRows / 8 + kTileWords;  // no power of two: spreads over the cache
  std::vector<uint32_t> wide(static_cast<size_t>(kColumns * kPitch));
  Tile tile{};
  for (int64_t wide_row = 0; wide_row < stored.n; wide_row += kWideRows) {
    const int64_t count = std::min(kWideRows, stored.n - wide_row);
    for (int64_t word = 0; word < words; word += kTileWords) {
      const int64_t columns = std::min(kColumns, stored.k - 8 * word);
      for (int64_t i = 0; i < columns; ++i) {
        load_nibbles(8 * word + i, wide_row, count,
                     reinterpret_cast<uint8_t*>(wide.data() + i * kPitch));
      }
      if (columns < kColumns) {  // nothing past the last column
        std::fill(wide.begin() + columns * kPitch, wide.end(), 0u);
      }
      for (int64_t row = 0; row < count; row += kTileRows) {
        for (int64_t w = 0; w < kTileWords; ++w) {
          const uint32_t* const from = wide.data() + 8 * w * kPitch + row / 8;
          for (int64_t c = 0; c < kTileRows / 8; c += kLanes) {
            Words nibbles[8];
            for (int64_t i = 0; i < 8; ++i) nibbles[i] = load(from + i * kPitch + c);
            transpose_nibbles(nibbles);
            for (int64_t i = 0; i < 8; ++i) store(tile.words[w] + 16 * i + c, nibbles[i]);
          }
        }
        rows.store_tile(tile, kTileRows, wide_row + row, word, slot_rows);
      }
    }
  }
  return rows.take();
}

template <class Value>
void transpose_values(const uint8_t* values, int64_t columns, std::span<const int32_t> picked,
                      uint8_t* out) {
  constexpr int64_t kBlock = 64;  // rows of the result that are written together
  constexpr int64_t kBatch = 8;   // values that are written together
  constexpr auto kWidth = static_cast<int64_t>(sizeof(Value));
  const auto length = static_cast<int64_t>(picked.size());
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t count = std::min(kBlock, columns - begin);
    const auto row = [&](int64_t j) {
      return values + (int64_t{picked[static_cast<size_t>(j)]} * columns + begin) * kWidth;
    };
    int64_t j = 0;
    for (; j + kBatch <= length; j += kBatch) {
      const uint8_t* from[kBatch];
      for (int64_t i = 0; i < kBatch; ++i) from[i] = row(j + i);
      uint8_t* to = out + (begin * length + j) * kWidth;
      for (int64_t c = 0; c < count; ++c) {
        Value batch[kBatch];
        for (int64_t i = 0; i < kBatch; ++i) {
          std::memcpy(batch + i, from[i] + c * kWidth, sizeof(Value));
        }
        std::memcpy(to + c * length * kWidth, batch, sizeof(batch));
      }
    }
    for (; j < length; ++j) {
      uint8_t* to = out + (begin * length + j) * kWidth;
      for (int64_t c = 0; c < count; ++c) {
        std::memcpy(to + c * length * kWidth, row(j) + c * kWidth, sizeof(Value));
      }
    }
  }
}

}  // namespace

Result<Buffer> rows_from_words_along_k(const StoredCodes& stored, std::span<const int32_t> order) {
  if (!order.empty()) {
    // Rows first, and their columns gathered close together: faster than words that lie n apart.
    StoredCodes plain = stored;
    plain.flip = 0;
    NIBBLE_ASSIGN_OR_RETURN(const Buffer rows, rows_from_words_along_k(plain, {}));
    plain.words = rows.data();
    plain.flip = stored.flip;
    return rows_with_columns(plain, ceil_div(stored.k * stored.bits, 8), order);
  }
  NIBBLE_ASSIGN_OR_RETURN(CodeRows rows, CodeRows::of(stored));
  const int64_t words = rows.words();
  const auto at = [&](int64_t word, int64_t row) {
    return stored.words + 4 * (word * stored.n + row);
  };
  constexpr int64_t kPitch = kWideRows + kTileWords;  // no power of two: spreads over the cache
  std::vector<uint32_t> wide(static_cast<size_t>(kTileWords * kPitch));
  Tile tile{};
  for (int64_t wide_row = 0; wide_row < stored.n; wide_row += kWideRows) {
    const int64_t count = std::min(kWideRows, stored.n - wide_row);
    for (int64_t word = 0; word < words; word += kTileWords) {
      const int64_t num_words = std::min(kTileWords, words - word);
      for (int64_t w = 0; w < num_words; ++w) {
        std::memcpy(wide.data() + w * kPitch, at(word + w, wide_row),
                    static_cast<size_t>(4 * count));
      }
      for (int64_t row = 0; row < count; row += kTileRows) {
        for (int64_t w = 0; w < num_words; ++w) {
          std::memcpy(tile.words[w], wide.data() + w * kPitch + row, sizeof(tile.words[w]));
        }
        rows.store_tile(tile, kTileRows, wide_row + row, word, kSlotsInOrder);
      }
    }
  }
  return rows.take();
}

Result<Buffer> rows_from_awq_words(const StoredCodes& stored) {
  const int64_t stored_words = ceil_div(stored.n, 8);
  return rows_from_columns(stored, kAwqSlots,
                           [&](int64_t column, int64_t row, int64_t count, uint8_t* to) {
                             std::memcpy(to, stored.words + 4 * (column * stored_words + row / 8),
                                         static_cast<size_t>(4 * ceil_div(count, 8)));
                           });
}

Result<Buffer> rows_from_nibbles_along_n(const StoredCodes& stored) {
  return rows_from_columns(stored, kNibbleSlots,
                           [&](int64_t column, int64_t row, int64_t count, uint8_t* to) {
                             const int64_t begin = column * stored.n + row;
                             const uint8_t* const from = stored.words + begin / 2;
                             if (begin % 2 == 0) {
                               std::memcpy(to, from, static_cast<size_t>(ceil_div(count, 2)));
                               return;
                             }
                             const int64_t pairs = count / 2;
                             for (int64_t i = 0; i < pairs; ++i) {
                               to[i] = static_cast<uint8_t>(from[i] >> 4 | from[i + 1] << 4);
                             }
                             if (count % 2 != 0) to[pairs] = from[pairs] >> 4;
                           });
}

Result<Buffer> rows_with_columns(const StoredCodes& stored, int64_t row_bytes,
                                 std::span<const int32_t> order) {
  NIBBLE_ASSIGN_OR_RETURN(CodeRows rows, CodeRows::of(stored));
  if (order.empty()) {
    rows.copy_rows(row_bytes);
    return rows.take();
  }
  const int64_t words = rows.words(), used_bytes = ceil_div(stored.k * stored.bits, 8);
  const int64_t whole_words = used_bytes / 4;
  Strip strip(stored.n, words);
  for (int64_t row = 0; row < stored.n; row += strip.slots) {
    const int64_t count = std::min(strip.slots, stored.n - row);
    const uint8_t* const from = stored.words + row * row_bytes;
    const auto copy_word = [&](int64_t word, int64_t slot) {
      std::memcpy(strip.word(word) + slot, from + slot * row_bytes + 4 * word,
                  static_cast<size_t>(std::min<int64_t>(4, used_bytes - 4 * word)));
    };
    for (int64_t s = 0; s < count; s += kLanes) {
      int64_t word = 0;
      for (; s + kLanes <= count && word + kLanes <= whole_words; word += kLanes) {
        Words in[4], out[4];
        for (int64_t i = 0; i < kLanes; ++i) in[i] = load(from + (s + i) * row_bytes + 4 * word);
        transpose_lanes(in, out);
        for (int64_t i = 0; i < kLanes; ++i) store(strip.word(word + i) + s, out[i]);
      }
      for (; word < words; ++word) {
        for (int64_t i = s; i < std::min(s + kLanes, count); ++i) copy_word(word, i);
      }
    }
    store_gathered(stored, strip, order, row, rows);
  }
  return rows.take();
}

Result<Buffer> transposed(const uint8_t* values, int64_t columns, int64_t value_bytes,
                          std::span<const int32_t> picked) {
  const auto count = checked_product(columns, static_cast<int64_t>(picked.size()));
  const auto bytes = count ? checked_product(*count, value_bytes) : std::nullopt;
  if (!bytes) return invalid_argument("the size of a transposed matrix overflows 63 bits");
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(*bytes));
  const auto transpose = value_bytes == 1   ? transpose_values<uint8_t>
                         : value_bytes == 2 ? transpose_values<uint16_t>
                                            : transpose_values<uint32_t>;
  transpose(values, columns, picked, out.mutable_data());
  return out;
}

}  // namespace nibble::checkpoint
