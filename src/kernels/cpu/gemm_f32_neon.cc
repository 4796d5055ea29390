// y = x * W^T with FP32 x on any AArch64, for every Format: the general row.
//
// 128 columns of a panel are decoded to FP32 weights in L1 and meet up to 64 rows of x, in register
// tiles of up to 8 rows by 8 outputs:
//
//            lane 0..15 = rows of the panel            x row 0..7: 4 columns in a register
//   column  +------------------------------+
//     0     |  weight, FP32                |   sum[r][quarter] += weight[quarter] * x[r][column]
//     ..    |                              |
//    127    +------------------------------+
//
// A weight has the bits of QuantizedTensor::dequantize without tensor scale, which is
// RN32(RN32(value - zero) * scale), an additive zero added after the product. Codes become FP32
// numbers through a table that moves a byte to the bottom of its 32-bit lane; u below is that
// unsigned byte:
//
//   int4, uint4, int8, uint8   u = stored code             value = u - bias (8, 0, 128, 0)
//   e2m1                       u = 2 * value + 12, table   twice the value; scale is halved
//   nf4                        u = code                    64-byte table of the 16 FP32 values
//
// FP32 order of one output, the same for every m: sums over 32 columns in rising order are added
// up over 512 columns, and these sums in double.
#include "kernels/cpu/epilogue_neon.h"
#include "kernels/cpu/panel_neon.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kE2M1, kNF4, kByte };

constexpr int kTileRows = 8;
constexpr int kTileQuarters = 2;
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

/// Scale and zeros of 4 outputs in one group: weight = ((u - taken) - zero) * scale + added.
struct GroupLanes {
  float32x4_t taken;  ///< bias and integer zero, exact
  float32x4_t zero;   ///< zero of kFloatCode
  float32x4_t scale;
  float32x4_t added;  ///< zero of kAdditive; -0 changes nothing
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

/// Lanes `index` .. `index` + 3 of the scales section.
template <Codes kCodes>
NIBBLE_INLINE GroupLanes load_group(const WeightArgs& w, int64_t index) {
  const float halved = kCodes == Codes::kE2M1 ? 0.5f : 1.0f;
  const int64_t at = index * scale_bytes(w.scale_dtype);
  GroupLanes out;
  out.taken = vdupq_n_f32(bias_of(w.element));
  out.zero = vdupq_n_f32(0);
  out.scale = load_scales(static_cast<const uint8_t*>(w.scales) + at, w.scale_dtype);
  out.scale = vmulq_n_f32(out.scale, halved);
  out.added = vdupq_n_f32(-0.0f);
  const auto* zeros = static_cast<const uint8_t*>(w.zeros);
  switch (w.zero_kind) {
    case ZeroKind::kNone:
      break;
    case ZeroKind::kInteger:
      out.taken = vaddq_f32(out.taken, vmulq_n_f32(load_u8(zeros + index), 1 / halved));
      break;
    case ZeroKind::kFloatCode:
      out.zero = vmulq_n_f32(load_scales(zeros + at, w.scale_dtype), 1 / halved);
      break;
    case ZeroKind::kAdditive:
      out.added = load_scales(zeros + at, w.scale_dtype);
      break;
  }
  return out;
}

/// Byte `i` of each 32-bit lane, alone: 255 is no index of a table, and gives 0.
NIBBLE_INLINE uint32x4_t lane_byte(uint8x16_t bytes, int i) {
  const auto at = static_cast<uint8_t>(i);
  const uint32x4_t first = {0xFFFFFF00, 0xFFFFFF04, 0xFFFFFF08, 0xFFFFFF0C};
  const uint8x16_t index = vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(at)));
  return vreinterpretq_u32_u8(vqtbl1q_u8(bytes, index));
}

/// Codes 0..15 in 32-bit lanes through the codebook: byte b of value c is byte 4c + b of the table.
NIBBLE_INLINE float32x4_t look_up(uint32x4_t codes, const uint8x16x4_t& codebook) {
  const uint32x4_t index = vmlaq_n_u32(vdupq_n_u32(0x03020100), codes, 0x04040404);
  return vreinterpretq_f32_u8(vqtbl4q_u8(codebook, vreinterpretq_u8_u32(index)));
}

NIBBLE_INLINE uint8x16x4_t codebook_table(const float* codebook) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(codebook);
  uint8x16x4_t table;
  NIBBLE_UNROLL for (int i = 0; i < 4; ++i) table.val[i] = vld1q_u8(bytes + 16 * i);
  return table;
}

/// 4 columns of 4 outputs, one byte of `bytes` each, to out[4][16].
template <Codes kCodes, bool kPlain>
NIBBLE_INLINE void store_weights(uint8x16_t bytes, const GroupLanes& group,
                                 const uint8x16x4_t& codebook, float* out) {
  NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
    const uint32x4_t code = lane_byte(bytes, i);
    float32x4_t value;
    if constexpr (kCodes == Codes::kNF4) {
      value = vsubq_f32(look_up(code, codebook), group.taken);
    } else {
      value = vsubq_f32(vcvtq_f32_u32(code), group.taken);
    }
    if constexpr (!kPlain) value = vsubq_f32(value, group.zero);
    value = vmulq_f32(value, group.scale);
    if constexpr (!kPlain) value = vaddq_f32(value, group.added);
    vst1q_f32(out + kPanelRows * i, value);
  }
}

/// out[columns][16] = weights of a chunk. kPlain: no zeros, or integer ones.
template <Codes kCodes, bool kPlain>
void decode_chunk(const Chunk& chunk, float* out) {
  const WeightArgs& w = *chunk.w;
  constexpr int64_t kBlockBytes = kCodes == Codes::kByte ? kByteBlockBytes : kNibbleBlockBytes;
  const uint8x16_t doubled_plus_12 = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  uint8x16x4_t codebook = {};
  if constexpr (kCodes == Codes::kNF4) codebook = codebook_table(w.codebook);
  const int64_t first = chunk.panel * (w.k_padded / kBlockColumns) + chunk.block;
  const uint8_t* codes = w.codes + first * kBlockBytes;
  for (int64_t b = 0; b < chunk.blocks; ++b, codes += kBlockBytes, out += 32 * kPanelRows) {
    const int64_t column = (chunk.block + b) * kBlockColumns;
    for (int q = 0; q < kQuarters; ++q) {
      GroupLanes groups[2];  // of columns 0-15 and 16-31
      const int64_t at = chunk.panel * w.num_groups * kPanelRows + kLanes * q;
      groups[0] = load_group<kCodes>(w, at + column / w.group * kPanelRows);
      groups[1] = groups[0];
      if (w.group == 16) groups[1] = load_group<kCodes>(w, at + (column / 16 + 1) * kPanelRows);
      float* to = out + kLanes * q;
      for (int step = 0; step < 8; ++step) {  // columns 4 * step .. 4 * step + 3
        const int vector = kCodes == Codes::kByte ? step : step & 3;
        uint8x16_t bytes = vld1q_u8(codes + 64 * vector + 16 * q);
        if constexpr (kCodes != Codes::kByte) bytes = nibbles(bytes, step >= 4);
        if constexpr (kCodes == Codes::kE2M1) bytes = vqtbl1q_u8(doubled_plus_12, bytes);
        store_weights<kCodes, kPlain>(bytes, groups[step / 4], codebook,
                                      to + 4 * step * kPanelRows);
      }
    }
  }
}

using DecodeFn = void (*)(const Chunk&, float*);

template <Codes kCodes>
DecodeFn decoder_of_codes(ZeroKind zero_kind) {
  const bool plain = zero_kind == ZeroKind::kNone || zero_kind == ZeroKind::kInteger;
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
  for (int64_t block = 0; block < blocks; ++block, weights += kBlockColumns * kPanelRows) {
    for (int first = 0; first < kQuarters; first += kTileQuarters) {
      float32x4_t sum[kRows][kTileQuarters];
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL for (int q = 0; q < kTileQuarters; ++q) sum[r][q] = vdupq_n_f32(0);
      }
      const float* w = weights + kLanes * first;
      for (int64_t k = 0; k < kBlockColumns; k += 4, w += 4 * kPanelRows) {
        float32x4_t x_four[kRows];
        NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) x_four[r] = vld1q_f32(x + r * x_stride + k);
// The lane of x must be a constant.
#define NIBBLE_ADD_COLUMN(i)                                         \
  do {                                                               \
    const float32x4_t w0 = vld1q_f32(w + (i) * kPanelRows);          \
    const float32x4_t w1 = vld1q_f32(w + (i) * kPanelRows + kLanes); \
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {                  \
      sum[r][0] = vfmaq_laneq_f32(sum[r][0], w0, x_four[r], i);      \
      sum[r][1] = vfmaq_laneq_f32(sum[r][1], w1, x_four[r], i);      \
    }                                                                \
  } while (false)
        NIBBLE_ADD_COLUMN(0);
        NIBBLE_ADD_COLUMN(1);
        NIBBLE_ADD_COLUMN(2);
        NIBBLE_ADD_COLUMN(3);
#undef NIBBLE_ADD_COLUMN
      }
      NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
        NIBBLE_UNROLL for (int q = 0; q < kTileQuarters; ++q) {
          float* to = part + kPanelRows * r + kLanes * (first + q);
          vst1q_f32(to, vaddq_f32(vld1q_f32(to), sum[r][q]));
        }
      }
    }
    x += kBlockColumns;
  }
}

using RowsFn = void (*)(const float*, int64_t, const float*, int64_t, float*);
constexpr RowsFn kRowsFn[kTileRows] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                       multiply_rows<4>, multiply_rows<5>, multiply_rows<6>,
                                       multiply_rows<7>, multiply_rows<8>};

struct Scratch {
  alignas(64) float weights[kChunkColumns * kPanelRows];
  alignas(64) float parts[kItemRows * kPanelRows];
  alignas(64) double totals[kItemRows * kPanelRows];
};

/// totals += parts, parts = 0
void end_part(Scratch* scratch, int64_t rows) {
  for (int64_t i = 0; i < rows * kPanelRows; i += kLanes) {
    add_to_total(scratch->totals + i, vld1q_f32(scratch->parts + i));
    vst1q_f32(scratch->parts + i, vdupq_n_f32(0));
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
void gemm_f32_neon(const MatmulArgs& args, Range items) {
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
