// y = x * W^T for BF16 x that is never rounded, on Armv8.6: int4, uint4 and e2m1 codes become BF16,
// which holds every one of their values exactly; one row of x meets them through BFDOT, more rows
// through BFMMLA. No zeros or integer ones, any scale type, any group that is 16 or a multiple
// of 32.
//
//   BFDOT    acc[n] += w[n][k0] x[k0] + w[n][k1] x[k1]          4 outputs, the pair of x from a
//   lane BFMMLA   acc[r][n] += the same for (k0, k1), then (k2, k3)     2 rows by 2 outputs
//
// Both make the products exactly, add the two of a pair, and then add the pair to acc, rounding to
// odd each time and flushing subnormals: BFMMLA has the bits of two BFDOT. Rounding to odd errs by
// less than one unit in the last place and without bias, where nearest errs by half of one; chains
// of at most 32 columns keep that out of sight (docs/numerics.md,
// docs/adr/0014-bfmmla-is-exact.md).
//
// The bytes of two tables, put together by TRN (panel_neon.h), are pairs of columns (0, 2) and
// (1, 3) of each four, which is the order of XForm::kBf16Rows.
//
// FP32 order of one output, the same for every m, tile and range of items:
//   group 16:   part = fma(chain of 16 columns, scale, part), twice a block
//   group 32:   part = fma(chain of 32, scale, part)
//   larger:     sum += chain of 32 over the blocks of a group; part = fma(sum, scale, part)
// with z * sum(x) taken off before the scale. Parts of 512 columns (a larger group is cut there)
// are added in double.
#include "kernels/cpu/epilogue_neon.h"
#include "kernels/cpu/panel_neon.h"

namespace nibble {
namespace {

enum class Groups { k16, k32, kWide };

constexpr int64_t kTileRows = 4;
constexpr int64_t kItemRows = 64;             // rows whose totals are kept at once
constexpr int64_t kDecodedBlockBytes = 1024;  // [4 columns][pair of outputs] of 16 bytes

/// Compile-time part of a weight's arithmetic.
template <bool kZerosValue, Groups kGroupsValue>
struct Config {
  static constexpr bool kZeros = kZerosValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kUnits = kGroups == Groups::k16 ? 2 : 1;  ///< chains of one block
};

/// Blocks of one panel against the rows of a tile.
struct Run {
  const uint8_t* codes;  ///< packed, or decoded operands
  const uint8_t* x;      ///< BF16 of the first row
  int64_t x_stride_bytes;
  const uint8_t* scales;  ///< of the first block's group
  const uint8_t* zeros;   ///< u8
  DType scale_dtype;
  int64_t scale_quarter_bytes;  ///< of 4 scales
  int64_t blocks;
  int64_t blocks_per_group;  ///< Groups::kWide
  int64_t first_block;       ///< place of the first block in its group
  ValueTables tables;
  double* totals;  ///< [rows][16]
};

template <class T>
using Sums = float32x4_t[T::kR][T::kC];

NIBBLE_INLINE bfloat16x8_t load_bf16x8(const uint8_t* p) {
  return vreinterpretq_bf16_u8(vld1q_u8(p));
}
NIBBLE_INLINE uint8x16_t zip_pairs(uint8x16x2_t pairs, bool upper) {
  const uint32x4_t a = vreinterpretq_u32_u8(pairs.val[0]), b = vreinterpretq_u32_u8(pairs.val[1]);
  return vreinterpretq_u8_u32(upper ? vzip2q_u32(a, b) : vzip1q_u32(a, b));
}
NIBBLE_INLINE bfloat16x8_t zip_rows(bfloat16x8_t a, bfloat16x8_t b, bool upper) {
  const uint64x2_t x = vreinterpretq_u64_bf16(a), y = vreinterpretq_u64_bf16(b);
  return vreinterpretq_bf16_u64(upper ? vzip2q_u64(x, y) : vzip1q_u64(x, y));
}

/// One row by a whole panel, straight from packed codes: register c is quarter c.
struct OneRow {
  static constexpr int kRows = 1, kR = 1, kC = kQuarters, kHalves = 1;
  static constexpr int64_t kBlockBytes = kNibbleBlockBytes;

  NIBBLE_INLINE void spread_rows(float32x4_t (&out)[kR], const float (&values)[kRows]) {
    out[0] = vdupq_n_f32(values[0]);
  }
  NIBBLE_INLINE void spread_columns(float32x4_t (&out)[kC], const float32x4_t (&quarters)[kC]) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) out[c] = quarters[c];
  }
  /// acc += 4 columns; kLane: of the pair of columns 0 and 2 in x.
  template <int kLane>
  NIBBLE_INLINE void step(float32x4_t (&acc)[kR][kC], const Run& run, const uint8_t* codes,
                          bfloat16x8_t x, bool high) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
      const uint8x16_t code = nibbles(vld1q_u8(codes + 16 * c), high);
      const uint8x16x2_t pairs = bf16_pairs(run.tables, code);
      acc[0][c] = vbfdotq_laneq_f32(acc[0][c], vreinterpretq_bf16_u8(pairs.val[0]), x, kLane);
      acc[0][c] = vbfdotq_laneq_f32(acc[0][c], vreinterpretq_bf16_u8(pairs.val[1]), x, kLane + 1);
    }
  }
  /// acc += columns 16 * part .. + 15 of a block.
  NIBBLE_INLINE void dot_16(float32x4_t (&acc)[kR][kC], const Run& run, int part, int /*half*/) {
    const bfloat16x8_t first = load_bf16x8(run.x + 32 * part);
    const bfloat16x8_t second = load_bf16x8(run.x + 32 * part + 16);
    step<0>(acc, run, run.codes, first, part == 1);
    step<2>(acc, run, run.codes + 64, first, part == 1);
    step<0>(acc, run, run.codes + 128, second, part == 1);
    step<2>(acc, run, run.codes + 192, second, part == 1);
  }
  NIBBLE_INLINE void add_totals(double* totals, const float32x4_t (&part)[kR][kC], int /*half*/) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) add_to_total(totals + kLanes * c, part[0][c]);
  }
};

/// 2 or 4 rows by half a panel, from decoded operands:  acc[pair of rows][pair of outputs].
template <int kRowsValue>
struct RowPairs {
  static constexpr int kRows = kRowsValue, kR = kRows / 2, kC = 4, kHalves = 2;
  static constexpr int64_t kBlockBytes = kDecodedBlockBytes;

  /// | row | row | row + 1 | row + 1 |
  NIBBLE_INLINE void spread_rows(float32x4_t (&out)[kR], const float (&values)[kRows]) {
    NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
      out[r] = vcombine_f32(vdup_n_f32(values[2 * r]), vdup_n_f32(values[2 * r + 1]));
    }
  }
  /// | n | n + 1 | n | n + 1 |
  NIBBLE_INLINE void spread_columns(float32x4_t (&out)[kC], const float32x4_t (&quarters)[kC / 2]) {
    NIBBLE_UNROLL for (int q = 0; q < kC / 2; ++q) {
      const float64x2_t pairs = vreinterpretq_f64_f32(quarters[q]);
      out[2 * q] = vreinterpretq_f32_f64(vdupq_laneq_f64(pairs, 0));
      out[2 * q + 1] = vreinterpretq_f32_f64(vdupq_laneq_f64(pairs, 1));
    }
  }
  NIBBLE_INLINE void dot_16(float32x4_t (&acc)[kR][kC], const Run& run, int part, int half) {
    const uint8_t* operands = run.codes + 512 * part + 64 * half;
    NIBBLE_UNROLL for (int eight = 0; eight < 2; ++eight) {
      bfloat16x8_t rows[kR][2];
      NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
        const uint8_t* at = run.x + 2 * r * run.x_stride_bytes + 32 * part + 16 * eight;
        const bfloat16x8_t even = load_bf16x8(at), odd = load_bf16x8(at + run.x_stride_bytes);
        NIBBLE_UNROLL for (int i = 0; i < 2; ++i) rows[r][i] = zip_rows(even, odd, i == 1);
      }
      NIBBLE_UNROLL for (int i = 0; i < 2; ++i) {
        NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
          const bfloat16x8_t w = load_bf16x8(operands + 128 * (2 * eight + i) + 16 * c);
          NIBBLE_UNROLL for (int r = 0; r < kR; ++r) {
            acc[r][c] = vbfmmlaq_f32(acc[r][c], rows[r][i], w);
          }
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

/// The column vectors of what load(quarter) gives.
template <class T, class Load>
NIBBLE_INLINE void load_columns(float32x4_t (&out)[T::kC], int half, Load load) {
  constexpr int kCount = kQuarters / T::kHalves;
  float32x4_t quarters[kCount];
  NIBBLE_UNROLL for (int q = 0; q < kCount; ++q) quarters[q] = load(kCount * half + q);
  T::spread_columns(out, quarters);
}

/// 1 in every lane. NOTE: gcc 12 makes a constant vector of BF16 ones with an FP16 instruction,
/// which writes other bits where it assembles at all; so the bits are hidden from it.
NIBBLE_INLINE bfloat16x8_t bf16_ones() {
  uint16x8_t bits = vdupq_n_u16(0x3F80);
  __asm__("" : "+w"(bits));
  return vreinterpretq_bf16_u16(bits);
}

/// The sum of the columns of a unit of x, from column 16 * part on, as BFDOT with ones gives it.
template <class C>
NIBBLE_INLINE float sum_of_x(const uint8_t* x, int part) {
  const bfloat16x8_t ones = bf16_ones();
  float32x4_t sum = vdupq_n_f32(0);
  NIBBLE_UNROLL for (int v = 0; v < 4 / C::kUnits; ++v) {
    sum = vbfdotq_f32(sum, load_bf16x8(x + 32 * part + 16 * v), ones);
  }
  return vaddvq_f32(sum);
}

/// chain = unit `kUnit` of the block that `run` stands at.
template <class C, class T, int kUnit>
NIBBLE_INLINE void dot_unit(Sums<T>& chain, const Run& run, int half) {
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) chain[r][c] = vdupq_n_f32(0);
  }
  T::dot_16(chain, run, kUnit, half);
  if constexpr (C::kUnits == 1) T::dot_16(chain, run, 1, half);
}

/// x_sums += the sums of x over a unit, where zeros need them.
template <class C, class T>
NIBBLE_INLINE void add_sums_of_x(float (&x_sums)[T::kRows], const Run& run, int part) {
  NIBBLE_UNROLL for (int r = 0; r < T::kRows; ++r) {
    if constexpr (C::kZeros) x_sums[r] += sum_of_x<C>(run.x + r * run.x_stride_bytes, part);
  }
}

/// part += (sums - zero * x_sums) * scale of group `group`, counted from where `run` stands.
template <class C, class T>
NIBBLE_INLINE void fold(Sums<T>& part, const Sums<T>& sums, const float (&x_sums)[T::kRows],
                        const Run& run, int group, int half) {
  float32x4_t scale[T::kC], zero[T::kC], x_sum[T::kR];
  load_columns<T>(scale, half, [&](int quarter) {
    const uint8_t* at = run.scales + (kQuarters * group + quarter) * run.scale_quarter_bytes;
    return load_scales(at, run.scale_dtype);
  });
  if constexpr (C::kZeros) {
    load_columns<T>(zero, half, [&](int quarter) {
      return load_u8(run.zeros + kPanelRows * group + kLanes * quarter);
    });
    T::spread_rows(x_sum, x_sums);
  }
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
      float32x4_t sum = sums[r][c];
      if constexpr (C::kZeros) sum = vfmsq_f32(sum, zero[c], x_sum[r]);
      part[r][c] = vfmaq_f32(part[r][c], sum, scale[c]);
    }
  }
}

template <class C>
NIBBLE_INLINE void next_groups(Run& run, int count) {
  run.scales += kQuarters * count * run.scale_quarter_bytes;
  if constexpr (C::kZeros) run.zeros += kPanelRows * count;
}

template <class T>
NIBBLE_INLINE void next_block(Run& run) {
  run.codes += T::kBlockBytes;
  run.x += 2 * kBlockColumns;
}

/// part += one block with two groups, or one.
template <class C, class T>
NIBBLE_INLINE void add_block(Sums<T>& part, Run& run, int half) {
  Sums<T> chain;
  float x_sums[T::kRows] = {};
  dot_unit<C, T, 0>(chain, run, half);
  add_sums_of_x<C, T>(x_sums, run, 0);
  fold<C, T>(part, chain, x_sums, run, 0, half);
  if constexpr (C::kUnits == 2) {
    float upper_x_sums[T::kRows] = {};
    dot_unit<C, T, 1>(chain, run, half);
    add_sums_of_x<C, T>(upper_x_sums, run, 1);
    fold<C, T>(part, chain, upper_x_sums, run, 1, half);
  }
  next_groups<C>(run, C::kUnits);
  next_block<T>(run);
}

/// part += `blocks` blocks of one group.
template <class C, class T>
NIBBLE_INLINE void add_group(Sums<T>& part, Run& run, int half, int64_t blocks) {
  Sums<T> sum, chain;
  float x_sums[T::kRows] = {};
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) sum[r][c] = vdupq_n_f32(0);
  }
  for (int64_t block = 0; block < blocks; ++block) {
    dot_unit<C, T, 0>(chain, run, half);
    add_sums_of_x<C, T>(x_sums, run, 0);
    NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
      NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) sum[r][c] = vaddq_f32(sum[r][c], chain[r][c]);
    }
    next_block<T>(run);
  }
  fold<C, T>(part, sum, x_sums, run, 0, half);
}

/// totals += blocks of a panel times the rows of a tile. The first block begins a part.
template <class C, class T>
void multiply_rows(const Run& from) {
  for (int half = 0; half < T::kHalves; ++half) {
    Run run = from;
    int64_t place = run.first_block;
    for (int64_t done = 0; done < run.blocks; done += kPartBlocks) {
      const int64_t blocks = min_i64(kPartBlocks, run.blocks - done);
      Sums<T> part;
      NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
        NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) part[r][c] = vdupq_n_f32(0);
      }
      if constexpr (C::kGroups != Groups::kWide) {
        for (int64_t block = 0; block < blocks; ++block) add_block<C, T>(part, run, half);
      } else {
        for (int64_t block = 0; block < blocks;) {
          const int64_t count = min_i64(run.blocks_per_group - place, blocks - block);
          add_group<C, T>(part, run, half, count);
          block += count;
          place += count;
          if (place == run.blocks_per_group) {
            place = 0;
            next_groups<C>(run, 1);
          }
        }
      }
      T::add_totals(run.totals, part, half);
    }
  }
}

/// Operands of `blocks` blocks in the order of their use.
void decode_blocks(const uint8_t* packed, int64_t blocks, const ValueTables& tables, uint8_t* out) {
  for (int64_t block = 0; block < blocks; ++block, packed += kNibbleBlockBytes) {
    NIBBLE_UNROLL for (int step = 0; step < 8; ++step) {
      NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q, out += 32) {
        const uint8x16_t codes = vld1q_u8(packed + 64 * (step & 3) + 16 * q);
        const uint8x16x2_t pairs = bf16_pairs(tables, nibbles(codes, step >= 4));
        vst1q_u8(out, zip_pairs(pairs, false));
        vst1q_u8(out + 16, zip_pairs(pairs, true));
      }
    }
  }
}

/// The code for one kind of weight.
struct Family {
  void (*one_row)(const Run&);    ///< packed codes
  void (*two_rows)(const Run&);   ///< decoded ones
  void (*four_rows)(const Run&);  ///< likewise
};

template <bool kZeros, Groups kGroups>
Family family_of_type() {
  using C = Config<kZeros, kGroups>;
  return {multiply_rows<C, OneRow>, multiply_rows<C, RowPairs<2>>, multiply_rows<C, RowPairs<4>>};
}

template <bool kZeros>
Family family_of_group(int64_t group) {
  NIBBLE_ASSUME(group == 16 || group % kBlockColumns == 0);
  if (group == 16) return family_of_type<kZeros, Groups::k16>();
  if (group == 32) return family_of_type<kZeros, Groups::k32>();
  return family_of_type<kZeros, Groups::kWide>();
}

struct Scratch {
  alignas(64) uint8_t operands[kPartBlocks * kDecodedBlockBytes];
  alignas(64) double totals[kItemRows * kPanelRows];
};

/// Where a panel's part begins, with the rows of x from `row` on.
Run run_at(const MatmulArgs& args, int64_t panel, int64_t block, int64_t blocks) {
  const WeightArgs& w = args.w;
  const int64_t row_blocks = w.k_padded / kBlockColumns;
  const int64_t group = block * kBlockColumns / w.group;
  const int64_t index = (panel * w.num_groups + group) * kPanelRows;
  Run run = {};
  run.codes = w.codes + (panel * row_blocks + block) * kNibbleBlockBytes;
  run.x_stride_bytes = 2 * w.k_padded;
  run.scales = static_cast<const uint8_t*>(w.scales) + index * scale_bytes(w.scale_dtype);
  run.zeros = w.zeros == nullptr ? nullptr : static_cast<const uint8_t*>(w.zeros) + index;
  run.scale_dtype = w.scale_dtype;
  run.scale_quarter_bytes = kLanes * scale_bytes(w.scale_dtype);
  run.blocks = blocks;
  run.blocks_per_group = max_i64(1, w.group / kBlockColumns);
  run.first_block = block % run.blocks_per_group;
  run.tables = value_tables(w.element);
  return run;
}

/// totals[rows][16] of a panel for the rows [begin, end) of x, at most kItemRows.
void multiply_panel(const MatmulArgs& args, const Family& family, int64_t panel, int64_t begin,
                    int64_t end, Scratch* scratch) {
  const int64_t row_blocks = args.w.k_padded / kBlockColumns;
  const auto* x = static_cast<const uint8_t*>(args.x);
  for (int64_t i = 0; i < (end - begin) * kPanelRows; ++i) scratch->totals[i] = 0;
  const int64_t step = end - begin == 1 ? row_blocks : kPartBlocks;  // one row decodes nothing
  for (int64_t block = 0; block < row_blocks; block += step) {
    const Run packed = run_at(args, panel, block, min_i64(step, row_blocks - block));
    if (end - begin > 1) {
      decode_blocks(packed.codes, packed.blocks, packed.tables, scratch->operands);
    }
    for (int64_t row = begin, rows; row < end; row += rows) {
      rows = end - row >= kTileRows ? kTileRows : end - row >= 2 ? 2 : 1;
      Run run = packed;
      if (rows > 1) run.codes = scratch->operands;
      run.x = x + 2 * (row * args.w.k_padded + block * kBlockColumns);
      run.totals = scratch->totals + (row - begin) * kPanelRows;
      (rows == kTileRows ? family.four_rows : rows == 2 ? family.two_rows : family.one_row)(run);
    }
  }
}

}  // namespace

/// x: XForm::kBf16Rows.
void gemm_exact_neon_bf16(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(w.layout == LayoutId::kCpuPanel16 && w.k_padded % kBlockColumns == 0);
  NIBBLE_ASSUME(w.zero_kind == ZeroKind::kInteger || w.zero_kind == ZeroKind::kNone);
  const Family family = w.zero_kind == ZeroKind::kInteger ? family_of_group<true>(w.group)
                                                          : family_of_group<false>(w.group);
  Scratch scratch;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    for (int64_t row = item.row_begin; row < item.row_end; row += kItemRows) {
      const int64_t end = min_i64(row + kItemRows, item.row_end);
      multiply_panel(args, family, item.panel, row, end, &scratch);
      finish_totals(args, scratch.totals, row, end - row, item.panel, 1.0);
    }
  }
}

}  // namespace nibble
