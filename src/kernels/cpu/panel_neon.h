// What the AArch64 rows share: walking a CpuGrid, decoding scales, tables. Everything is
// `static inline`: each ISA file compiles its own copy, so the linker shares none of it.
//
// A panel of cpu_panel16 holds 16 rows of W; its codes lie in blocks of 32 columns:
//
//   4-bit block, 256 bytes: vector j = 0..3, byte 4*lane + i:  low nibble  k = 4j + i
//                                                              high nibble k = 16 + 4j + i
//   8-bit block, 512 bytes: vector j = 0..7, byte 4*lane + i:  k = 4j + i
//
// A 64-byte vector is four registers: quarter q holds lanes 4q .. 4q+3, four columns each.
//
// NOTE: no row prefetches: the distance would be a guess, nobody has measured these rows.
#ifndef NIBBLE_KERNELS_CPU_PANEL_NEON_H_
#define NIBBLE_KERNELS_CPU_PANEL_NEON_H_

#include <arm_neon.h>
#include <stdint.h>

#include "kernels/args.h"

#define NIBBLE_INLINE static inline __attribute__((always_inline))
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")

namespace nibble {

constexpr int64_t kPanelRows = 16;
constexpr int64_t kBlockColumns = 32;
constexpr int kQuarters = 4;
constexpr int kLanes = 4;  ///< FP32 lanes of a register
constexpr int64_t kNibbleBlockBytes = 256, kByteBlockBytes = 512;

/// Columns whose FP32 sums form one partial sum; the sums of partial sums are double, so that
/// chains of FP32 additions stay short at any K (epilogue.h says how short).
constexpr int64_t kPartColumns = 512;
constexpr int64_t kPartBlocks = kPartColumns / kBlockColumns;

NIBBLE_INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
NIBBLE_INLINE int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/// Any address: ARM loads need no alignment, C++ wants it said.
NIBBLE_INLINE float32x4_t load_f32(const void* p) {
  return vreinterpretq_f32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
NIBBLE_INLINE uint32_t load_u32(const void* p) {
  uint32_t value;
  __builtin_memcpy(&value, p, sizeof(value));
  return value;
}
/// The 32 bits at `p` in every lane.
NIBBLE_INLINE int32x4_t broadcast_i32(const void* p) {
  return vreinterpretq_s32_u32(vdupq_n_u32(load_u32(p)));
}
NIBBLE_INLINE float32x4_t broadcast_f32(const void* p) {
  return vreinterpretq_f32_s32(broadcast_i32(p));
}

/// 4 values from `p`, exact.
NIBBLE_INLINE float32x4_t load_f16(const void* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(static_cast<const uint8_t*>(p))));
}
NIBBLE_INLINE float32x4_t load_bf16(const void* p) {
  const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(static_cast<const uint8_t*>(p)));
  return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}
/// 4 bytes from `p`, in the lower half; the upper is not read.
NIBBLE_INLINE uint8x8_t load_4_bytes(const void* p) {
  return vreinterpret_u8_u32(vdup_n_u32(load_u32(p)));
}
NIBBLE_INLINE float32x4_t load_u8(const void* p) {
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_4_bytes(p)))));
}

/// E4M3 bytes → FP32, exact. As FP16 bits, s eeee mmm becomes s 0eeee mmm0000000, which is the
/// value * 2^-8: the exponent biases are 7 and 15, and subnormals meet subnormals.
NIBBLE_INLINE float32x4_t load_e4m3(const void* p) {
  const int16x8_t wide = vshlq_n_s16(vmovl_s8(vreinterpret_s8_u8(load_4_bytes(p))), 7);
  const uint16x4_t half = vand_u16(vreinterpret_u16_s16(vget_low_s16(wide)), vdup_n_u16(0xBFFF));
  return vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(half)), 256.0f);
}

/// E8M0 bytes → FP32. NOTE: e = 0 is 2^-127, which only a subnormal FP32 (0x00400000) can hold.
NIBBLE_INLINE float32x4_t load_e8m0(const void* p) {
  const uint32x4_t exponent = vmovl_u16(vget_low_u16(vmovl_u8(load_4_bytes(p))));
  return vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32(exponent, 23), vdupq_n_u32(0x00400000)));
}

/// Bytes of one scale.
NIBBLE_INLINE int64_t scale_bytes(DType dtype) {
  if (dtype == DType::kF32) return 4;
  return dtype == DType::kBF16 || dtype == DType::kF16 ? 2 : 1;
}

/// 4 scales (or zeros in the scale's type). The branches always go the same way within one call of
/// a kernel.
NIBBLE_INLINE float32x4_t load_scales(const void* p, DType dtype) {
  if (dtype == DType::kBF16) return load_bf16(p);
  if (dtype == DType::kE4M3) return load_e4m3(p);
  if (dtype == DType::kE8M0) return load_e8m0(p);
  return dtype == DType::kF16 ? load_f16(p) : load_f32(p);
}

/// The rows of x of one work item, and its panel.
struct Item {
  int64_t row_begin, row_end;
  int64_t panel;
};
NIBBLE_INLINE Item item_of(const MatmulArgs& args, int64_t index) {
  const int64_t row_begin = index / args.grid.items_n * args.grid.block_m;
  return {row_begin, min_i64(row_begin + args.grid.block_m, args.m), index % args.grid.items_n};
}

/// to[0..3] += values, in double.
NIBBLE_INLINE void add_to_total(double* to, float32x4_t values) {
  vst1q_f64(to, vaddq_f64(vld1q_f64(to), vcvt_f64_f32(vget_low_f32(values))));
  vst1q_f64(to + 2, vaddq_f64(vld1q_f64(to + 2), vcvt_high_f64_f32(values)));
}

// The 16 values of a stored 4-bit code as two byte tables. Each value is exact in BF16, so its
// upper and lower byte, followed by two zero bytes, are its FP32:
//
//   FP32  s eeeeeee | e mmmmmmm | 0 | 0        upper = table[code], lower = table[code]
//
// int4 is stored as q + 8.
struct ValueTables {
  uint8x16_t upper, lower;
};

constexpr uint8_t kInt4Upper[16] = {0xC1, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0, 0xC0, 0xBF,  // -8 .. -1
                                    0x00, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
constexpr uint8_t kInt4Lower[16] = {0x00, 0xE0, 0xC0, 0xA0, 0x80, 0x40, 0x00, 0x80,
                                    0x00, 0x80, 0x00, 0x40, 0x80, 0xA0, 0xC0, 0xE0};
constexpr uint8_t kUint4Upper[16] = {0x00, 0x3F, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40,  // 0 .. 15
                                     0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41, 0x41};
constexpr uint8_t kUint4Lower[16] = {0x00, 0x80, 0x00, 0x40, 0x80, 0xA0, 0xC0, 0xE0,
                                     0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70};
// 0 .5 1 1.5 2 3 4 6 and their negatives
constexpr uint8_t kE2M1Upper[16] = {0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,
                                    0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0};
constexpr uint8_t kE2M1Lower[16] = {0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0,
                                    0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0};

/// Tables of kInt4, kUint4 or kE2M1.
NIBBLE_INLINE ValueTables value_tables(Element element) {
  if (element == Element::kUint4) return {vld1q_u8(kUint4Upper), vld1q_u8(kUint4Lower)};
  if (element == Element::kE2M1) return {vld1q_u8(kE2M1Upper), vld1q_u8(kE2M1Lower)};
  return {vld1q_u8(kInt4Upper), vld1q_u8(kInt4Lower)};
}

/// The low or the high nibble of each byte.
NIBBLE_INLINE uint8x16_t nibbles(uint8x16_t bytes, bool high) {
  return high ? vshrq_n_u8(bytes, 4) : vandq_u8(bytes, vdupq_n_u8(15));
}

/// 4 columns of 4 outputs as BF16: 32-bit lane n of [0] holds columns 0 and 2 of output n, of [1]
/// columns 1 and 3.
NIBBLE_INLINE uint8x16x2_t bf16_pairs(const ValueTables& tables, uint8x16_t codes) {
  return vtrnq_u8(vqtbl1q_u8(tables.lower, codes), vqtbl1q_u8(tables.upper, codes));
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_PANEL_NEON_H_
