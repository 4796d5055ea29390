// The choice of one group's scale (and zero) and the codes that follow from it.
//
//   range of the group ─► 16 candidate scales, each rounded to the stored dtype
//                      ─► squared error of each, against the codes it would give
//                      ─► the smallest error; then a finer 16 around it (f32, f16, bf16 scales)
//                      ─► codes against the stored scale
//
// A quotient y = w / s is rounded to the nearest element q; the error of a candidate is
// (s / plain)^2 * sum (y - q)^2. One lane of a vector is one candidate, and every lane adds its
// weights in order, so the bits do not depend on the vector's width. specification_test.cc has the
// same rules in scalar form.
#ifndef NIBBLE_QUANTIZE_GROUP_SEARCH_H_
#define NIBBLE_QUANTIZE_GROUP_SEARCH_H_

#include "quantize/bands.h"
#include "quantize/lanes.h"

namespace nibble {

/// What a group stores: w is near q * scale, (q - zero) * scale or q * scale + shift.
struct GroupChoice {
  float scale = 1;   ///< as decoded, the tensor scale included
  float zero = 0;    ///< kInteger, kFloatCode
  float shift = 0;   ///< kAdditive
  int32_t lane = 0;  ///< of the candidate; for table scales it becomes the byte
  float error = 0;
  Trouble trouble = Trouble::kNone;
};

// Tables of the candidates. Internal to each file: an inline variable would be a shared symbol.
alignas(64) constexpr int32_t kLaneNumbers[kCandidates] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                           8, 9, 10, 11, 12, 13, 14, 15};
/// Scales of the last round, in steps of the grid.
alignas(64) constexpr float kFineScales[kCandidates] = {
    -1, -.875, -.75, -.625, -.5, -.375, -.25, -.125, 0, .125, .25, .375, .5, .625, .75, .875};
/// Scales and moves of a float zero, in steps of the grid and in codes.
alignas(64) constexpr float kMovedScales[kCandidates] = {-.5, -.5, -.5, -.5, -.5, 0,  0,  0,
                                                         0,   0,   .5,  .5,  .5,  .5, .5, 0};
alignas(64) constexpr float kZeroMoves[kCandidates] = {-.5, -.25, 0,   .25,  .5, -.5, -.25, 0,
                                                       .25, .5,   -.5, -.25, 0,  .25, .5,   0};
alignas(64) constexpr float kNoMoves[kCandidates] = {};
/// Lanes whose zero follows from the least value; -1: none.
constexpr int kNoPlainLane[2] = {-1, -1}, kOnePlainLane[2] = {0, -1}, kTwoPlainLanes[2] = {0, 1};

struct GroupRange {
  float amax = 0;
  float min = 0, max = 0;  ///< read by formats with a zero only
};

struct Candidates {
  alignas(64) float scale[kCandidates];
  alignas(64) float zero[kCandidates];
  alignas(64) float shift[kCandidates];
};

template <int W, CodeKind kKind>
struct GroupSearch {
  using L = Lanes<W>;
  using F = typename L::F;
  using I = typename L::I;
  static constexpr bool kHasZero = kKind == CodeKind::kZeroInteger;
  static constexpr uint32_t kAllLanes = 0xFFFF;

  const TensorRules& rules;

  NIBBLE_LANES_INLINE bool has_table() const {
    return rules.scale == DType::kE4M3 || rules.scale == DType::kE8M0;
  }
  NIBBLE_LANES_INLINE bool has_float_zero() const {
    return rules.zero == ZeroKind::kFloatCode || rules.zero == ZeroKind::kAdditive;
  }

  // ---- elements

  /// y - the nearest element. E2M1 is symmetric: its y is a magnitude.
  NIBBLE_LANES_INLINE F distance(const F& y) const {
    if constexpr (kKind == CodeKind::kNf4 && kHasLookup<W>) {
      // A bin holds one threshold at most, so one comparison decides between two quantiles.
      const I bin = (I)rounded_sum<W>(y * 16.0f, -16, 15) - (kRoundToIntegerBits - 16);
      const F below = lookup<W>(rules.nf4_below, bin), above = lookup<W>(rules.nf4_above, bin);
      return y - (y > lookup<W>(rules.nf4_split, bin) ? above : below);
    } else if constexpr (kKind == CodeKind::kNf4) {
      F q = L::splat(rules.nf4[0]);
      for (int i = 0; i < 15; ++i) {
        q = y > L::splat(rules.nf4_threshold[i]) ? L::splat(rules.nf4[i + 1]) : q;
      }
      return y - q;
    } else if constexpr (kKind == CodeKind::kE2M1) {
      return y - round_to_e2m1<W>(y);
    } else {
      return y - (rounded_sum<W>(y, rules.code_min, rules.code_max) - kRoundToInteger);
    }
  }

  /// The code of the nearest element, in the low bits.
  NIBBLE_LANES_INLINE I code_of(const F& y) const {
    if constexpr (kKind == CodeKind::kNf4) {
      I code{};
      for (int i = 0; i < 15; ++i) code -= y > L::splat(rules.nf4_threshold[i]);  // true is -1
      return code;
    } else if constexpr (kKind == CodeKind::kE2M1) {
      const I sign = ((I)y >> 28) & 8;
      const F a = (F)((I)y & 0x7FFFFFFF);
      // A tie goes to the even code: up from 0.75, 1.75 and 3.5, down from the others.
      return sign - ((a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) +
                     (a >= 3.5f) + (a > 5.0f));
    } else {
      return (I)rounded_sum<W>(y, rules.code_min, rules.code_max);
    }
  }

  NIBBLE_LANES_INLINE static F quotient(const F& w, const F& scale, const F& zero, const F& shift) {
    if constexpr (kHasZero) return (w - shift) / scale + zero;
    return w / scale;
  }

  // ---- errors

  /// sum (y - q)^2 for the W candidates from `lane` on: in f32 over kErrorRun weights, then in f64.
  NIBBLE_LANES_INLINE F squared_distance(const float* w, int64_t count, const Candidates& c,
                                         int lane) const {
    const F scale = L::load(c.scale + lane);
    const F zero = kHasZero ? L::load(c.zero + lane) : F{};
    const F shift = kHasZero ? L::load(c.shift + lane) : F{};
    F sum{};
    double total[W] = {};
    for (int64_t begin = 0; begin < count; begin += kErrorRun) {
      const int64_t end = begin + kErrorRun < count ? begin + kErrorRun : count;
      sum = F{};
      for (int64_t i = begin; i < end; ++i) {
        const float weight = kKind == CodeKind::kE2M1 ? __builtin_fabsf(w[i]) : w[i];
        const F d = distance(quotient(L::splat(weight), scale, zero, shift));
        sum += d * d;
      }
      if (count > kErrorRun) {
        for (int i = 0; i < W; ++i) total[i] += static_cast<double>(sum[i]);
      }
    }
    if (count > kErrorRun) {
      for (int i = 0; i < W; ++i) sum[i] = static_cast<float>(total[i]);
    }
    return sum;
  }

  /// Replaces `best` by the candidate of `lanes` with the smallest error, if that is strictly
  /// smaller. Of equal candidates `first` wins, then the lowest lane. Errors are in units of
  /// `plain`, a scale that is near all candidates, so nothing underflows.
  NIBBLE_LANES_INLINE void compete(const float* w, int64_t count, const Candidates& c, float plain,
                                   uint32_t lanes, int first, GroupChoice& best) const {
    F error[kCandidates / W];
    F smallest = L::splat(__builtin_inff());
    for (int j = 0; j < kCandidates / W; ++j) {
      const F ratio = L::load(c.scale + W * j) / L::splat(plain);
      error[j] = squared_distance(w, count, c, W * j) * (ratio * ratio);
      if (lanes != kAllLanes) {
        for (int i = 0; i < W; ++i) {
          if ((lanes >> (W * j + i) & 1) == 0) error[j][i] = __builtin_inff();
        }
      }
      smallest = L::min(smallest, error[j]);
    }
    const float least = smallest_lane<float, W>(&smallest);
    if (!(least < best.error)) return;
    I place = I{} + kCandidates;
    for (int j = 0; j < kCandidates / W; ++j) {
      const I number = L::load(kLaneNumbers + W * j);
      const I rank = number == first ? I{} - 1 : number;
      const I here = error[j] == L::splat(least) ? rank : I{} + kCandidates;
      place = here < place ? here : place;
    }
    const int lane = smallest_lane<int32_t, W>(&place);
    best.error = least;
    take(c, lane < 0 ? first : lane, best);
  }

  NIBBLE_LANES_INLINE static void take(const Candidates& c, int lane, GroupChoice& best) {
    best.scale = c.scale[lane];
    if constexpr (kHasZero) {
      best.zero = c.zero[lane];
      best.shift = c.shift[lane];
    }
    best.lane = lane;
  }

  // ---- zeros

  /// The value in the middle of the codes.
  NIBBLE_LANES_INLINE float center_of(const GroupChoice& choice) const {
    const float half = 0.5f * static_cast<float>(rules.code_max);
    if (rules.zero == ZeroKind::kAdditive) return choice.shift + half * choice.scale;
    return (half - choice.zero) * choice.scale;
  }

  /// Zeros for candidate scales that put `center` in the middle of the codes, moved by `offset`
  /// codes; in the lanes `plain[0]` and `plain[1]` (-1: none) the least value has code 0 instead.
  NIBBLE_LANES_INLINE void place_zeros(float center, const float* offset, const float* least,
                                       const int* plain, Candidates& c) const {
    const float half = 0.5f * static_cast<float>(rules.code_max);
    const bool additive = rules.zero == ZeroKind::kAdditive;
    for (int lane = 0; lane < kCandidates; lane += W) {
      const F s = L::load(c.scale + lane);
      const F codes = L::load(offset + lane) + half;
      const I number = L::load(kLaneNumbers + lane);
      F v = additive ? center - codes * s : codes - center / s;
      for (int i = 0; i < 2; ++i) {
        const F placed = additive ? L::splat(least[i]) : L::splat(0.0f - least[i]) / s;
        v = number == plain[i] ? placed : v;
      }
      if (rules.zero == ZeroKind::kInteger) {
        v = rounded_sum<W>(v, 0, rules.code_max) - kRoundToInteger;
      } else {
        v = round_to_dtype<W>(v, rules.scale) + 0.0f;  // never -0
      }
      L::store(c.zero + lane, additive ? F{} : v);
      L::store(c.shift + lane, additive ? v : F{});
    }
  }

  // ---- scales stored in f32, f16 or bf16

  /// scale[i] = base + step * number[i], but `second` in lane 1 where there is one, stored.
  NIBBLE_LANES_INLINE void place_scales(float base, float step, const float* number,
                                        const float* second, Candidates& c) const {
    const float least = smallest_positive(rules.scale);
    for (int lane = 0; lane < kCandidates; lane += W) {
      F v = base + step * L::load(number + lane);
      if (second != nullptr) v = L::load(kLaneNumbers + lane) == 1 ? L::splat(*second) : v;
      L::store(c.scale + lane, L::max(round_to_dtype<W>(v, rules.scale), L::splat(least)));
    }
  }

  NIBBLE_LANES_INLINE GroupChoice choose_float(const float* w, int64_t count,
                                               const GroupRange& range) const {
    GroupChoice best;
    Candidates c;
    // Two plain ranges: of the values, and with 0 among them.
    float least[2] = {range.min, range.min < 0 ? range.min : 0};
    float most[2] = {range.max, range.max > 0 ? range.max : 0};
    float plain, second, center = 0;
    bool has_second = true;
    if constexpr (kHasZero) {
      if (!has_float_zero() || range.min == range.max) {
        least[0] = least[1];
        most[0] = most[1];
      }
      center = 0.5f * least[0] + 0.5f * most[0];
      plain = width_over_codes(least[0], most[0]);
      second = width_over_codes(least[1], most[1]);
      has_second = has_float_zero();
    } else {
      plain = range.amax / rules.divisor;
      has_second = rules.second_divisor != 0;
      second = has_second ? range.amax / rules.second_divisor : plain;
    }
    if (rules.scale == DType::kF16) best.trouble = f16_overflow(plain, second, least[1]);
    if (best.trouble != Trouble::kNone) return best;

    place_scales(0, plain, rules.grid, has_second ? &second : nullptr, c);
    if constexpr (kHasZero) {
      place_zeros(center, kNoMoves, least, has_second ? kTwoPlainLanes : kOnePlainLane, c);
    }
    take(c, 0, best);
    if (!rules.search && !has_second) return best;
    best.error = __builtin_inff();
    const float unit = best.scale;
    compete(w, count, c, unit, rules.search ? kAllLanes : 3, 0, best);
    if (!rules.search) return best;

    const float step = plain * rules.grid_step;
    if (kHasZero && has_float_zero()) {
      place_scales(best.scale, step, kMovedScales, nullptr, c);
      place_zeros(center_of(best), kZeroMoves, least, kNoPlainLane, c);
      compete(w, count, c, unit, kAllLanes, 0, best);
      center = center_of(best);
    }
    place_scales(best.scale, step, kFineScales, nullptr, c);
    if constexpr (kHasZero) place_zeros(center, kNoMoves, least, kNoPlainLane, c);
    compete(w, count, c, unit, kAllLanes, 0, best);
    return best;
  }

  /// In f64, because the width of a range may pass f32's end.
  NIBBLE_LANES_INLINE float width_over_codes(float min, float max) const {
    const double width = static_cast<double>(max) - static_cast<double>(min);
    return static_cast<float>(width / static_cast<double>(rules.divisor));
  }

  NIBBLE_LANES_INLINE Trouble f16_overflow(float plain, float second, float least) const {
    constexpr float kRoundsToInfinity = 65520.0f;
    if ((kHasZero ? second : plain) >= kRoundsToInfinity) return Trouble::kScaleOverflow;
    if (rules.zero == ZeroKind::kAdditive && -least >= kRoundsToInfinity) {
      return Trouble::kZeroOverflow;
    }
    return Trouble::kNone;
  }

  // ---- scales stored in e4m3 or e8m0

  /// E4M3 byte of 2^-9 <= x <= 448, to nearest, ties to even.
  NIBBLE_LANES_INLINE static int32_t e4m3_byte(float x) {
    if (x < 0x1p-6f) {  // subnormal: multiples of 2^-9
      return static_cast<int32_t>(bits_of(x * 512.0f + kRoundToInteger)) - kRoundToIntegerBits;
    }
    const auto bits = static_cast<int32_t>(bits_of(x));
    return ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
  }

  /// E8M0 byte of the smallest power of two that is not below x.
  NIBBLE_LANES_INLINE static int32_t e8m0_byte_above(float x) {
    const auto bits = static_cast<int32_t>(bits_of(x));
    if (bits < 0x00800000) return bits > 0x00400000 ? 1 : 0;
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0 ? 1 : 0);
  }

  NIBBLE_LANES_INLINE int32_t limited(int32_t byte) const {
    const int32_t above = byte > rules.first_byte ? byte : rules.first_byte;
    return above < rules.last_byte ? above : rules.last_byte;
  }

  NIBBLE_LANES_INLINE int32_t plain_byte(float ideal) const {
    if (rules.scale == DType::kE8M0) return limited(e8m0_byte_above(ideal));
    const float s = rules.tensor_scale_op == TensorScaleOp::kDivide ? ideal * rules.tensor_scale
                                                                    : ideal / rules.tensor_scale;
    return limited(e4m3_byte(s < 0x1p-9f ? 0x1p-9f : s > 448.0f ? 448.0f : s));
  }

  NIBBLE_LANES_INLINE GroupChoice choose_from_table(const float* w, int64_t count,
                                                    const GroupRange& range) const {
    int32_t plain, second;
    const float least[2] = {range.min < 0 ? range.min : 0, 0};
    const float most = range.max > 0 ? range.max : 0;
    bool search = rules.search;
    bool has_second = !kHasZero && rules.second_divisor != 0;
    if (kKind == CodeKind::kE2M1 && rules.scale == DType::kE8M0) {
      const auto bits = static_cast<int32_t>(bits_of(range.amax));
      plain = (bits >> 23) - 2 + ((bits & 0x7FFFFF) >= rules.round_up_from ? 1 : 0);
      plain = bits < 0x00800000 ? 0 : limited(plain);  // a subnormal amax: the least exponent
      second = limited(plain + 1);
      has_second = rules.next_exponent_competes;
      search = search && has_second;
    } else if constexpr (kHasZero) {
      plain = second = plain_byte(width_over_codes(least[0], most));
    } else {
      plain = second = plain_byte(range.amax / rules.divisor);
      if (has_second) second = plain_byte(range.amax / rules.second_divisor);
    }

    const int32_t last_start = rules.last_byte - (kCandidates - 1);
    int32_t start = plain - rules.bytes_below;
    if (start > last_start) start = last_start;
    if (start < rules.first_byte) start = rules.first_byte;
    const int lane = plain - start;
    GroupChoice best;
    Candidates c;
    for (int i = 0; i < kCandidates; i += W)
      L::store(c.scale + i, L::load(rules.table + start + i));
    if constexpr (kHasZero) {
      const int plain_lanes[2] = {lane, -1};
      place_zeros(0.5f * least[0] + 0.5f * most, kNoMoves, least, plain_lanes, c);
    }
    take(c, lane, best);
    if (search || has_second) {
      best.error = __builtin_inff();
      const uint32_t plain_lanes = 1u << lane | 1u << (second - start);
      compete(w, count, c, best.scale, search ? kAllLanes : plain_lanes, lane, best);
    }
    best.lane += start;
    return best;
  }

  // ---- one group

  NIBBLE_LANES_INLINE GroupRange range_of(const float* w, int64_t count) const {
    I negated{};  // of the largest magnitude, as the bits of a float
    F low = L::splat(w[0]), high = low;
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      const F v = L::load(w + i);
      const I opposite = -((I)v & 0x7FFFFFFF);
      negated = opposite < negated ? opposite : negated;
      if constexpr (kHasZero) {
        low = L::min(low, v);
        high = L::max(high, v);
      }
    }
    GroupRange range;
    range.amax = float_of(static_cast<uint32_t>(-smallest_lane<int32_t, W>(&negated)));
    if constexpr (kHasZero) {
      const F opposite = -high;
      range.min = smallest_lane<float, W>(&low);
      range.max = -smallest_lane<float, W>(&opposite);
    }
    for (; i < count; ++i) {
      const float magnitude = __builtin_fabsf(w[i]);
      range.amax = magnitude > range.amax ? magnitude : range.amax;
      range.min = w[i] < range.min ? w[i] : range.min;
      range.max = w[i] > range.max ? w[i] : range.max;
    }
    range.min += 0.0f;  // which of -0 and 0 came first depends on the vector's width
    range.max += 0.0f;
    return range;
  }

  NIBBLE_LANES_INLINE GroupChoice choose(const float* w, int64_t count,
                                         const GroupRange& range) const {
    return has_table() ? choose_from_table(w, count, range) : choose_float(w, count, range);
  }

  /// Codes of `count` weights, low bits first. `w` is readable up to a multiple of W.
  NIBBLE_LANES_INLINE void write_codes(const float* w, int64_t count, const GroupChoice& choice,
                                       uint8_t* to) const {
    const F scale = L::splat(choice.scale);
    const F zero = L::splat(choice.zero), shift = L::splat(choice.shift);
    for (int64_t i = 0; i < count; i += W) {
      const I codes = code_of(quotient(L::load(w + i), scale, zero, shift));
      uint8_t* out = to + i * rules.bits / 8;
      if (i + W <= count) {
        rules.bits == 4 ? store_nibbles<W>(out, codes) : store_bytes<W>(out, codes);
        continue;
      }
      const int64_t here = count - i;
      uint8_t bytes[W];
      rules.bits == 4 ? store_nibbles<W>(bytes, codes) : store_bytes<W>(bytes, codes);
      if (rules.bits == 4 && here % 2 != 0) bytes[here / 2] &= 15;
      __builtin_memcpy(out, bytes, static_cast<uint64_t>((here * rules.bits + 7) / 8));
    }
  }

  /// A group of zeros: scale 1, codes that decode to 0.
  NIBBLE_LANES_INLINE void write_zero_group(int64_t count, uint8_t* to) const {
    const int64_t bytes = (count * rules.bits + 7) / 8;
    constexpr uint8_t kZeroByte = kKind == CodeKind::kNf4 ? 0x77 : 0;
    __builtin_memset(to, kZeroByte, static_cast<uint64_t>(bytes));
    if (kKind == CodeKind::kNf4 && count % 2 != 0) to[bytes - 1] = 7;
  }
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_GROUP_SEARCH_H_
