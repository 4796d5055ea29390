// The packed order of a block (layout.cc has the index function). Rows g and g + 8 make eight lanes
// of four; a step is 16 columns, eight canonical bytes A of row g and B of row g + 8:
//
//   4 bits: byte t of A holds columns 2t (low) and 2t + 1 (high), byte 4 + t columns 2t + 8, 2t
//   + 9.
//     L = low nibbles of A | low nibbles of B << 4       H = the same of the high nibbles
//     word of lane t = L[t] | L[4 + t] << 8 | H[t] << 16 | H[4 + t] << 24
//   so that pair i of the fragment is the nibble i of both halves of the word.
//
//   nf4: word of lane t = A[t] | B[t] << 8 | A[4 + t] << 16 | B[4 + t] << 24, pair i in byte i.
//
//   8 bits: columns 2t, 2t + 1 of A and B make word 0: A[2t] | B[2t] << 8 | A[2t+1] << 16 | B[2t+1]
//   << 24; the columns 8 further on make word 1.
//
// Whole 64-bit words hold the four lanes of a row pair: no shuffle instruction is needed.
#include "pack/frag16.h"

#include <cstring>

namespace nibble {
namespace {

constexpr int kRowPairs = kPanelRows / 2;
constexpr int kSteps = kFragmentColumns / 16;
constexpr int kLaneBytes = 16;
constexpr uint64_t kLowNibbles = 0x0F0F0F0F0F0F0F0F;

uint64_t load64(const uint8_t* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
void store64(uint8_t* p, uint64_t v) { std::memcpy(p, &v, sizeof(v)); }
uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
void store32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, sizeof(v)); }

/// Byte `index` of `v`, moved to byte `to`.
uint32_t byte_of(uint64_t v, int index, int to) {
  return static_cast<uint32_t>((v >> (8 * index)) & 0xFF) << (8 * to);
}

}  // namespace

void pack_fragment_4bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out) {
  const uint64_t flip = code_xor * uint64_t{0x1111111111111111};
  for (int g = 0; g < kRowPairs; ++g) {
    for (int step = 0; step < kSteps; ++step) {
      const uint64_t a = load64(rows[g] + 8 * step) ^ flip;
      const uint64_t b = load64(rows[g + 8] + 8 * step) ^ flip;
      const uint64_t low = (a & kLowNibbles) | (b & kLowNibbles) << 4;
      const uint64_t high = (a >> 4 & kLowNibbles) | (b & ~kLowNibbles);
      for (int t = 0; t < 4; ++t) {
        store32(out + kLaneBytes * (4 * g + t) + 4 * step,
                byte_of(low, t, 0) | byte_of(low, 4 + t, 1) | byte_of(high, t, 2) |
                    byte_of(high, 4 + t, 3));
      }
    }
  }
}

void unpack_fragment_4bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]) {
  const uint64_t flip = code_xor * uint64_t{0x1111111111111111};
  for (int g = 0; g < kRowPairs; ++g) {
    for (int step = 0; step < kSteps; ++step) {
      uint64_t low = 0, high = 0;
      for (int t = 0; t < 4; ++t) {
        const uint64_t word = load32(in + kLaneBytes * (4 * g + t) + 4 * step);
        low |= (word & 0xFF) << (8 * t) | (word >> 8 & 0xFF) << (8 * (4 + t));
        high |= (word >> 16 & 0xFF) << (8 * t) | (word >> 24) << (8 * (4 + t));
      }
      const uint64_t a = (low & kLowNibbles) | (high & kLowNibbles) << 4;
      const uint64_t b = (low >> 4 & kLowNibbles) | (high & ~kLowNibbles);
      store64(rows[g] + 8 * step, a ^ flip);
      store64(rows[g + 8] + 8 * step, b ^ flip);
    }
  }
}

void pack_fragment_table(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out) {
  const uint64_t flip = code_xor * uint64_t{0x1111111111111111};
  for (int g = 0; g < kRowPairs; ++g) {
    for (int step = 0; step < kSteps; ++step) {
      const uint64_t a = load64(rows[g] + 8 * step) ^ flip;
      const uint64_t b = load64(rows[g + 8] + 8 * step) ^ flip;
      for (int t = 0; t < 4; ++t) {
        store32(out + kLaneBytes * (4 * g + t) + 4 * step,
                byte_of(a, t, 0) | byte_of(b, t, 1) | byte_of(a, 4 + t, 2) | byte_of(b, 4 + t, 3));
      }
    }
  }
}

void unpack_fragment_table(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]) {
  const uint8_t flip = static_cast<uint8_t>(code_xor * 0x11);
  for (int g = 0; g < kRowPairs; ++g) {
    for (int step = 0; step < kSteps; ++step) {
      for (int t = 0; t < 4; ++t) {
        const uint8_t* word = in + kLaneBytes * (4 * g + t) + 4 * step;
        rows[g][8 * step + t] = word[0] ^ flip;
        rows[g + 8][8 * step + t] = word[1] ^ flip;
        rows[g][8 * step + 4 + t] = word[2] ^ flip;
        rows[g + 8][8 * step + 4 + t] = word[3] ^ flip;
      }
    }
  }
}

void pack_fragment_8bit(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out) {
  const uint32_t flip = code_xor * 0x01010101u;
  for (int half = 0; half < 2; ++half) {
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int part = 0; part < 4; ++part) {  // step of the half, then columns 0-7 or 8-15 of it
        const int column = 32 * half + 8 * part + 2 * t;
        const uint8_t *a = rows[g] + column, *b = rows[g + 8] + column;
        const uint32_t word =
            uint32_t{a[0]} | uint32_t{b[0]} << 8 | uint32_t{a[1]} << 16 | uint32_t{b[1]} << 24;
        store32(out + 512 * half + kLaneBytes * lane + 4 * part, word ^ flip);
      }
    }
  }
}

void unpack_fragment_8bit(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]) {
  const uint32_t flip = code_xor * 0x01010101u;
  for (int half = 0; half < 2; ++half) {
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int part = 0; part < 4; ++part) {
        const int column = 32 * half + 8 * part + 2 * t;
        const uint32_t word = load32(in + 512 * half + kLaneBytes * lane + 4 * part) ^ flip;
        rows[g][column] = static_cast<uint8_t>(word);
        rows[g + 8][column] = static_cast<uint8_t>(word >> 8);
        rows[g][column + 1] = static_cast<uint8_t>(word >> 16);
        rows[g + 8][column + 1] = static_cast<uint8_t>(word >> 24);
      }
    }
  }
}

}  // namespace nibble
