// y = x * W^T with int8 activations on AVX-512 VNNI: int4, uint4, e2m1, int8, uint8 weights with
// any scale type and any group that is 16 or a multiple of 32.
//
// One register tile is 4 rows of x by 2 panels (32 outputs):
//
//                  panel p        panel p+1
//   x row 0..3   sum[r][0]        sum[r][1]      int32, one 32-bit lane an output
//
// and a step multiplies 4 columns: two vectors of codes from memory, four broadcasts of 4 bytes of
// x, eight vpdpbusd. The weight is the unsigned operand, so that a nibble needs no sign extension:
//
//   element   unsigned operand u       subtracted          value
//   int4      stored code (q + 8)      8 * sum(x)          q
//   uint4     stored code              z * sum(x)          q - z
//   e2m1      table: 2 * value + 16    16 * sum(x)         2 * value (the half goes into the scale)
//   int8      stored code (q + 128)    128 * sum(x)        q
//   uint8     stored code              z * sum(x)          q - z
//
// The subtraction is where the int32 accumulator of a block starts, so it is exact: a group whose
// codes all equal its zero gives exactly 0.
//
// FP32 order of one output, the same for every m, tile and thread count:
//   group 16:   y += x_scale * (s0 * sum(block columns 0-15) + s1 * sum(columns 16-31))
//   group 32:   y += (s * x_scale) * sum(block)
//   larger:     y += s * [sum over the blocks of one group within one chunk of (x_scale * sum)]
// Measured on one Zen 4 core, all data in L1: 0.79 of the VNNI peak with group 32, 0.72 with 16,
// 0.84 with 128. vpdpbusd shares its two ports with multiplication, so 0.80, 0.73 and 0.865 are the
// limits; tiles of 8x1, 4x3 and 6x2 were no faster, 8x2 (sums in memory) 0.67.
#include "kernels/args.h"
#include "kernels/cpu/panel_walk_avx512.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kE2M1, kByte };
enum class Groups { k16, k32, kWide };

constexpr int64_t kXTileRows = 8;  // rows of a tile of XForm::kInt8Tiles

/// A register tile at compile time.
template <Codes kCodesValue, bool kZerosValue, Groups kGroupsValue, int kRowsValue,
          int kPanelsValue>
struct Config {
  static constexpr Codes kCodes = kCodesValue;
  static constexpr bool kZeros = kZerosValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kPanels = kPanelsValue;
  static constexpr int kBlockBytes = kCodes == Codes::kByte ? kByteBlockBytes : kNibbleBlockBytes;
  /// log2 of what is subtracted from each stored code; e2m1: from each table entry.
  static constexpr int kBiasShift = kCodes == Codes::kByte ? 7 : kCodes == Codes::kE2M1 ? 4 : 3;
};

template <class C>
using IntSums = __m512i[C::kRows][C::kPanels];
template <class C>
using Sums = __m512[C::kRows][C::kPanels];

/// Codes of columns 4j..4j+3 (upper = false) or 16+4j.. (true) as the unsigned operand.
template <class C>
NIBBLE_INLINE __m512i operand(const uint8_t* codes, int j, bool upper) {
  if constexpr (C::kCodes == Codes::kByte) {
    return _mm512_loadu_si512(codes + 64 * (j + (upper ? 4 : 0)));
  } else {
    const __m512i packed = _mm512_loadu_si512(codes + 64 * j);
    const __m512i shifted = upper ? _mm512_srli_epi16(packed, 4) : packed;
    if constexpr (C::kCodes == Codes::kE2M1) {
      // vpermb reads six bits of the index; the table repeats so that the upper two do not matter.
      const __m512i table = _mm512_broadcast_i32x4(
          _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
      return _mm512_permutexvar_epi8(shifted, table);
    } else {
      return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    }
  }
}

/// -(bias or zero) * sum(x), where the accumulators start. `sum` is at most 4064 in magnitude.
template <class C>
NIBBLE_INLINE void start(IntSums<C>& acc, int row, __m512i sum,
                         const __m512i (&minus_zero)[C::kPanels]) {
  if constexpr (C::kZeros) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[row][p] =
        _mm512_madd_epi16(sum, minus_zero[p]);
  } else {
    const __m512i first =
        _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sum), C::kBiasShift);
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[row][p] = first;
  }
}

/// acc += u * x over 16 columns: the lower or the upper half of a block.
template <class C>
NIBBLE_INLINE void dot_half(IntSums<C>& acc, const Chunk& c, bool upper) {
  NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
    __m512i u[C::kPanels];
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) u[p] = operand<C>(c.codes[p], j, upper);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512i x = broadcast_i32(c.x + 32 * r + 4 * j + (upper ? 16 : 0));
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          _mm512_dpbusd_epi32(acc[r][p], u[p], x);
    }
  }
}

/// acc = the exact integer sum over a block of 32 columns.
template <class C>
NIBBLE_INLINE void dot_block(IntSums<C>& acc, const Chunk& c,
                             const __m512i (&minus_zero)[C::kPanels]) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const uint8_t* sums = c.x_sums + 4 * r;
    start<C>(acc, r, _mm512_add_epi32(broadcast_i32(sums), broadcast_i32(sums + 4 * c.x_stride)),
             minus_zero);
  }
  NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
    __m512i lower[C::kPanels], upper[C::kPanels];
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      lower[p] = operand<C>(c.codes[p], j, false);
      upper[p] = operand<C>(c.codes[p], j, true);
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512i x = broadcast_i32(c.x + 32 * r + 4 * j);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          _mm512_dpbusd_epi32(acc[r][p], lower[p], x);
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512i x = broadcast_i32(c.x + 32 * r + 16 + 4 * j);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          _mm512_dpbusd_epi32(acc[r][p], upper[p], x);
    }
  }
}

/// -zero of group `group`, counted from where `c` stands, as int16 pairs (-zero, 0).
template <class C>
NIBBLE_INLINE void load_zeros(__m512i (&minus_zero)[C::kPanels], const Chunk& c, int group) {
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    minus_zero[p] = C::kZeros ? _mm512_load_si512(c.zeros[p] + 64 * group) : _mm512_setzero_si512();
  }
}

/// Moves on by one block of columns.
template <class C>
NIBBLE_INLINE void next_block(Chunk& c) {
  next_codes<C::kPanels, C::kBlockBytes>(c);
  const int64_t x_block_bytes = c.x_stride * kInt8RowBlockBytes;
  c.x += x_block_bytes;
  c.x_sums += x_block_bytes;
  c.x_scales += x_block_bytes;
}

/// y += a block with two groups, whose scales stand at `scales`.
template <class C>
NIBBLE_INLINE void multiply_groups_of_16(Sums<C>& y, Chunk& c,
                                         const float* const (&scales)[C::kPanels]) {
  IntSums<C> acc;
  Sums<C> part;
  __m512i minus_zero[C::kPanels];
  load_zeros<C>(minus_zero, c, 0);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    start<C>(acc, r, broadcast_i32(c.x_sums + 4 * r), minus_zero);
  }
  dot_half<C>(acc, c, false);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      part[r][p] = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][p]), _mm512_load_ps(scales[p]));
    }
  }
  load_zeros<C>(minus_zero, c, 1);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    start<C>(acc, r, broadcast_i32(c.x_sums + 4 * (c.x_stride + r)), minus_zero);
  }
  dot_half<C>(acc, c, true);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const __m512 x_scale = broadcast_f32(c.x_scales + 4 * r);
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      part[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][p]), _mm512_load_ps(scales[p] + 16),
                                   part[r][p]);
      y[r][p] = _mm512_fmadd_ps(part[r][p], x_scale, y[r][p]);
    }
  }
}

/// y += a block that is one group, whose scale stands at `scales`.
template <class C>
NIBBLE_INLINE void multiply_group_of_32(Sums<C>& y, Chunk& c,
                                        const float* const (&scales)[C::kPanels]) {
  IntSums<C> acc;
  __m512i minus_zero[C::kPanels];
  load_zeros<C>(minus_zero, c, 0);
  dot_block<C>(acc, c, minus_zero);
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    const __m512 x_scale = broadcast_f32(c.x_scales + 4 * r);
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      const __m512 scale = _mm512_mul_ps(_mm512_load_ps(scales[p]), x_scale);
      y[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][p]), scale, y[r][p]);
    }
  }
}

/// y += `blocks` blocks of groups of 16 or 32.
template <class C>
NIBBLE_INLINE void multiply_batch(Sums<C>& y, Chunk& c, int64_t blocks) {
  constexpr int kGroupsInBlock = C::kGroups == Groups::k16 ? 2 : 1;
  ScaleBatch<C::kRows, C::kPanels> batch;
  load_batch(batch, c, kGroupsInBlock * blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    if constexpr (C::kGroups == Groups::k16) {
      multiply_groups_of_16<C>(y, c, batch.at);
    } else {
      multiply_group_of_32<C>(y, c, batch.at);
    }
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) batch.at[p] += 16 * kGroupsInBlock;
    next_group<C::kPanels>(c, kGroupsInBlock);
    next_block<C>(c);
  }
}

/// y = blocks that share one group.
template <class C>
NIBBLE_INLINE void multiply_run(Sums<C>& y, Chunk& c, int64_t blocks) {
  __m512i minus_zero[C::kPanels];
  load_zeros<C>(minus_zero, c, 0);
  fill_zero<C::kRows, C::kPanels>(y);
  for (int64_t block = 0; block < blocks; ++block) {
    IntSums<C> acc;
    dot_block<C>(acc, c, minus_zero);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512 x_scale = broadcast_f32(c.x_scales + 4 * r);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
        y[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][p]), x_scale, y[r][p]);
      }
    }
    next_block<C>(c);
  }
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    const __m512 scale = scale_of<C::kRows, C::kPanels>(c, p);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) y[r][p] = _mm512_mul_ps(y[r][p], scale);
  }
}

/// part[panel][row][16] += the products of one chunk.
template <class C>
void multiply_chunk(const Chunk& chunk, float* part) {
  Chunk c = chunk;
  Sums<C> y;
  if constexpr (C::kGroups == Groups::kWide) {
    for (Runs runs = runs_of(c); runs.left > 0;) {
      const int64_t run = run_blocks(runs);
      multiply_run<C>(y, c, run);
      add_to<C::kRows, C::kPanels>(part, y);
      if (end_run(runs, c, run)) next_group<C::kPanels>(c, 1);
      if (runs.sum_left == 0) runs.sum_left = min_i64(kSumBlocks, runs.left);
    }
  } else {
    for (int64_t left = c.blocks; left > 0;) {
      const int64_t end = left - min_i64(kSumBlocks, left);
      fill_zero<C::kRows, C::kPanels>(y);
      for (int64_t blocks; left > end; left -= blocks) {
        blocks = min_i64(kBatchBlocks, left - end);
        multiply_batch<C>(y, c, blocks);
      }
      add_to<C::kRows, C::kPanels>(part, y);
    }
  }
}

/// The register tiles of one kind of weight.
template <Codes kCodes, bool kZeros, Groups kGroups>
struct Tiles {
  template <int kRows, int kPanels>
  static constexpr ChunkFn fn() {
    return multiply_chunk<Config<kCodes, kZeros, kGroups, kRows, kPanels>>;
  }
  static constexpr ChunkFn kFn[kTileRows][kTilePanels] = {{fn<1, 1>(), fn<1, 2>()},
                                                          {fn<2, 1>(), fn<2, 2>()},
                                                          {fn<3, 1>(), fn<3, 2>()},
                                                          {fn<4, 1>(), fn<4, 2>()}};
};

template <Codes kCodes, bool kZeros>
TileTable tiles_for_group(const WeightArgs& w) {
  if (w.num_groups > 1 && w.group == 16) return Tiles<kCodes, kZeros, Groups::k16>::kFn;
  if (w.num_groups > 1 && w.group == 32) return Tiles<kCodes, kZeros, Groups::k32>::kFn;
  NIBBLE_ASSUME(w.num_groups == 1 || w.group % kBlockColumns == 0);
  return Tiles<kCodes, kZeros, Groups::kWide>::kFn;
}

/// What panel_walk_avx512.h asks of this row.
struct Int8Family {
  static constexpr bool kPrefetchesOneRow = false;

  static TileTable tiles(const WeightArgs& w) {
    switch (w.element) {
      case Element::kE2M1:
        return tiles_for_group<Codes::kE2M1, false>(w);
      case Element::kInt4:
        return tiles_for_group<Codes::kNibble, false>(w);
      case Element::kInt8:
        return tiles_for_group<Codes::kByte, false>(w);
      case Element::kUint8:
        return tiles_for_group<Codes::kByte, true>(w);
      case Element::kUint4:
      case Element::kNF4:  // the table sends none here: a codebook of floats has no integer operand
        return tiles_for_group<Codes::kNibble, true>(w);
    }
    return nullptr;
  }

  /// int16 pairs (-z, 0) a lane.
  static bool decode_zeros(const WeightArgs& w, const ZerosOf& from, uint8_t* out, float*) {
    if (w.zero_kind != ZeroKind::kInteger) return false;
    for (int64_t g = 0; g < from.groups; ++g) {
      const __m512i minus =
          _mm512_sub_epi32(_mm512_setzero_si512(), load_u8(from.zeros, from.index + g));
      _mm512_store_si512(out + 64 * g, _mm512_and_si512(minus, _mm512_set1_epi32(0xFFFF)));
    }
    return false;
  }

  static void set_rows(const MatmulArgs& args, int64_t k_end, int64_t row, int64_t k, Chunk* c) {
    const int64_t x_tile = row / kXTileRows * kXTileRows, in_tile = row - x_tile;
    c->x_stride = min_i64(kXTileRows, args.m - x_tile);
    const int64_t row_blocks = x_tile * (k_end / kBlockColumns) + k / kBlockColumns * c->x_stride;
    const uint8_t* x = static_cast<const uint8_t*>(args.x) + row_blocks * kInt8RowBlockBytes;
    c->x = x + 32 * in_tile;
    c->x_sums = x + 32 * c->x_stride + 4 * in_tile;
    c->x_scales = x + 40 * c->x_stride + 4 * in_tile;
  }

  static const void* table(const WeightArgs&) { return nullptr; }
  static void correct(const Chunk&, int64_t, int64_t, float*) {}

  static void finish(const WeightArgs& w, float* sums, int64_t floats) {
    if (w.element != Element::kE2M1) return;  // whose table holds twice the value
    for (int64_t i = 0; i < floats; ++i) sums[i] *= 0.5f;
  }
};

}  // namespace

void matmul_int8_avx512_vnni(const MatmulArgs& args, Range items) {
  walk_items<Int8Family>(args, items);
}

}  // namespace nibble
