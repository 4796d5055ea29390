// y = x * W^T with int8 activations on AVX2: int4, uint4, e2m1, int8, uint8 weights with any scale
// type, no zeros or integer ones, and any group that is 16 or a multiple of 32.
//
// One register tile is up to 4 rows of x by one panel (16 outputs in two halves). A step multiplies
// 4 columns: vpmaddubsw of unsigned codes with 4 bytes of x in every lane gives two int16 per
// output, and the steps of a unit are summed in int16 before one vpmaddwd widens them:
//
//                half 0 (lanes 0-7)     half 1 (lanes 8-15)
//   x row 0..3   pairs[r][0]            pairs[r][1]          16 x int16, two an output
//
//   element   unsigned operand u   steps in int16, largest |sum|      subtracted from sum(u * x)
//   int4      code (q + 8)         8: 8 * 2 * 15 * 127 = 30480        8 * sum(x)
//   uint4     code                 8: the same                        z * sum(x)
//   e2m1      2 * value + 16       4: 4 * 2 * 28 * 127 = 28448        16 * sum(x)
//   int8      nibbles of q + 128   8 each, the high ones widened * 16 128 * sum(x)
//   uint8     nibbles of the code  8 each, likewise                   z * sum(x)
//
// so nothing saturates and the int32 sum of a unit (the columns of a block that share a scale: 32,
// or 16 with groups of 16) is exact: a group whose codes all equal its zero gives exactly 0.
//
// FP32 order of one output, the same for every m, tile and range of items:
//   group 16:   part += x_scale * (s0 * sum(block columns 0-15) + s1 * sum(columns 16-31))
//   group 32:   part += s * (x_scale * sum(block))
//   larger:     part += s * [sum over the blocks of one group of x_scale * sum(block)]
// A part covers 512 columns (a larger group is cut there); parts are added in double.
//
// Up to 8 rows of x every register tile decodes the codes as it uses them. More rows meet a part of
// a panel that is decoded once into L1; the last one to three rows decode again.
// Measured on Zen 4: vpmaddubsw, vpmaddwd and FMA share two ports there, on which a fifth of the
// additions lands too; 0.75 of the roof int8_avx2_four_pairs with hot weights, groups of 128.
#include "kernels/cpu/epilogue_avx2.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kE2M1, kByte };
enum class Groups { k16, k32, kWide };
enum class Source { kPacked, kDecoded };

constexpr int kTileRows = 4;
constexpr int64_t kXTileRows = 8;          // rows of a tile of XForm::kInt8Tiles
constexpr int64_t kItemRows = 64;          // rows whose totals are kept at once
constexpr int64_t kDirectRows = 8;         // up to here every register tile decodes for itself
constexpr int kStepBytes = 64;             // one operand of a step, both halves
constexpr int64_t kPrefetchBytes = 16384;  // into L2; see panel_avx2.h
static_assert(kXTileRows % kTileRows == 0);

/// Compile-time part of a register tile.
template <Codes kCodesValue, bool kZerosValue, Groups kGroupsValue, Source kSourceValue,
          int kRowsValue>
struct Config {
  static constexpr Codes kCodes = kCodesValue;
  static constexpr bool kZeros = kZerosValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr Source kSource = kSourceValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kNibbles = kCodes == Codes::kByte ? 2 : 1;
  static constexpr int kUnits = kGroups == Groups::k16 ? 2 : 1;  // of one block
  static constexpr int kUnitSteps = 8 / kUnits;
  static constexpr int kPackedBytes = kCodes == Codes::kByte ? 512 : 256;
  static constexpr int kDecodedBytes = 8 * kNibbles * kStepBytes;
  static constexpr int kBlockBytes = kSource == Source::kPacked ? kPackedBytes : kDecodedBytes;
  static constexpr int kBiasShift = kCodes == Codes::kByte ? 7 : kCodes == Codes::kE2M1 ? 4 : 3;
  static_assert(kRows <= kTileRows);
};

/// Blocks of one panel against up to 4 rows of x.
struct Run {
  const uint8_t* codes;     ///< packed, or decoded operands
  const uint8_t* prefetch;  ///< Source::kDecoded: `prefetch_lines` lines a block from here on
  int64_t prefetch_lines;
  const uint8_t* x;       ///< codes of the first row; from there, in bytes:
  int64_t x_sums;         ///<   to its sum over columns 0-15
  int64_t x_upper_sums;   ///<   to its sum over columns 16-31
  int64_t x_scales;       ///<   to its scale
  int64_t x_block_bytes;  ///<   to the next block
  const uint8_t* scales;  ///< of the first block's group
  const uint8_t* zeros;   ///< u8; null: all 0
  DType scale_dtype;
  int64_t scale_half_bytes;  ///< of 8 scales
  int32_t zero_bias;         ///< added to zeros
  int64_t blocks;
  int64_t blocks_per_group;  ///< Groups::kWide
  int64_t first_block;       ///< place of the first block in its group
  double* totals;            ///< [rows][16]
};

template <class C>
using Lanes = __m256i[C::kRows][kHalves];
template <class C>
using Sums = __m256[C::kRows][kHalves];

/// Scale and zero of one group, as they meet the sums.
template <class C>
struct GroupLanes {
  __m256 scale[kHalves];
  __m256i zero[kHalves];  ///< 16 bits in each 32-bit lane
};

/// Unsigned operand of step `step` (columns 4*step .. 4*step+3): a nibble of the packed codes.
template <class C>
NIBBLE_INLINE __m256i decode(const uint8_t* codes, int step, int nibble, int half) {
  constexpr bool kByte = C::kCodes == Codes::kByte;
  const __m256i packed = load_i256(codes + kStepBytes * (kByte ? step : step & 3) + 32 * half);
  const bool high = kByte ? nibble == 1 : step >= 4;
  const __m256i code =
      _mm256_and_si256(high ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
  if constexpr (C::kCodes == Codes::kE2M1) {
    const __m256i doubled_plus_16 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
    return _mm256_shuffle_epi8(doubled_plus_16, code);
  } else {
    return code;
  }
}

template <class C>
NIBBLE_INLINE __m256i operand(const uint8_t* codes, int step, int nibble, int half) {
  if constexpr (C::kSource == Source::kDecoded) {
    return load_i256(codes + kStepBytes * (C::kNibbles * step + nibble) + 32 * half);
  } else {
    return decode<C>(codes, step, nibble, half);
  }
}

/// sum (+)= sum of u * x over kSteps steps, kept in int16 until the end.
template <class C, int kFirst, int kSteps>
NIBBLE_INLINE void dot_steps(Lanes<C>& sum, const Run& run, int nibble, bool accumulate) {
  Lanes<C> pairs;
  NIBBLE_UNROLL for (int step = kFirst; step < kFirst + kSteps; ++step) {
    const __m256i u0 = operand<C>(run.codes, step, nibble, 0);
    const __m256i u1 = operand<C>(run.codes, step, nibble, 1);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m256i x = broadcast_i32(run.x + kBlockColumns * r + 4 * step);
      const __m256i p0 = _mm256_maddubs_epi16(u0, x), p1 = _mm256_maddubs_epi16(u1, x);
      pairs[r][0] = step == kFirst ? p0 : in_order(_mm256_add_epi16(pairs[r][0], p0));
      pairs[r][1] = step == kFirst ? p1 : in_order(_mm256_add_epi16(pairs[r][1], p1));
    }
  }
  const __m256i weight = _mm256_set1_epi16(nibble == 0 ? 1 : 16);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      const __m256i wide = _mm256_madd_epi16(pairs[r][h], weight);
      sum[r][h] = accumulate ? _mm256_add_epi32(sum[r][h], wide) : wide;
    }
  }
}

/// value = sum of (u - bias or zero) * x over unit `kUnit` of a block.
template <class C, int kUnit>
NIBBLE_INLINE void dot_unit(Sums<C>& value, const Run& run, const __m256i (&zero)[kHalves]) {
  constexpr int kSteps = C::kUnitSteps, kFirst = kUnit * kSteps;
  Lanes<C> sum;
  if constexpr (C::kCodes == Codes::kByte) {
    dot_steps<C, kFirst, kSteps>(sum, run, 0, false);
    dot_steps<C, kFirst, kSteps>(sum, run, 1, true);
  } else if constexpr (C::kCodes == Codes::kE2M1 && kSteps == 8) {
    dot_steps<C, 0, 4>(sum, run, 0, false);
    dot_steps<C, 4, 4>(sum, run, 0, true);
  } else {
    dot_steps<C, kFirst, kSteps>(sum, run, 0, false);
  }
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const uint8_t* x = run.x + 4 * r;
    __m256i x_sum = broadcast_i32(x + (kUnit == 0 ? run.x_sums : run.x_upper_sums));
    if constexpr (C::kUnits == 1) {
      x_sum = _mm256_add_epi32(x_sum, broadcast_i32(x + run.x_upper_sums));
    }
    if constexpr (!C::kZeros) x_sum = _mm256_slli_epi32(x_sum, C::kBiasShift);
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      // The upper 16 bits of a zero are 0, so this product of pairs is zero * x_sum.
      const __m256i taken = C::kZeros ? _mm256_madd_epi16(x_sum, zero[h]) : x_sum;
      value[r][h] = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum[r][h], taken));
    }
  }
}

template <class C>
NIBBLE_INLINE GroupLanes<C> load_group(const Run& run, int group) {
  GroupLanes<C> out;
  NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
    const int64_t half = kHalves * group + h;
    out.scale[h] = load_scales(run.scales + half * run.scale_half_bytes, run.scale_dtype);
    out.zero[h] = _mm256_set1_epi32(run.zero_bias);
    if (C::kZeros && run.zeros != nullptr) {
      const __m256i zero = _mm256_cvtepu8_epi32(load_i64(run.zeros + kHalfLanes * half));
      out.zero[h] = _mm256_add_epi32(out.zero[h], zero);
    }
  }
  return out;
}

template <class C>
NIBBLE_INLINE void next_groups(Run& run, int count) {
  run.scales += kHalves * count * run.scale_half_bytes;
  if (C::kZeros && run.zeros != nullptr) run.zeros += kPanelRows * count;
}

template <class C>
NIBBLE_INLINE void next_block(Run& run) {
  if constexpr (C::kSource == Source::kPacked) {
    NIBBLE_UNROLL for (int line = 0; line < C::kPackedBytes; line += kLineBytes) {
      prefetch_line(run.codes + kPrefetchBytes + line);
    }
  } else {
    for (int64_t line = 0; line < run.prefetch_lines; ++line) {
      prefetch_line(run.prefetch);
      run.prefetch += kLineBytes;
    }
  }
  run.codes += C::kBlockBytes;
  run.x += run.x_block_bytes;
}

template <class C>
NIBBLE_INLINE void fill_zero(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) sums[r][h] = _mm256_setzero_ps();
  }
}

/// part += one block whose groups have 16 columns.
template <class C>
NIBBLE_INLINE void add_block_of_16s(Sums<C>& part, Run& run) {
  Sums<C> both, value;
  const GroupLanes<C> first = load_group<C>(run, 0), second = load_group<C>(run, 1);
  dot_unit<C, 0>(value, run, first.zero);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      both[r][h] = _mm256_mul_ps(value[r][h], first.scale[h]);
    }
  }
  dot_unit<C, 1>(value, run, second.zero);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const __m256 x_scale = broadcast_f32(run.x + run.x_scales + 4 * r);
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      both[r][h] = _mm256_fmadd_ps(value[r][h], second.scale[h], both[r][h]);
      part[r][h] = _mm256_fmadd_ps(both[r][h], x_scale, part[r][h]);
    }
  }
  next_groups<C>(run, 2);
  next_block<C>(run);
}

/// part += one block that is a group.
template <class C>
NIBBLE_INLINE void add_block_of_32(Sums<C>& part, Run& run) {
  Sums<C> value;
  const GroupLanes<C> group = load_group<C>(run, 0);
  dot_unit<C, 0>(value, run, group.zero);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const __m256 x_scale = broadcast_f32(run.x + run.x_scales + 4 * r);
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      const __m256 scaled = _mm256_mul_ps(value[r][h], x_scale);
      part[r][h] = _mm256_fmadd_ps(scaled, group.scale[h], part[r][h]);
    }
  }
  next_groups<C>(run, 1);
  next_block<C>(run);
}

/// part += `blocks` blocks of one group.
template <class C>
NIBBLE_INLINE void add_group(Sums<C>& part, Run& run, int64_t blocks) {
  Sums<C> sum, value;
  const GroupLanes<C> group = load_group<C>(run, 0);
  fill_zero<C>(sum);
  for (int64_t block = 0; block < blocks; ++block) {
    dot_unit<C, 0>(value, run, group.zero);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m256 x_scale = broadcast_f32(run.x + run.x_scales + 4 * r);
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
        sum[r][h] = _mm256_fmadd_ps(value[r][h], x_scale, sum[r][h]);
      }
    }
    next_block<C>(run);
  }
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
      part[r][h] = _mm256_fmadd_ps(sum[r][h], group.scale[h], part[r][h]);
    }
  }
}

/// totals += blocks of a panel times kRows rows of x. The first block begins a part.
template <class C>
void multiply_rows(const Run& from) {
  Run run = from;
  int64_t place = run.first_block;
  for (int64_t done = 0; done < run.blocks; done += kPartBlocks) {
    const int64_t blocks = min_i64(kPartBlocks, run.blocks - done);
    Sums<C> part;
    fill_zero<C>(part);
    if constexpr (C::kGroups == Groups::k16) {
      for (int64_t block = 0; block < blocks; ++block) add_block_of_16s<C>(part, run);
    } else if constexpr (C::kGroups == Groups::k32) {
      for (int64_t block = 0; block < blocks; ++block) add_block_of_32<C>(part, run);
    } else {
      for (int64_t block = 0; block < blocks;) {
        const int64_t count = min_i64(run.blocks_per_group - place, blocks - block);
        add_group<C>(part, run, count);
        block += count;
        place += count;
        if (place == run.blocks_per_group) {
          place = 0;
          next_groups<C>(run, 1);
        }
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
        add_to_total(run.totals + kPanelRows * r + kHalfLanes * h, part[r][h]);
      }
    }
  }
}

/// Operands of `blocks` blocks in the order of their use.
template <class C>
void decode_blocks(const uint8_t* packed, int64_t blocks, uint8_t* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    NIBBLE_UNROLL for (int step = 0; step < 8; ++step) {
      NIBBLE_UNROLL for (int nibble = 0; nibble < C::kNibbles; ++nibble) {
        NIBBLE_UNROLL for (int half = 0; half < kHalves; ++half) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(out),
                             decode<C>(packed, step, nibble, half));
          out += 32;
        }
      }
    }
    packed += C::kPackedBytes;
  }
}

/// The code for one kind of weight.
struct Family {
  void (*direct[kTileRows])(const Run&);  ///< by rows - 1; 3 rows are 2 and 1
  void (*decoded)(const Run&);            ///< 4 rows
  void (*decode)(const uint8_t*, int64_t, uint8_t*);
  int64_t packed_bytes, decoded_bytes;  ///< of one block
  int32_t zero_bias;                    ///< where zeros are subtracted, this goes with them
  double unit;  ///< of the totals: e2m1 operands are doubled, E4M3 scales divided
};

template <Codes kCodes, bool kZeros, Groups kGroups>
Family family_of_type(int32_t zero_bias) {
  constexpr Source kPacked = Source::kPacked, kDecoded = Source::kDecoded;
  using C = Config<kCodes, kZeros, kGroups, kPacked, 1>;
  return {{multiply_rows<C>, multiply_rows<Config<kCodes, kZeros, kGroups, kPacked, 2>>, nullptr,
           multiply_rows<Config<kCodes, kZeros, kGroups, kPacked, 4>>},
          multiply_rows<Config<kCodes, kZeros, kGroups, kDecoded, 4>>,
          decode_blocks<C>,
          C::kPackedBytes,
          C::kDecodedBytes,
          zero_bias,
          kCodes == Codes::kE2M1 ? 0.5 : 1.0};
}

template <Codes kCodes, bool kZeros>
Family family_of_group(int64_t group, int32_t zero_bias) {
  NIBBLE_ASSUME(group == 16 || group % kBlockColumns == 0);
  if (group == 16) return family_of_type<kCodes, kZeros, Groups::k16>(zero_bias);
  if (group == 32 && kCodes != Codes::kByte) {
    return family_of_type<kCodes, kZeros, Groups::k32>(zero_bias);
  }
  return family_of_type<kCodes, kZeros, Groups::kWide>(zero_bias);
}

// Unsigned elements have zeros, signed ones have none.
Family family_of(const WeightArgs& w) {
  NIBBLE_ASSUME(w.zero_kind == ZeroKind::kInteger || w.zero_kind == ZeroKind::kNone);
  switch (w.element) {
    case Element::kE2M1:
      return family_of_group<Codes::kE2M1, false>(w.group, 0);
    case Element::kInt4:
      return family_of_group<Codes::kNibble, false>(w.group, 0);
    case Element::kUint4:
      return family_of_group<Codes::kNibble, true>(w.group, 0);
    case Element::kInt8:  // as if every zero were 128: one family less
      return family_of_group<Codes::kByte, true>(w.group, 128);
    case Element::kUint8:
    case Element::kNF4:  // no row lists it
      break;
  }
  return family_of_group<Codes::kByte, true>(w.group, 0);
}

struct Scratch {
  alignas(64) uint8_t operands[kPartBlocks * 1024];
  alignas(64) double totals[kItemRows * kPanelRows];
};

/// Where a panel's part and a tile of x begin.
Run run_at(const MatmulArgs& args, const Family& family, int64_t panel, int64_t block,
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
  run.scale_half_bytes = kHalfLanes * scale_bytes(w.scale_dtype);
  run.zero_bias = family.zero_bias;
  run.blocks = blocks;
  run.blocks_per_group = max_i64(1, w.group / kBlockColumns);
  run.first_block = block % run.blocks_per_group;
  return run;
}

/// Sets the pointers of x to `row` and column block `block`.
void point_to_x(Run& run, const MatmulArgs& args, int64_t row, int64_t block) {
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

/// Rows of one register tile: up to 4 from `row` on, within one tile of x.
int64_t rows_at_once(int64_t row, int64_t end) {
  const int64_t tile_end = (row / kXTileRows + 1) * kXTileRows;
  return min_i64(kTileRows, min_i64(tile_end, end) - row);
}

/// Rows [row, end) of x, decoding for every register tile.
void multiply_direct(Run run, const MatmulArgs& args, const Family& family, int64_t row,
                     int64_t end, int64_t block) {
  while (row < end) {
    int64_t rows = rows_at_once(row, end);
    if (rows == 3) rows = 2;
    point_to_x(run, args, row, block);
    family.direct[rows - 1](run);
    run.totals += rows * kPanelRows;
    row += rows;
  }
}

/// totals[rows][16] of a panel for the rows [begin, end) of x, at most kItemRows.
void multiply_panel(const MatmulArgs& args, const Family& family, int64_t panel, int64_t begin,
                    int64_t end, Scratch* scratch) {
  const int64_t row_blocks = args.w.k_padded / kBlockColumns;
  for (int64_t i = 0; i < (end - begin) * kPanelRows; ++i) scratch->totals[i] = 0;
  if (end - begin <= kDirectRows) {
    Run run = run_at(args, family, panel, 0, row_blocks);
    run.totals = scratch->totals;
    multiply_direct(run, args, family, begin, end, 0);
    return;
  }
  for (int64_t block = 0; block < row_blocks; block += kPartBlocks) {
    const Run packed = run_at(args, family, panel, block, min_i64(kPartBlocks, row_blocks - block));
    family.decode(packed.codes, packed.blocks, scratch->operands);
    Run run = packed;
    run.codes = scratch->operands;
    // Every tile prefetches a share of the next part, or of the next panel's first.
    run.prefetch = packed.codes + packed.blocks * family.packed_bytes;
    run.prefetch_lines = family.packed_bytes / kLineBytes * kTileRows / (end - begin) + 1;
    int64_t row = begin;
    while (row < end && rows_at_once(row, end) == kTileRows) {
      run.totals = scratch->totals + (row - begin) * kPanelRows;
      point_to_x(run, args, row, block);
      family.decoded(run);
      run.prefetch += run.blocks * run.prefetch_lines * kLineBytes;
      row += kTileRows;
    }
    Run rest = packed;
    rest.totals = scratch->totals + (row - begin) * kPanelRows;
    multiply_direct(rest, args, family, row, end, block);
  }
}

}  // namespace

/// x: XForm::kInt8Tiles.
void gemm_int8_avx2(const MatmulArgs& args, Range items) {
  NIBBLE_ASSUME(args.w.layout == LayoutId::kCpuPanel16 && args.w.k_padded % kBlockColumns == 0);
  const Family family = family_of(args.w);
  const double unit = family.unit * static_cast<double>(scale_unit(args.w.scale_dtype));
  Scratch scratch;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    for (int64_t row = item.row_begin; row < item.row_end; row += kItemRows) {
      const int64_t end = min_i64(row + kItemRows, item.row_end);
      multiply_panel(args, family, item.panel, row, end, &scratch);
      finish_totals(args, scratch.totals, row, end - row, item.panel, unit);
    }
  }
}

}  // namespace nibble
