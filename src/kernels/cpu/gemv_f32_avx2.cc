// y = x * W^T with FP32 x and few rows of x, on AVX2 and FMA: int4, uint4 and e2m1 weights with any
// scale type, no zeros or integer ones, any group that is 16 or a multiple of 32.
//
// Few rows are bound by decoding, so codes go straight to registers. Every value is exact in BF16,
// the upper half of an FP32. Two byte tables (nibble_values_avx2.h) give its two bytes for 32 codes
// at once; interleaving them, and the result with zeros, makes FP32 with 4 columns of one
// output side by side, which meet 4 columns of x as they lie in memory:
//
//   32 codes, byte 4n + i = output n, column k + i
//     table U, table L -> interleave bytes -> interleave with 0:
//   register q = 0..3:  | output q:  k  k+1  k+2  k+3 | output q+4:  k  k+1  k+2  k+3 |
//   times               |         x[k] .. x[k+3]      |          x[k] .. x[k+3]       |
//
// so each output has 4 lanes. They are added up before the scale: part = fma(sum, scale, part).
// Integer zeros are subtracted there: sum(x * value) - z * sum(x).
//
// FP32 order of one output: lanes hold the columns k modulo 4, over at most 128 columns of a group;
// parts over 512 columns; parts are added in double. It does not depend on m.
#include "kernels/cpu/epilogue_avx2.h"
#include "kernels/cpu/nibble_values_avx2.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

constexpr int kTileRows = 2;
constexpr int kQuarters = 4;  // registers that 32 codes become
constexpr int64_t kBlockBytes = 256;
constexpr int64_t kPrefetchBytes = 16384;  // into L2; see panel_avx2.h
constexpr int64_t kFoldBlocks = 4;         // 32 products a lane

/// Compile-time part of a register tile.
template <bool kZerosValue, bool kGroup16Value, int kRowsValue>
struct Config {
  static constexpr bool kZeros = kZerosValue;
  static constexpr bool kGroup16 = kGroup16Value;
  static constexpr int kRows = kRowsValue;
  static constexpr int kHalvesAtOnce = kTileRows / kRows;  ///< 8 sums either way
};

/// One panel against kRows rows of x.
struct Run {
  const uint8_t* codes;
  const float* x;
  int64_t x_stride;
  const uint8_t* scales;
  const uint8_t* zeros;  ///< u8
  DType scale_dtype;
  int64_t scale_half_bytes;  ///< of 8 scales
  int64_t blocks;
  int64_t blocks_per_group;
  ValueTables tables;
  double* totals;  ///< [rows][16]
};

template <class C>
using Sums = __m256[C::kRows][C::kHalvesAtOnce][kQuarters];
template <class C>
using Parts = __m256[C::kRows][kHalves];

struct GroupLanes {
  __m256 scale[kHalves];
  __m256 zero[kHalves];
};

template <class C>
NIBBLE_INLINE GroupLanes load_group(const Run& run) {
  GroupLanes out;
  const __m256 unit = _mm256_set1_ps(scale_unit(run.scale_dtype));
  NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
    const uint8_t* at = run.scales + h * run.scale_half_bytes;
    out.scale[h] = _mm256_mul_ps(load_scales(at, run.scale_dtype), unit);
    out.zero[h] = _mm256_setzero_ps();
    if constexpr (C::kZeros) {
      const __m256i zero = _mm256_cvtepu8_epi32(load_i64(run.zeros + kHalfLanes * h));
      out.zero[h] = _mm256_cvtepi32_ps(zero);
    }
  }
  return out;
}

template <class C>
NIBBLE_INLINE void next_group(Run& run) {
  run.scales += kHalves * run.scale_half_bytes;
  if constexpr (C::kZeros) run.zeros += kPanelRows;
}

struct alignas(32) Mask {
  uint32_t lanes[8];
};
constexpr uint32_t kNibbles = 0x0F0F0F0F;
constexpr Mask kLowNibbles = {{kNibbles, kNibbles, kNibbles, kNibbles,  //
                               kNibbles, kNibbles, kNibbles, kNibbles}};

/// v & mask with the mask in memory: the 16 registers hold 8 sums, 2 tables, a zero and what passes
/// through, and gcc 12 would rather keep the mask and spill a sum.
NIBBLE_INLINE __m256i and_memory(__m256i v, const Mask& mask) {
  __m256i out;
  __asm__("vpand %2, %1, %0" : "=x"(out) : "x"(v), "m"(mask));
  return out;
}

template <class C>
NIBBLE_INLINE void fill_zero(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < C::kHalvesAtOnce; ++h) {
      NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) sums[r][h][q] = _mm256_setzero_ps();
    }
  }
}

/// sums += value * x over the 16 columns of the low (high) nibbles of one block; `codes` points at
/// the block's first half of interest, `x` at its first column.
template <class C>
NIBBLE_INLINE void add_nibbles(Sums<C>& sums, const Run& run, const uint8_t* codes, const float* x,
                               bool high) {
  const __m256i zero = _mm256_setzero_si256();
  NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
    __m256 x_four[C::kRows];
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const float* at = x + r * run.x_stride + (high ? 16 : 0) + 4 * j;
      x_four[r] = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(at));
    }
    NIBBLE_UNROLL for (int h = 0; h < C::kHalvesAtOnce; ++h) {
      const __m256i packed = load_i256(codes + 64 * j + 32 * h);
      const __m256i code = and_memory(high ? _mm256_srli_epi16(packed, 4) : packed, kLowNibbles);
      const __m256i upper = _mm256_shuffle_epi8(run.tables.upper, code);
      const __m256i lower = _mm256_shuffle_epi8(run.tables.lower, code);
      const __m256i bf16[2] = {_mm256_unpacklo_epi8(lower, upper),
                               _mm256_unpackhi_epi8(lower, upper)};
      NIBBLE_UNROLL for (int q = 0; q < kQuarters; ++q) {
        const __m256i bits = q % 2 == 0 ? _mm256_unpacklo_epi16(zero, bf16[q / 2])
                                        : _mm256_unpackhi_epi16(zero, bf16[q / 2]);
        NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
          sums[r][h][q] = _mm256_fmadd_ps(_mm256_castsi256_ps(bits), x_four[r], sums[r][h][q]);
        }
      }
    }
  }
}

/// The sum of x[0 .. columns) in every lane.
NIBBLE_INLINE __m256 sum_of_x(const float* x, int64_t columns) {
  __m256 sum = _mm256_setzero_ps();
  for (int64_t k = 0; k < columns; k += 8) sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + k));
  sum = _mm256_add_ps(sum, _mm256_permute2f128_ps(sum, sum, 1));
  sum = _mm256_hadd_ps(sum, sum);
  return _mm256_hadd_ps(sum, sum);
}

/// part += (sums - zero * x_sum) * scale, for the halves from `first` on.
template <class C>
NIBBLE_INLINE void fold(Parts<C>& part, const Sums<C>& sums, const GroupLanes& group, int first,
                        const __m256 (&x_sum)[C::kRows]) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int h = 0; h < C::kHalvesAtOnce; ++h) {
      const __m256* of = sums[r][h];
      __m256 sum = _mm256_hadd_ps(_mm256_hadd_ps(of[0], of[1]), _mm256_hadd_ps(of[2], of[3]));
      if constexpr (C::kZeros) sum = _mm256_fnmadd_ps(group.zero[first + h], x_sum[r], sum);
      part[r][first + h] = _mm256_fmadd_ps(sum, group.scale[first + h], part[r][first + h]);
    }
  }
}

/// Moves on by `blocks` blocks.
NIBBLE_INLINE void next_blocks(Run& run, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block) {
    NIBBLE_UNROLL for (int line = 0; line < kBlockBytes; line += kLineBytes) {
      prefetch_line(run.codes + kPrefetchBytes + line);
    }
    run.codes += kBlockBytes;
    run.x += kBlockColumns;
  }
}

template <class C>
NIBBLE_INLINE void sums_of_x(__m256 (&sums)[C::kRows], const Run& run, int64_t columns) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    sums[r] = C::kZeros ? sum_of_x(run.x + r * run.x_stride, columns) : _mm256_setzero_ps();
  }
}

/// part += one block whose groups have 16 columns.
template <class C>
NIBBLE_INLINE void add_block_of_16s(Parts<C>& part, Run& run) {
  NIBBLE_UNROLL for (int high = 0; high < 2; ++high) {
    const GroupLanes group = load_group<C>(run);
    __m256 x_sum[C::kRows];
    Run unit = run;
    unit.x += 16 * high;
    sums_of_x<C>(x_sum, unit, 16);
    NIBBLE_UNROLL for (int first = 0; first < kHalves; first += C::kHalvesAtOnce) {
      Sums<C> sums;
      fill_zero<C>(sums);
      add_nibbles<C>(sums, run, run.codes + 32 * first, run.x, high == 1);
      fold<C>(part, sums, group, first, x_sum);
    }
    next_group<C>(run);
  }
  next_blocks(run, 1);
}

/// part += `blocks` blocks of one group.
template <class C>
NIBBLE_INLINE void add_group(Parts<C>& part, Run& run, int64_t blocks) {
  const GroupLanes group = load_group<C>(run);
  while (blocks > 0) {
    const int64_t count = min_i64(blocks, kFoldBlocks);
    __m256 x_sum[C::kRows];
    sums_of_x<C>(x_sum, run, count * kBlockColumns);
    NIBBLE_UNROLL for (int first = 0; first < kHalves; first += C::kHalvesAtOnce) {
      Sums<C> sums;
      fill_zero<C>(sums);
      for (int64_t block = 0; block < count; ++block) {
        const uint8_t* codes = run.codes + block * kBlockBytes + 32 * first;
        add_nibbles<C>(sums, run, codes, run.x + block * kBlockColumns, false);
        add_nibbles<C>(sums, run, codes, run.x + block * kBlockColumns, true);
      }
      fold<C>(part, sums, group, first, x_sum);
    }
    next_blocks(run, count);
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
    Parts<C> part;
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) part[r][h] = _mm256_setzero_ps();
    }
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
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
        add_to_total(run.totals + kPanelRows * r + kHalfLanes * h, part[r][h]);
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
void gemv_f32_avx2(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(w.layout == LayoutId::kCpuPanel16 && w.k_padded % kBlockColumns == 0);
  NIBBLE_ASSUME(w.group == 16 || w.group % kBlockColumns == 0);
  NIBBLE_ASSUME(w.zero_kind == ZeroKind::kInteger || w.zero_kind == ZeroKind::kNone);
  const bool zeros = w.zero_kind == ZeroKind::kInteger;
  alignas(64) double totals[kTileRows * kPanelRows];
  Run run = {};
  run.x_stride = w.k_padded;
  run.scale_dtype = w.scale_dtype;
  run.scale_half_bytes = kHalfLanes * scale_bytes(w.scale_dtype);
  run.blocks = w.k_padded / kBlockColumns;
  run.blocks_per_group = max_i64(1, w.group / kBlockColumns);
  run.tables = value_tables(w.element);
  run.totals = totals;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    run.codes = w.codes + item.panel * run.blocks * kBlockBytes;
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
