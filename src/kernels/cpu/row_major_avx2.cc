// y = x * W^T for row-major weights as callers hold them, on AVX2 and FMA: int4, uint4 and e2m1 codes
// with any scale type, no zeros or integer ones, groups of 16, 32, multiples of 64, or the whole row.
// Made for one row of x; more rows are taken one after the other.
//
// A work item is 16 rows of W. Columns are walked in chunks, of which x is put into vector order
// once for the 16 rows; then each row of W is read from left to right, 64 columns (32 bytes) a step:
//
//   byte i of the step      low nibble: column 2i, high nibble: column 2i + 1
//   int8, lane j = 0..7     sum of u * x over columns 8j .. 8j + 7, u as in gemm_int8_avx2.cc:
//                           vpmaddubsw(low, x even) + vpmaddubsw(high, x odd), vpmaddwd
//   f32, vector i = 0..7    columns 4i .. 4i + 3 | 32 + 4i .. 32 + 4i + 3, values through the tables
//                           of gemv_f32_avx2.cc
//
// so a 32-bit lane belongs to one group of any size, and scales are spread over lanes by one
// permutation. Nothing past the last byte of codes, scales or zeros is read.
//
// FP32 order of one output: 8 lanes, each with fma(value * x_scale, scale, lane) (f32: fma(sum of 4
// columns, scale, lane)) per step; lanes are added after a chunk, chunks in double.
#include "kernels/cpu/epilogue_avx2.h"
#include "kernels/cpu/nibble_values_avx2.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

constexpr int64_t kStepColumns = 64;
constexpr int64_t kStepBytes = 32;
constexpr int64_t kXTileRows = 8;  // rows of a tile of XForm::kInt8Tiles
constexpr int64_t kPrefetchBytes = 4096;
constexpr int64_t kSmallestGroup = 16;

enum class Codes { kNibble, kE2M1 };

/// 64 columns of x in int8; lanes as drawn above.
struct Int8Step {
  __m256i even, odd;  ///< codes of the even and odd columns
  __m256 sums;        ///< of codes, per lane
  __m256 scales;
  static constexpr int64_t kChunkColumns = 4096;
};

/// 64 columns of x in FP32, and the sums of vectors 0-3 and 4-7.
struct F32Step {
  __m256 values[8];
  __m256 sums[2];
  static constexpr int64_t kChunkColumns = 2048;
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

/// out[count] and 4 zeros after it: values `index` .. of an array of scales or u8 zeros (null: all 0)
/// plus `bias`.
void decode_values(const void* values, DType dtype, int64_t index, int64_t count, float bias,
                   float* out) {
  const int64_t bytes = scale_bytes(dtype);
  const auto* at = static_cast<const uint8_t*>(values) + index * bytes;
  const __m256 unit = _mm256_set1_ps(scale_unit(dtype)), biases = _mm256_set1_ps(bias);
  for (int64_t i = 0; i < count; i += 8) {
    alignas(32) uint8_t last[32] = {};
    const uint8_t* from = at + i * bytes;
    if (values == nullptr) from = last;
    if (values != nullptr && i + 8 > count) {
      for (int64_t b = 0; b < (count - i) * bytes; ++b) last[b] = from[b];
      from = last;
    }
    const __m256 v = dtype == DType::kU8 ? _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_i64(from)))
                                         : load_scales(from, dtype);
    _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_mul_ps(v, unit), biases));
  }
  for (int64_t i = count; i < count + 4; ++i) out[i] = 0;
}

/// 32 bytes of codes, the missing ones of the row's last step as 0. int4 is two's complement here;
/// `flip` makes it q + 8.
NIBBLE_INLINE __m256i load_codes(const uint8_t* codes, int64_t bytes, __m256i flip) {
  if (bytes >= kStepBytes) return _mm256_xor_si256(load_i256(codes), flip);
  alignas(32) uint8_t last[kStepBytes] = {};
  for (int64_t i = 0; i < bytes; ++i) last[i] = codes[i];
  return _mm256_xor_si256(_mm256_load_si256(reinterpret_cast<const __m256i*>(last)), flip);
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
  const __m256i fours[2] = {_mm256_madd_epi16(_mm256_maddubs_epi16(one8, codes[0]), one16),
                            _mm256_madd_epi16(_mm256_maddubs_epi16(one8, codes[1]), one16)};
  const __m256i eights = _mm256_hadd_epi32(fours[0], fours[1]);
  step->sums = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(eights, 0xD8));
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

/// One row of W in one chunk.
struct RowRun {
  const uint8_t* codes;
  int64_t bytes;        ///< of codes
  int64_t steps;
  const float* scales;  ///< of the groups from the first on
  const float* zeros;   ///< to subtract from operands (int8) or values (f32)
  int64_t group_steps;  ///< steps a group, where it spans steps
  int64_t place;        ///< of the first step in its group
  Spread spread;
  Element element;
};

NIBBLE_INLINE __m256i flip_of(Element element) {
  return _mm256_set1_epi8(element == Element::kInt4 ? static_cast<char>(0x88) : 0);
}

NIBBLE_INLINE void next_step(RowRun& run) {
  prefetch_line(run.codes + kPrefetchBytes);
  run.codes += kStepBytes;
  run.bytes -= kStepBytes;
  int64_t groups = run.spread.step_groups;
  if (groups == 0 && ++run.place == run.group_steps) {
    run.place = 0;
    groups = 1;
  }
  run.scales += groups;
  run.zeros += groups;
}

NIBBLE_INLINE float sum_of_lanes(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// Row of W times chunk of x in int8.
template <Codes kCodes, bool kZeros>
float multiply_row(RowRun run, const Int8Step* x) {
  const __m256i ones = _mm256_set1_epi16(1), flip = flip_of(run.element);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t step = 0; step < run.steps; ++step, ++x) {
    const __m256i packed = load_codes(run.codes, run.bytes, flip);
    const __m256i low = _mm256_maddubs_epi16(operand<kCodes>(packed, false), x->even);
    const __m256i high = _mm256_maddubs_epi16(operand<kCodes>(packed, true), x->odd);
    const __m256 dot =
        _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_add_epi16(low, high), ones));
    // Integers far below 2^24: exact.
    const __m256 taken = kZeros ? spread(run.zeros, run.spread.int8_lanes)
                                : _mm256_set1_ps(kCodes == Codes::kE2M1 ? 16.0f : 8.0f);
    const __m256 value = _mm256_fnmadd_ps(taken, x->sums, dot);
    const __m256 scale = spread(run.scales, run.spread.int8_lanes);
    sum = _mm256_fmadd_ps(_mm256_mul_ps(value, x->scales), scale, sum);
    next_step(run);
  }
  return sum_of_lanes(sum);
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

/// Row of W times chunk of x in FP32.
template <Codes kCodes, bool kZeros>
float multiply_row(RowRun run, const F32Step* x) {
  const ValueTables tables = value_tables(run.element);
  const __m256i flip = flip_of(run.element);
  const __m256i mask = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int64_t step = 0; step < run.steps; ++step, ++x) {
    const __m256i packed = load_codes(run.codes, run.bytes, flip);
    const __m256i low = _mm256_and_si256(packed, mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
      const __m256i codes =
          half == 0 ? _mm256_unpacklo_epi8(low, high) : _mm256_unpackhi_epi8(low, high);
      const __m256i upper = _mm256_shuffle_epi8(tables.upper, codes);
      const __m256i lower = _mm256_shuffle_epi8(tables.lower, codes);
      const __m256i bf16[2] = {_mm256_unpacklo_epi8(lower, upper),
                               _mm256_unpackhi_epi8(lower, upper)};
      __m256 dot = _mm256_setzero_ps();
      NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
        const __m256i bits = i % 2 == 0 ? _mm256_unpacklo_epi16(zero, bf16[i / 2])
                                        : _mm256_unpackhi_epi16(zero, bf16[i / 2]);
        dot = _mm256_fmadd_ps(_mm256_castsi256_ps(bits), x->values[4 * half + i], dot);
      }
      const __m256i lanes = run.spread.f32_lanes[half];
      if constexpr (kZeros) {
        dot = _mm256_fnmadd_ps(spread(run.zeros, lanes), x->sums[half], dot);
      }
      sum[half] = _mm256_fmadd_ps(dot, spread(run.scales, lanes), sum[half]);
    }
    next_step(run);
  }
  return sum_of_lanes(_mm256_add_ps(sum[0], sum[1]));
}

// ------------------------------------------------------------------------------------- items

/// What is subtracted beside the zero itself: int8 operands are stored codes, f32 takes values.
float bias_of(Element element, const Int8Step*) { return element == Element::kInt4 ? 8 : 0; }
float bias_of(Element, const F32Step*) { return 0; }
bool subtracts(const WeightArgs& w, const Int8Step*) {
  return w.zero_kind == ZeroKind::kInteger || w.element == Element::kUint4;
}
bool subtracts(const WeightArgs& w, const F32Step*) { return w.zero_kind == ZeroKind::kInteger; }

template <class Step>
using RowFn = float (*)(RowRun, const Step*);

template <class Step>
RowFn<Step> row_function(const WeightArgs& w) {
  if (w.element == Element::kE2M1) return multiply_row<Codes::kE2M1, false>;
  if (subtracts(w, static_cast<const Step*>(nullptr))) return multiply_row<Codes::kNibble, true>;
  return multiply_row<Codes::kNibble, false>;
}

template <class Step>
struct Scratch {
  static constexpr int64_t kSteps = Step::kChunkColumns / kStepColumns;
  static constexpr int64_t kGroups = Step::kChunkColumns / kSmallestGroup + 16;
  Step steps[kSteps];
  float scales[kGroups];
  float zeros[kGroups];
};

/// Adds the columns from `column` on of 16 rows of W times one row of x to totals[16].
template <class Step>
void multiply_chunk(const MatmulArgs& args, int64_t row, int64_t panel, int64_t column,
                    Scratch<Step>* scratch, double* totals) {
  const WeightArgs& w = args.w;
  const bool zeros = subtracts(w, scratch->steps);
  const int64_t row_bytes = (w.k + 1) / 2;
  const int64_t end = min_i64(column + Step::kChunkColumns, w.k);
  const int64_t first_group = column / w.group;
  const int64_t groups = (end - 1) / w.group + 1 - first_group;
  RowRun run = {};
  run.steps = (end - column + kStepColumns - 1) / kStepColumns;
  run.scales = scratch->scales;
  run.zeros = scratch->zeros;
  run.group_steps = (w.group + kStepColumns - 1) / kStepColumns;
  run.place = column % w.group / kStepColumns;
  run.spread = spread_of(w.group);
  run.element = w.element;
  for (int64_t i = 0; i < run.steps; ++i) {
    load_step(args, row, column + i * kStepColumns, &scratch->steps[i]);
  }
  for (int64_t n = panel * kPanelRows; n < min_i64((panel + 1) * kPanelRows, w.n); ++n) {
    const int64_t index = n * w.num_groups + first_group;
    decode_values(w.scales, w.scale_dtype, index, groups, 0, scratch->scales);
    if (zeros) {
      const float bias = bias_of(w.element, scratch->steps);
      decode_values(w.zeros, DType::kU8, index, groups, bias, scratch->zeros);
    }
    run.codes = w.codes + n * row_bytes + column / 2;
    run.bytes = row_bytes - column / 2;
    totals[n - panel * kPanelRows] += static_cast<double>(row_function<Step>(w)(run, scratch->steps));
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
