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
// Sums are taken as exact_chunk_avx512.h says, the 8 columns of a quarter in rising order (FMA);
// additive zeros add b * (sum of x over the group). FMA, vpermps and vpsrld share four ports
// evenly. Measured on one Zen 4 core, data in L1/L2, share of the FMA peak: @F32@.
#include "kernels/cpu/exact_chunk_avx512.h"

namespace nibble {
namespace {

enum class Codes { kNibble, kByte };

/// A register tile at compile time, and its arithmetic.
template <Codes kCodes, bool kSubtract, Groups kGroupsValue, int kRowsValue, int kPanelsValue>
struct F32Config {
  static constexpr Groups kGroups = kGroupsValue;
  static constexpr int kRows = kRowsValue;
  static constexpr int kPanels = kPanelsValue;
  static constexpr int64_t kBlockBytes =
      kCodes == Codes::kByte ? kByteBlockBytes : kNibbleBlockBytes;
  static constexpr int64_t kXBytes = 4;
  using Sums = FloatTile<kRows, kPanels>;
  using Zeros = __m512[kPanels];
  using Table = __m512;

  NIBBLE_INLINE Table load_table(const Chunk& c) {
    return kCodes == Codes::kNibble ? _mm512_loadu_ps(c.table) : _mm512_setzero_ps();
  }

  NIBBLE_INLINE void load_zeros(Zeros& zeros, const Chunk& c) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      zeros[p] = kSubtract ? _mm512_load_ps(c.zeros[p]) : _mm512_setzero_ps();
    }
  }

  /// Values of column k (upper: 16 + k) of a block.
  NIBBLE_INLINE __m512 values(const uint8_t* codes, int k, bool upper, Table table, __m512 zero) {
    __m512 value;
    if constexpr (kCodes == Codes::kByte) {
      const __m512i v = _mm512_loadu_si512(codes + 64 * (k / 4 + (upper ? 4 : 0)));
      const __m512i shifted = _mm512_srli_epi32(v, static_cast<unsigned>(8 * (k % 4)));
      value = _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)));
    } else {
      const __m512i v = _mm512_loadu_si512(codes + 64 * (k / 4));
      const __m512i shifted =
          _mm512_srli_epi32(v, static_cast<unsigned>(8 * (k % 4) + (upper ? 4 : 0)));
      value = _mm512_permutexvar_ps(shifted, table);
    }
    return kSubtract ? _mm512_sub_ps(value, zero) : value;
  }

  /// acc += w * x over one column, step 0..7 of quarter 0..3 of the block that `c` stands at.
  static constexpr int kSteps = 8;
  NIBBLE_INLINE void multiply_step(Sums& acc, const Chunk& c, Table table, const Zeros& zeros,
                                   int quarter, int step) {
    const bool upper = quarter >= 2;
    const int k = 8 * (quarter % 2) + step;
    __m512 w[kPanels];
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      w[p] = values(c.codes[p], k, upper, table, zeros[p]);
    }
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m512 x = broadcast_f32(c.x + r * c.x_stride + 4 * (k + (upper ? 16 : 0)));
      NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
        acc[r][p] = _mm512_fmadd_ps(w[p], x, acc[r][p]);
      }
    }
  }
};

template <Codes kCodes, bool kSubtract, Groups kGroups>
struct Tiles {
  template <int kRows, int kPanels>
  using Config = F32Config<kCodes, kSubtract, kGroups, kRows, kPanels>;
  static constexpr TileTable kFn = ExactTiles<Config>::kFn;
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

/// 16 columns of x.
NIBBLE_INLINE __m512 sixteen_columns(const uint8_t* x) { return _mm512_loadu_ps(x); }

/// What panel_walk_avx512.h asks of this row.
struct F32Family {
  static constexpr bool kPrefetchesOneRow = true;

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
  static bool decode_zeros(const WeightArgs& w, const ZerosOf& from, uint8_t* out, float*) {
    if (w.element == Element::kInt8) {
      for (int64_t g = 0; g < from.groups; ++g) {
        _mm512_store_ps(out + 64 * g, _mm512_set1_ps(128.0f));
      }
    } else if (w.zero_kind != ZeroKind::kNone) {
      decode_scales(from.zeros, zero_dtype(w), from.index, from.groups,
                    reinterpret_cast<float*>(out));
    }
    return w.zero_kind == ZeroKind::kAdditive;
  }

  static void set_rows(const MatmulArgs& args, int64_t k_end, int64_t row, int64_t k, Chunk* c) {
    c->x = static_cast<const uint8_t*>(args.x) + 4 * (row * k_end + k);
    c->x_stride = 4 * k_end;
  }

  /// part += b * (sum of x over the group)
  static void correct(const Chunk& c, int64_t rows, int64_t panels, float* part) {
    for_each_x_sum<4>(c, rows, sixteen_columns, [&](int64_t r, int64_t group, float x_sum) {
      for (int64_t p = 0; p < panels; ++p) {
        float* at = part + 16 * (p * rows + r);
        const __m512 zero = _mm512_load_ps(c.zeros[p] + 64 * group);
        _mm512_store_ps(at, _mm512_fmadd_ps(zero, _mm512_set1_ps(x_sum), _mm512_load_ps(at)));
      }
    });
  }

  static void finish(const WeightArgs&, float*, int64_t) {}
};

}  // namespace

void matmul_exact_f32_avx512_vnni(const MatmulArgs& args, Range items) {
  walk_items<F32Family>(args, items);
}

}  // namespace nibble
