// y = x * W^T with int8 activations on AArch64: what the rows for dot products (SDOT) and for
// matrix products (SMMLA) share. int4, uint4, e2m1, int8, uint8 weights with any scale type, no
// zeros or integer ones, and any group that is 16 or a multiple of 32.
//
// Weights become signed bytes w that are multiplied with the codes of x in int32:
//
//   element   w                        subtracted from sum(w * x)
//   int4      code (q + 8)             8 * sum(x)
//   uint4     code                     z * sum(x)
//   e2m1      table: 2 * value         nothing (the totals are halved)
//   int8      code ^ 128 = q           nothing
//   uint8     code ^ 128 = q - 128     (z - 128) * sum(x)
//
// so the int32 sum of a unit (the columns of a block that share a scale: 32, or 16 with groups of
// 16) is exact, and both rows give the same bits.
//
// FP32 order of one output, the same for every m, tile and range of items:
//   group 16:   part += x_scale * (s0 * sum(block columns 0-15) + s1 * sum(columns 16-31))
//   group 32:   part += s * (x_scale * sum(block))
//   larger:     part += s * [sum over the blocks of one group of x_scale * sum(block)]
// A part covers 512 columns (a larger group is cut there); parts are added in double.
//
// One row of x takes the packed codes as they lie. More rows meet a part of a panel that is decoded
// once into L1, 4 or 2 rows by 8 outputs at a time; a last row takes packed codes again.
//
// A tile T says how its registers lie:  T::kR x T::kC accumulators of 4 lanes, from row vectors
// (what belongs to a row of x) and column vectors (what belongs to an output).
#ifndef NIBBLE_KERNELS_CPU_INT8_WALK_NEON_H_
#define NIBBLE_KERNELS_CPU_INT8_WALK_NEON_H_

#include "kernels/cpu/epilogue_neon.h"
#include "kernels/cpu/panel_neon.h"

namespace nibble {

enum class Codes { kNibble, kE2M1, kByte };
enum class Take { kNothing, kEight, kZeros };  // what is subtracted
enum class Groups { k16, k32, kWide };

constexpr int64_t kTileRows = 4;
constexpr int64_t kXTileRows = 8;  // rows of a tile of XForm::kInt8Tiles
constexpr int64_t kItemRows = 64;  // rows whose totals are kept at once
constexpr int64_t kDecodedBlockBytes = 512;
static_assert(kXTileRows % kTileRows == 0);

/// Compile-time part of a weight's arithmetic.
template <Take kTakeValue, Groups kGroupsValue>
struct Config {
  static constexpr Take kTake = kTakeValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kUnits = kGroups == Groups::k16 ? 2 : 1;  ///< of one block
};

/// Blocks of one panel against the rows of a tile.
struct Run {
  const uint8_t* codes;   ///< packed, or decoded operands
  const uint8_t* x;       ///< codes of the first row; from there, in bytes:
  int64_t x_sums;         ///<   to its sum over columns 0-15
  int64_t x_upper_sums;   ///<   to its sum over columns 16-31
  int64_t x_scales;       ///<   to its scale
  int64_t x_block_bytes;  ///<   to the next block
  const uint8_t* scales;  ///< of the first block's group
  const uint8_t* zeros;   ///< u8
  DType scale_dtype;
  int64_t scale_quarter_bytes;  ///< of 4 scales
  int32_t zero_bias;            ///< subtracted from zeros
  int64_t blocks;
  int64_t blocks_per_group;  ///< Groups::kWide
  int64_t first_block;       ///< place of the first block in its group
  double* totals;            ///< [rows][16]
};

template <class T>
using Sums = float32x4_t[T::kR][T::kC];
template <class T>
using IntSums = int32x4_t[T::kR][T::kC];
template <class T>
using IntColumns = int32x4_t[T::kC];

/// acc += 4 columns: lane kLane of x holds them for one row, w for 4 outputs.
template <int kLane>
NIBBLE_INLINE int32x4_t dot(int32x4_t acc, int8x16_t w, int8x16_t x) {
  return vdotq_laneq_s32(acc, w, x, kLane);
}

NIBBLE_INLINE int8x16_t load_s8(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

/// Signed operand of quarter q in step `step` (columns 4*step .. 4*step+3) of packed codes.
template <Codes kCodes>
NIBBLE_INLINE int8x16_t decode(const uint8_t* codes, int step, int q) {
  if constexpr (kCodes == Codes::kByte) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 64 * step + 16 * q), vdupq_n_u8(128)));
  } else {
    const uint8x16_t code = nibbles(vld1q_u8(codes + 64 * (step & 3) + 16 * q), step >= 4);
    if constexpr (kCodes == Codes::kNibble) return vreinterpretq_s8_u8(code);
    const int8x16_t doubled = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return vqtbl1q_s8(doubled, code);
  }
}

/// A row vector for one row: the 32 bits at `p` in every lane.
template <int kRows>
NIBBLE_INLINE void broadcast_rows(int32x4_t (&out)[kRows], const uint8_t* p) {
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) out[r] = broadcast_i32(p + 4 * r);
}

/// One row by a whole panel, straight from packed codes: register c is quarter c.
template <Codes kCodes>
struct OneRow {
  static constexpr int kR = 1, kC = kQuarters, kHalves = 1;
  static constexpr int64_t kBlockBytes =
      kCodes == Codes::kByte ? kByteBlockBytes : kNibbleBlockBytes;

  NIBBLE_INLINE void spread_rows(int32x4_t (&out)[kR], const uint8_t* p) {
    broadcast_rows<kR>(out, p);
  }
  NIBBLE_INLINE void spread_columns(int32x4_t (&out)[kC], const int32x4_t (&quarters)[kC]) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) out[c] = quarters[c];
  }
  template <int kLane>
  NIBBLE_INLINE void step(int32x4_t (&acc)[kR][kC], const uint8_t* codes, int8x16_t x, int half) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) {
      acc[0][c] = dot<kLane>(acc[0][c], decode<kCodes>(codes, 4 * half + kLane, c), x);
    }
  }
  /// acc += columns 16 * part .. + 15 of a block.
  NIBBLE_INLINE void dot_16(int32x4_t (&acc)[kR][kC], const uint8_t* codes, const uint8_t* x,
                            int part, int /*half*/) {
    const int8x16_t row = load_s8(x + 16 * part);
    step<0>(acc, codes, row, part);
    step<1>(acc, codes, row, part);
    step<2>(acc, codes, row, part);
    step<3>(acc, codes, row, part);
  }
  NIBBLE_INLINE void add_totals(double* totals, const float32x4_t (&part)[kR][kC], int /*half*/) {
    NIBBLE_UNROLL for (int c = 0; c < kC; ++c) add_to_total(totals + kLanes * c, part[0][c]);
  }
};

/// Quarters of a panel that one half of tile T holds.
template <class T>
constexpr int kQuartersOf = kQuarters / T::kHalves;

/// The column vectors of 4-byte values, one register a quarter of the panel, which load(quarter)
/// gives.
template <class T, class Load>
NIBBLE_INLINE void load_columns(IntColumns<T>& out, int half, Load load) {
  int32x4_t quarters[kQuartersOf<T>];
  NIBBLE_UNROLL for (int q = 0; q < kQuartersOf<T>; ++q) {
    quarters[q] = load(kQuartersOf<T> * half + q);
  }
  T::spread_columns(out, quarters);
}

/// Scales of group `group`, counted from where `run` stands.
template <class T>
NIBBLE_INLINE void load_group_scales(float32x4_t (&out)[T::kC], const Run& run, int group,
                                     int half) {
  IntColumns<T> bits;
  load_columns<T>(bits, half, [&](int quarter) {
    const uint8_t* at = run.scales + (kQuarters * group + quarter) * run.scale_quarter_bytes;
    return vreinterpretq_s32_f32(load_scales(at, run.scale_dtype));
  });
  NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) out[c] = vreinterpretq_f32_s32(bits[c]);
}

template <class C, class T>
NIBBLE_INLINE void load_group_zeros(IntColumns<T>& out, const Run& run, int group, int half) {
  if constexpr (C::kTake == Take::kZeros) {
    load_columns<T>(out, half, [&](int quarter) {
      const uint8x8_t z = load_4_bytes(run.zeros + kPanelRows * group + kLanes * quarter);
      const uint32x4_t wide = vmovl_u16(vget_low_u16(vmovl_u8(z)));
      return vsubq_s32(vreinterpretq_s32_u32(wide), vdupq_n_s32(run.zero_bias));
    });
  } else {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) out[c] = vdupq_n_s32(0);
  }
}

/// value = the exact sum over unit `kUnit` of a block.
template <class C, class T, int kUnit>
NIBBLE_INLINE void dot_unit(Sums<T>& value, const Run& run, int half, const IntColumns<T>& zero) {
  int32x4_t x_sum[T::kR];
  if constexpr (C::kTake != Take::kNothing) {
    T::spread_rows(x_sum, run.x + (kUnit == 0 ? run.x_sums : run.x_upper_sums));
    if constexpr (C::kUnits == 1) {
      int32x4_t upper[T::kR];
      T::spread_rows(upper, run.x + run.x_upper_sums);
      NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) x_sum[r] = vaddq_s32(x_sum[r], upper[r]);
    }
  }
  IntSums<T> acc;
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    int32x4_t first = vdupq_n_s32(0);
    if constexpr (C::kTake == Take::kEight) first = vnegq_s32(vshlq_n_s32(x_sum[r], 3));
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) acc[r][c] = first;
  }
  T::dot_16(acc, run.codes, run.x, kUnit, half);
  if constexpr (C::kUnits == 1) T::dot_16(acc, run.codes, run.x, 1, half);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
      int32x4_t sum = acc[r][c];
      if constexpr (C::kTake == Take::kZeros) sum = vmlsq_s32(sum, zero[c], x_sum[r]);
      value[r][c] = vcvtq_f32_s32(sum);
    }
  }
}

template <class T>
NIBBLE_INLINE void load_x_scales(float32x4_t (&out)[T::kR], const Run& run) {
  int32x4_t bits[T::kR];
  T::spread_rows(bits, run.x + run.x_scales);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) out[r] = vreinterpretq_f32_s32(bits[r]);
}

template <class C>
NIBBLE_INLINE void next_groups(Run& run, int count) {
  run.scales += kQuarters * count * run.scale_quarter_bytes;
  if constexpr (C::kTake == Take::kZeros) run.zeros += kPanelRows * count;
}

template <class T>
NIBBLE_INLINE void next_block(Run& run) {
  run.codes += T::kBlockBytes;
  run.x += run.x_block_bytes;
}

template <class T>
NIBBLE_INLINE void fill_zero(Sums<T>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) sums[r][c] = vdupq_n_f32(0);
  }
}

/// part += one block whose groups have 16 columns.
template <class C, class T>
NIBBLE_INLINE void add_block_of_16s(Sums<T>& part, Run& run, int half) {
  Sums<T> both, value;
  float32x4_t scale[T::kC], x_scale[T::kR];
  IntColumns<T> zero;
  load_group_zeros<C, T>(zero, run, 0, half);
  dot_unit<C, T, 0>(value, run, half, zero);
  load_group_scales<T>(scale, run, 0, half);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) both[r][c] = vmulq_f32(value[r][c], scale[c]);
  }
  load_group_zeros<C, T>(zero, run, 1, half);
  dot_unit<C, T, 1>(value, run, half, zero);
  load_group_scales<T>(scale, run, 1, half);
  load_x_scales<T>(x_scale, run);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
      both[r][c] = vfmaq_f32(both[r][c], value[r][c], scale[c]);
      part[r][c] = vfmaq_f32(part[r][c], both[r][c], x_scale[r]);
    }
  }
  next_groups<C>(run, 2);
  next_block<T>(run);
}

/// part += one block that is a group.
template <class C, class T>
NIBBLE_INLINE void add_block_of_32(Sums<T>& part, Run& run, int half) {
  Sums<T> value;
  float32x4_t scale[T::kC], x_scale[T::kR];
  IntColumns<T> zero;
  load_group_zeros<C, T>(zero, run, 0, half);
  dot_unit<C, T, 0>(value, run, half, zero);
  load_group_scales<T>(scale, run, 0, half);
  load_x_scales<T>(x_scale, run);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
      part[r][c] = vfmaq_f32(part[r][c], vmulq_f32(value[r][c], x_scale[r]), scale[c]);
    }
  }
  next_groups<C>(run, 1);
  next_block<T>(run);
}

/// part += `blocks` blocks of one group.
template <class C, class T>
NIBBLE_INLINE void add_group(Sums<T>& part, Run& run, int half, int64_t blocks) {
  Sums<T> sum, value;
  float32x4_t scale[T::kC], x_scale[T::kR];
  IntColumns<T> zero;
  load_group_zeros<C, T>(zero, run, 0, half);
  fill_zero<T>(sum);
  for (int64_t block = 0; block < blocks; ++block) {
    dot_unit<C, T, 0>(value, run, half, zero);
    load_x_scales<T>(x_scale, run);
    NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
      NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
        sum[r][c] = vfmaq_f32(sum[r][c], value[r][c], x_scale[r]);
      }
    }
    next_block<T>(run);
  }
  load_group_scales<T>(scale, run, 0, half);
  NIBBLE_UNROLL for (int r = 0; r < T::kR; ++r) {
    NIBBLE_UNROLL for (int c = 0; c < T::kC; ++c) {
      part[r][c] = vfmaq_f32(part[r][c], sum[r][c], scale[c]);
    }
  }
}

/// totals += blocks of a panel times the rows of a tile. The first block begins a part.
template <class C, class T>
static void multiply_rows(const Run& from) {
  for (int half = 0; half < T::kHalves; ++half) {
    Run run = from;
    int64_t place = run.first_block;
    for (int64_t done = 0; done < run.blocks; done += kPartBlocks) {
      const int64_t blocks = min_i64(kPartBlocks, run.blocks - done);
      Sums<T> part;
      fill_zero<T>(part);
      if constexpr (C::kGroups == Groups::k16) {
        for (int64_t block = 0; block < blocks; ++block) add_block_of_16s<C, T>(part, run, half);
      } else if constexpr (C::kGroups == Groups::k32) {
        for (int64_t block = 0; block < blocks; ++block) add_block_of_32<C, T>(part, run, half);
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

/// The code for one kind of weight.
struct Family {
  void (*one_row)(const Run&);    ///< packed codes
  void (*two_rows)(const Run&);   ///< decoded ones
  void (*four_rows)(const Run&);  ///< likewise
  void (*decode)(const uint8_t* packed, int64_t blocks, uint8_t* out);
  int64_t packed_bytes;  ///< of one block
  int32_t zero_bias;
  double unit;  ///< of the totals: e2m1 operands are doubled
};

// Kit: Kit::Tile<rows> and Kit::decode_blocks<codes>.
template <class Kit, Codes kCodes, class C>
static Family family_of_type(int32_t zero_bias) {
  using One = OneRow<kCodes>;
  return {multiply_rows<C, One>,
          multiply_rows<C, typename Kit::template Tile<2>>,
          multiply_rows<C, typename Kit::template Tile<4>>,
          Kit::template decode_blocks<kCodes>,
          One::kBlockBytes,
          zero_bias,
          kCodes == Codes::kE2M1 ? 0.5 : 1.0};
}

template <class Kit, Codes kCodes, Take kTake>
static Family family_of_group(int64_t group, int32_t zero_bias) {
  NIBBLE_ASSUME(group == 16 || group % kBlockColumns == 0);
  if (group == 16) return family_of_type<Kit, kCodes, Config<kTake, Groups::k16>>(zero_bias);
  if (group == 32) return family_of_type<Kit, kCodes, Config<kTake, Groups::k32>>(zero_bias);
  return family_of_type<Kit, kCodes, Config<kTake, Groups::kWide>>(zero_bias);
}

// Unsigned elements have zeros, signed ones have none (Format::validate).
template <class Kit>
static Family family_of(const WeightArgs& w) {
  switch (w.element) {
    case Element::kE2M1:
      return family_of_group<Kit, Codes::kE2M1, Take::kNothing>(w.group, 0);
    case Element::kInt4:
      return family_of_group<Kit, Codes::kNibble, Take::kEight>(w.group, 0);
    case Element::kUint4:
      return family_of_group<Kit, Codes::kNibble, Take::kZeros>(w.group, 0);
    case Element::kInt8:
      return family_of_group<Kit, Codes::kByte, Take::kNothing>(w.group, 0);
    case Element::kUint8:
    case Element::kNF4:  // no row lists it
      break;
  }
  return family_of_group<Kit, Codes::kByte, Take::kZeros>(w.group, 128);
}

struct Scratch {
  alignas(64) uint8_t operands[kPartBlocks * kDecodedBlockBytes];
  alignas(64) double totals[kItemRows * kPanelRows];
};

/// Where a panel's part begins.
static inline Run run_at(const MatmulArgs& args, const Family& family, int64_t panel, int64_t block,
                         int64_t blocks) {
  const WeightArgs& w = args.w;
  const int64_t row_blocks = w.k_padded / kBlockColumns;
  const int64_t group = block * kBlockColumns / w.group;
  const int64_t index = (panel * w.num_groups + group) * kPanelRows;
  Run run = {};
  run.codes = w.codes + (panel * row_blocks + block) * family.packed_bytes;
  run.scales = static_cast<const uint8_t*>(w.scales) + index * scale_bytes(w.scale_dtype);
  run.zeros = w.zeros == nullptr ? nullptr : static_cast<const uint8_t*>(w.zeros) + index;
  run.scale_dtype = w.scale_dtype;
  run.scale_quarter_bytes = kLanes * scale_bytes(w.scale_dtype);
  run.zero_bias = family.zero_bias;
  run.blocks = blocks;
  run.blocks_per_group = max_i64(1, w.group / kBlockColumns);
  run.first_block = block % run.blocks_per_group;
  return run;
}

/// Sets the pointers of x to `row` and column block `block`.
static inline void point_to_x(Run& run, const MatmulArgs& args, int64_t row, int64_t block) {
  const int64_t tile_row = row / kXTileRows * kXTileRows, r = row - tile_row;
  const int64_t tile_rows = min_i64(kXTileRows, args.m - tile_row);
  run.x_block_bytes = tile_rows * kInt8RowBlockBytes;
  run.x = static_cast<const uint8_t*>(args.x) +
          tile_row * (args.w.k_padded / kBlockColumns) * kInt8RowBlockBytes +
          block * run.x_block_bytes + kBlockColumns * r;
  run.x_sums = kBlockColumns * (tile_rows - r) + 4 * r;
  run.x_upper_sums = run.x_sums + 4 * tile_rows;
  run.x_scales = run.x_upper_sums + 4 * tile_rows;
}

/// Rows of one register tile: 4, 2 or 1 from `row` on, within one tile of x.
static inline int64_t rows_at_once(int64_t row, int64_t end) {
  const int64_t tile_end = (row / kXTileRows + 1) * kXTileRows;
  const int64_t rows = min_i64(kTileRows, min_i64(tile_end, end) - row);
  return rows == 3 ? 2 : rows;
}

/// totals[rows][16] of a panel for the rows [begin, end) of x, at most kItemRows.
static inline void multiply_panel(const MatmulArgs& args, const Family& family, int64_t panel,
                                  int64_t begin, int64_t end, Scratch* scratch) {
  const int64_t row_blocks = args.w.k_padded / kBlockColumns;
  for (int64_t i = 0; i < (end - begin) * kPanelRows; ++i) scratch->totals[i] = 0;
  if (end - begin == 1) {
    Run run = run_at(args, family, panel, 0, row_blocks);
    run.totals = scratch->totals;
    point_to_x(run, args, begin, 0);
    family.one_row(run);
    return;
  }
  for (int64_t block = 0; block < row_blocks; block += kPartBlocks) {
    const Run packed = run_at(args, family, panel, block, min_i64(kPartBlocks, row_blocks - block));
    family.decode(packed.codes, packed.blocks, scratch->operands);
    for (int64_t row = begin, rows; row < end; row += rows) {
      rows = rows_at_once(row, end);
      Run run = packed;
      if (rows > 1) run.codes = scratch->operands;
      run.totals = scratch->totals + (row - begin) * kPanelRows;
      point_to_x(run, args, row, block);
      (rows == 4 ? family.four_rows : rows == 2 ? family.two_rows : family.one_row)(run);
    }
  }
}

/// The kernel. x: XForm::kInt8Tiles.
template <class Kit>
static void multiply_items(const MatmulArgs& args, Range items) {
  NIBBLE_ASSUME(args.w.layout == LayoutId::kCpuPanel16 && args.w.k_padded % kBlockColumns == 0);
  const Family family = family_of<Kit>(args.w);
  Scratch scratch;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    for (int64_t row = item.row_begin; row < item.row_end; row += kItemRows) {
      const int64_t end = min_i64(row + kItemRows, item.row_end);
      multiply_panel(args, family, item.panel, row, end, &scratch);
      finish_totals(args, scratch.totals, row, end - row, item.panel, family.unit);
    }
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_INT8_WALK_NEON_H_
