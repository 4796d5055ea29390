// Row-major weights → the order of cpu_panel16, 16 rows and a chunk of columns at a time, in
// scratch.
//
// A block of 32 columns of one row is 16 bytes (8-bit codes: two times 16), and each 4 bytes of it,
// once nibbles are in panel order, are one lane of one vector of the panel. So a block is a
// transposition of 16 rows x 4 lanes of 32 bits.
#ifndef NIBBLE_KERNELS_CPU_REPACK_AVX512_H_
#define NIBBLE_KERNELS_CPU_REPACK_AVX512_H_

#include "kernels/cpu/panel_avx512.h"

namespace nibble {

/// Rows of a row-major matrix that stand in for a panel; lanes past `rows` are zero.
struct PanelRows {
  const uint8_t* first;  ///< code bytes of the first row
  int64_t rows;          ///< 1..16
  int64_t row_bytes;
};

NIBBLE_INLINE int64_t row_code_bytes(const WeightArgs& w) {
  return w.element == Element::kInt8 || w.element == Element::kUint8 ? w.k : (w.k + 1) / 2;
}

NIBBLE_INLINE PanelRows panel_rows(const WeightArgs& w, int64_t panel) {
  const int64_t row_bytes = row_code_bytes(w);
  return {w.codes + panel * kPanelRows * row_bytes, min_i64(kPanelRows, w.n - panel * kPanelRows),
          row_bytes};
}

/// Bytes [offset, offset + 16) of rows 4q..4q+3, one row a 128-bit lane. Bytes past the end of a
/// row and rows past the end of the matrix are 0 and not read.
NIBBLE_INLINE __m512i load_four_rows(const PanelRows& from, int64_t q, int64_t offset) {
  const int64_t count = min_i64(16, from.row_bytes - offset);
  const __mmask16 bytes = static_cast<__mmask16>(count <= 0 ? 0u : (1u << count) - 1u);
  __m128i row[4];
  NIBBLE_UNROLL for (int64_t i = 0; i < 4; ++i) {
    const int64_t r = 4 * q + i;
    row[i] = r < from.rows ? _mm_maskz_loadu_epi8(bytes, from.first + r * from.row_bytes + offset)
                           : _mm_setzero_si128();
  }
  const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(row[0]), row[1], 1);
  const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(row[2]), row[3], 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
}

/// Nibbles k, k+1 a byte → nibbles k, 16+k a byte, in each 128-bit lane.
NIBBLE_INLINE __m512i pair_with_upper_half(__m512i v) {
  const __m512i mask = _mm512_set1_epi8(15);
  const __m512i even = _mm512_and_si512(v, mask);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
  const __m512i lower = _mm512_unpacklo_epi8(even, odd);
  const __m512i upper = _mm512_unpackhi_epi8(even, odd);
  return _mm512_or_si512(lower, _mm512_slli_epi16(upper, 4));
}

/// rows[q] holds 4 rows x 4 lanes of 32 bits; writes lane j of all 16 rows as vector j.
NIBBLE_INLINE void store_transposed(__m512i (&rows)[4], uint8_t* out) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  NIBBLE_UNROLL for (int q = 0; q < 4; ++q) rows[q] = _mm512_permutexvar_epi32(order, rows[q]);
  const __m512i a = _mm512_shuffle_i32x4(rows[0], rows[1], 0x44);  // j 0,1 of rows 0-3, 4-7
  const __m512i b = _mm512_shuffle_i32x4(rows[2], rows[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(rows[0], rows[1], 0xEE);  // j 2,3
  const __m512i d = _mm512_shuffle_i32x4(rows[2], rows[3], 0xEE);
  _mm512_store_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
  _mm512_store_si512(out + 64, _mm512_shuffle_i32x4(a, b, 0xDD));
  _mm512_store_si512(out + 128, _mm512_shuffle_i32x4(c, d, 0x88));
  _mm512_store_si512(out + 192, _mm512_shuffle_i32x4(c, d, 0xDD));
}

/// Columns [columns.begin, columns.end), whole blocks of 32, of 16 rows from row 16*panel on.
/// Signed codes become offset binary, as cpu_panel16 stores them.
__attribute__((noinline, unused)) static void repack_codes(const WeightArgs& w, int64_t panel,
                                                           Range columns, uint8_t* out) {
  const PanelRows from = panel_rows(w, panel);
  const bool bytes = w.element == Element::kInt8 || w.element == Element::kUint8;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(w.element == Element::kInt4   ? 0x88
                                                          : w.element == Element::kInt8 ? 0x80
                                                                                        : 0));
  const int64_t end = bytes ? columns.end : columns.end / 2;
  for (int64_t offset = bytes ? columns.begin : columns.begin / 2; offset < end; offset += 16) {
    __m512i rows[4];
    NIBBLE_UNROLL for (int64_t q = 0; q < 4; ++q) {
      const __m512i v = _mm512_xor_si512(load_four_rows(from, q, offset), flip);
      rows[q] = bytes ? v : pair_with_upper_half(v);
    }
    store_transposed(rows, out);
    out += 256;
  }
}

/// Values of `value_bytes` each, groups [groups.begin, groups.end) of 16 rows from row 16*panel on:
/// [n][num_groups] → [group][16]. Groups and rows that do not exist are zero bytes.
__attribute__((noinline, unused)) static void repack_values(const WeightArgs& w, const void* values,
                                                            int64_t value_bytes, int64_t panel,
                                                            Range groups, uint8_t* out) {
  const int64_t first = panel * kPanelRows, rows = min_i64(kPanelRows, w.n - first);
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    for (int64_t r = 0; r < kPanelRows; ++r, out += value_bytes) {
      uint32_t value = 0;
      if (r < rows && g < w.num_groups) {
        const int64_t index = (first + r) * w.num_groups + g;
        __builtin_memcpy(&value, static_cast<const uint8_t*>(values) + index * value_bytes,
                         static_cast<size_t>(value_bytes));
      }
      __builtin_memcpy(out, &value, static_cast<size_t>(value_bytes));
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_REPACK_AVX512_H_
