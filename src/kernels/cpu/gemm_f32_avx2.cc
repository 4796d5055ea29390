// y = x * W^T with FP32 x on AVX2 and FMA, for every Format: the general row.
//
// 128 columns of a panel are decoded to FP32 weights in L1 and meet up to 64 rows of x, in register
// tiles of up to 6 rows by 16 outputs:
//
//            lane 0..15 = rows of the panel            x row 0..5: one value in every lane
//   column  +------------------------------+
//     0     |  weight, FP32                |   sum[r][half] += weight[half] * x[r]
//     ..    |                              |
//    127    +------------------------------+
//
// A weight has the bits of QuantizedTensor::dequantize without tensor scale, which is
// RN32(RN32(value - zero) * scale), an additive zero added after the product. Codes become FP32
// numbers through a shuffle that moves a byte to the bottom of its 32-bit lane; u below is that
// unsigned byte:
//
//   int4, uint4, int8, uint8   u = stored code             value = u - bias (8, 0, 128, 0)
//   e2m1                       u = 2 * value + 12, table   twice the value; scale is halved
//   nf4                        u = code                    two 8-entry float tables
//
// FP32 order of one output, the same for every m: sums over 32 columns in rising order are added
// up over 512 columns, and these sums in double.
#include "kernels/cpu/epilogue_avx2.h"
#include "kernels/cpu/panel_avx2.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kE2M1, kNF4, kByte };

constexpr int kTileRows = 6;
constexpr int64_t kItemRows = 64;  // rows whose sums are kept at once
constexpr int64_t kChunkColumns = 128;
constexpr int64_t kChunkBlocks = kChunkColumns / kBlockColumns;
static_assert(kPartColumns % kChunkColumns == 0);

/// Columns [32 * block, 32 * (block + blocks)) of one panel.
struct Chunk {
  const WeightArgs* w;
  int64_t panel;
  int64_t block, blocks;
};

/// Scale and zeros of 8 outputs in one group: weight = ((u - taken) - zero) * scale + added.
struct GroupLanes {
  __m256 taken;  ///< bias and integer zero, exact
  __m256 zero;   ///< zero of kFloatCode
  __m256 scale;
  __m256 added;  ///< zero of kAdditive; -0 changes nothing
};

NIBBLE_INLINE float bias_of(Element element) {
  switch (element) {
    case Element::kInt4:
      return 8;
    case Element::kInt8:
      return 128;
    case Element::kE2M1:
      return 12;
    case Element::kUint4:
    case Element::kUint8:
    case Element::kNF4:
      break;
  }
  return 0;
}

/// Lanes `index` .. `index` + 7 of the scales section.
template <Codes kCodes>
NIBBLE_INLINE GroupLanes load_group(const WeightArgs& w, int64_t index) {
  const float unit = scale_unit(w.scale_dtype), halved = kCodes == Codes::kE2M1 ? 0.5f : 1.0f;
  const int64_t at = index * scale_bytes(w.scale_dtype);
  const auto* scales = static_cast<const uint8_t*>(w.scales) + at;
  GroupLanes out;
  out.taken = _mm256_set1_ps(bias_of(w.element));
  out.zero = _mm256_setzero_ps();
  out.scale = _mm256_mul_ps(load_scales(scales, w.scale_dtype), _mm256_set1_ps(unit * halved));
  out.added = _mm256_set1_ps(-0.0f);
  const auto* zeros = static_cast<const uint8_t*>(w.zeros);
  switch (w.zero_kind) {
    case ZeroKind::kNone:
      break;
    case ZeroKind::kInteger: {
      const __m256i zero = _mm256_cvtepu8_epi32(load_i64(zeros + index));
      const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(zero), _mm256_set1_ps(1 / halved));
      out.taken = _mm256_add_ps(out.taken, value);
      break;
    }
    case ZeroKind::kFloatCode:
      out.zero =
          _mm256_mul_ps(load_scales(zeros + at, w.scale_dtype), _mm256_set1_ps(unit / halved));
      break;
    case ZeroKind::kAdditive:
      out.added = _mm256_mul_ps(load_scales(zeros + at, w.scale_dtype), _mm256_set1_ps(unit));
      break;
  }
  return out;
}

/// Byte `i` of each 32-bit lane, alone.
NIBBLE_INLINE __m256i lane_byte(__m256i bytes, int i) {
  if (i == 0) return _mm256_and_si256(bytes, _mm256_set1_epi32(0xFF));
  if (i == 3) return _mm256_srli_epi32(bytes, 24);
  const auto from = static_cast<char>(i);
  const auto at = [from](int lane) { return static_cast<char>(4 * lane + from); };
  const __m128i to_bottom = _mm_setr_epi8(at(0), -1, -1, -1, at(1), -1, -1, -1,  //
                                          at(2), -1, -1, -1, at(3), -1, -1, -1);
  return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(to_bottom));
}

/// Codes 0..15 through the codebook.
NIBBLE_INLINE __m256 look_up(__m256i codes, const float* codebook) {
  const __m256 low = _mm256_permutevar8x32_ps(load_f32(codebook), codes);
  const __m256 high = _mm256_permutevar8x32_ps(load_f32(codebook + 8), codes);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

/// 4 columns of 8 outputs, one byte of `bytes` each, to out[4][16].
template <Codes kCodes, bool kPlain>
NIBBLE_INLINE void store_weights(__m256i bytes, const GroupLanes& group, const float* codebook,
                                 float* out) {
  NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
    const __m256i code = lane_byte(bytes, i);
    __m256 value;
    if constexpr (kCodes == Codes::kNF4) {
      value = look_up(code, codebook);
    } else {
      value = _mm256_sub_ps(_mm256_cvtepi32_ps(code), group.taken);
    }
    if constexpr (!kPlain) value = _mm256_sub_ps(value, group.zero);
    value = _mm256_mul_ps(value, group.scale);
    if constexpr (!kPlain) value = _mm256_add_ps(value, group.added);
    _mm256_store_ps(out + kPanelRows * i, value);
  }
}

/// out[columns][16] = weights of a chunk. kPlain: no zeros, or integer ones outside NF4.
template <Codes kCodes, bool kPlain>
void decode_chunk(const Chunk& chunk, float* out) {
  const WeightArgs& w = *chunk.w;
  constexpr int64_t kBlockBytes = kCodes == Codes::kByte ? 512 : 256;
  const __m256i doubled_plus_12 = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
  const int64_t first = chunk.panel * (w.k_padded / kBlockColumns) + chunk.block;
  const uint8_t* codes = w.codes + first * kBlockBytes;
  for (int64_t b = 0; b < chunk.blocks; ++b, codes += kBlockBytes, out += 32 * kPanelRows) {
    const int64_t column = (chunk.block + b) * kBlockColumns;
    for (int h = 0; h < kHalves; ++h) {
      GroupLanes groups[2];  // of columns 0-15 and 16-31
      const int64_t at = chunk.panel * w.num_groups * kPanelRows + kHalfLanes * h;
      groups[0] = load_group<kCodes>(w, at + column / w.group * kPanelRows);
      groups[1] = groups[0];
      if (w.group == 16) groups[1] = load_group<kCodes>(w, at + (column / 16 + 1) * kPanelRows);
      float* to = out + kHalfLanes * h;
      for (int step = 0; step < 8; ++step) {  // columns 4 * step .. 4 * step + 3
        const int vector = kCodes == Codes::kByte ? step : step & 3;
        __m256i bytes = load_i256(codes + 64 * vector + 32 * h);
        if constexpr (kCodes != Codes::kByte) {
          if (step >= 4) bytes = _mm256_srli_epi16(bytes, 4);
          bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
        }
        if constexpr (kCodes == Codes::kE2M1) bytes = _mm256_shuffle_epi8(doubled_plus_12, bytes);
        store_weights<kCodes, kPlain>(bytes, groups[step / 4], w.codebook,
                                      to + 4 * step * kPanelRows);
      }
    }
  }
}

using DecodeFn = void (*)(const Chunk&, float*);

template <Codes kCodes>
DecodeFn decoder_of_codes(ZeroKind zero_kind) {
  const bool plain =
      zero_kind == ZeroKind::kNone || (zero_kind == ZeroKind::kInteger && kCodes != Codes::kNF4);
  return plain ? decode_chunk<kCodes, true> : decode_chunk<kCodes, false>;
}

DecodeFn decoder_of(const WeightArgs& w) {
  switch (w.element) {
    case Element::kInt4:
    case Element::kUint4:
      return decoder_of_codes<Codes::kNibble>(w.zero_kind);
    case Element::kE2M1:
      return decoder_of_codes<Codes::kE2M1>(w.zero_kind);
    case Element::kNF4:
      return decoder_of_codes<Codes::kNF4>(w.zero_kind);
    case Element::kInt8:
    case Element::kUint8:
      break;
  }
  return decoder_of_codes<Codes::kByte>(w.zero_kind);
}

/// part[kRows][16] += weights[32 * blocks][16] times kRows rows of x.
template <int kRows>
void multiply_rows(const float* weights, int64_t blocks, const float* x, int64_t x_stride,
                   float* part) {
  for (int64_t block = 0; block < blocks; ++block) {
    __m256 sum[kRows][kHalves];
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) sum[r][h] = _mm256_setzero_ps();
    }
#pragma GCC unroll 4
    for (int64_t k = 0; k < kBlockColumns; ++k) {
      const __m256 w0 = _mm256_load_ps(weights), w1 = _mm256_load_ps(weights + kHalfLanes);
      weights += kPanelRows;
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r * x_stride + k);
        sum[r][0] = _mm256_fmadd_ps(w0, value, sum[r][0]);
        sum[r][1] = _mm256_fmadd_ps(w1, value, sum[r][1]);
      }
    }
    x += kBlockColumns;
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL for (int h = 0; h < kHalves; ++h) {
        float* to = part + kPanelRows * r + kHalfLanes * h;
        _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), sum[r][h]));
      }
    }
  }
}

using RowsFn = void (*)(const float*, int64_t, const float*, int64_t, float*);
constexpr RowsFn kRowsFn[kTileRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                       multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};

struct Scratch {
  alignas(64) float weights[kChunkColumns * kPanelRows];
  alignas(64) float parts[kItemRows * kPanelRows];
  alignas(64) double totals[kItemRows * kPanelRows];
};

/// totals += parts, parts = 0
void end_part(Scratch* scratch, int64_t rows) {
  for (int64_t i = 0; i < rows * kPanelRows; i += kHalfLanes) {
    add_to_total(scratch->totals + i, _mm256_load_ps(scratch->parts + i));
    _mm256_store_ps(scratch->parts + i, _mm256_setzero_ps());
  }
}

/// totals[rows][16] of a panel and the rows of x from `row` on, at most kItemRows.
void multiply_panel(const MatmulArgs& args, DecodeFn decode, int64_t panel, int64_t row,
                    int64_t rows, Scratch* scratch) {
  const WeightArgs& w = args.w;
  const int64_t row_blocks = w.k_padded / kBlockColumns;
  const float* x = static_cast<const float*>(args.x) + row * w.k_padded;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < rows * kPanelRows; ++i) scratch->parts[i] = 0;
  for (int64_t i = 0; i < rows * kPanelRows; ++i) scratch->totals[i] = 0;
  for (int64_t block = 0; block < row_blocks; block += kChunkBlocks) {
    const int64_t blocks = min_i64(kChunkBlocks, row_blocks - block);
    decode({&w, panel, block, blocks}, scratch->weights);
    for (int64_t tile = 0; tile < tiles; ++tile) {  // of equal size, or one row less
      const int64_t begin = tile * rows / tiles, end = (tile + 1) * rows / tiles;
      kRowsFn[end - begin - 1](scratch->weights, blocks,
                               x + begin * w.k_padded + block * kBlockColumns, w.k_padded,
                               scratch->parts + begin * kPanelRows);
    }
    if ((block + blocks) % kPartBlocks == 0 || block + blocks == row_blocks) {
      end_part(scratch, rows);
    }
  }
}

}  // namespace

/// x: XForm::kF32Rows.
void gemm_f32_avx2(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  NIBBLE_ASSUME(w.layout == LayoutId::kCpuPanel16 && w.k_padded % kBlockColumns == 0);
  NIBBLE_ASSUME(w.group == 16 || w.group % kBlockColumns == 0);
  const DecodeFn decode = decoder_of(w);
  Scratch scratch;
  for (int64_t index = items.begin; index < items.end; ++index) {
    const Item item = item_of(args, index);
    for (int64_t row = item.row_begin; row < item.row_end; row += kItemRows) {
      const int64_t rows = min_i64(kItemRows, item.row_end - row);
      multiply_panel(args, decode, item.panel, row, rows, &scratch);
      finish_totals(args, scratch.totals, row, rows, item.panel, 1.0);
    }
  }
}

}  // namespace nibble
