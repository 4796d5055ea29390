// int8 activations with SDOT (Armv8.2 dot products); int8_walk_neon.h says what is computed.
//
// A register holds 4 outputs, an instruction adds 4 columns of one row of x to each: the 16 bytes
// of a quarter are the operand as they lie, and x is taken from a lane of a register with 16
// columns:
//
//                  quarter 2h        quarter 2h+1          (h = half of the panel)
//   x row 0..3   acc[r][0]          acc[r][1]
#include "kernels/cpu/int8_walk_neon.h"

namespace nibble {
namespace {

struct DotKit {
  /// kRows rows by half a panel. Decoded operands: [step][quarter] of 16 bytes.
  template <int kRows>
  struct Tile {
    static constexpr int kR = kRows, kC = 2, kHalves = 2;
    static constexpr int64_t kBlockBytes = kDecodedBlockBytes;

    NIBBLE_INLINE void spread_rows(int32x4_t (&out)[kR], const uint8_t* p) {
      broadcast_rows<kR>(out, p);
    }
    NIBBLE_INLINE void spread_columns(int32x4_t (&out)[kC], const int32x4_t (&quarters)[kC]) {
      NIBBLE_UNROLL for (int c = 0; c < kC; ++c) out[c] = quarters[c];
    }
    template <int kLane>
    NIBBLE_INLINE void step(int32x4_t (&acc)[kR][kC], const uint8_t* operands,
                            const int8x16_t (&x)[kR]) {
      NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
        const int8x16_t w = load_s8(operands + 64 * kLane + 16 * c);
        NIBBLE_UNROLL for (int r = 0; r < kR; ++r) acc[r][c] = dot<kLane>(acc[r][c], w, x[r]);
      }
    }
    NIBBLE_INLINE void dot_16(int32x4_t (&acc)[kR][kC], const uint8_t* codes, const uint8_t* x,
                              int part, int half) {
      const uint8_t* operands = codes + 256 * part + 32 * half;
      int8x16_t rows[kR];
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        rows[r] = load_s8(x + kBlockColumns * r + 16 * part);
      }
      step<0>(acc, operands, rows);
      step<1>(acc, operands, rows);
      step<2>(acc, operands, rows);
      step<3>(acc, operands, rows);
    }
    NIBBLE_INLINE void add_totals(double* totals, const float32x4_t (&part)[kR][kC], int half) {
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
          add_to_total(totals + kPanelRows * r + kLanes * (kC * half + c), part[r][c]);
        }
      }
    }
  };

  template <Codes kCodes>
  static void decode_blocks(const uint8_t* packed, int64_t blocks, uint8_t* out) {
    for (int64_t block = 0; block < blocks; ++block, packed += OneRow<kCodes>::kBlockBytes) {
      NIBBLE_UNROLL for (int step = 0; step < 8; ++step) {
        NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q, out += 16) {
          vst1q_s8(reinterpret_cast<int8_t*>(out), decode<kCodes>(packed, step, q));
        }
      }
    }
  }
};

}  // namespace

void gemm_int8_neon_dotprod(const MatmulArgs& args, Range items) {
  multiply_items<DotKit>(args, items);
}

}  // namespace nibble
