// int8 activations with SMMLA (Armv8.6 matrix products of int8); int8_walk_neon.h says what is
// computed.
//
// An instruction multiplies 2 rows of x by 2 outputs over 8 columns:
//
//   x     | row r: 8 columns | row r+1: 8 columns |
//   w     | output n         | output n+1         |     acc = | r,n  r,n+1  r+1,n  r+1,n+1 |
//
// so that a tile of 4 rows by half a panel is 2 x 4 registers. Operands come from two registers of
// 4 columns each, zipped; those of x from two rows.
#include "kernels/cpu/int8_walk_neon.h"

namespace nibble {
namespace {

NIBBLE_INLINE int8x16_t zip_columns(int8x16_t a, int8x16_t b, bool upper) {
  const int32x4_t x = vreinterpretq_s32_s8(a), y = vreinterpretq_s32_s8(b);
  return vreinterpretq_s8_s32(upper ? vzip2q_s32(x, y) : vzip1q_s32(x, y));
}

NIBBLE_INLINE int8x16_t zip_rows(int8x16_t a, int8x16_t b, bool upper) {
  const int64x2_t x = vreinterpretq_s64_s8(a), y = vreinterpretq_s64_s8(b);
  return vreinterpretq_s8_s64(upper ? vzip2q_s64(x, y) : vzip1q_s64(x, y));
}

struct MatrixKit {
  /// kRows rows by half a panel. Decoded operands: [8 columns][pair of outputs] of 16 bytes.
  template <int kRows>
  struct Tile {
    static constexpr int kR = kRows / 2, kC = 4, kHalves = 2;
    static constexpr int64_t kBlockBytes = kDecodedBlockBytes;

    /// | row | row | row + 1 | row + 1 |
    NIBBLE_INLINE void spread_rows(int32x4_t (&out)[kR], const uint8_t* p) {
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        const int32x2_t two = vreinterpret_s32_u8(vld1_u8(p + 8 * r));
        out[r] = vcombine_s32(vdup_lane_s32(two, 0), vdup_lane_s32(two, 1));
      }
    }
    /// | n | n + 1 | n | n + 1 |
    NIBBLE_INLINE void spread_columns(int32x4_t (&out)[kC], const int32x4_t (&quarters)[kC / 2]) {
      NIBBLE_UNROLL for (int q = 0; q < kC / 2; ++q) {
        const int64x2_t pairs = vreinterpretq_s64_s32(quarters[q]);
        out[2 * q] = vreinterpretq_s32_s64(vdupq_laneq_s64(pairs, 0));
        out[2 * q + 1] = vreinterpretq_s32_s64(vdupq_laneq_s64(pairs, 1));
      }
    }
    NIBBLE_INLINE void dot_16(int32x4_t (&acc)[kR][kC], const uint8_t* codes, const uint8_t* x,
                              int part, int half) {
      const uint8_t* operands = codes + 256 * part + 64 * half;
      int8x16_t rows[kR][2];
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        const uint8_t* at = x + 2 * kBlockColumns * r + 16 * part;
        const int8x16_t even = load_s8(at), odd = load_s8(at + kBlockColumns);
        NIBBLE_UNROLL for (int i = 0; i < 2; ++i) rows[r][i] = zip_rows(even, odd, i == 1);
      }
      NIBBLE_UNROLL for (int i = 0; i < 2; ++i) {
        NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
          const int8x16_t w = load_s8(operands + 128 * i + 16 * c);
          NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
            acc[r][c] = vmmlaq_s32(acc[r][c], rows[r][i], w);
          }
        }
      }
    }
    NIBBLE_INLINE void add_totals(double* totals, const float32x4_t (&part)[kR][kC], int half) {
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        NIBBLE_UNROLL for (int c = 0; c < kC; c += 2) {
          double* to = totals + kPanelRows * 2 * r + 8 * half + 2 * c;
          const float64x2_t a = vreinterpretq_f64_f32(part[r][c]);
          const float64x2_t b = vreinterpretq_f64_f32(part[r][c + 1]);
          add_to_total(to, vreinterpretq_f32_f64(vzip1q_f64(a, b)));
          add_to_total(to + kPanelRows, vreinterpretq_f32_f64(vzip2q_f64(a, b)));
        }
      }
    }
  };

  template <Codes kCodes>
  static void decode_blocks(const uint8_t* packed, int64_t blocks, uint8_t* out) {
    for (int64_t block = 0; block < blocks; ++block, packed += OneRow<kCodes>::kBlockBytes) {
      NIBBLE_UNROLL for (int step = 0; step < 8; step += 2) {
        NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q, out += 32) {
          const int8x16_t a = decode<kCodes>(packed, step, q);
          const int8x16_t b = decode<kCodes>(packed, step + 1, q);
          vst1q_s8(reinterpret_cast<int8_t*>(out), zip_columns(a, b, false));
          vst1q_s8(reinterpret_cast<int8_t*>(out + 16), zip_columns(a, b, true));
        }
      }
    }
  }
};

}  // namespace

void gemm_int8_neon_i8mm(const MatmulArgs& args, Range items) {
  multiply_items<MatrixKit>(args, items);
}

}  // namespace nibble
