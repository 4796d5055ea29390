// y = x * W^T in FP32 for every Format: the exact row for FP32 x, and the general row of AVX-512.
//
// A code selects its value from a register by vpermps, which reads the low 4 bits of each 32-bit
// lane, so a vector of nibbles needs eight shifts and no mask:
//
//   32-bit lane = one output, bits   0-3   4-7      8-11    12-15      ...  28-31
//   column of a vector j             4j    16+4j    4j+1    16+4j+1    ...  16+4j+3
//
// Bytes are shifted, masked and converted. Zeros of kind kInteger and kFloatCode are subtracted
// from the value, one rounding as in QuantizedTensor::decode; additive ones meet the sum of x
// instead.
//
// FP32 order of one output, the same for every m, tile and thread count:
//   group = sum over its columns within a chunk of 256: columns 0-15 of each block, then 16-31, in
//           rising order (FMA)
//   part += s * group;   additive: part += b * (sum of x over the group's columns in the chunk)
// FMA, vpermps and vpsrld share four ports evenly, so decoding costs little: see the figures below.
#include "kernels/args.h"
#include "kernels/cpu/panel_walk_avx512.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kByte };
enum class Groups { k16, kWide };

template <Codes kCodesValue, bool kSubtractValue, Groups kGroupsValue, int kRowsValue,
          int kPanelsValue>
struct Config {
  static constexpr Codes kCodes = kCodesValue;
  static constexpr bool kSubtract = kSubtractValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kPanels = kPanelsValue;
  static constexpr int64_t kBlockBytes =
      kCodes == Codes::kByte ? kByteBlockBytes : kNibbleBlockBytes;
};

template <class C>
using Sums = __m512[C::kRows][C::kPanels];
template <class C>
using Zeros = __m512[C::kPanels];

/// Values of column 4j + i (upper: 16 + 4j + i) of a block.
template <class C>
NIBBLE_INLINE __m512 values(const uint8_t* codes, int j, int i, bool upper, __m512 table,
                            __m512 zero) {
  __m512 value;
  if constexpr (C::kCodes == Codes::kByte) {
    const __m512i v = _mm512_srli_epi32(_mm512_loadu_si512(codes + 64 * (j + (upper ? 4 : 0))),
                                        static_cast<unsigned>(8 * i));
    value = _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(255)));
  } else {
    const __m512i v = _mm512_srli_epi32(_mm512_loadu_si512(codes + 64 * j),
                                        static_cast<unsigned>(8 * i + (upper ? 4 : 0)));
    value = _mm512_permutexvar_ps(v, table);
  }
  return C::kSubtract ? _mm512_sub_ps(value, zero) : value;
}

template <class C>
NIBBLE_INLINE void fill_zero(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
  }
}

/// acc += w * x over columns 0-15 (upper: 16-31) of the block that `c` stands at.
template <class C>
NIBBLE_INLINE void dot_half(Sums<C>& acc, const Chunk& c, __m512 table, bool upper,
                            const Zeros<C>& zeros) {
  const uint8_t* x[C::kRows];
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) x[r] = c.x + r * c.x_stride + (upper ? 64 : 0);
  NIBBLE_UNROLL for (int k = 0; k < 16; ++k) {
    __m512 w[C::kPanels];
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      w[p] = values<C>(c.codes[p], k / 4, k % 4, upper, table, zeros[p]);
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512 column = broadcast_f32(x[r] + 4 * k);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          _mm512_fmadd_ps(w[p], column, acc[r][p]);
    }
  }
}

template <class C>
NIBBLE_INLINE void load_zeros(Zeros<C>& zeros, const Chunk& c) {
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    zeros[p] = C::kSubtract ? _mm512_load_ps(c.zeros[p]) : _mm512_setzero_ps();
  }
}

/// y += scale * acc, and on to the next group.
template <class C>
NIBBLE_INLINE void end_group(Sums<C>& y, const Sums<C>& acc, Chunk& c) {
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    const __m512 scale = _mm512_load_ps(c.scales[p]);
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) y[r][p] =
        _mm512_fmadd_ps(acc[r][p], scale, y[r][p]);
    c.scales[p] += 16;
    c.zeros[p] += 64;
  }
}

/// Moves on by one block of columns and prefetches a slice of what comes later.
template <class C>
NIBBLE_INLINE void next_block(Chunk& c) {
  for (int64_t line = 0; line < c.prefetch_lines; ++line) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p)
        _mm_prefetch(c.prefetch[p] + 64 * line, _MM_HINT_T0);
  }
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    c.codes[p] += C::kBlockBytes;
    c.prefetch[p] += C::kBlockBytes;
  }
  c.x += 4 * kBlockColumns;
}

/// part[panel][row][16] += the products of one chunk.
template <class C>
void multiply_chunk(const Chunk& chunk, float* part) {
  Chunk c = chunk;
  const __m512 table =
      C::kCodes == Codes::kNibble ? _mm512_loadu_ps(chunk.table) : _mm512_setzero_ps();
  Sums<C> y, acc;
  Zeros<C> zeros;
  fill_zero<C>(y);
  if constexpr (C::kGroups == Groups::k16) {
    for (int64_t block = 0; block < c.blocks; ++block) {
      NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
        load_zeros<C>(zeros, c);
        fill_zero<C>(acc);
        dot_half<C>(acc, c, table, half == 1, zeros);
        end_group<C>(y, acc, c);
      }
      next_block<C>(c);
    }
  } else {
    int64_t run = min_i64(c.first_run_blocks, c.blocks);
    for (int64_t left = c.blocks; left > 0; left -= run, run = min_i64(c.group_blocks, left)) {
      load_zeros<C>(zeros, c);
      fill_zero<C>(acc);
      for (int64_t block = 0; block < run; ++block) {
        dot_half<C>(acc, c, table, false, zeros);
        dot_half<C>(acc, c, table, true, zeros);
        next_block<C>(c);
      }
      end_group<C>(y, acc, c);
    }
  }
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      float* at = part + 16 * (p * C::kRows + r);
      _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), y[r][p]));
    }
  }
}

template <Codes kCodes, bool kSubtract, Groups kGroups>
struct Tiles {
  template <int kRows, int kPanels>
  static constexpr ChunkFn fn() {
    return multiply_chunk<Config<kCodes, kSubtract, kGroups, kRows, kPanels>>;
  }
  static constexpr ChunkFn kFn[kTileRows][3] = {{fn<1, 1>(), fn<1, 2>(), fn<1, 4>()},
                                                {fn<2, 1>(), fn<2, 2>(), fn<2, 4>()},
                                                {fn<3, 1>(), fn<3, 2>(), nullptr},
                                                {fn<4, 1>(), fn<4, 2>(), nullptr}};
};

template <Codes kCodes, bool kSubtract>
TileTable tiles_for_group(const WeightArgs& w) {
  if (w.num_groups > 1 && w.group == 16) return Tiles<kCodes, kSubtract, Groups::k16>::kFn;
  NIBBLE_ASSUME(w.num_groups == 1 || w.group % kBlockColumns == 0);
  return Tiles<kCodes, kSubtract, Groups::kWide>::kFn;
}

// Code → value. int4 codes are stored with an offset of 8, which its table takes off.
alignas(64) constexpr float kInt4Table[16] = {-8, -7, -6, -5, -4, -3, -2, -1,
                                              0,  1,  2,  3,  4,  5,  6,  7};
alignas(64) constexpr float kUint4Table[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                               8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) constexpr float kE2M1Table[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                              -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

/// What panel_walk_avx512.h asks of this row.
struct F32Family {
  static constexpr int64_t kChunkColumns = 256;  // one chain of FP32 additions

  /// A chain of FP32 additions needs neighbours to hide its latency: few rows take more panels.
  static int64_t panels_at_once(int64_t rows, int64_t left) {
    if (rows <= 2 && left >= 4) return 4;
    return left >= 2 ? 2 : 1;
  }

  static TileTable tiles(const WeightArgs& w) {
    const bool zero_apart = w.zero_kind == ZeroKind::kNone || w.zero_kind == ZeroKind::kAdditive;
    switch (w.element) {
      case Element::kInt8:
        return tiles_for_group<Codes::kByte, true>(w);  // of the 128 that the layout adds
      case Element::kUint8:
        return zero_apart ? tiles_for_group<Codes::kByte, false>(w)
                          : tiles_for_group<Codes::kByte, true>(w);
      case Element::kInt4:
      case Element::kUint4:
      case Element::kE2M1:
      case Element::kNF4:
        return zero_apart ? tiles_for_group<Codes::kNibble, false>(w)
                          : tiles_for_group<Codes::kNibble, true>(w);
    }
    return nullptr;
  }

  static const void* table(const WeightArgs& w) {
    switch (w.element) {
      case Element::kInt4:
        return kInt4Table;
      case Element::kUint4:
        return kUint4Table;
      case Element::kE2M1:
        return kE2M1Table;
      case Element::kNF4:
        return w.codebook;
      case Element::kInt8:
      case Element::kUint8:
        return nullptr;
    }
    return nullptr;
  }

  /// FP32, one a lane. Additive zeros are for `correct`.
  static bool decode_zeros(const WeightArgs& w, const void* zeros, int64_t index, int64_t groups,
                           uint8_t* out) {
    if (w.element == Element::kInt8) {
      for (int64_t g = 0; g < groups; ++g) _mm512_store_ps(out + 64 * g, _mm512_set1_ps(128.0f));
    } else if (w.zero_kind != ZeroKind::kNone) {
      decode_scales(zeros, zero_dtype(w), index, groups, reinterpret_cast<float*>(out));
    }
    return w.zero_kind == ZeroKind::kAdditive;
  }

  static void set_rows(const MatmulArgs& args, int64_t k_end, int64_t row, int64_t k, Chunk* c) {
    c->x = static_cast<const uint8_t*>(args.x) + 4 * (row * k_end + k);
    c->x_stride = 4 * k_end;
  }

  /// part += b * (sum of x over the group)
  static void correct(const Chunk& c, int64_t rows, int64_t panels, float* part) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* x = c.x + r * c.x_stride;
      int64_t halves = c.group_blocks == 0 ? 1 : 2 * min_i64(c.first_run_blocks, c.blocks);
      int64_t group = 0;
      for (int64_t left = 2 * c.blocks; left > 0; ++group) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < halves; ++i, x += 64) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x));
        left -= halves;
        halves = c.group_blocks == 0 ? 1 : min_i64(2 * c.group_blocks, left);
        const __m512 x_sum = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (int64_t p = 0; p < panels; ++p) {
          float* at = part + 16 * (p * rows + r);
          const __m512 zero = _mm512_load_ps(c.zeros[p] + 64 * group);
          _mm512_store_ps(at, _mm512_fmadd_ps(zero, x_sum, _mm512_load_ps(at)));
        }
      }
    }
  }

  static void finish(const WeightArgs&, float*, int64_t) {}
};

}  // namespace

void matmul_exact_f32_avx512_vnni(const MatmulArgs& args, Range items) {
  walk_items<F32Family>(args, items);
}

}  // namespace nibble
