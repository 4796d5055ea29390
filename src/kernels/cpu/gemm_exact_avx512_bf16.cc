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
// Sums are taken as exact_chunk_avx512.h says, the 16 columns of a half as pairs (0,2) (1,3) (4,6)
// .. Decoding into an L1 buffer for many rows of x would gain nothing: vpermw and vpsrlw run beside
// vdpbf16ps. Measured on one Zen 4 core, data in L1/L2, share of the vdpbf16ps peak: @BF16@.
#include "kernels/cpu/exact_chunk_avx512.h"

namespace nibble {
namespace {

/// A register tile at compile time, and its arithmetic.
template <bool kSubtract, Groups kGroupsValue, int kRowsValue, int kPanelsValue>
struct Bf16Config {
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kPanels = kPanelsValue;
  static constexpr int64_t kBlockBytes = kNibbleBlockBytes;
  static constexpr int64_t kXBytes = 2;
  using Sums = FloatTile<kRows, kPanels>;
  using Zeros = __m512i[kPanels];
  using Table = __m512i;

  NIBBLE_INLINE Table load_table(const Chunk& c) { return _mm512_load_si512(c.table); }

  NIBBLE_INLINE void load_zeros(Zeros& zeros, const Chunk& c) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      zeros[p] = kSubtract ? _mm512_load_si512(c.zeros[p]) : _mm512_setzero_si512();
    }
  }

  /// 16-bit indices of vector j of a block: low lanes hold column 4j (odd: 4j + 1; upper: 16 more).
  NIBBLE_INLINE __m512i indices(const uint8_t* codes, int j, bool odd, bool upper, __m512i zero) {
    const __m512i v = _mm512_loadu_si512(codes + 64 * j);
    if constexpr (!kSubtract) {
      const unsigned shift = (odd ? 8u : 0u) + (upper ? 4u : 0u);
      return shift == 0 ? v : _mm512_srli_epi16(v, shift);
    } else {
      const __m512i nibbles =
          _mm512_and_si512(upper ? _mm512_srli_epi16(v, 4) : v, _mm512_set1_epi8(15));
      const __m512i differences = _mm512_sub_epi8(nibbles, zero);
      return odd ? _mm512_srli_epi16(differences, 8) : differences;
    }
  }

  /// acc + w0*x0 + w1*x1 per 32-bit lane; each product is exact, sums are FP32, subnormals are 0.
  NIBBLE_INLINE __m512 dot_pairs(__m512 acc, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }

  /// The same with the pair at `x` in every lane. One row and one panel use it once, and gcc 12
  /// would load it apart: 4 % of the row's speed.
  NIBBLE_INLINE __m512 dot_pair_at(__m512 acc, __m512i w, const uint8_t* x) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(w), "m"(*reinterpret_cast<const uint32_t*>(x)));
    return acc;
  }

  /// acc += w * x over two columns, step 0..3 of quarter 0..3 of the block that `c` stands at.
  static constexpr int kSteps = 4;
  NIBBLE_INLINE void multiply_step(Sums& acc, const Chunk& c, Table table, const Zeros& zeros,
                                   int quarter, int step) {
    const bool upper = quarter >= 2, odd = step % 2 == 1;
    const int j = 2 * (quarter % 2) + step / 2;
    __m512i w[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      w[p] = _mm512_permutexvar_epi16(indices(c.codes[p], j, odd, upper, zeros[p]), table);
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const uint8_t* x = c.x + r * c.x_stride + (upper ? 32 : 0) + 8 * j + (odd ? 4 : 0);
      if constexpr (kPanels == 1) {
        acc[r][0] = dot_pair_at(acc[r][0], w[0], x);
      } else {
        const __m512i pair = broadcast_i32(x);
        NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
          acc[r][p] = dot_pairs(acc[r][p], w[p], pair);
        }
      }
    }
  }
};

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

template <bool kSubtract, Groups kGroups>
struct Tiles {
  template <int kRows, int kPanels>
  using Config = Bf16Config<kSubtract, kGroups, kRows, kPanels>;
  static constexpr TileTable kFn = ExactTiles<Config>::kFn;
};

template <bool kSubtract>
TileTable tiles_for_group(const WeightArgs& w) {
  if (w.num_groups > 1 && w.group == 16) return Tiles<kSubtract, Groups::k16>::kFn;
  NIBBLE_ASSUME(w.num_groups == 1 || w.group % kBlockColumns == 0);
  return Tiles<kSubtract, Groups::kWide>::kFn;
}

/// 16 columns of x.
NIBBLE_INLINE __m512 sixteen_columns(const uint8_t* x) {
  return bf16_to_f32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

/// What panel_walk_avx512.h asks of this row.
struct Bf16Family {
  static constexpr int kLargestZero = 15;  // that the table's index takes

  static constexpr bool kPrefetchesOneRow = false;

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

  /// Four bytes min(z, 15) a lane; what is above 15 (no known file has it) as FP32 in `excess`.
  static bool decode_zeros(const WeightArgs& w, const ZerosOf& from, uint8_t* out, float* excess) {
    if (w.zero_kind != ZeroKind::kInteger) return false;
    const __m512i spread = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0x00000000);
    uint32_t any_above = 0;
    for (int64_t g = 0; g < from.groups; ++g) {
      const __m512i z = load_u8(from.zeros, from.index + g);
      const __m512i low = _mm512_min_epu32(z, _mm512_set1_epi32(kLargestZero));
      const __m512i above = _mm512_sub_epi32(z, low);
      any_above |= _mm512_test_epi32_mask(above, above);
      _mm512_store_si512(out + 64 * g, _mm512_shuffle_epi8(low, spread));
      _mm512_store_ps(excess + 16 * g, _mm512_cvtepi32_ps(above));
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
    for_each_x_sum<2>(c, rows, sixteen_columns, [&](int64_t r, int64_t group, float x_sum) {
      for (int64_t p = 0; p < panels; ++p) {
        float* at = part + 16 * (p * rows + r);
        const __m512 factor = _mm512_mul_ps(_mm512_load_ps(c.excess[p] + 16 * group),
                                            load_scales(c.scales[p], c.scale_dtype, group));
        _mm512_store_ps(at, _mm512_fnmadd_ps(factor, _mm512_set1_ps(x_sum), _mm512_load_ps(at)));
      }
    });
  }

  static void finish(const WeightArgs&, float*, int64_t) {}
};
}  // namespace

void matmul_exact_avx512_bf16(const MatmulArgs& args, Range items) {
  walk_items<Bf16Family>(args, items);
}

}  // namespace nibble
