// y = W x for one int8 row of x and row-major 4-bit weights as callers have them (int4 and e2m1
// without zeros; any scale type; groups of 16, 32, 64 and multiples of 128). Nothing is repacked:
// each row of W is a dot product along K.
//
//   64 bytes of a row = 128 columns = 4 blocks of x: a chunk
//     byte i, low nibble   column 2i        meets the even columns of x
//             high nibble  column 2i + 1    meets the odd ones
//     32-bit lane l of the sums             columns 8l .. 8l+7: 4 lanes a block of x,
//                                           2 lanes a group of 16, 4 a group of 32, ...
//
// Lanes stay apart until the row ends, so that scales meet the sums lane by lane. vpermb turns a
// nibble into an unsigned operand, as in gemm_int8_avx512_vnni.cc: int4 q + 8, e2m1 2 * value + 16;
// it reads six bits of its index, and the table repeats so that the upper two do not matter.
//
// FP32 order of one output: lane += (s * x_scale) * sum, over 32 chunks; those partial sums one
// after the other; then the 16 lanes as a tree.
#include "kernels/cpu/epilogue_avx512.h"
#include "kernels/cpu/panel_avx512.h"

namespace nibble {
namespace {

constexpr int64_t kChunkColumns = 128;
constexpr int64_t kChunkBytes = 64;
constexpr int64_t kXChunks = 128;    // 16384 columns of x laid out at once: 32 KB
constexpr int64_t kPartChunks = 32;  // longest chain of additions in a lane
constexpr int kRows = 4;  // side by side: they share the loads of x, which one row alone waits for
// The rows of a group are neighbours, so what comes after them is fetched in the order of memory,
// into L2. Without that the hardware sees several short streams: 10 GB/s instead of 27 (Zen 4,
// K = 4096); into L1, or less than 12 KB ahead, 13 to 24.
constexpr int64_t kPrefetchBytes = 24 << 10;
constexpr int64_t kItemRows = 16;
static_assert(kXChunks % kPartChunks == 0 && kItemRows % kRows == 0);

/// 128 columns of x, in the order in which a row's bytes meet them. Zero past the end of x.
struct XChunk {
  alignas(64) int8_t even[64];
  alignas(64) int8_t odd[64];
  alignas(64) int32_t start[16];  ///< -bias * (sum of the lane's 8 codes)
  alignas(64) float scale[16];    ///< of the lane's block
};

/// What a code stands for.
struct Decode {
  __m512i table;  ///< nibble → unsigned operand
  int bias;       ///< what the operand has too much
  float factor;   ///< of the sums: e2m1's table holds twice the value
};

Decode decode_of(Element element) {
  if (element == Element::kE2M1) {
    return {_mm512_broadcast_i32x4(
                _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4)),
            16, 0.5f};
  }
  return {
      _mm512_broadcast_i32x4(_mm_setr_epi8(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)),
      8, 1.0f};
}

/// Blocks [first, first + 4) of a one-row int8 tile → a chunk.
void lay_out_chunk(const uint8_t* x, int64_t first, int64_t blocks, int bias, XChunk* chunk) {
  __m128i halves[8];
  alignas(16) float scales[4] = {};
  NIBBLE_UNROLL for (int64_t b = 0; b < 4; ++b) {
    const uint8_t* block = x + (first + b) * kInt8RowBlockBytes;
    halves[2 * b] = halves[2 * b + 1] = _mm_setzero_si128();
    if (first + b >= blocks) continue;
    halves[2 * b] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
    halves[2 * b + 1] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16));
    __builtin_memcpy(&scales[b], block + 40, 4);
  }
  alignas(64) uint8_t codes[128];
  NIBBLE_UNROLL for (int i = 0; i < 8; ++i) {
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * i), halves[i]);
  }
  // Two sources of 64 bytes, even (odd) bytes of both.
  alignas(64) uint8_t order[64];
  for (int i = 0; i < 64; ++i) order[i] = static_cast<uint8_t>(2 * i);
  const __m512i even_order = _mm512_load_si512(order);
  const __m512i odd_order = _mm512_add_epi8(even_order, _mm512_set1_epi8(1));
  const __m512i a = _mm512_load_si512(codes), b = _mm512_load_si512(codes + 64);
  const __m512i even = _mm512_permutex2var_epi8(a, even_order, b);
  const __m512i odd = _mm512_permutex2var_epi8(a, odd_order, b);
  const __m512i minus_bias = _mm512_set1_epi8(static_cast<char>(bias));
  __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), minus_bias, even);
  sums = _mm512_dpbusd_epi32(sums, minus_bias, odd);
  const __m512i lane_block = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  _mm512_store_si512(chunk->even, even);
  _mm512_store_si512(chunk->odd, odd);
  _mm512_store_si512(chunk->start, _mm512_sub_epi32(_mm512_setzero_si512(), sums));
  _mm512_store_ps(chunk->scale,
                  _mm512_permutexvar_ps(lane_block, _mm512_castps128_ps512(_mm_load_ps(scales))));
}

/// `count` (1..16) scales from value `index` on; the rest is 0 and not read.
NIBBLE_INLINE __m512 load_some_scales(const void* scales, DType dtype, int64_t index,
                                      int64_t count) {
  const __mmask16 lanes = first_lanes(count);
  const uint8_t* at = static_cast<const uint8_t*>(scales) + index * scale_bytes(dtype);
  switch (dtype) {
    case DType::kF32:
      return _mm512_maskz_loadu_ps(lanes, at);
    case DType::kF16:
      return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, at));
    case DType::kBF16:
      return bf16_to_f32(_mm256_maskz_loadu_epi16(lanes, at));
    case DType::kE4M3:
      return e4m3_to_f32(_mm_maskz_loadu_epi8(lanes, at));
    default:
      return e8m0_to_f32(_mm_maskz_loadu_epi8(lanes, at));
  }
}

/// How scales spread over chunks: 16 of them are decoded at once and cover `batch_chunks`.
struct Spread {
  int64_t batch_groups;  ///< groups decoded at once
  int64_t batch_chunks;
  __m512i lane_group;  ///< group of each lane within the first chunk of a batch
  __m512i step;        ///< groups from one chunk to the next
};

Spread spread_of(int64_t group, int64_t num_groups, int64_t chunks) {
  if (num_groups == 1) return {1, chunks, _mm512_setzero_si512(), _mm512_setzero_si512()};
  if (group > kChunkColumns) {
    NIBBLE_ASSUME(group % kChunkColumns == 0);
    return {1, group / kChunkColumns, _mm512_setzero_si512(), _mm512_setzero_si512()};
  }
  NIBBLE_ASSUME(kChunkColumns % group == 0 && group >= kSmallestGroup);
  const int per_chunk = static_cast<int>(kChunkColumns / group);
  alignas(64) int32_t lanes[16];
  for (int l = 0; l < 16; ++l) lanes[l] = l * per_chunk / 16;
  return {16, 16 / per_chunk, _mm512_load_si512(lanes), _mm512_set1_epi32(per_chunk)};
}

/// Rows of W side by side.
struct RowGroup {
  const uint8_t* codes[kRows];
  int64_t scale_index[kRows];  ///< of the row's first group
};

/// sum += codes * x * scale, lane by lane.
NIBBLE_INLINE __m512 multiply_chunk(__m512 sum, __m512i codes, const XChunk& x, __m512 scale,
                                    __m512i table) {
  const __m512i low = _mm512_permutexvar_epi8(codes, table);
  const __m512i high = _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
  __m512i acc = _mm512_load_si512(x.start);
  acc = _mm512_dpbusd_epi32(acc, low, _mm512_load_si512(x.even));
  acc = _mm512_dpbusd_epi32(acc, high, _mm512_load_si512(x.odd));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_mul_ps(scale, _mm512_load_ps(x.scale)),
                         sum);
}

/// sums[r] += row r over chunks [begin, end), which one batch of scales covers.
NIBBLE_INLINE void multiply_chunks(__m512 (&sums)[kRows], const RowGroup& rows, const XChunk* x,
                                   Range chunks, const __m512 (&scales)[kRows],
                                   const Spread& spread, __m512i table, int64_t row_bytes) {
  __m512i lane_group = spread.lane_group;
  int64_t chunk = chunks.begin;
  for (; chunk < chunks.end && (chunk + 1) * kChunkBytes <= row_bytes; ++chunk, ++x) {
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      _mm_prefetch(rows.codes[0] + kPrefetchBytes + (chunk * kRows + r) * kChunkBytes, _MM_HINT_T1);
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      sums[r] = multiply_chunk(sums[r], _mm512_loadu_si512(rows.codes[r] + chunk * kChunkBytes), *x,
                               _mm512_permutexvar_ps(lane_group, scales[r]), table);
    }
    lane_group = _mm512_add_epi32(lane_group, spread.step);
  }
  if (chunk == chunks.end) return;
  // The last chunk of the row, not full: nothing past its last byte is read.
  const __mmask64 present = (__mmask64{1} << (row_bytes - chunk * kChunkBytes)) - __mmask64{1};
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    sums[r] = multiply_chunk(sums[r],
                             _mm512_maskz_loadu_epi8(present, rows.codes[r] + chunk * kChunkBytes),
                             *x, _mm512_permutexvar_ps(lane_group, scales[r]), table);
  }
}

/// The part of x that is laid out, and all that rows share.
struct Pass {
  const WeightArgs* w;
  Decode decode;
  Spread spread;
  int64_t row_bytes;
  Range chunks;  ///< of x, laid out at `x`
  const XChunk* x;
};

/// totals[r] += lanes of row r over the pass.
NIBBLE_INLINE void multiply_rows(__m512 (&totals)[kRows], const RowGroup& rows, const Pass& pass) {
  const WeightArgs& w = *pass.w;
  const Spread& spread = pass.spread;
  int64_t batch = pass.chunks.begin / spread.batch_chunks;
  for (int64_t part = pass.chunks.begin; part < pass.chunks.end; part += kPartChunks) {
    const int64_t part_end = min_i64(part + kPartChunks, pass.chunks.end);
    __m512 sums[kRows], scales[kRows];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = _mm512_setzero_ps();
    for (int64_t chunk = part; chunk < part_end;) {
      const int64_t group = batch * spread.batch_groups;
      const int64_t count = min_i64(spread.batch_groups, w.num_groups - group);
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        scales[r] = load_some_scales(w.scales, w.scale_dtype, rows.scale_index[r] + group, count);
      }
      const int64_t batch_end = (batch + 1) * spread.batch_chunks;
      const int64_t end = min_i64(batch_end, part_end);
      multiply_chunks(sums, rows, pass.x + (chunk - pass.chunks.begin), {chunk, end}, scales,
                      spread, pass.decode.table, pass.row_bytes);
      if (end == batch_end) ++batch;
      chunk = end;
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) totals[r] = _mm512_add_ps(totals[r], sums[r]);
  }
}

/// Lays out the chunks of `pass`.
void lay_out(const MatmulArgs& args, const Pass& pass, XChunk* x) {
  const int64_t blocks = (args.w.k + kBlockColumns - 1) / kBlockColumns;
  for (int64_t chunk = pass.chunks.begin; chunk < pass.chunks.end; ++chunk) {
    lay_out_chunk(static_cast<const uint8_t*>(args.x), 4 * chunk, blocks, pass.decode.bias,
                  x + (chunk - pass.chunks.begin));
  }
}

}  // namespace

void gemv_row_major_int8_avx512_vnni(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(args.m == 1 && w.layout == LayoutId::kRowMajor);
  const int64_t all_chunks = (w.k + kChunkColumns - 1) / kChunkColumns;
  XChunk x[kXChunks];
  Pass pass = {&w,
               decode_of(w.element),
               spread_of(w.group, w.num_groups, all_chunks),
               (w.k + 1) / 2,
               {0, min_i64(kXChunks, all_chunks)},
               x};
  lay_out(args, pass, x);
  for (int64_t item = items.begin; item < items.end; ++item) {
    alignas(64) __m512 totals[kItemRows / kRows][kRows];
    for (auto& group : totals) {
      for (auto& total : group) total = _mm512_setzero_ps();
    }
    const int64_t first = item * kItemRows;
    const int64_t last = min_i64(first + kItemRows, w.n) - 1;
    for (int64_t begin = 0; begin < all_chunks; begin += kXChunks) {
      if (all_chunks > kXChunks) {  // x does not fit: lay out each part again for 16 rows
        pass.chunks = {begin, min_i64(begin + kXChunks, all_chunks)};
        lay_out(args, pass, x);
      }
      for (int64_t row = first; row <= last; row += kRows) {
        RowGroup rows;
        for (int r = 0; r < kRows; ++r) {  // past the end: the last row again, its sum unused
          const int64_t n = min_i64(row + r, last);
          rows.codes[r] = w.codes + n * pass.row_bytes;
          rows.scale_index[r] = n * w.num_groups;
        }
        multiply_rows(totals[(row - first) / kRows], rows, pass);
      }
    }
    alignas(64) float sums[kItemRows];
    for (int r = 0; r < kItemRows; ++r) {
      sums[r] = _mm512_reduce_add_ps(totals[r / kRows][r % kRows]) * pass.decode.factor;
    }
    finish_tile_avx512(args, {sums, 0, 1, item});
  }
}

}  // namespace nibble
