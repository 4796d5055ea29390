// Codes, scales and zeros in shared memory → the scaled fragments of the wide kernels (wide.cuh).
#ifndef NIBBLE_KERNELS_CUDA_WIDE_EXPAND_CUH_
#define NIBBLE_KERNELS_CUDA_WIDE_EXPAND_CUH_

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/cuda/wide.h"

#if NIBBLE_SM90A
namespace nibble {

/// kCount words of shared memory.
template <int kCount>
NIBBLE_DEVICE void load_words(const uint8_t* from, uint32_t (&to)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + 4 * i);
      to[i] = v.x;
      to[i + 1] = v.y;
      to[i + 2] = v.z;
      to[i + 3] = v.w;
    }
  } else {
    static_assert(kCount <= 2);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
}
/// Two bytes of `bytes` (2 * pair and the next), each the low byte of a half.
NIBBLE_DEVICE uint32_t two_bytes(const uint8_t* bytes, int pair) {
  const uint32_t both = reinterpret_cast<const uint16_t*>(bytes)[pair];
  return __byte_perm(both, 0, 0x4140);
}
/// Scales of one byte → BF16, exactly; both halves at once.
//   e4m3  s eeee mmm → BF16 with exponent field eeee: the value times 2^-120, subnormals included
//   e8m0  eeeeeeee   → BF16 with that exponent field; 0 is 2^-127, BF16's subnormal 0x0040
NIBBLE_DEVICE uint32_t bf16_of_bytes(DType dtype, uint32_t bytes) {
  if (dtype == DType::kE4M3) {
    const uint32_t moved = (bytes & 0x007F007F) << 4 | (bytes & 0x00800080) << 8;
    return fma_bf16x2(moved, 0x7B807B80, kBf16MinusZero);
  }
  return __vmaxu2(bytes << 7, 0x00400040);
}
NIBBLE_DEVICE uint32_t splat_half(uint32_t word, int half) {
  return __byte_perm(word, 0, half == 0 ? 0x1010 : 0x3232);
}

/// Scales and zeros of rows g and g + 8 of a panel for one block: kGroups values of the first row,
/// then of the second, side by side in memory.
template <class Config>
struct BlockScales {
  static constexpr int kGroups = Config::kGroupsPerBlock;
  uint32_t halves[kGroups];   // BF16 (WideScale::kBf16)
  float floats[2 * kGroups];  // WideScale::kF32
  uint32_t offsets[kGroups];  // BF16 -(128 + zero)

  NIBBLE_DEVICE void load(const WideArgs& args, const uint8_t* scales, const uint8_t* zeros,
                          int32_t g) {
    const DType dtype = args.matmul.w.scale_dtype;
    scales += 2 * kGroups * args.scale_bytes * g;
    if constexpr (Config::kScale == WideScale::kF32) {
      if (dtype == DType::kF32) {
        uint32_t words[2 * kGroups];
        load_words(scales, words);
#pragma unroll
        for (int i = 0; i < 2 * kGroups; ++i) floats[i] = __uint_as_float(words[i]);
      } else {
        uint32_t words[kGroups];
        load_words(scales, words);
#pragma unroll
        for (int i = 0; i < 2 * kGroups; ++i) {
          floats[i] = half_to_float(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
        }
      }
    } else if (dtype == DType::kBF16) {
      load_words(scales, halves);
    } else {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) halves[i] = bf16_of_bytes(dtype, two_bytes(scales, i));
    }
    if constexpr (Config::kZeros) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        offsets[i] = two_bytes(zeros + 2 * kGroups * g, i) | 0xC300C300;
      }
    }
  }
  NIBBLE_DEVICE uint32_t bf16(int row, int group) const {
    const int at = row * kGroups + group;
    return splat_half(halves[at / 2], at % 2);
  }
  NIBBLE_DEVICE float f32(int row, int group) const { return floats[row * kGroups + group]; }
  NIBBLE_DEVICE uint32_t offset(int row, int group) const {
    const int at = row * kGroups + group;
    return splat_half(offsets[at / 2], at % 2);
  }
};

NIBBLE_DEVICE uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
/// value * scale in FP32, rounded to BF16, in both halves.
NIBBLE_DEVICE uint32_t multiply_f32(uint32_t pair, float scale) {
  const float low = __uint_as_float(pair << 16) * scale;
  const float high = __uint_as_float(pair & 0xFFFF0000u) * scale;
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

/// A word of codes → the fragment of one step: rows g (registers 0, 2) and g + 8 (1, 3).
template <class Config>
NIBBLE_DEVICE void scaled_fragment(uint32_t word, const ExpandConstants& constants,
                                   const BlockScales<Config>& scales, int step, uint32_t (&a)[4]) {
  const int group = step * Config::kGroupsPerBlock / 4;
  if constexpr (Config::kExpand == Expand::kE2M1) {
    expand_e2m1(word, a);
  } else if constexpr (Config::kZeros) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = fma_bf16x2(((word >> (4 * i)) & 0x000F000F) | constants.magic, kBf16One,
                        scales.offset(i % 2, group));
    }
  } else {
    expand_integer4(word, constants, a);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = Config::kScale == WideScale::kF32 ? multiply_f32(a[i], scales.f32(i % 2, group))
                                             : multiply_bf16x2(a[i], scales.bf16(i % 2, group));
  }
}

}  // namespace nibble
#endif  // NIBBLE_SM90A

#endif  // NIBBLE_KERNELS_CUDA_WIDE_EXPAND_CUH_
