// The packed order of a block, for row r (layout.cc has the index function):
//
//   canonical 4-bit row:  A = bytes 0..7 (columns 0..15)   B = bytes 8..15 (columns 16..31)
//   packed byte t = 0..15: low nibble = column t, high nibble = column 16 + t
//     even t = 2i:  low(A[i])  | low(B[i]) << 4
//     odd  t = 2i+1: high(A[i]) | high(B[i]) << 4
//   packed byte t lies at 64 * (t / 4) + 4 * r + t % 4: four bytes of a row stay together, so a
//   block is a 4 x 4 transpose of 32-bit words over each four rows.
//
// The compiler's vector extensions keep this free of one machine's intrinsics.
#include "pack/panel16.h"

#include <cstring>

namespace nibble {
namespace {

using Bytes = uint8_t __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(16)));

Bytes load(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
void store(uint8_t* p, Words v) { std::memcpy(p, &v, sizeof(v)); }
void store(uint8_t* p, Bytes v) { std::memcpy(p, &v, sizeof(v)); }

/// rows[i] word j → out[j] word i.
void transpose(const Words rows[4], Words out[4]) {
  const Words ab_low = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Words ab_high = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Words cd_low = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Words cd_high = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

/// Canonical nibbles of one row → its 16 packed bytes.
Bytes split_halves(Bytes row) {
  const Bytes low = row & 15, high = row >> 4;
  // Bytes 0..7 of `low`/`high` are columns of A, 8..15 of B.
  const Bytes even =
      low | (__builtin_shufflevector(low, low, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
             << 4);
  const Bytes odd =
      high |
      (__builtin_shufflevector(high, high, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
       << 4);
  return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

Bytes join_halves(Bytes packed) {
  const Bytes even =
      __builtin_shufflevector(packed, packed, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  const Bytes odd =
      __builtin_shufflevector(packed, packed, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
  const Bytes a = (even & 15) | ((odd & 15) << 4);
  const Bytes b = (even >> 4) | (odd & 0xF0);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
}

}  // namespace

void pack_block_4bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out) {
  const Bytes flip = Bytes{} + static_cast<uint8_t>(code_xor * 0x11);
  for (int r = 0; r < kPanelRows; r += 4) {
    Words in[4], columns[4];
    for (int i = 0; i < 4; ++i)
      in[i] = reinterpret_cast<Words>(split_halves(load(rows[r + i])) ^ flip);
    transpose(in, columns);
    for (int j = 0; j < 4; ++j) store(out + 64 * j + 4 * r, columns[j]);
  }
}

void unpack_block_4bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]) {
  const Bytes flip = Bytes{} + static_cast<uint8_t>(code_xor * 0x11);
  for (int r = 0; r < kPanelRows; r += 4) {
    Words columns[4], out[4];
    for (int j = 0; j < 4; ++j) columns[j] = reinterpret_cast<Words>(load(in + 64 * j + 4 * r));
    transpose(columns, out);
    for (int i = 0; i < 4; ++i)
      store(rows[r + i], join_halves(reinterpret_cast<Bytes>(out[i]) ^ flip));
  }
}

void pack_block_8bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out) {
  const Bytes flip = Bytes{} + code_xor;
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < kPanelRows; r += 4) {
      Words in[4], columns[4];
      for (int i = 0; i < 4; ++i)
        in[i] = reinterpret_cast<Words>(load(rows[r + i] + 16 * half) ^ flip);
      transpose(in, columns);
      for (int j = 0; j < 4; ++j) store(out + 64 * (4 * half + j) + 4 * r, columns[j]);
    }
  }
}

void unpack_block_8bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]) {
  const Bytes flip = Bytes{} + code_xor;
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < kPanelRows; r += 4) {
      Words columns[4], out[4];
      for (int j = 0; j < 4; ++j)
        columns[j] = reinterpret_cast<Words>(load(in + 64 * (4 * half + j) + 4 * r));
      transpose(columns, out);
      for (int i = 0; i < 4; ++i)
        store(rows[r + i] + 16 * half, reinterpret_cast<Bytes>(out[i]) ^ flip);
    }
  }
}

}  // namespace nibble
