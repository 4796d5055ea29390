// The rules of quantize in scalar form, written for reading, with core's conversions and one
// candidate at a time; and the tests that quantize equals it bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "quantize/quantize_with.h"

namespace nibble {
namespace {

// ---------------------------------------------------------------------- the rules, one at a time

struct Candidate {
  float scale = 0;  // effective: as stored, times the tensor scale
  uint8_t byte = 0;
  float zero = 0, shift = 0;
};

struct Spec {
  Format format;
  QuantizeOptions options;
  float tensor_scale = 1;

  float code_max() const {
    switch (format.element) {
      case Element::kInt4:
        return 7;
      case Element::kUint4:
        return 15;
      case Element::kInt8:
        return 127;
      case Element::kUint8:
        return 255;
      case Element::kE2M1:
        return 6;
      case Element::kNF4:
        return 1;
    }
    return 0;
  }
  bool is_signed_integer() const {
    return format.element == Element::kInt4 || format.element == Element::kInt8;
  }
  bool has_zero() const { return format.zero != ZeroKind::kNone; }
  bool has_float_zero() const { return has_zero() && format.zero != ZeroKind::kInteger; }
  bool has_table() const { return dtype_bytes(format.scale) == 1; }
  bool mse() const { return options.scales == ScaleRule::kMse; }

  // -- elements

  float nearest(float y) const {
    switch (format.element) {
      case Element::kInt4:
        return std::nearbyint(std::clamp(y, -8.0f, 7.0f));
      case Element::kInt8:
        return std::nearbyint(std::clamp(y, -128.0f, 127.0f));
      case Element::kUint4:
      case Element::kUint8:
        return std::nearbyint(std::clamp(y, 0.0f, code_max()));
      case Element::kE2M1:
        return e2m1_to_f32(f32_to_e2m1(y));
      case Element::kNF4:
        return kNf4Codebook[nf4_code(y)];
    }
    return 0;
  }
  static uint8_t nf4_code(float y) {
    uint8_t code = 0;
    while (code < 15 && y > 0.5f * kNf4Codebook[code] + 0.5f * kNf4Codebook[code + 1u]) ++code;
    return code;
  }
  uint8_t code(float y) const {
    switch (format.element) {
      case Element::kInt4:
        return static_cast<uint8_t>(static_cast<int>(nearest(y)) & 15);
      case Element::kInt8:
        return static_cast<uint8_t>(static_cast<int>(nearest(y)) & 255);
      case Element::kUint4:
      case Element::kUint8:
        return static_cast<uint8_t>(nearest(y));
      case Element::kE2M1:
        return f32_to_e2m1(y);
      case Element::kNF4:
        return nf4_code(y);
    }
    return 0;
  }
  float quotient(float w, const Candidate& c) const {
    if (!has_zero()) return w / c.scale;
    const float moved = w - c.shift;
    const float codes = moved / c.scale;
    return codes + c.zero;
  }

  // -- storage

  bool divides() const { return options.tensor_scale_op == TensorScaleOp::kDivide; }
  float stored(float value, bool is_scale) const {
    uint8_t bytes[4];
    store_from_f32(bytes, format.scale, 0, value);
    float result = load_as_f32(bytes, format.scale, 0) + 0.0f;  // -0 becomes 0
    const float largest = format.scale == DType::kF16    ? 65504.0f
                          : format.scale == DType::kBF16 ? bf16_to_f32(0x7F7F)
                                                         : std::numeric_limits<float>::max();
    result = std::clamp(result, -largest, largest);
    const float smallest = format.scale == DType::kF16 ? f16_to_f32(1)
                           : format.scale == DType::kBF16
                               ? bf16_to_f32(1)
                               : std::numeric_limits<float>::denorm_min();
    return is_scale && result == 0 ? smallest : result;
  }
  float table(int byte) const {
    const float scale =
        load_as_f32(std::vector<uint8_t>{static_cast<uint8_t>(byte)}.data(), format.scale, 0);
    return divides() ? scale / tensor_scale : scale * tensor_scale;
  }

  // -- errors

  float error(const float* w, int64_t count, const Candidate& c, float unit) const {
    double total = 0;
    float run = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float y = quotient(w[i], c);
      const float d = y - nearest(y);
      run += d * d;
      if (i % 128 == 127 || i == count - 1) {
        total += static_cast<double>(run);
        run = 0;
      }
    }
    const float ratio = c.scale / unit;
    return static_cast<float>(total) * (ratio * ratio);
  }
  /// Of `best` (with its error) and the candidates, the smallest error; the earlier of equals.
  void compete(const float* w, int64_t count, const std::vector<Candidate>& candidates, float unit,
               Candidate& best, float& best_error) const {
    for (const Candidate& c : candidates) {
      const float e = error(w, count, c, unit);
      if (e < best_error) {
        best = c;
        best_error = e;
      }
    }
  }

  // -- one group

  Candidate choose(const float* w, int64_t count) const {
    const auto [low, high] = std::minmax_element(w, w + count);
    return has_table() ? choose_from_table(w, count, *low, *high)
                       : choose_float(w, count, *low + 0.0f, *high + 0.0f);
  }

  float width(float low, float high) const {
    return static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) /
                              static_cast<double>(code_max()));
  }

  struct Span {
    float low, high;
  };
  Span span() const {
    const bool row = format.group == 0;
    switch (format.element) {
      case Element::kInt4:
        return row ? Span{0.15f, 1.05f} : Span{0.68f, 1.20f};
      case Element::kUint4:
        return row ? Span{0.20f, 1.05f} : Span{0.66f, 1.15f};
      case Element::kInt8:
      case Element::kUint8:
        return row ? Span{0.40f, 1.02f} : Span{0.94f, 1.20f};
      case Element::kE2M1:
        return row ? Span{0.30f, 1.10f} : Span{0.78f, 1.65f};
      case Element::kNF4:
        return row ? Span{0.30f, 1.10f} : Span{0.82f, 1.60f};
    }
    return {};
  }

  /// The zero that puts `center` in the middle of the codes, `move` codes up.
  void center_zero(Candidate& c, float center, float move) const {
    const float codes = move + 0.5f * code_max();
    if (format.zero == ZeroKind::kAdditive) c.shift = stored(center - codes * c.scale, false);
    if (format.zero == ZeroKind::kFloatCode) c.zero = stored(codes - center / c.scale, false);
    if (format.zero == ZeroKind::kInteger) {
      c.zero = std::nearbyint(std::clamp(codes - center / c.scale, 0.0f, code_max()));
    }
  }
  /// The zero that gives the least value the code 0.
  void plain_zero(Candidate& c, float least) const {
    if (format.zero == ZeroKind::kAdditive) c.shift = stored(least, false);
    if (format.zero == ZeroKind::kFloatCode) c.zero = stored((0.0f - least) / c.scale, false);
    if (format.zero == ZeroKind::kInteger) {
      c.zero = std::nearbyint(std::clamp((0.0f - least) / c.scale, 0.0f, code_max()));
    }
  }
  float center_of(const Candidate& c) const {
    const float half = 0.5f * code_max();
    if (format.zero == ZeroKind::kAdditive) return c.shift + half * c.scale;
    return (half - c.zero) * c.scale;
  }

  Candidate choose_float(const float* w, int64_t count, float low, float high) const {
    const float amax = std::max(std::fabs(low), std::fabs(high));
    const float low0 = std::min(low, 0.0f), high0 = std::max(high, 0.0f);
    std::vector<Candidate> plain;
    float ideal, center = 0;
    if (!has_zero()) {
      ideal = amax / code_max();
      plain.push_back({.scale = stored(ideal, true)});
      if (is_signed_integer()) plain.push_back({.scale = stored(amax / (code_max() + 1), true)});
    } else {
      const bool with_zero = !has_float_zero() || low == high;
      const float first_low = with_zero ? low0 : low, first_high = with_zero ? high0 : high;
      ideal = width(first_low, first_high);
      center = 0.5f * first_low + 0.5f * first_high;
      plain.push_back({.scale = stored(ideal, true)});
      plain_zero(plain[0], first_low);
      if (has_float_zero()) {
        plain.push_back({.scale = stored(width(low0, high0), true)});
        plain_zero(plain[1], low0);
      }
    }
    Candidate best = plain[0];
    if (!mse() && plain.size() == 1) return best;
    float best_error = std::numeric_limits<float>::infinity();
    const float unit = best.scale;
    compete(w, count, plain, unit, best, best_error);
    if (!mse()) return best;

    const float step = (span().high - span().low) / 13;
    std::vector<Candidate> round;
    for (int i = 0; i < 14; ++i) {
      round.push_back({.scale = stored(ideal * (span().low + step * static_cast<float>(i)), true)});
      if (has_zero()) center_zero(round.back(), center, 0);
    }
    compete(w, count, round, unit, best, best_error);

    const float scale_step = ideal * step;
    if (has_float_zero()) {
      const Candidate from = best;
      round.clear();
      for (const float by : {-0.5f, 0.0f, 0.5f}) {
        for (const float move : {-0.5f, -0.25f, 0.0f, 0.25f, 0.5f}) {
          round.push_back({.scale = stored(from.scale + scale_step * by, true)});
          center_zero(round.back(), center_of(from), move);
        }
      }
      compete(w, count, round, unit, best, best_error);
      center = center_of(best);
    }
    const Candidate from = best;
    round.clear();
    for (int i = -8; i < 8; ++i) {
      const float by = 0.125f * static_cast<float>(i);
      round.push_back({.scale = stored(from.scale + scale_step * by, true)});
      if (has_zero()) center_zero(round.back(), center, 0);
    }
    compete(w, count, round, unit, best, best_error);
    return best;
  }

  int first_byte() const {
    if (format.scale == DType::kE8M0) return 0;
    int byte = 1;
    while (table(byte) == 0) ++byte;
    return byte;
  }
  int last_byte() const { return format.scale == DType::kE8M0 ? 254 : 126; }
  int limited(int byte) const { return std::clamp(byte, first_byte(), last_byte()); }

  int plain_byte(float ideal) const {
    if (format.scale == DType::kE8M0) {
      int byte = 0;
      while (byte < 254 && e8m0_to_f32(static_cast<uint8_t>(byte)) < ideal) ++byte;
      return byte;
    }
    const float s = divides() ? ideal * tensor_scale : ideal / tensor_scale;
    return limited(f32_to_e4m3(std::clamp(s, 0x1p-9f, 448.0f)));
  }

  Candidate choose_from_table(const float* w, int64_t count, float low, float high) const {
    const float amax = std::max(std::fabs(low), std::fabs(high));
    const float low0 = std::min(low, 0.0f), high0 = std::max(high, 0.0f);
    int plain, second = -1;
    bool search = mse();
    if (format.element == Element::kE2M1 && format.scale == DType::kE8M0) {
      const int floor_log2 = std::ilogb(amax);
      const double mantissa = std::ldexp(static_cast<double>(amax), -floor_log2);
      plain = floor_log2 - 2;
      if (options.mxfp == MxfpRule::kModelOpt && mantissa > 1.5) ++plain;
      if (options.mxfp == MxfpRule::kCompressedTensors && mantissa >= 1.75) ++plain;
      plain = limited(plain + 127);
      if (options.mxfp == MxfpRule::kSmallestError) {
        second = limited(plain + 1);
      } else {
        search = false;
      }
    } else if (has_zero()) {
      plain = plain_byte(width(low0, high0));
    } else {
      plain = plain_byte(amax / code_max());
      if (is_signed_integer()) second = plain_byte(amax / (code_max() + 1));
    }
    const auto candidate = [&](int byte) {
      Candidate c{.scale = table(byte), .byte = static_cast<uint8_t>(byte)};
      if (has_zero() && byte == plain) plain_zero(c, low0);
      if (has_zero() && byte != plain) center_zero(c, 0.5f * low0 + 0.5f * high0, 0);
      return c;
    };
    Candidate best = candidate(plain);
    const float unit = best.scale;
    float best_error = std::numeric_limits<float>::infinity();
    compete(w, count, {best}, unit, best, best_error);
    std::vector<Candidate> round;
    if (search) {
      const int below = format.scale == DType::kE8M0 ? 8 : format.group == 0 ? 12 : 7;
      const int start = std::max(first_byte(), std::min(plain - below, last_byte() - 15));
      for (int byte = start; byte < start + 16; ++byte) round.push_back(candidate(byte));
    } else if (second >= 0) {
      round.push_back(candidate(second));
    }
    compete(w, count, round, unit, best, best_error);
    return best;
  }
};

/// `w` [n, k], finite, with scales that fit their dtype.
QuantizedTensor quantize_by_specification(const std::vector<float>& w, int64_t n, int64_t k,
                                          const Format& format, const QuantizeOptions& options) {
  QuantizedTensor q = std::move(make_quantized_tensor(format, n, k)).value();
  Spec spec{format, options};
  if (format.scale == DType::kE4M3) {
    float amax = 0, low = 0, high = 0;
    for (const float value : w) {
      amax = std::max(amax, std::fabs(value));
      low = std::min(low, value);
      high = std::max(high, value);
    }
    const float divisor = spec.code_max() * 448.0f;
    float t = amax / divisor;
    if (spec.has_zero()) {
      t = static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) /
                             static_cast<double>(divisor));
    }
    if (t == 0) t = amax == 0 ? 1.0f : std::numeric_limits<float>::denorm_min();
    if (spec.divides()) {
      const double width = static_cast<double>(high) - static_cast<double>(low);
      t = spec.has_zero() ? static_cast<float>(static_cast<double>(divisor) / width)
                          : divisor / amax;
      t = amax == 0 ? 1.0f : std::min(t, std::numeric_limits<float>::max());
    }
    spec.tensor_scale = t;
    q.tensor_scales = {{0, t}};
    q.tensor_scale_op = options.tensor_scale_op;
  }
  const int64_t groups = format.groups(k), columns = format.group_columns(k);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * columns, end = std::min(k, begin + columns);
      const float* from = w.data() + row * k + begin;
      const bool all_zero = std::all_of(from, from + (end - begin), [](float x) { return x == 0; });
      Candidate c{.scale = 1,
                  .byte = static_cast<uint8_t>(format.scale == DType::kE4M3 ? 0x38 : 127)};
      if (!all_zero) c = spec.choose(from, end - begin);
      const int64_t index = row * groups + g;
      if (spec.has_table()) {
        q.scales.mutable_data()[index] = c.byte;
      } else {
        store_from_f32(q.scales.mutable_data(), format.scale, index, c.scale);
      }
      if (format.zero == ZeroKind::kInteger) {
        q.zeros.mutable_data()[index] = static_cast<uint8_t>(c.zero);
      } else if (spec.has_zero()) {
        store_from_f32(q.zeros.mutable_data(), format.scale, index,
                       format.zero == ZeroKind::kAdditive ? c.shift : c.zero);
      }
      for (int64_t j = begin; j < end; ++j) {
        uint8_t code = spec.code(spec.quotient(from[j - begin], c));
        if (all_zero) code = format.element == Element::kNF4 ? 7 : 0;
        uint8_t* line = q.codes.mutable_data() + row * format.code_row_bytes(k);
        if (format.bits() == 8) {
          line[j] = code;
        } else {
          line[j / 2] = static_cast<uint8_t>(line[j / 2] | code << (4 * (j & 1)));
        }
      }
    }
  }
  return q;
}

// ------------------------------------------------------------------------------------- the data

std::vector<Format> every_format() {
  std::vector<Format> formats;
  for (const Element element : {Element::kInt4, Element::kUint4, Element::kInt8, Element::kUint8,
                                Element::kE2M1, Element::kNF4}) {
    for (const int32_t group : {16, 32, 64, 128, 0}) {
      for (const DType scale :
           {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0}) {
        for (const ZeroKind zero :
             {ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode, ZeroKind::kAdditive}) {
          const Format format{element, group, scale, zero};
          if (format.validate().ok()) formats.push_back(format);
        }
      }
    }
  }
  return formats;
}

struct Weights {
  const char* name;
  int64_t n, k;
  std::vector<float> w;
};

std::vector<Weights> every_kind_of_weights() {
  std::mt19937 random(7);
  std::normal_distribution<float> gauss;
  std::student_t_distribution<float> heavy(3);
  std::vector<Weights> all;
  const auto add = [&](const char* name, int64_t n, int64_t k, auto&& value) {
    Weights weights{name, n, k, {}};
    for (int64_t i = 0; i < n * k; ++i) weights.w.push_back(value(i));
    all.push_back(std::move(weights));
  };
  add("gauss, last group short", 3, 300, [&](int64_t) { return 0.02f * gauss(random); });
  add("heavy tails, odd k", 2, 271, [&](int64_t) { return heavy(random); });
  add("one weight", 1, 1, [&](int64_t) { return -0.3f; });
  add("one row of all positive", 1, 165, [&](int64_t) { return 1 + std::fabs(gauss(random)); });
  add("all negative, far from zero", 2, 96, [&](int64_t) { return -7 + 0.01f * gauss(random); });
  add("groups of zeros and of negative zeros", 2, 192, [&](int64_t i) {
    return i / 16 % 3 == 0 ? 0.0f : i / 16 % 3 == 1 ? -0.0f : gauss(random);
  });
  add("mostly zeros", 2, 150, [&](int64_t i) { return i % 11 == 3 ? gauss(random) : -0.0f; });
  add("constant", 1, 140, [&](int64_t) { return 0.7f; });
  add("octaves from group to group", 2, 256,
      [&](int64_t i) { return std::ldexp(gauss(random), static_cast<int>(i / 16 % 16) * 2 - 20); });
  add("huge", 2, 130, [&](int64_t) { return std::clamp(1e38f * heavy(random), -3e38f, 3e38f); });
  add("subnormal", 2, 144, [&](int64_t) { return 0x1p-140f * gauss(random); });
  add("smallest", 1, 80, [&](int64_t i) { return i % 5 == 0 ? 0x1p-149f : -0x1p-149f; });
  add("integers", 2, 256, [&](int64_t) { return static_cast<float>(random() % 15) - 7; });
  add("ties", 2, 256, [&](int64_t) { return 0.25f * (static_cast<float>(random() % 49) - 24); });
  add("a long row", 1, 4303, [&](int64_t) { return heavy(random); });
  return all;
}

void expect_identical(const QuantizedTensor& got, const QuantizedTensor& want,
                      const std::string& what) {
  if (identical(got, want)) return;
  const int64_t groups = want.format.groups(want.k);
  for (int64_t i = 0; i < want.n * groups; ++i) {
    EXPECT_EQ(load_as_f32(got.scales.data(), got.format.scale, i),
              load_as_f32(want.scales.data(), want.format.scale, i))
        << what << ": scale of row " << i / groups << ", group " << i % groups;
    if (testing::Test::HasFailure()) break;
  }
  for (int64_t i = 0; i < want.codes.bytes(); ++i) {
    if (got.codes.data()[i] == want.codes.data()[i]) continue;
    ADD_FAILURE() << what << ": code byte " << i << " is " << int{got.codes.data()[i]} << ", not "
                  << int{want.codes.data()[i]};
    break;
  }
  FAIL() << what << ": differs from the specification";
}

TensorView view(const std::vector<float>& w, int64_t n, int64_t k) {
  return {w.data(), DType::kF32, {n, k}};
}

TEST(QuantizeSpecificationTest, EveryFormatRuleAndInstructionSetHasTheSpecifiedBits) {
  const auto data = every_kind_of_weights();
  for (const Format& format : every_format()) {
    for (const ScaleRule scales : {ScaleRule::kMse, ScaleRule::kAbsmax}) {
      for (const Weights& each : data) {
        if (format.scale == DType::kF16 && each.name == std::string("huge")) continue;
        QuantizeOptions options;
        options.scales = scales;
        const auto want = quantize_by_specification(each.w, each.n, each.k, format, options);
        ASSERT_TRUE(want.validate().ok()) << want.validate().message();
        for (const BandFunctions* functions : usable_band_functions()) {
          const auto got = quantize_with(*functions, view(each.w, each.n, each.k), format, options);
          ASSERT_TRUE(got.ok()) << got.status().message();
          expect_identical(*got, want,
                           format.name() + (scales == ScaleRule::kMse ? ", mse, " : ", absmax, ") +
                               each.name + ", " + isa_name(functions->isa));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(QuantizeSpecificationTest, TensorScalesThatDivideHaveTheSpecifiedBits) {
  const auto data = every_kind_of_weights();
  for (const char* name : {"nvfp4", "fp4-channel:e4m3", "int4-g32:e4m3", "uint4-g16:e4m3"}) {
    const Format format = *Format::parse(name);
    QuantizeOptions options;
    options.tensor_scale_op = TensorScaleOp::kDivide;
    for (const Weights& each : data) {
      const auto want = quantize_by_specification(each.w, each.n, each.k, format, options);
      ASSERT_EQ(want.tensor_scale_op, TensorScaleOp::kDivide);
      for (const BandFunctions* functions : usable_band_functions()) {
        const auto got = quantize_with(*functions, view(each.w, each.n, each.k), format, options);
        ASSERT_TRUE(got.ok()) << got.status().message();
        expect_identical(*got, want, std::string(name) + ", " + each.name);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(QuantizeSpecificationTest, EveryMxfpRuleHasTheSpecifiedBits) {
  const auto data = every_kind_of_weights();
  for (const char* name : {"mxfp4", "fp4-g16:e8m0", "fp4-channel:e8m0"}) {
    const Format format = *Format::parse(name);
    for (const MxfpRule rule : {MxfpRule::kSmallestError, MxfpRule::kOcp, MxfpRule::kModelOpt,
                                MxfpRule::kCompressedTensors}) {
      for (const ScaleRule scales : {ScaleRule::kMse, ScaleRule::kAbsmax}) {
        QuantizeOptions options;
        options.mxfp = rule;
        options.scales = scales;
        for (const Weights& each : data) {
          const auto want = quantize_by_specification(each.w, each.n, each.k, format, options);
          for (const BandFunctions* functions : usable_band_functions()) {
            const auto got =
                quantize_with(*functions, view(each.w, each.n, each.k), format, options);
            ASSERT_TRUE(got.ok());
            expect_identical(*got, want, std::string(name) + ", " + each.name);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// The AVX-512 functions find NF4 codes through bins of quotients, others by comparing with every
// threshold. Weights on and beside every threshold and every edge of a bin, against a scale of 1.
TEST(QuantizeSpecificationTest, Nf4QuotientsAtThresholdsAndBinEdgesHaveTheSpecifiedBits) {
  std::vector<float> points;
  for (size_t i = 0; i + 1 < kNf4Codebook.size(); ++i) {
    points.push_back(0.5f * kNf4Codebook[i] + 0.5f * kNf4Codebook[i + 1]);
  }
  for (int i = -32; i <= 32; ++i) points.push_back(static_cast<float>(i) / 32);
  std::vector<float> w;
  const Format format = *Format::parse("nf4-g16");
  for (const float point : points) {
    w.push_back(1.0f);  // the group's scale
    for (const float x : {std::nextafter(point, -2.0f), point, std::nextafter(point, 2.0f)}) {
      for (int times = 0; times < 5; ++times) w.push_back(std::clamp(x, -1.0f, 1.0f));
    }
  }
  for (const ScaleRule scales : {ScaleRule::kMse, ScaleRule::kAbsmax}) {
    QuantizeOptions options;
    options.scales = scales;
    const auto n = static_cast<int64_t>(points.size());
    const auto want = quantize_by_specification(w, n, 16, format, options);
    for (const BandFunctions* functions : usable_band_functions()) {
      const auto got = quantize_with(*functions, view(w, n, 16), format, options);
      ASSERT_TRUE(got.ok());
      expect_identical(*got, want, isa_name(functions->isa));
    }
  }
}

}  // namespace
}  // namespace nibble
