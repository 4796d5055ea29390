// The loops over rows and groups, as a template of the vector's width. A file for one instruction
// set defines NIBBLE_BANDS (its BandFunctions) through DEFINE_BAND_FUNCTIONS.
#ifndef NIBBLE_QUANTIZE_BAND_LOOPS_H_
#define NIBBLE_QUANTIZE_BAND_LOOPS_H_

#include "quantize/bands.h"
#include "quantize/group_search.h"
#include "quantize/lanes.h"

namespace nibble {

template <int W>
struct BandLoops {
  static constexpr uint32_t kInfinityBits = 0x7F800000u;

  /// Loads columns [begin, begin + count) of a row into scratch. On a weight that is not finite,
  /// `trouble` says which.
  NIBBLE_LANES_INLINE static void load_piece(const Band& band, int64_t row, int64_t begin,
                                             int64_t count, BandResult& trouble) {
    const int64_t weight_bytes = band.dtype == DType::kF32 ? 4 : 2;
    const uint8_t* from = band.w + (row * band.k + begin) * weight_bytes;
    if (load_weights<W>(from, band.dtype, count, band.scratch) < kInfinityBits) return;
    int64_t at = 0;
    while ((bits_of(band.scratch[at]) & 0x7FFFFFFFu) < kInfinityBits) ++at;
    trouble.trouble = Trouble::kNotFinite;
    trouble.row = row;
    trouble.column = begin + at;
  }

  NIBBLE_LANES_INLINE static void put(const Band& band, const GroupChoice& choice, int64_t index) {
    const DType dtype = band.rules->scale;
    if (dtype == DType::kE4M3 || dtype == DType::kE8M0) {
      band.scales[index] = static_cast<uint8_t>(choice.lane);
    } else {
      store_exact(band.scales, dtype, index, choice.scale);
    }
    switch (band.rules->zero) {
      case ZeroKind::kNone:
        return;
      case ZeroKind::kInteger:
        band.zeros[index] = static_cast<uint8_t>(choice.zero);
        return;
      case ZeroKind::kFloatCode:
        store_exact(band.zeros, dtype, index, choice.zero);
        return;
      case ZeroKind::kAdditive:
        store_exact(band.zeros, dtype, index, choice.shift);
        return;
    }
  }

  /// Groups whose ranges, choices and codes are found one kind after the other: the chain of
  /// dependent steps within a group is long, and groups side by side hide it.
  static constexpr int kBatch = 8;

  template <CodeKind kKind>
  NIBBLE_LANES_INLINE static BandResult quantize(const Band& band) {
    const GroupSearch<W, kKind> search{*band.rules};
    GroupChoice zero_group;
    zero_group.lane = band.rules->scale == DType::kE4M3 ? 0x38 : 127;  // 1.0
    BandResult result;
    int64_t index = band.row_begin * band.num_groups;
    for (int64_t row = band.row_begin; row < band.row_end; ++row) {
      for (int64_t begin = 0; begin < band.k; begin += band.piece_columns) {
        const int64_t left = band.k - begin;
        const int64_t count = left < band.piece_columns ? left : band.piece_columns;
        load_piece(band, row, begin, count, result);
        if (result.trouble != Trouble::kNone) return result;
        uint8_t* codes = band.codes + row * band.code_row_bytes + begin * band.rules->bits / 8;
        for (int64_t i = 0; i < count; i += kBatch * band.group_columns) {
          GroupRange range[kBatch];
          GroupChoice choice[kBatch];
          int64_t start[kBatch], size[kBatch];
          int groups = 0;
          for (int64_t at = i; at < count && groups < kBatch; at += band.group_columns, ++groups) {
            start[groups] = at;
            size[groups] = count - at < band.group_columns ? count - at : band.group_columns;
            range[groups] = search.range_of(band.scratch + at, size[groups]);
          }
          for (int g = 0; g < groups; ++g) {
            choice[g] = range[g].amax == 0
                            ? zero_group
                            : search.choose(band.scratch + start[g], size[g], range[g]);
            if (choice[g].trouble != Trouble::kNone) {
              result.trouble = choice[g].trouble;
              result.row = row;
              result.column = begin + start[g];
              return result;
            }
          }
          for (int g = 0; g < groups; ++g, ++index) {
            put(band, choice[g], index);
            uint8_t* to = codes + start[g] * band.rules->bits / 8;
            if (range[g].amax == 0) {
              search.write_zero_group(size[g], to);
            } else {
              search.write_codes(band.scratch + start[g], size[g], choice[g], to);
            }
          }
        }
      }
    }
    return result;
  }

  NIBBLE_LANES_INLINE static BandResult scan(const Band& band) {
    const TensorRules unused;
    const GroupSearch<W, CodeKind::kZeroInteger> search{unused};
    BandResult result;
    for (int64_t row = band.row_begin; row < band.row_end; ++row) {
      for (int64_t begin = 0; begin < band.k; begin += band.piece_columns) {
        const int64_t left = band.k - begin;
        const int64_t count = left < band.piece_columns ? left : band.piece_columns;
        load_piece(band, row, begin, count, result);
        if (result.trouble != Trouble::kNone) return result;
        const GroupRange range = search.range_of(band.scratch, count);
        TensorRange& all = result.range;
        all.amax = range.amax > all.amax ? range.amax : all.amax;
        all.min = range.min < all.min ? range.min : all.min;
        all.max = range.max > all.max ? range.max : all.max;
      }
    }
    return result;
  }
};

/// Defines `name` with functions of vectors of `width` floats.
#define NIBBLE_DEFINE_BAND_FUNCTIONS(name, isa, width)                                            \
  namespace {                                                                                     \
  BandResult scan(const Band& band) { return BandLoops<width>::scan(band); }                      \
  BandResult integer(const Band& band) {                                                          \
    return BandLoops<width>::quantize<CodeKind::kInteger>(band);                                  \
  }                                                                                               \
  BandResult zero_integer(const Band& band) {                                                     \
    return BandLoops<width>::quantize<CodeKind::kZeroInteger>(band);                              \
  }                                                                                               \
  BandResult e2m1(const Band& band) { return BandLoops<width>::quantize<CodeKind::kE2M1>(band); } \
  BandResult nf4(const Band& band) { return BandLoops<width>::quantize<CodeKind::kNf4>(band); }   \
  }                                                                                               \
  const BandFunctions name = {isa, scan, {integer, zero_integer, e2m1, nf4}};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_BAND_LOOPS_H_
