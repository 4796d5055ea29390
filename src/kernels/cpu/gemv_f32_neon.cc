// y = x * W^T with FP32 x and few rows of x, on any AArch64: int4, uint4 and e2m1 weights with any
// scale type, no zeros or integer ones, any group that is 16 or a multiple of 32.
//
// Few rows are bound by decoding, so codes go straight to registers. Every value is exact in BF16,
// the upper half of an FP32. Two byte tables (panel_neon.h) give its two bytes for 16 codes at
// once, and TRN puts them together as pairs, one output a lane, whose halves are a shift or a mask
// away from FP32:
//
//   16 codes, byte 4n + i = output n, column k + i
//     table U, table L -> TRN1: | k+2 : k |  TRN2: | k+3 : k+1 |      32 bits an output
//     << 16            ->       |   k  :0 |        |  k+1  : 0 |
//     & FFFF0000       ->       |  k+2 :0 |        |  k+3  : 0 |
//   times x[k + i], taken from its lane (FMLA by element)
//
// Integer zeros are subtracted from sums: sum(x * value) - z * sum(x).
//
// FP32 order of one output: the columns of at most 4 blocks of a group are one chain, in
// rising order; part = fma(sum, scale, part); parts over 512 columns
// are added in double. It does not depend on m.
#include "kernels/cpu/epilogue_neon.h"
#include "kernels/cpu/panel_neon.h"

namespace nibble {
namespace {

constexpr int kTileRows = 2;
constexpr int64_t kFoldBlocks = 4;

/// Compile-time part of a register tile: kRows by 16 outputs.
template <bool kZerosValue, bool kGroup16Value, int kRowsValue>
struct Config {
  static constexpr bool kZeros = kZerosValue;
  static constexpr bool kGroup16 = kGroup16Value;
  static constexpr int kRows = kRowsValue;
};

/// One panel against kRows rows of x.
struct Run {
  const uint8_t* codes;
  const float* x;
  int64_t x_stride;
  const uint8_t* scales;
  const uint8_t* zeros;  ///< u8
  DType scale_dtype;
  int64_t scale_quarter_bytes;  ///< of 4 scales
  int64_t blocks;
  int64_t blocks_per_group;
  ValueTables tables;
  double* totals;  ///< [rows][16]
};

template <class C>
using Sums = float32x4_t[C::kRows][kQuarters];

template <class C>
NIBBLE_INLINE void fill_zero(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) sums[r][q] = vdupq_n_f32(0);
  }
}

/// Keeps the compiler from moving work on `sums` across this point. gcc 12 would otherwise start
/// all steps of a block at once, run out of registers and spill.
template <class C>
NIBBLE_INLINE void hold(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) __asm__ volatile("" : "+w"(sums[r][q]));
  }
}

/// sums += value * x over the 16 columns of the low (high) nibbles of one block.
template <class C>
NIBBLE_INLINE void add_nibbles(Sums<C>& sums, const Run& run, const uint8_t* codes, const float* x,
                               bool high) {
  const uint32x4_t upper_half = vdupq_n_u32(0xFFFF0000);
  NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
    float32x4_t x_four[C::kRows];
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      x_four[r] = vld1q_f32(x + r * run.x_stride + (high ? 16 : 0) + 4 * j);
    }
    NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) {
      const uint8x16_t code = nibbles(vld1q_u8(codes + 64 * j + 16 * q), high);
      const uint8x16x2_t pairs = bf16_pairs(run.tables, code);
      const uint32x4_t even = vreinterpretq_u32_u8(pairs.val[0]);
      const uint32x4_t odd = vreinterpretq_u32_u8(pairs.val[1]);
      const float32x4_t w0 = vreinterpretq_f32_u32(vshlq_n_u32(even, 16));
      const float32x4_t w1 = vreinterpretq_f32_u32(vshlq_n_u32(odd, 16));
      const float32x4_t w2 = vreinterpretq_f32_u32(vandq_u32(even, upper_half));
      const float32x4_t w3 = vreinterpretq_f32_u32(vandq_u32(odd, upper_half));
      NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
        float32x4_t sum = sums[r][q];
        sum = vfmaq_laneq_f32(sum, w0, x_four[r], 0);
        sum = vfmaq_laneq_f32(sum, w1, x_four[r], 1);
        sum = vfmaq_laneq_f32(sum, w2, x_four[r], 2);
        sums[r][q] = vfmaq_laneq_f32(sum, w3, x_four[r], 3);
      }
    }
    hold<C>(sums);
  }
}

/// The sum of x[0 .. columns).
NIBBLE_INLINE float sum_of_x(const float* x, int64_t columns) {
  float32x4_t sum = vdupq_n_f32(0);
  for (int64_t k = 0; k < columns; k += 4) sum = vaddq_f32(sum, vld1q_f32(x + k));
  return vaddvq_f32(sum);
}

/// part += (sums - zero * x_sum) * scale of the group that `run` stands at.
template <class C>
NIBBLE_INLINE void fold(Sums<C>& part, const Sums<C>& sums, const Run& run,
                        const float (&x_sum)[C::kRows]) {
  NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) {
    const float32x4_t scale =
        load_scales(run.scales + q * run.scale_quarter_bytes, run.scale_dtype);
    float32x4_t zero = vdupq_n_f32(0);
    if constexpr (C::kZeros) zero = load_u8(run.zeros + kLanes * q);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      float32x4_t sum = sums[r][q];
      if constexpr (C::kZeros) sum = vfmsq_n_f32(sum, zero, x_sum[r]);
      part[r][q] = vfmaq_f32(part[r][q], sum, scale);
    }
  }
}

template <class C>
NIBBLE_INLINE void next_group(Run& run) {
  run.scales += kQuarters * run.scale_quarter_bytes;
  if constexpr (C::kZeros) run.zeros += kPanelRows;
}

template <class C>
NIBBLE_INLINE void sums_of_x(float (&sums)[C::kRows], const Run& run, const float* x,
                             int64_t columns) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    sums[r] = C::kZeros ? sum_of_x(x + r * run.x_stride, columns) : 0;
  }
}

/// part += one block whose groups have 16 columns.
template <class C>
NIBBLE_INLINE void add_block_of_16s(Sums<C>& part, Run& run) {
  NIBBLE_UNROLL for (int high = 0; high < 2; ++high) {
    float x_sum[C::kRows];
    sums_of_x<C>(x_sum, run, run.x + 16 * high, 16);
    Sums<C> sums;
    fill_zero<C>(sums);
    add_nibbles<C>(sums, run, run.codes, run.x, high == 1);
    fold<C>(part, sums, run, x_sum);
    next_group<C>(run);
  }
  run.codes += kNibbleBlockBytes;
  run.x += kBlockColumns;
}

/// part += `blocks` blocks of one group.
template <class C>
NIBBLE_INLINE void add_group(Sums<C>& part, Run& run, int64_t blocks) {
  while (blocks > 0) {
    const int64_t count = min_i64(blocks, kFoldBlocks);
    float x_sum[C::kRows];
    sums_of_x<C>(x_sum, run, run.x, count * kBlockColumns);
    Sums<C> sums;
    fill_zero<C>(sums);
    for (int64_t block = 0; block < count; ++block) {
      add_nibbles<C>(sums, run, run.codes, run.x, false);
      add_nibbles<C>(sums, run, run.codes, run.x, true);
      run.codes += kNibbleBlockBytes;
      run.x += kBlockColumns;
    }
    fold<C>(part, sums, run, x_sum);
    blocks -= count;
  }
}

/// totals += a panel times kRows rows of x.
template <class C>
void multiply_rows(const Run& from) {
  Run run = from;
  int64_t place = 0;  // in the group
  for (int64_t done = 0; done < run.blocks; done += kPartBlocks) {
    const int64_t blocks = min_i64(kPartBlocks, run.blocks - done);
    Sums<C> part;
    fill_zero<C>(part);
    if constexpr (C::kGroup16) {
      for (int64_t block = 0; block < blocks; ++block) add_block_of_16s<C>(part, run);
    } else {
      for (int64_t block = 0; block < blocks;) {
        const int64_t count = min_i64(run.blocks_per_group - place, blocks - block);
        add_group<C>(part, run, count);
        block += count;
        place += count;
        if (place == run.blocks_per_group) {
          place = 0;
          next_group<C>(run);
        }
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) {
        add_to_total(run.totals + kPanelRows * r + kLanes * q, part[r][q]);
      }
    }
  }
}

using RunFn = void (*)(const Run&);

template <bool kZeros>
RunFn run_of(bool group16, int64_t rows) {
  if (group16) {
    return rows == 1 ? multiply_rows<Config<kZeros, true, 1>>
                     : multiply_rows<Config<kZeros, true, 2>>;
  }
  return rows == 1 ? multiply_rows<Config<kZeros, false, 1>>
                   : multiply_rows<Config<kZeros, false, 2>>;
}

}  // namespace

/// x: XForm::kF32Rows.
void gemv_f32_neon(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(w.layout == LayoutId::kCpuPanel16 && w.k_padded % kBlockColumns == 0);
  NIBBLE_ASSUME(w.group == 16 || w.group % kBlockColumns == 0);
  NIBBLE_ASSUME(w.zero_kind == ZeroKind::kInteger || w.zero_kind == ZeroKind::kNone);
  const bool zeros = w.zero_kind == ZeroKind::kInteger;
  double totals[kTileRows * kPanelRows];
  Run run = {};
  run.x_stride = w.k_padded;
  run.scale_dtype = w.scale_dtype;
  run.scale_quarter_bytes = kLanes * scale_bytes(w.scale_dtype);
  run.blocks = w.k_padded / kBlockColumns;
  run.blocks_per_group = max_i64(1, w.group / kBlockColumns);
  run.tables = value_tables(w.element);
  run.totals = totals;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    run.codes = w.codes + item.panel * run.blocks * kNibbleBlockBytes;
    const int64_t scale = item.panel * w.num_groups * kPanelRows;
    run.scales = static_cast<const uint8_t*>(w.scales) + scale * scale_bytes(w.scale_dtype);
    run.zeros = w.zeros == nullptr ? nullptr : static_cast<const uint8_t*>(w.zeros) + scale;
    for (int64_t row = item.row_begin; row < item.row_end; row += kTileRows) {
      const int64_t rows = min_i64(kTileRows, item.row_end - row);
      run.x = static_cast<const float*>(args.x) + row * w.k_padded;
      for (double& total : totals) total = 0;
      (zeros ? run_of<true>(w.group == 16, rows) : run_of<false>(w.group == 16, rows))(run);
      finish_totals(args, totals, row, rows, item.panel, 1.0);
    }
  }
}

}  // namespace nibble
