// y = x * W^T for row-major weights as callers hold them, on AVX2 and FMA: int4, e2m1 and uint4
// with integer zeros, any scale type, groups of 16, 32, multiples of 64, or the whole row. Made for
// one row of x; more rows are taken one after the other.
//
// A work item is 16 rows of W. Columns are walked in chunks, of which x is put into vector order
// once for the 16 rows; then 4 (f32: 2) rows of W at a time are read from left to right, 64 columns
// (32 bytes) a step:
//
//   byte i of the step      low nibble: column 2i, high nibble: column 2i + 1
//   int8, lane j = 0..7     sum of u * x over columns 8j .. 8j + 7, u as in gemm_int8_avx2.cc:
//                           vpmaddubsw(low, x even) + vpmaddubsw(high, x odd), vpmaddwd
//   f32, vector i = 0..7    columns 4i .. 4i + 3 | 32 + 4i .. 32 + 4i + 3, values through the
//   tables
//                           of gemv_f32_avx2.cc
//
// so a 32-bit lane belongs to one group of any size, and scales are spread over lanes by one
// permutation. Nothing past the last byte of codes, scales or zeros is read.
//
// FP32 order of one output: 8 lanes, each with fma(value * x_scale, scale, lane) a step (f32: twice
// fma(sum of 4 columns, scale, lane)); lanes are added after a chunk, chunks in double.
#include "kernels/cpu/epilogue_avx2.h"
#include "kernels/cpu/nibble_values_avx2.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

constexpr int64_t kStepColumns = 64;
constexpr int64_t kStepBytes = 32;
constexpr int64_t kXTileRows = 8;  // rows of a tile of XForm::kInt8Tiles
/// Groups of 16 in a chunk, the 4 zeros behind them and what fills their last vector.
constexpr int64_t kMaxGroups = 4096 / 16 + 8;

enum class Codes { kInt4, kUint4, kE2M1 };

/// 64 columns of x in int8; lanes as drawn above.
struct Int8Step {
  __m256i even, odd;  ///< codes of the even and odd columns
  __m256i fours;      ///< int16: sums of codes over columns 4i .. 4i + 3
  __m256 sums;        ///< of codes, per lane
  __m256 scales;
  static constexpr int64_t kChunkColumns = 4096;
  static constexpr int kRows = 4;  ///< rows of W taken at once
};

/// 64 columns of x in FP32, and the sums of vectors 0-3 and 4-7.
struct F32Step {
  __m256 values[8];
  __m256 sums[2];
  static constexpr int64_t kChunkColumns = 2048;
  static constexpr int kRows = 2;
};

/// How lanes of a step find their scale among the 4 floats from the step's first group on.
struct Spread {
  __m256i int8_lanes;    ///< lanes 2i, 2i+1: columns 16i .. 16i+15
  __m256i f32_lanes[2];  ///< vectors 0-3: columns 0-15 | 32-47; 4-7: 16-31 | 48-63
  int64_t step_groups;   ///< groups a step; 0: a group spans steps
};

Spread spread_of(int64_t group) {
  const __m256i first = _mm256_setzero_si256();
  if (group == 16) {
    return {_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
            {_mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2), _mm256_setr_epi32(1, 1, 1, 1, 3, 3, 3, 3)},
            4};
  }
  if (group == 32) {
    const __m256i lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return {lanes, {lanes, lanes}, 2};
  }
  return {first, {first, first}, 0};
}

NIBBLE_INLINE __m256 spread(const float* scales, __m256i lanes) {
  return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(scales)), lanes);
}

NIBBLE_INLINE __m256 load_values(const uint8_t* at, DType dtype) {
  if (dtype == DType::kU8) return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_i64(at)));
  return load_scales(at, dtype);
}

/// out[count] and 4 zeros after it: values `index` .. of an array of scales or u8 zeros.
void decode_values(const void* values, DType dtype, int64_t index, int64_t count, float* out) {
  const int64_t bytes = scale_bytes(dtype);
  const auto* at = static_cast<const uint8_t*>(values) + index * bytes;
  const __m256 unit = _mm256_set1_ps(scale_unit(dtype));
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 value = load_values(at + i * bytes, dtype);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(value, unit));
  }
  if (i < count) {
    alignas(32) uint8_t last[32] = {};
    for (int64_t b = 0; b < (count - i) * bytes; ++b) last[b] = at[i * bytes + b];
    const __m256 value = load_values(last, dtype);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(value, unit));
  }
  _mm_storeu_ps(out + count, _mm_setzero_ps());
}

/// kRows rows of W in one chunk.
struct Run {
  const uint8_t* codes;  ///< of the first row
  int64_t row_bytes;     ///< from row to row
  int64_t steps;
  const float* scales;  ///< [kRows][kMaxGroups], from the first group on
  const float* zeros;   ///< likewise; uint4
  int64_t group_steps;  ///< steps a group, where it spans steps
  int64_t place;        ///< of the first step in its group
  Spread spread;
  __m256i flip;  ///< makes stored codes of int4 q + 8: here they are two's complement
};

/// Codes of row `r` in step `step`.
NIBBLE_INLINE __m256i load_codes(const Run& run, int r, int64_t step) {
  return _mm256_xor_si256(load_i256(run.codes + r * run.row_bytes + step * kStepBytes), run.flip);
}

/// Moves scales and zeros on after a step, and prefetches that step of rows that come later.
/// Returns by how many groups they moved.
template <int kRows>
NIBBLE_INLINE int64_t end_step(Run& run, int64_t step) {
  constexpr int kRowsAhead = 2 * kRows;
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    prefetch_line(run.codes + (kRowsAhead + r) * run.row_bytes + step * kStepBytes);
  }
  int64_t groups = run.spread.step_groups;
  if (groups == 0 && ++run.place == run.group_steps) {
    run.place = 0;
    groups = 1;
  }
  run.scales += groups;
  run.zeros += groups;
  return groups;
}

/// total += the sum of the 8 lanes
NIBBLE_INLINE void add_lanes(double* total, __m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  *total += static_cast<double>(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))));
}

// ------------------------------------------------------------------------------------- int8

/// Even bytes of 32 in the lower, odd ones in the upper half.
NIBBLE_INLINE __m256i even_then_odd(__m256i codes) {
  const __m256i within = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
  return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(codes, within), 0xD8);
}

/// Columns [column, column + 64) of row `row` of x.
void load_step(const MatmulArgs& args, int64_t row, int64_t column, Int8Step* step) {
  const int64_t blocks = (args.w.k + kBlockColumns - 1) / kBlockColumns;
  const int64_t tile_row = row / kXTileRows * kXTileRows, r = row - tile_row;
  const int64_t tile_rows = min_i64(kXTileRows, args.m - tile_row);
  const auto* tile = static_cast<const uint8_t*>(args.x) + tile_row * blocks * kInt8RowBlockBytes;
  __m256i codes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  __m128 scales[2] = {_mm_setzero_ps(), _mm_setzero_ps()};
  for (int64_t i = 0; i < 2 && column / kBlockColumns + i < blocks; ++i) {
    const uint8_t* block = tile + (column / kBlockColumns + i) * tile_rows * kInt8RowBlockBytes;
    codes[i] = load_i256(block + kBlockColumns * r);
    scales[i] = _mm256_castps256_ps128(broadcast_f32(block + 40 * tile_rows + 4 * r));
  }
  const __m256i first = even_then_odd(codes[0]), second = even_then_odd(codes[1]);
  step->even = _mm256_permute2x128_si256(first, second, 0x20);
  step->odd = _mm256_permute2x128_si256(first, second, 0x31);
  step->scales = _mm256_set_m128(scales[1], scales[0]);
  const __m256i one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
  step->fours = _mm256_add_epi16(_mm256_maddubs_epi16(one8, step->even),
                                 _mm256_maddubs_epi16(one8, step->odd));
  step->sums = _mm256_cvtepi32_ps(_mm256_madd_epi16(step->fours, one16));
}

template <Codes kCodes>
NIBBLE_INLINE __m256i operand(__m256i packed, bool high) {
  const __m256i code =
      _mm256_and_si256(high ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(15));
  if constexpr (kCodes == Codes::kE2M1) {
    const __m256i doubled_plus_16 = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
    return _mm256_shuffle_epi8(doubled_plus_16, code);
  } else {
    return code;
  }
}

/// totals[kRows] += rows of W times a chunk of x in int8.
template <Codes kCodes, int kRows>
void multiply_rows(const Run& from, const Int8Step* x, double* totals) {
  Run run = from;
  const __m256i ones = _mm256_set1_epi16(1), lanes = run.spread.int8_lanes;
  __m256 sum[kRows], scale[kRows];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = _mm256_setzero_ps();
  int64_t moved = 1;
  for (int64_t step = 0; step < run.steps; ++step, ++x) {
    if (moved > 0) {
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        scale[r] = spread(run.scales + r * kMaxGroups, lanes);
      }
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256i packed = load_codes(run, r, step);
      const __m256i low = _mm256_maddubs_epi16(operand<kCodes>(packed, false), x->even);
      const __m256i high = _mm256_maddubs_epi16(operand<kCodes>(packed, true), x->odd);
      __m256i pairs = _mm256_add_epi16(low, high);  // at most 4 * 28 * 127
      if constexpr (kCodes != Codes::kUint4) {
        constexpr int kBiasShift = kCodes == Codes::kE2M1 ? 4 : 3;
        pairs = _mm256_sub_epi16(pairs, _mm256_slli_epi16(x->fours, kBiasShift));
      }
      __m256 value = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, ones));
      if constexpr (kCodes == Codes::kUint4) {  // integers far below 2^24: exact
        value = _mm256_fnmadd_ps(spread(run.zeros + r * kMaxGroups, lanes), x->sums, value);
      }
      sum[r] = _mm256_fmadd_ps(_mm256_mul_ps(value, x->scales), scale[r], sum[r]);
    }
    moved = end_step<kRows>(run, step);
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) add_lanes(totals + r, sum[r]);
}

// -------------------------------------------------------------------------------------- f32

/// Columns [column, column + 64) of row `row` of x.
void load_step(const MatmulArgs& args, int64_t row, int64_t column, F32Step* step) {
  const int64_t columns = (args.w.k + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  const float* x = static_cast<const float*>(args.x) + row * columns + column;
  const bool whole = column + kBlockColumns < columns;
  for (int i = 0; i < 8; ++i) {
    const __m128 second = whole ? _mm_loadu_ps(x + 32 + 4 * i) : _mm_setzero_ps();
    step->values[i] = _mm256_set_m128(second, _mm_loadu_ps(x + 4 * i));
  }
  for (int half = 0; half < 2; ++half) {
    const __m256* v = step->values + 4 * half;
    step->sums[half] = _mm256_add_ps(_mm256_add_ps(v[0], v[1]), _mm256_add_ps(v[2], v[3]));
  }
}

/// Sum of values times x over the vectors of one half of a step; `codes` in the order of columns.
NIBBLE_INLINE __m256 dot_half(__m256i codes, const ValueTables& tables, const __m256* x) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i upper = _mm256_shuffle_epi8(tables.upper, codes);
  const __m256i lower = _mm256_shuffle_epi8(tables.lower, codes);
  const __m256i first = _mm256_unpacklo_epi8(lower, upper);
  const __m256i second = _mm256_unpackhi_epi8(lower, upper);
  __m256 dot = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first)), x[0]);
  dot = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first)), x[1], dot);
  dot = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, second)), x[2], dot);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, second)), x[3], dot);
}

/// totals[kRows] += rows of W times a chunk of x in FP32.
template <Codes kCodes, int kRows>
void multiply_rows(const Run& from, const F32Step* x, double* totals) {
  Run run = from;
  constexpr Element kElement = kCodes == Codes::kE2M1    ? Element::kE2M1
                               : kCodes == Codes::kUint4 ? Element::kUint4
                                                         : Element::kInt4;
  const ValueTables tables = value_tables(kElement);
  const __m256i mask = _mm256_set1_epi8(15);
  __m256 sum[kRows];
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = _mm256_setzero_ps();
  for (int64_t step = 0; step < run.steps; ++step, ++x) {
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m256i packed = load_codes(run, r, step);
      const __m256i low = _mm256_and_si256(packed, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
        const __m256i codes =
            half == 0 ? _mm256_unpacklo_epi8(low, high) : _mm256_unpackhi_epi8(low, high);
        __m256 dot = dot_half(codes, tables, x->values + 4 * half);
        const __m256i lanes = run.spread.f32_lanes[half];
        if constexpr (kCodes == Codes::kUint4) {
          dot = _mm256_fnmadd_ps(spread(run.zeros + r * kMaxGroups, lanes), x->sums[half], dot);
        }
        sum[r] = _mm256_fmadd_ps(dot, spread(run.scales + r * kMaxGroups, lanes), sum[r]);
      }
    }
    end_step<kRows>(run, step);
  }
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) add_lanes(totals + r, sum[r]);
}

// ------------------------------------------------------------------------------------- items

template <class Step>
using RunFn = void (*)(const Run&, const Step*, double*);

template <class Step, int kRows>
RunFn<Step> function_of(Element element) {
  if (element == Element::kE2M1) return multiply_rows<Codes::kE2M1, kRows>;
  if (element == Element::kUint4) return multiply_rows<Codes::kUint4, kRows>;
  return multiply_rows<Codes::kInt4, kRows>;
}

template <class Step>
struct Scratch {
  Step steps[Step::kChunkColumns / kStepColumns];
  float scales[Step::kRows * kMaxGroups];
  float zeros[Step::kRows * kMaxGroups];
  alignas(32) uint8_t last[Step::kRows * kStepBytes];
};

/// The step after the whole ones of `run`, whose codes are copied so that none past the last of
/// `bytes` is read.
Run last_step(const Run& run, int rows, int64_t bytes, uint8_t* copy) {
  Run last = run;
  last.steps = 1;
  last.codes = copy;
  last.row_bytes = kStepBytes;
  const int64_t groups = run.spread.step_groups > 0 ? run.steps * run.spread.step_groups
                                                    : (run.place + run.steps) / run.group_steps;
  last.scales += groups;
  last.zeros += groups;
  for (int r = 0; r < rows; ++r) {
    const uint8_t* from = run.codes + r * run.row_bytes + run.steps * kStepBytes;
    for (int64_t i = 0; i < kStepBytes; ++i) copy[r * kStepBytes + i] = i < bytes ? from[i] : 0;
  }
  return last;
}

/// totals[16] += the columns from `column` on of 16 rows of W times one row of x.
template <class Step>
void multiply_chunk(const MatmulArgs& args, int64_t row, int64_t panel, int64_t column,
                    Scratch<Step>* scratch, double* totals) {
  const WeightArgs& w = args.w;
  const int64_t end = min_i64(column + Step::kChunkColumns, w.k);
  const int64_t first_group = column / w.group;
  const int64_t groups = (end - 1) / w.group + 1 - first_group;
  Run run = {};
  run.row_bytes = (w.k + 1) / 2;
  const int64_t code_bytes = (end - column + 1) / 2, last_bytes = code_bytes % kStepBytes;
  run.steps = code_bytes / kStepBytes;
  run.scales = scratch->scales;
  run.zeros = scratch->zeros;
  run.group_steps = (w.group + kStepColumns - 1) / kStepColumns;
  run.place = column % w.group / kStepColumns;
  run.spread = spread_of(w.group);
  run.flip = _mm256_set1_epi8(w.element == Element::kInt4 ? static_cast<char>(0x88) : 0);
  for (int64_t k = column; k < end; k += kStepColumns) {
    load_step(args, row, k, &scratch->steps[(k - column) / kStepColumns]);
  }
  const int64_t first = panel * kPanelRows, last = min_i64(first + kPanelRows, w.n);
  for (int64_t n = first; n < last;) {
    const int rows = last - n >= Step::kRows ? Step::kRows : 1;
    for (int r = 0; r < rows; ++r) {
      const int64_t index = (n + r) * w.num_groups + first_group;
      float* scales = scratch->scales + r * kMaxGroups;
      decode_values(w.scales, w.scale_dtype, index, groups, scales);
      if (w.zeros == nullptr) continue;
      decode_values(w.zeros, DType::kU8, index, groups, scratch->zeros + r * kMaxGroups);
    }
    run.codes = w.codes + n * run.row_bytes + column / 2;
    const RunFn<Step> multiply_some =
        rows == 1 ? function_of<Step, 1>(w.element) : function_of<Step, Step::kRows>(w.element);
    multiply_some(run, scratch->steps, totals + n - first);
    if (last_bytes > 0) {
      const Run rest = last_step(run, rows, last_bytes, scratch->last);
      multiply_some(rest, scratch->steps + run.steps, totals + n - first);
    }
    n += rows;
  }
}

template <class Step>
void multiply(const MatmulArgs& args, Range items, double unit) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(w.layout == LayoutId::kRowMajor && w.k_padded == w.k);
  NIBBLE_ASSUME(w.group == 16 || w.group == 32 || w.group % kStepColumns == 0 || w.group >= w.k);
  Scratch<Step> scratch;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    for (int64_t row = item.row_begin; row < item.row_end; ++row) {
      alignas(32) double totals[kPanelRows] = {};
      for (int64_t column = 0; column < w.k; column += Step::kChunkColumns) {
        multiply_chunk<Step>(args, row, item.panel, column, &scratch, totals);
      }
      finish_totals(args, totals, row, 1, item.panel, unit);
    }
  }
}

}  // namespace

/// x: XForm::kInt8Tiles, ceil(k / 32) blocks.
void row_major_int8_avx2(const MatmulArgs& args, Range items) {
  multiply<Int8Step>(args, items, args.w.element == Element::kE2M1 ? 0.5 : 1.0);
}

/// x: XForm::kF32Rows, rows of ceil(k / 32) * 32 columns.
void row_major_f32_avx2(const MatmulArgs& args, Range items) {
  multiply<F32Step>(args, items, 1.0);
}

}  // namespace nibble
