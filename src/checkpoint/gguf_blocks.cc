#include "checkpoint/gguf_blocks.h"

#include <cstring>

namespace nibble::checkpoint {
namespace {

// Eight codes in the bytes of a word: what SSE2 has no instruction for is cheap there.

constexpr uint64_t kOnes = 0x0101010101010101u;

uint64_t load64(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}
void store64(uint8_t* to, uint64_t word) { std::memcpy(to, &word, sizeof(word)); }
void store32(uint8_t* to, uint64_t word) {
  const auto low = static_cast<uint32_t>(word);
  std::memcpy(to, &low, sizeof(low));
}
float load_f16(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return f16_to_f32(bits);
}
void store_f32(uint8_t* to, float value) { std::memcpy(to, &value, sizeof(value)); }

/// Bytes 0x0a 0x0b 0x0c 0x0d … as 0xba 0xdc …: four bytes of nibbles.
uint64_t pack_nibbles(uint64_t codes) {
  codes = (codes | codes >> 4) & 0x00FF00FF00FF00FFu;
  codes = (codes | codes >> 8) & 0x0000FFFF0000FFFFu;
  return codes | codes >> 16;
}
/// The inverse, of the low four bytes.
uint64_t spread_nibbles(uint64_t packed) {
  packed = (packed | packed << 16) & 0x0000FFFF0000FFFFu;
  packed = (packed | packed << 8) & 0x00FF00FF00FF00FFu;
  return (packed | packed << 4) & (15 * kOnes);
}
/// Bit i of a byte as byte i, 0 or 1.
uint64_t spread_bits(uint8_t bits) {
  const uint64_t each = bits * kOnes & 0x8040201008040201u;
  return ((each + 127 * kOnes) >> 7) & kOnes;
}

/// Low nibbles of 8 bytes to `low`, high ones to `high`, four bytes each.
void split_eight(const uint8_t* in, uint64_t flip, uint8_t* low, uint8_t* high) {
  const uint64_t word = load64(in) ^ flip;
  store32(low, pack_nibbles(word & (15 * kOnes)));
  store32(high, pack_nibbles(word >> 4 & (15 * kOnes)));
}

// ---------------------------------------------------------------------------- blocks of 32 values

void decode_q4_0(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 18) {
    std::memcpy(out.scales + 2 * i, block, 2);
    split_halves(block + 2, 0x88, out.codes + 16 * i);  // q - 8 as two's complement
  }
}

void decode_q4_1(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 20) {
    std::memcpy(out.scales + 2 * i, block, 2);
    std::memcpy(out.zeros + 2 * i, block + 2, 2);
    split_halves(block + 4, 0, out.codes + 16 * i);
  }
}

/// Codes of five bits: nibbles in halves, the top bits apart. `top` is what a top bit of 0 adds and
/// of 1 does not: 0xF0 makes q - 16.
template <bool kSigned>
void join_five_bits(const uint8_t* top_bits, const uint8_t* nibbles, uint8_t* codes) {
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      const uint64_t low = load64(nibbles + 8 * i) >> (4 * half) & (15 * kOnes);
      const uint64_t top = spread_bits(top_bits[2 * half + i]);
      const uint64_t high = kSigned ? (top ^ kOnes) * 0xF0 : top << 4;
      store64(codes + 16 * half + 8 * i, low | high);
    }
  }
}

void decode_q5_0(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 22) {
    std::memcpy(out.scales + 2 * i, block, 2);
    join_five_bits<true>(block + 2, block + 6, out.codes + 32 * i);
  }
}

void decode_q5_1(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 24) {
    std::memcpy(out.scales + 2 * i, block, 2);
    std::memcpy(out.zeros + 2 * i, block + 2, 2);
    join_five_bits<false>(block + 4, block + 8, out.codes + 32 * i);
  }
}

void decode_q8_0(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 34) {
    std::memcpy(out.scales + 2 * i, block, 2);
    std::memcpy(out.codes + 32 * i, block + 2, 32);
  }
}

/// The exponent byte e means 2^(e-128) for codes of twice E2M1, 0 included: E8M0 as it stands.
void decode_mxfp4(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 17) {
    out.scales[i] = block[0];
    split_halves(block + 1, 0, out.codes + 16 * i);
  }
}

/// Four groups of 16, halves within each. The scale is E4M3 without a sign: bit 7 is ignored, 0x7F
/// is 0. ggml takes 0xFF for 480, which E4M3 has not: it becomes NaN here, and the layer is
/// refused.
void decode_nvfp4(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 36) {
    for (int g = 0; g < 4; ++g) {
      const uint8_t scale = block[g];
      out.scales[4 * i + g] = scale == 0x7F ? 0 : scale & 0x7F;
      uint8_t* codes = out.codes + 32 * i + 8 * g;
      split_eight(block + 4 + 8 * g, 0, codes, codes + 4);
    }
  }
}

void decode_iq4_nl(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 18) {
    std::memcpy(out.scales + 2 * i, block, 2);
    split_halves(block + 2, 0, out.codes + 16 * i);
  }
}

// --------------------------------------------------------------------------- blocks of 256 values

/// Eight 6-bit scales and minimums of 12 bytes: the low four plain, the others in what is left.
void unpack_scales(const uint8_t* in, uint8_t* scales, uint8_t* minimums) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = in[j] & 63;
    minimums[j] = in[j + 4] & 63;
    scales[j + 4] = static_cast<uint8_t>((in[j + 8] & 15) | in[j] >> 6 << 4);
    minimums[j + 4] = static_cast<uint8_t>(in[j + 8] >> 4 | in[j + 4] >> 6 << 4);
  }
}

/// d * scale and -(dmin * minimum) of eight groups of 32.
void expand_scales(const uint8_t* block, float* scales, float* zeros) {
  const float d = load_f16(block), dmin = load_f16(block + 2);
  uint8_t scale[8], minimum[8];
  unpack_scales(block + 4, scale, minimum);
  for (int j = 0; j < 8; ++j) {
    scales[j] = d * static_cast<float>(scale[j]);
    zeros[j] = -(dmin * static_cast<float>(minimum[j]));
  }
}

void decode_q4_k(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 144) {
    float scales[8], zeros[8];
    expand_scales(block, scales, zeros);
    std::memcpy(out.scales + 32 * i, scales, sizeof(scales));
    std::memcpy(out.zeros + 32 * i, zeros, sizeof(zeros));
    for (int pair = 0; pair < 4; ++pair) {  // 32 bytes: a group in the low nibbles, the next above
      uint8_t* codes = out.codes + 128 * i + 32 * pair;
      for (int j = 0; j < 4; ++j) {
        split_eight(block + 16 + 32 * pair + 8 * j, 0, codes + 4 * j, codes + 16 + 4 * j);
      }
    }
  }
}

void decode_q5_k(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 176) {
    float scales[8], zeros[8];
    expand_scales(block, scales, zeros);
    std::memcpy(out.scales + 32 * i, scales, sizeof(scales));
    std::memcpy(out.zeros + 32 * i, zeros, sizeof(zeros));
    const uint8_t* top = block + 16;  // bit g of byte l: the top bit of value l of group g
    for (int g = 0; g < 8; ++g) {
      const uint8_t* nibbles = block + 48 + 32 * (g / 2);
      uint8_t* codes = out.codes + 256 * i + 32 * g;
      for (int l = 0; l < 32; l += 8) {
        const uint64_t low = load64(nibbles + l) >> (4 * (g & 1)) & (15 * kOnes);
        store64(codes + l, low | (load64(top + l) >> g & kOnes) << 4);
      }
    }
  }
}

void decode_q6_k(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 210) {
    const float d = load_f16(block + 208);
    float scales[16];
    for (int g = 0; g < 16; ++g) {
      scales[g] = d * static_cast<float>(static_cast<int8_t>(block[192 + g]));
    }
    std::memcpy(out.scales + 64 * i, scales, sizeof(scales));
    for (int part = 0; part < 8; ++part) {  // 32 values each, four to a half of the block
      const int half = part / 4, quarter = part % 4;
      const uint8_t* low = block + 64 * half + 32 * (quarter & 1);
      const uint8_t* high = block + 128 + 32 * half;
      uint8_t* codes = out.codes + 256 * i + 32 * part;
      for (int l = 0; l < 32; l += 8) {
        const uint64_t nibbles = load64(low + l) >> (4 * (quarter / 2)) & (15 * kOnes);
        const uint64_t top = load64(high + l) >> (2 * quarter) & (3 * kOnes);
        // q - 32 with the sign in bit 5 of q: 0xE0 is added where that is 0.
        const uint64_t sign = (top >> 1 & kOnes) ^ kOnes;
        store64(codes + l, nibbles | (top & kOnes) << 4 | sign * 0xE0);
      }
    }
  }
}

void decode_q2_k(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 84) {
    const float d = load_f16(block + 80), dmin = load_f16(block + 82);
    float scales[16], zeros[16];
    for (int g = 0; g < 16; ++g) {
      scales[g] = d * static_cast<float>(block[g] & 15);
      zeros[g] = -(dmin * static_cast<float>(block[g] >> 4));
    }
    std::memcpy(out.scales + 64 * i, scales, sizeof(scales));
    std::memcpy(out.zeros + 64 * i, zeros, sizeof(zeros));
    for (int part = 0; part < 8; ++part) {
      const uint8_t* in = block + 16 + 32 * (part / 4);
      uint8_t* codes = out.codes + 128 * i + 16 * part;
      for (int l = 0; l < 32; l += 8) {
        store32(codes + l / 2, pack_nibbles(load64(in + l) >> (2 * (part % 4)) & (3 * kOnes)));
      }
    }
  }
}

/// Sixteen 6-bit scales: low nibbles in 8 bytes, then the top bits in 4.
void unpack_q3_k_scales(const uint8_t* in, uint8_t* scales) {
  for (int g = 0; g < 8; ++g) {
    scales[g] = in[g] & 15;
    scales[g + 8] = in[g] >> 4;
  }
  for (int g = 0; g < 16; ++g) {
    scales[g] = static_cast<uint8_t>(scales[g] | (in[8 + g % 4] >> (g / 4 * 2) & 3) << 4);
  }
}

void decode_q3_k(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 110) {
    const float d = load_f16(block + 108);
    uint8_t scale[16];
    float scales[16];
    unpack_q3_k_scales(block + 96, scale);
    for (int g = 0; g < 16; ++g) scales[g] = d * static_cast<float>(scale[g] - 32);
    std::memcpy(out.scales + 64 * i, scales, sizeof(scales));
    for (int part = 0; part < 8; ++part) {
      const uint8_t* in = block + 32 + 32 * (part / 4);
      uint8_t* codes = out.codes + 128 * i + 16 * part;
      for (int l = 0; l < 32; l += 8) {
        const uint64_t low = load64(in + l) >> (2 * (part % 4)) & (3 * kOnes);
        // A mask bit of 0 takes 4 away: -4..-1 as nibbles are 12..15.
        const uint64_t sign = (load64(block + l) >> part & kOnes) ^ kOnes;
        store32(codes + l / 2, pack_nibbles(low | sign * 12));
      }
    }
  }
}

void decode_iq4_xs(const uint8_t* block, int64_t count, const BlockParts& out) {
  for (int64_t i = 0; i < count; ++i, block += 136) {
    const float d = load_f16(block);
    const int high = block[2] | block[3] << 8;
    for (int g = 0; g < 8; ++g) {
      const int scale = (block[4 + g / 2] >> (4 * (g & 1)) & 15) | (high >> (2 * g) & 3) << 4;
      store_f32(out.scales + 32 * i + 4 * g, d * static_cast<float>(scale - 32));
      split_halves(block + 8 + 16 * g, 0, out.codes + 128 * i + 16 * g);
    }
  }
}

constexpr std::array<float, 16> kIq4Codebook = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  69,  89,  113};

constexpr GgmlBlocks kRows[] = {
    {"Q4_0", {Element::kInt4, 32, DType::kF16, ZeroKind::kNone}, nullptr, decode_q4_0},
    {"Q4_1", {Element::kUint4, 32, DType::kF16, ZeroKind::kAdditive}, nullptr, decode_q4_1},
    {"Q5_0", {Element::kInt8, 32, DType::kF16, ZeroKind::kNone}, nullptr, decode_q5_0},
    {"Q5_1", {Element::kUint8, 32, DType::kF16, ZeroKind::kAdditive}, nullptr, decode_q5_1},
    {"Q8_0", {Element::kInt8, 32, DType::kF16, ZeroKind::kNone}, nullptr, decode_q8_0},
    {"Q2_K", {Element::kUint4, 16, DType::kF32, ZeroKind::kAdditive}, nullptr, decode_q2_k},
    {"Q3_K", {Element::kInt4, 16, DType::kF32, ZeroKind::kNone}, nullptr, decode_q3_k},
    {"Q4_K", {Element::kUint4, 32, DType::kF32, ZeroKind::kAdditive}, nullptr, decode_q4_k},
    {"Q5_K", {Element::kUint8, 32, DType::kF32, ZeroKind::kAdditive}, nullptr, decode_q5_k},
    {"Q6_K", {Element::kInt8, 16, DType::kF32, ZeroKind::kNone}, nullptr, decode_q6_k},
    {"IQ4_NL", {Element::kNF4, 32, DType::kF16, ZeroKind::kNone}, &kIq4Codebook, decode_iq4_nl},
    {"IQ4_XS", {Element::kNF4, 32, DType::kF32, ZeroKind::kNone}, &kIq4Codebook, decode_iq4_xs},
    {"MXFP4", {Element::kE2M1, 32, DType::kE8M0, ZeroKind::kNone}, nullptr, decode_mxfp4},
    {"NVFP4", {Element::kE2M1, 16, DType::kE4M3, ZeroKind::kNone}, nullptr, decode_nvfp4},
};

}  // namespace

void split_halves(const uint8_t* in, uint8_t flip, uint8_t* out) {
  split_eight(in, flip * kOnes, out, out + 8);
  split_eight(in + 8, flip * kOnes, out + 4, out + 12);
}

void join_halves(const uint8_t* in, uint8_t flip, uint8_t* out) {
  for (int i = 0; i < 2; ++i) {
    uint32_t low, high;
    std::memcpy(&low, in + 4 * i, sizeof(low));
    std::memcpy(&high, in + 8 + 4 * i, sizeof(high));
    store64(out + 8 * i, (spread_nibbles(low) | spread_nibbles(high) << 4) ^ flip * kOnes);
  }
}

std::span<const GgmlBlocks> ggml_blocks() { return kRows; }

const GgmlBlocks* ggml_blocks_of(std::string_view type) {
  for (const GgmlBlocks& row : kRows) {
    if (type == row.type) return &row;
  }
  return nullptr;
}

}  // namespace nibble::checkpoint
