// The bit tricks of the fragment-order kernels, compiled for the host: every code of every element
// through pack, the lane's word and the expansion, against a model of the MMA fragments.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "kernels/cuda/expand.cuh"
#include "nibble/pack.h"

namespace nibble {
namespace {

uint16_t half_of(uint32_t pair, int which) { return static_cast<uint16_t>(pair >> (16 * which)); }

// mma.m16n8k16, A in registers (PTX ISA, "Matrix Fragments for mma.m16n8k16"): register i of lane l
// holds two neighbouring columns of one row.
struct Place {
  int row, column;
};
Place place_in_a(int lane, int reg, int half) {
  const int group = lane / 4, thread = lane % 4;
  return {group + (reg % 2 == 1 ? 8 : 0), 2 * thread + half + (reg >= 2 ? 8 : 0)};
}

// wgmma.m64nNk16 with A in registers: warp w of the warpgroup holds rows 16w .. 16w + 15 in the
// same fragment, so a panel is what one warp of it reads.
Place place_in_wgmma_a(int thread, int reg, int half) {
  const int warp = thread / 32, lane = thread % 32;
  const int row = 16 * warp + lane / 4 + 8 * (reg & 1);
  const int column = 8 * (reg >> 1) + 2 * (lane & 3) + half;
  return {row, column};
}

TEST(FragmentOrderTest, TheWgmmaFragmentOfAWarpIsTheMmaFragment) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int reg = 0; reg < 4; ++reg) {
      for (int half = 0; half < 2; ++half) {
        const Place mma = place_in_a(thread % 32, reg, half);
        const Place wgmma = place_in_wgmma_a(thread, reg, half);
        EXPECT_EQ(wgmma.row, 16 * (thread / 32) + mma.row);
        EXPECT_EQ(wgmma.column, mma.column);
      }
    }
  }
}

// The FP8 fragment (m16n8k32, wgmma.m64nNk32): register i of a lane holds four neighbouring columns
// of one row. A lane's codes of two steps are the ones it needs when x is written in another order.
Place place_in_fp8_a(int lane, int reg, int byte) {
  return {lane / 4 + (reg % 2 == 1 ? 8 : 0), 4 * (lane % 4) + byte + (reg >= 2 ? 16 : 0)};
}

TEST(FragmentOrderTest, TwoStepsOfALaneAreItsFp8FragmentUpToAnOrderOfColumnsWithinSixteen) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int step = 0; step < 2; ++step) {
      for (int row_half = 0; row_half < 2; ++row_half) {
        // Columns of this step that the lane holds of row lane / 4 + 8 row_half.
        int held = 0, needed = 0;
        for (int reg = row_half; reg < 4; reg += 2) {
          for (int half = 0; half < 2; ++half) held |= 1 << place_in_a(lane, reg, half).column;
        }
        for (int byte = 0; byte < 4; ++byte) {
          const Place p = place_in_fp8_a(lane, 2 * step + row_half, byte);
          EXPECT_EQ(p.row, lane / 4 + 8 * row_half);
          // Position 4t + i of a step meets x[2t + (i / 2) + 8 * (i % 2)].
          const int i = p.column % 4, t = p.column % 16 / 4;
          EXPECT_EQ(p.column / 16, step);
          needed |= 1 << (2 * t + i / 2 + 8 * (i % 2));
        }
        EXPECT_EQ(held, needed) << lane << " " << step;
      }
    }
  }
}

/// The fragment of one lane and step, expanded from packed bytes.
void expand_lane(const PackedWeight& packed, int64_t block_at, int lane, int step,
                 const float* codebook, uint32_t (&a)[4]) {
  const Element element = packed.info.format.element;
  const uint8_t* codes = packed.section(SectionId::kCodes) + block_at;
  const ExpandConstants constants = expand_constants(element);
  if (packed.info.format.bits() == 8) {
    uint32_t words[2], low[2], high[2];
    std::memcpy(words, codes + 512 * (step / 2) + 16 * lane + 8 * (step % 2), 8);
    expand_integer8(words[0], constants, low);
    expand_integer8(words[1], constants, high);
    a[0] = low[0];
    a[1] = low[1];
    a[2] = high[0];
    a[3] = high[1];
    return;
  }
  uint32_t word;
  std::memcpy(&word, codes + 16 * lane + 4 * step, 4);
  if (element == Element::kE2M1) {
    expand_e2m1(word, a);
  } else if (element == Element::kNF4) {
    for (int i = 0; i < 4; ++i) a[i] = table_entry(codebook, (word >> (8 * i)) & 0xFF);
  } else {
    expand_integer4(word, constants, a);
  }
}

TEST(FragmentOrderTest, EveryCodeReachesItsPlaceInTheFragmentWithItsValue) {
  std::mt19937 random(7);
  for (const char* name : {"int4-g128", "uint4-g64", "nvfp4", "nf4-g64", "int8-g32", "uint8-g64"}) {
    for (const bool paired : {false, true}) {
      const int64_t n = 64, k = 192;
      QuantizedTensor q = *make_quantized_tensor(*Format::parse(name), n, k);
      q.codebook = kNf4Codebook;
      for (int64_t i = 0; i < q.codes.bytes(); ++i)
        q.codes.mutable_data()[i] = static_cast<uint8_t>(random());
      const PackedWeight packed = *pack(q, {LayoutId::kCudaFrag16, paired});
      const int64_t block_bytes = 16 * 64 * q.format.bits() / 8;
      for (int64_t row = 0; row < n; ++row) {
        const int64_t at = packed.info.layout.packed_row(row, n);
        for (int64_t column = 0; column < k; ++column) {
          const int64_t block = (at / 16 * (k / 64) + column / 64) * block_bytes;
          const int step = static_cast<int>(column % 64 / 16);
          for (int lane = 0; lane < 32; ++lane) {
            for (int reg = 0; reg < 4; ++reg) {
              for (int half = 0; half < 2; ++half) {
                const Place p = place_in_a(lane, reg, half);
                if (p.row != at % 16 || p.column != column % 16) continue;
                uint32_t a[4];
                expand_lane(packed, block, lane, step, q.codebook.data(), a);
                const float value =
                    decode_element(q.format.element, q.code(row, column), q.codebook.data());
                ASSERT_EQ(decode_bf16(half_of(a[reg], half)), bf16_to_f32(f32_to_bf16(value)))
                    << name << " " << row << " " << column;
              }
            }
          }
        }
      }
    }
  }
}

TEST(ExpandTest, EveryPairOfCodesExpandsToItsValues) {
  for (const Element element : {Element::kInt4, Element::kUint4, Element::kE2M1}) {
    const uint8_t code_xor = layout_code_xor(LayoutId::kCudaFrag16, element);
    for (uint32_t low = 0; low < 16; ++low) {
      for (uint32_t high = 0; high < 16; ++high) {
        for (int i = 0; i < 4; ++i) {
          const uint32_t noise = 0x5A5A5A5A & ~(0x000F000Fu << (4 * i));
          const uint32_t word =
              noise | (low ^ code_xor) << (4 * i) | (high ^ code_xor) << (4 * i + 16);
          uint32_t a[4];
          if (element == Element::kE2M1) {
            expand_e2m1(word, a);
          } else {
            expand_integer4(word, expand_constants(element), a);
          }
          // Bit for bit, so that the sign of -0 is right too.
          EXPECT_EQ(half_of(a[i], 0),
                    f32_to_bf16(decode_element(element, static_cast<uint8_t>(low), nullptr)));
          EXPECT_EQ(half_of(a[i], 1),
                    f32_to_bf16(decode_element(element, static_cast<uint8_t>(high), nullptr)));
        }
      }
    }
  }
  for (const Element element : {Element::kInt8, Element::kUint8}) {
    const uint8_t code_xor = layout_code_xor(LayoutId::kCudaFrag16, element);
    for (uint32_t low = 0; low < 256; ++low) {
      for (uint32_t high = 0; high < 256; ++high) {
        for (int i = 0; i < 2; ++i) {
          const uint32_t word = (low ^ code_xor) << (8 * i) | (high ^ code_xor) << (8 * i + 16) |
                                (0xA5A5A5A5u & ~(0x00FF00FFu << (8 * i)));
          uint32_t a[2];
          expand_integer8(word, expand_constants(element), a);
          ASSERT_EQ(half_of(a[i], 0),
                    f32_to_bf16(decode_element(element, static_cast<uint8_t>(low), nullptr)));
          ASSERT_EQ(half_of(a[i], 1),
                    f32_to_bf16(decode_element(element, static_cast<uint8_t>(high), nullptr)));
        }
      }
    }
  }
}

TEST(ExpandTest, PartsOfXSumToXExactly) {
  std::mt19937 random(9);
  for (int i = 0; i < 1000000; ++i) {
    const float x = float_of_bits(static_cast<uint32_t>(random()));
    // Below 2^-100 the third part leaves BF16's range.
    if (!std::isfinite(x) || std::fabs(x) < 0x1p-100f) continue;
    double sum = 0;
    for (int part = 0; part < 3; ++part)
      sum += static_cast<double>(decode_bf16(bf16_part(x, part)));
    ASSERT_EQ(sum, static_cast<double>(x)) << x;
  }
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = f16_to_f32(static_cast<uint16_t>(bits));
    if (!std::isfinite(x)) continue;
    ASSERT_EQ(decode_bf16(bf16_part(x, 0)) + decode_bf16(bf16_part(x, 1)), x) << bits;
  }
  EXPECT_EQ(decode_bf16(bf16_part(INFINITY, 0)), INFINITY);
  EXPECT_EQ(decode_bf16(bf16_part(-INFINITY, 2)), 0.0f);
  EXPECT_TRUE(std::isnan(decode_bf16(bf16_part(float_of_bits(0x7F800001), 0))));
  EXPECT_EQ(decode_bf16(bf16_part(float_of_bits(0x7F800001), 1)), 0.0f);
}

}  // namespace
}  // namespace nibble
