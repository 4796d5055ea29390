// y = x * W^T for BF16 x that is never rounded: int4, uint4 and e2m1 codes become BF16, which holds
// every one of their values (and every difference of two nibbles) exactly, and vdpbf16ps
// multiplies.
//
// A 64-byte vector of codes is indexed straight into a table of BF16 values by vpermw, which reads
// the low 5 bits of each 16-bit lane; the table repeats after 16 entries, so that bit 4, which
// belongs to the next nibble, does not matter:
//
//   16-bit lanes of              low lane    high lane of a 32-bit lane = one output
//   v                            k = 4j      4j + 2
//   v >> 8                           4j + 1      4j + 3
//   v >> 4                      16 + 4j      ...
//   v >> 12                     16 + 4j + 1  ...
//
// which is why XForm::kBf16Rows stores each four columns in the order 0 2 1 3. With zeros, bytes
// are masked and the zero subtracted first; the five bits are then a two's complement index
// (-15..15).
//
// FP32 order of one output, the same for every m, tile and thread count:
//   group = sum over its columns within a chunk of 256: columns 0-15 of each block, then 16-31,
//           as pairs (0,2) (1,3) (4,6) ... of vdpbf16ps
//   part += s * group                     (FMA)
// Measured on one Zen 4 core, data in L1/L2: 0.91 of the vdpbf16ps peak with group 32, 0.86 with
// 16, 0.95 with 128. Decoding into an L1 buffer for many rows of x gains nothing over that: vpermw
// and vpsrlw run on other ports than vdpbf16ps. 12x2 tiles with sums in memory: 0.93 with group
// 128.
#include "kernels/args.h"
#include "kernels/cpu/panel_walk_avx512.h"

namespace nibble {
namespace {

enum class Groups { k16, kWide };

template <bool kZerosValue, Groups kGroupsValue, int kRowsValue, int kPanelsValue>
struct Config {
  static constexpr bool kZeros = kZerosValue;
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kPanels = kPanelsValue;
};

template <class C>
using Sums = __m512[C::kRows][C::kPanels];
template <class C>
using Vectors = __m512i[C::kPanels];

/// acc + w0*x0 + w1*x1 per 32-bit lane, each product exact, sums rounded to FP32 (subnormals are
/// 0).
NIBBLE_INLINE __m512 dot_pairs(__m512 acc, __m512i w, __m512i x) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
}

// Index → BF16. Integers: two's complement of 5 bits. int4 codes are stored with an offset of 8,
// which its table takes off.
alignas(64) constexpr uint16_t kSignedTable[32] = {
    0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
    0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xC180, 0xC170, 0xC160, 0xC150, 0xC140, 0xC130,
    0xC120, 0xC110, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
alignas(64) constexpr uint16_t kInt4Table[32] = {
    0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000,
    0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040,
    0xC000, 0xBF80, 0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0};
alignas(64) constexpr uint16_t kE2M1Table[32] = {
    0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80,
    0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0, 0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040,
    0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};

/// Vector j of a block as 16-bit indices whose low lanes hold columns 4j (16 + 4j).
template <class C>
NIBBLE_INLINE __m512i indices(const uint8_t* codes, int j, bool upper, __m512i zero) {
  const __m512i v = _mm512_loadu_si512(codes + 64 * j);
  const __m512i shifted = upper ? _mm512_srli_epi16(v, 4) : v;
  if constexpr (!C::kZeros) return shifted;
  return _mm512_sub_epi8(_mm512_and_si512(shifted, _mm512_set1_epi8(15)), zero);
}

template <class C>
NIBBLE_INLINE void fill_zero(Sums<C>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
  }
}

/// acc += w * x over columns 0-15 (upper: 16-31) of the block that `c` stands at.
template <class C>
NIBBLE_INLINE void dot_half(Sums<C>& acc, const Chunk& c, __m512i table, bool upper,
                            const Vectors<C>& zeros) {
  const uint8_t* x[C::kRows];
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) x[r] = c.x + r * c.x_stride + (upper ? 32 : 0);
  NIBBLE_UNROLL for (int j = 0; j < 4; ++j) {
    __m512i index[C::kPanels], w[C::kPanels];
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      index[p] = indices<C>(c.codes[p], j, upper, zeros[p]);
      w[p] = _mm512_permutexvar_epi16(index[p], table);
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512i pair = broadcast_i32(x[r] + 8 * j);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          dot_pairs(acc[r][p], w[p], pair);
    }
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      w[p] = _mm512_permutexvar_epi16(_mm512_srli_epi16(index[p], 8), table);
    }
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      const __m512i pair = broadcast_i32(x[r] + 8 * j + 4);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) acc[r][p] =
          dot_pairs(acc[r][p], w[p], pair);
    }
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

template <class C>
NIBBLE_INLINE void load_zeros(Vectors<C>& zeros, const Chunk& c) {
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    zeros[p] = C::kZeros ? _mm512_load_si512(c.zeros[p]) : _mm512_setzero_si512();
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
    c.codes[p] += kNibbleBlockBytes;
    c.prefetch[p] += kNibbleBlockBytes;
  }
  c.x += 2 * kBlockColumns;
}

/// part[panel][row][16] += the products of one chunk.
template <class C>
void multiply_chunk(const Chunk& chunk, float* part) {
  Chunk c = chunk;
  const __m512i table = _mm512_load_si512(chunk.table);
  Sums<C> y, acc;
  Vectors<C> zeros;
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

template <bool kZeros, Groups kGroups>
struct Tiles {
  template <int kRows, int kPanels>
  static constexpr ChunkFn fn() {
    return multiply_chunk<Config<kZeros, kGroups, kRows, kPanels>>;
  }
  static constexpr ChunkFn kFn[kTileRows][3] = {{fn<1, 1>(), fn<1, 2>(), fn<1, 4>()},
                                                {fn<2, 1>(), fn<2, 2>(), fn<2, 4>()},
                                                {fn<3, 1>(), fn<3, 2>(), nullptr},
                                                {fn<4, 1>(), fn<4, 2>(), nullptr}};
};

template <bool kZeros>
TileTable tiles_for_group(const WeightArgs& w) {
  if (w.num_groups > 1 && w.group == 16) return Tiles<kZeros, Groups::k16>::kFn;
  NIBBLE_ASSUME(w.num_groups == 1 || w.group % kBlockColumns == 0);
  return Tiles<kZeros, Groups::kWide>::kFn;
}

/// What panel_walk_avx512.h asks of this row.
struct Bf16Family {
  static constexpr int64_t kChunkColumns = 256;  // one chain of FP32 additions
  static constexpr int64_t kChunkGroups = kChunkColumns / kSmallestGroup;
  static constexpr uint8_t kLargestZero = 15;  // that the table's index takes

  /// A chain of FP32 additions needs neighbours to hide its latency: few rows take more panels.
  static int64_t panels_at_once(int64_t rows, int64_t left) {
    if (rows <= 2 && left >= 4) return 4;
    return left >= 2 ? 2 : 1;
  }

  static TileTable tiles(const WeightArgs& w) {
    return w.zero_kind == ZeroKind::kInteger ? tiles_for_group<true>(w) : tiles_for_group<false>(w);
  }

  static const void* table(const WeightArgs& w) {
    switch (w.element) {
      case Element::kInt4:
        return kInt4Table;
      case Element::kE2M1:
        return kE2M1Table;
      case Element::kUint4:
        return kSignedTable;
      case Element::kNF4:  // the table sends none of these here: BF16 does not hold their values
      case Element::kInt8:
      case Element::kUint8:
        return nullptr;
    }
    return nullptr;
  }

  /// Four bytes min(z, 15) a lane; what is above 15 (no known file has it) as FP32, behind.
  static bool decode_zeros(const WeightArgs& w, const void* zeros, int64_t index, int64_t groups,
                           uint8_t* out) {
    if (w.zero_kind != ZeroKind::kInteger) return false;
    const __m512i spread = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0x00000000);
    const uint8_t* z = static_cast<const uint8_t*>(zeros) + 16 * index;
    __mmask16 any_above = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const __m512i wide =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(z + 16 * g)));
      const __m512i low = _mm512_min_epu32(wide, _mm512_set1_epi32(kLargestZero));
      const __m512i above = _mm512_sub_epi32(wide, low);
      any_above = static_cast<__mmask16>(any_above | _mm512_test_epi32_mask(above, above));
      _mm512_store_si512(out + 64 * g, _mm512_shuffle_epi8(low, spread));
      _mm512_store_ps(out + 64 * (kChunkGroups + g), _mm512_cvtepi32_ps(above));
    }
    return any_above != 0;
  }

  static void set_rows(const MatmulArgs& args, int64_t k_end, int64_t row, int64_t k, Chunk* c) {
    c->x = static_cast<const uint8_t*>(args.x) + 2 * (row * k_end + k);
    c->x_stride = 2 * k_end;
  }

  /// part -= s * (z - 15) * (sum of x over the group) where z > 15. Both parts of q - z = (q - 15)
  /// - (z - 15) are negative, so splitting them costs no accuracy.
  static void correct(const Chunk& c, int64_t rows, int64_t panels, float* part) {
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* x = c.x + r * c.x_stride;
      int64_t half_blocks = c.group_blocks == 0 ? 1 : 2 * min_i64(c.first_run_blocks, c.blocks);
      int64_t group = 0;
      for (int64_t left = 2 * c.blocks; left > 0; ++group) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < half_blocks; ++i, x += 32) {
          const __m256i columns = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
          sum = _mm512_add_ps(sum, bf16_to_f32(columns));
        }
        left -= half_blocks;
        const __m512 x_sum = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
        for (int64_t p = 0; p < panels; ++p) {
          float* at = part + 16 * (p * rows + r);
          const __m512 above = _mm512_load_ps(c.zeros[p] + 64 * (kChunkGroups + group));
          const __m512 factor = _mm512_mul_ps(above, _mm512_load_ps(c.scales[p] + 16 * group));
          _mm512_store_ps(at, _mm512_fnmadd_ps(factor, x_sum, _mm512_load_ps(at)));
        }
        half_blocks = c.group_blocks == 0 ? 1 : min_i64(2 * c.group_blocks, left);
      }
    }
  }

  static void finish(const WeightArgs&, float*, int64_t) {}
};
static_assert(2 * Bf16Family::kChunkGroups <= kMaxChunkGroups,
              "zeros above 15 lie behind the zeros");

}  // namespace

void matmul_exact_avx512_bf16(const MatmulArgs& args, Range items) {
  walk_items<Bf16Family>(args, items);
}

}  // namespace nibble
