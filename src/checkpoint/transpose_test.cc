#include "checkpoint/transpose.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace nibble::checkpoint {
namespace {

/// Sizes around every step of the code: words, vectors, tiles of 16 words and 128 rows.
const int64_t kRows[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 127, 128, 129, 261, 1023, 1025};
const int64_t kColumns[] = {1,  2,  3,  4,  5,  7,   8,   9,   15,  16, 17,
                            31, 33, 63, 64, 65, 127, 128, 129, 250, 257};

using Codes = std::vector<std::vector<uint8_t>>;

Codes random_codes(int64_t n, int64_t k, int bits, uint32_t seed) {
  std::mt19937 engine(seed);
  Codes codes(static_cast<size_t>(n), std::vector<uint8_t>(static_cast<size_t>(k)));
  for (auto& row : codes) {
    for (uint8_t& code : row) code = static_cast<uint8_t>(engine() % (1u << bits));
  }
  return codes;
}

/// Bytes at an odd address, with nothing after them that may be read; fields that no code has are
/// set, so that a reader that takes them shows.
class Stored {
 public:
  explicit Stored(int64_t words) : words_(static_cast<size_t>(words), 0xFFFFFFFFu) {}
  void set(int64_t word, int64_t field, int bits, uint8_t code) {
    const int shift = bits * static_cast<int>(field);
    uint32_t& w = words_[static_cast<size_t>(word)];
    w = (w & ~(((1u << bits) - 1) << shift)) | (uint32_t{code} << shift);
  }
  const uint8_t* data() {
    bytes_.resize(1 + 4 * words_.size());
    std::memcpy(bytes_.data() + 1, words_.data(), 4 * words_.size());
    return bytes_.data() + 1;
  }

 private:
  std::vector<uint32_t> words_;
  std::vector<uint8_t> bytes_;
};

std::vector<std::vector<int32_t>> orders(int64_t k) {
  std::vector<int32_t> reverse(static_cast<size_t>(k));
  std::iota(reverse.rbegin(), reverse.rend(), 0);
  std::vector<int32_t> mixed = reverse;
  std::shuffle(mixed.begin(), mixed.end(), std::mt19937(static_cast<uint32_t>(k)));
  return {{}, reverse, mixed};
}

/// The canonical bytes of the codes with their columns in `order`.
std::vector<uint8_t> canonical(const Codes& codes, const std::vector<int32_t>& order, int bits,
                               uint8_t flip) {
  std::vector<uint8_t> out;
  for (const auto& row : codes) {
    std::vector<uint8_t> bytes((row.size() * static_cast<size_t>(bits) + 7) / 8);
    for (size_t j = 0; j < row.size(); ++j) {
      const size_t from = order.empty() ? j : static_cast<size_t>(order[j]);
      const auto code = static_cast<uint8_t>(row[from] ^ flip);
      if (bits == 8) {
        bytes[j] = code;
      } else {
        bytes[j / 2] = static_cast<uint8_t>(bytes[j / 2] | code << (4 * (j % 2)));
      }
    }
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

void expect_bytes(const Result<Buffer>& got, const std::vector<uint8_t>& want) {
  ASSERT_TRUE(got.ok()) << got.status().message();
  ASSERT_EQ(got->bytes(), static_cast<int64_t>(want.size()));
  const auto different = std::mismatch(want.begin(), want.end(), got->data());
  EXPECT_EQ(different.first, want.end())
      << "byte " << different.first - want.begin() << ": " << int{*different.second} << ", not "
      << int{*different.first};
}

/// Every pair of sizes, both widths, with and without an offset, columns kept or moved.
template <class Check>
void for_all_sizes(Check check) {
  for (const int bits : {4, 8}) {
    for (const int64_t n : kRows) {
      for (const int64_t k : kColumns) {
        SCOPED_TRACE(std::to_string(bits) + " bits, n " + std::to_string(n) + ", k " +
                     std::to_string(k));
        const auto flip = static_cast<uint8_t>((n + k) % 2 == 0 ? 1 << (bits - 1) : 0);
        check(bits, n, k, flip, random_codes(n, k, bits, static_cast<uint32_t>(31 * n + k)));
        if (testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(Transpose, WordsAlongKBecomeRows) {
  for_all_sizes([](int bits, int64_t n, int64_t k, uint8_t flip, const Codes& codes) {
    const int64_t fields = 32 / bits;
    Stored stored(ceil_div(k, fields) * n);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t j = 0; j < k; ++j) {
        stored.set(j / fields * n + r, j % fields, bits,
                   codes[static_cast<size_t>(r)][static_cast<size_t>(j)]);
      }
    }
    for (const auto& order : orders(k)) {
      expect_bytes(rows_from_words_along_k({stored.data(), n, k, bits, flip}, order),
                   canonical(codes, order, bits, flip));
    }
  });
}

TEST(Transpose, NibblesAlongNBecomeRows) {
  for_all_sizes([&](int bits, int64_t n, int64_t k, uint8_t flip, const Codes& codes) {
    if (bits == 8) return;
    std::vector<uint8_t> stored(static_cast<size_t>(ceil_div(n * k, 2)));  // not a byte more
    for (int64_t at = 0; at < n * k; ++at) {
      const int code = codes[static_cast<size_t>(at % n)][static_cast<size_t>(at / n)];
      auto& byte = stored[static_cast<size_t>(at / 2)];
      byte = static_cast<uint8_t>(byte | code << (4 * (at % 2)));
    }
    expect_bytes(rows_from_nibbles_along_n({stored.data(), n, k, 4, flip}),
                 canonical(codes, {}, 4, flip));
  });
}

TEST(Transpose, AwqWordsBecomeRows) {
  const int slots[] = {0, 2, 4, 6, 1, 3, 5, 7};
  for_all_sizes([&](int bits, int64_t n, int64_t k, uint8_t flip, const Codes& codes) {
    if (bits == 8) return;
    const int64_t words = ceil_div(n, 8);
    Stored stored(k * words);
    for (int64_t c = 0; c < words; ++c) {
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t row = 8 * c + slots[i];
        for (int64_t j = 0; row < n && j < k; ++j) {
          stored.set(j * words + c, i, 4, codes[static_cast<size_t>(row)][static_cast<size_t>(j)]);
        }
      }
    }
    expect_bytes(rows_from_awq_words({stored.data(), n, k, 4, flip}),
                 canonical(codes, {}, 4, flip));
  });
}

TEST(Transpose, RowsKeepOrMoveTheirColumns) {
  for_all_sizes([](int bits, int64_t n, int64_t k, uint8_t flip, const Codes& codes) {
    const int64_t fields = 32 / bits, words = ceil_div(k, fields);
    Stored stored(n * words);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t j = 0; j < k; ++j) {
        stored.set(r * words + j / fields, j % fields, bits,
                   codes[static_cast<size_t>(r)][static_cast<size_t>(j)]);
      }
    }
    for (const auto& order : orders(k)) {
      expect_bytes(rows_with_columns({stored.data(), n, k, bits, flip}, 4 * words, order),
                   canonical(codes, order, bits, flip));
    }
  });
}

TEST(Transpose, ValuesOfEveryWidthArePickedAndTransposed) {
  for (const int64_t width : {1, 2, 4}) {
    for (const int64_t rows : {1, 3, 16, 33}) {
      for (const int64_t columns : {1, 5, 64, 65, 200}) {
        std::vector<uint8_t> values(static_cast<size_t>(rows * columns * width));
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<uint8_t>(i * 37 + i / 251);
        std::vector<int32_t> picked;  // every row, some of them twice
        for (int64_t j = 0; j < rows + 2; ++j) picked.push_back(static_cast<int32_t>(j * 7 % rows));
        std::vector<uint8_t> want;
        for (int64_t c = 0; c < columns; ++c) {
          for (const int32_t row : picked) {
            const auto* from = values.data() + (row * columns + c) * width;
            want.insert(want.end(), from, from + width);
          }
        }
        expect_bytes(transposed(values.data(), columns, width, picked), want);
      }
    }
  }
}

TEST(Transpose, SizesThatOverflowAreRefused) {
  const StoredCodes huge = {nullptr, int64_t{1} << 40, int64_t{1} << 40, 4, 0};
  EXPECT_FALSE(rows_from_words_along_k(huge, {}).ok());
  EXPECT_FALSE(rows_from_awq_words(huge).ok());
  EXPECT_FALSE(transposed(nullptr, int64_t{1} << 62, 4, std::vector<int32_t>(2)).ok());
}

}  // namespace
}  // namespace nibble::checkpoint
