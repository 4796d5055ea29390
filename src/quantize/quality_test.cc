// How good the codes are: round trips of representable tensors, the search against the plain
// rules group by group, and the figures of docs/quality.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "nibble/quantize.h"

namespace nibble {
namespace {

TensorView view(const std::vector<float>& w, int64_t n, int64_t k) {
  return {w.data(), DType::kF32, {n, k}};
}

QuantizedTensor quantize_ok(const std::vector<float>& w, int64_t n, const Format& format,
                            ScaleRule scales = ScaleRule::kMse) {
  QuantizeOptions options;
  options.scales = scales;
  auto q = quantize(view(w, n, static_cast<int64_t>(w.size()) / n), format, options);
  EXPECT_TRUE(q.ok()) << q.status().message();
  return std::move(q).value();
}

std::vector<Format> formats_with(std::span<const DType> scales) {
  std::vector<Format> formats;
  for (const char* name : named_formats()) {
    for (const DType scale : scales) {
      Format format = *Format::parse(name);
      format.scale = scale;
      if (format.validate().ok()) formats.push_back(format);
    }
  }
  return formats;
}

/// A tensor made of `format`'s own codes and scales, every code in every group where it fits.
QuantizedTensor random_codes(const Format& format, int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  QuantizedTensor q = std::move(make_quantized_tensor(format, n, k)).value();
  const int64_t groups = format.groups(k), columns = format.group_columns(k);
  for (int64_t i = 0; i < n * groups; ++i) {
    const float scale = std::ldexp(1.0f, -static_cast<int>(random() % 4));
    switch (format.scale) {
      case DType::kE4M3:
        q.scales.mutable_data()[i] = f32_to_e4m3(448 * scale);
        break;
      case DType::kE8M0:
        q.scales.mutable_data()[i] = static_cast<uint8_t>(127 + std::ilogb(scale));
        break;
      default:
        store_from_f32(q.scales.mutable_data(), format.scale, i, scale);
    }
    if (format.zero == ZeroKind::kInteger) {
      q.zeros.mutable_data()[i] = static_cast<uint8_t>(random() % (1u << format.bits()));
    }
  }
  if (format.scale == DType::kE4M3) q.tensor_scales = {{0, 1}};
  // The largest code of a group must be there, or a smaller scale would represent it too.
  uint8_t largest = 0, smallest = 0;
  for (int code = 0; code < 1 << format.bits(); ++code) {
    const auto value = [&](int c) {
      return decode_element(format.element, static_cast<uint8_t>(c), kNf4Codebook.data());
    };
    if (value(code) > value(largest)) largest = static_cast<uint8_t>(code);
    if (value(code) < value(smallest)) smallest = static_cast<uint8_t>(code);
  }
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t j = 0; j < k; ++j) {
      auto code = static_cast<uint8_t>(random() % (1u << format.bits()));
      if (j % columns == 0) code = largest;
      if (j % columns == 1) code = smallest;
      // A tensor scale follows from amax and the largest code, so -8 is not representable.
      const bool is_int = format.element == Element::kInt4 || format.element == Element::kInt8;
      if (format.scale == DType::kE4M3 && is_int && code == 1 << (format.bits() - 1)) code = 0;
      uint8_t* line = q.codes.mutable_data() + row * format.code_row_bytes(k);
      if (format.bits() == 8) {
        line[j] = code;
      } else {
        line[j / 2] = static_cast<uint8_t>(line[j / 2] | code << (4 * (j & 1)));
      }
    }
  }
  return q;
}

TEST(QuantizeQualityTest, RepresentableTensorsDecodeExactly) {
  constexpr DType kScales[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0};
  for (const Format& format : formats_with(kScales)) {
    // Its tensor scale follows from the range of all groups, not of one.
    if (format.scale == DType::kE4M3 && format.zero != ZeroKind::kNone) continue;
    for (const int64_t k : {256, 272}) {  // 272: a short last group of 16
      const int64_t n = 6;
      const auto original = random_codes(format, n, k, 3);
      std::vector<float> w(static_cast<size_t>(n * k)), again(w.size());
      original.dequantize(0, n, w.data());
      for (const ScaleRule scales : {ScaleRule::kMse, ScaleRule::kAbsmax}) {
        // The plain power of two is not below amax/7, which an int4 group with a -8 may need.
        if (format.scale == DType::kE8M0 && scales == ScaleRule::kAbsmax) continue;
        quantize_ok(w, n, format, scales).dequantize(0, n, again.data());
        EXPECT_EQ(w, again) << format.name() << (scales == ScaleRule::kMse ? " mse" : " absmax");
      }
    }
  }
}

double group_error(const QuantizedTensor& q, const std::vector<float>& w, int64_t row,
                   int64_t group) {
  const int64_t columns = q.format.group_columns(q.k);
  double error = 0;
  for (int64_t j = group * columns; j < std::min(q.k, (group + 1) * columns); ++j) {
    const double d = static_cast<double>(q.decode(row, j)) -
                     static_cast<double>(w[static_cast<size_t>(row * q.k + j)]);
    error += d * d;
  }
  return error;
}

// Errors are compared in f32: sums over runs of 128 have a relative error below 129 * 2^-24, the
// quotients below 2 * 2^-24 * 256 / 0.3 for eight bits; two such errors are compared.
constexpr double kComparison = 1 + 1e-4;

TEST(QuantizeQualityTest, SearchedScalesAreNeverWorseThanPlainOnesInAnyGroup) {
  std::mt19937 random(17);
  std::student_t_distribution<float> heavy(4);
  const int64_t n = 24, k = 1040;
  std::vector<float> w(static_cast<size_t>(n * k));
  for (float& x : w) x = heavy(random);
  constexpr DType kScales[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0};
  std::vector<Format> formats = formats_with(kScales);
  for (const char* name : {"uint4-g32:zfloat", "uint4-g64:zadd", "uint8-g32"}) {
    formats.push_back(*Format::parse(name));
  }
  for (const Format& format : formats) {
    const auto searched = quantize_ok(w, n, format);
    const auto plain = quantize_ok(w, n, format, ScaleRule::kAbsmax);
    int64_t better = 0;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t g = 0; g < format.groups(k); ++g) {
        const double with_search = group_error(searched, w, row, g);
        const double without = group_error(plain, w, row, g);
        EXPECT_LE(with_search, without * kComparison) << format.name() << " " << row << " " << g;
        if (with_search < without) ++better;
      }
    }
    if (format.scale != DType::kE8M0) {
      EXPECT_GT(better, 0) << format.name();
    }
  }
}

// An exhaustive search over 1000 scales a group, from half to twice the plain one, is at most 2 %
// better; 5 % with int8, whose error falls and rises many times within one step of the grid.
TEST(QuantizeQualityTest, SearchIsNearAnExhaustiveOne) {
  std::mt19937 random(18);
  std::normal_distribution<float> normal;
  const int64_t n = 40, k = 128;
  std::vector<float> w(static_cast<size_t>(n * k));
  for (float& x : w) x = normal(random);
  for (const char* name : {"int4-g32:f32", "int4-g128", "fp4-g32", "nf4-g64", "int8-g32:f32"}) {
    const Format format = *Format::parse(name);
    const int64_t columns = format.group;
    const auto q = quantize_ok(w, n, format);
    double ours = 0, best = 0;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t g = 0; g < k / columns; ++g) {
        ours += group_error(q, w, row, g);
        const float* from = w.data() + row * k + g * columns;
        float amax = 0;
        for (int64_t j = 0; j < columns; ++j) amax = std::max(amax, std::fabs(from[j]));
        double least = INFINITY;
        for (int i = 0; i < 1000; ++i) {
          const auto s = static_cast<double>(amax) * (0.5 + i * 0.0015) /
                         (format.element == Element::kInt4   ? 7
                          : format.element == Element::kInt8 ? 127
                          : format.element == Element::kE2M1 ? 6
                                                             : 1);
          double error = 0;
          for (int64_t j = 0; j < columns && error < least; ++j) {
            const double y = static_cast<double>(from[j]) / s;
            double nearest = INFINITY;
            if (format.element == Element::kInt4) {
              nearest = std::nearbyint(std::clamp(y, -8.0, 7.0));
            } else if (format.element == Element::kInt8) {
              nearest = std::nearbyint(std::clamp(y, -128.0, 127.0));
            } else {
              for (int code = 0; code < 16; ++code) {
                const double value = static_cast<double>(decode_element(
                    format.element, static_cast<uint8_t>(code), kNf4Codebook.data()));
                if (std::fabs(y - value) < std::fabs(y - nearest)) nearest = value;
              }
            }
            error += s * s * (y - nearest) * (y - nearest);
          }
          least = std::min(least, error);
        }
        best += least;
      }
    }
    EXPECT_LT(std::sqrt(ours / best), format.bits() == 8 ? 1.05 : 1.02) << name;
    EXPECT_GT(std::sqrt(ours / best), 0.999) << name;
  }
}

// ---------------------------------------------------------------------------------------- figures

double error_of(const std::vector<float>& w, int64_t n, const char* format, ScaleRule scales,
                MxfpRule rule = MxfpRule::kSmallestError) {
  QuantizeOptions options;
  options.scales = scales;
  options.mxfp = rule;
  const auto v = view(w, n, static_cast<int64_t>(w.size()) / n);
  const auto q = quantize(v, *Format::parse(format), options);
  EXPECT_TRUE(q.ok());
  return *relative_error(*q, v);
}

struct Figure {
  const char* format;
  MxfpRule rule;
  double gauss, heavy;
};

// The published figures for plain scales (int4: amax/7, mxfp4: ceil(log2(amax/6))), on 4096
// columns of Gaussian and of heavy-tailed weights (Student t, 4 degrees of freedom, which
// reproduces all of the second column). The band: a relative error over 64 x 4096 weights has a
// standard deviation of about 0.1 % (Gauss) and 1 % (t: the fourth moment is infinite); figures
// are printed with three digits (0.5 %); int4's plain rule here may also take amax/8, and mxfp4's
// figure depends on where sigma lies between two powers of two (2 %).
TEST(QuantizeQualityTest, PlainScalesHaveThePublishedErrors) {
  const int64_t n = 64, k = 4096;
  std::mt19937 random(31);
  std::normal_distribution<float> normal(0, 0.02f);
  std::student_t_distribution<float> t4(4);
  std::vector<float> gauss(static_cast<size_t>(n * k)), heavy(gauss.size());
  for (float& x : gauss) x = normal(random);
  for (float& x : heavy) x = 0.02f * t4(random);
  for (const Figure& figure : {Figure{"nvfp4", MxfpRule::kSmallestError, .095, .092},
                               {"fp4-g32", MxfpRule::kSmallestError, .102, .104},
                               {"mxfp4", MxfpRule::kModelOpt, .117, .139}}) {
    const double on_gauss = error_of(gauss, n, figure.format, ScaleRule::kAbsmax, figure.rule);
    const double on_heavy = error_of(heavy, n, figure.format, ScaleRule::kAbsmax, figure.rule);
    EXPECT_NEAR(on_gauss, figure.gauss, 0.025 * figure.gauss) << figure.format;
    EXPECT_NEAR(on_heavy, figure.heavy, 0.025 * figure.heavy) << figure.format;
    EXPECT_LT(error_of(gauss, n, figure.format, ScaleRule::kMse), on_gauss) << figure.format;
    EXPECT_LT(error_of(heavy, n, figure.format, ScaleRule::kMse), on_heavy) << figure.format;
  }
  // The published int4 figures are those of amax/7 alone; the better of amax/7 and amax/8 is 7 to
  // 10 % below them, the search 12 to 15 % (docs/quality.md has the table).
  for (const Figure& figure : {Figure{"int4-g128", {}, .117, .192}, {"int4-g32", {}, .097, .131}}) {
    for (const auto& [w, published] : {std::pair{&gauss, figure.gauss}, {&heavy, figure.heavy}}) {
      const double plain = error_of(*w, n, figure.format, ScaleRule::kAbsmax) / published;
      const double searched = error_of(*w, n, figure.format, ScaleRule::kMse) / published;
      EXPECT_GT(plain, 0.87) << figure.format;
      EXPECT_LT(plain, 0.95) << figure.format;
      EXPECT_GT(searched, 0.83) << figure.format;
      EXPECT_LT(searched, 0.92) << figure.format;
    }
  }
}

// -----------------------------------------------------------------------------------
// relative_error

TEST(RelativeErrorTest, IsTheFrobeniusNormOfTheDifferenceOverThatOfTheWeight) {
  // int8 with scale 1: 3.25 -> 3, 4 -> 4: sqrt(0.0625 / (127^2 + 3.25^2 + 16)).
  std::vector<float> w(16);
  w[0] = 127;
  w[1] = 3.25f;
  w[2] = 4;
  const auto q = quantize_ok(w, 1, *Format::parse("int8-g16"), ScaleRule::kAbsmax);
  const auto error = relative_error(q, view(w, 1, 16));
  ASSERT_TRUE(error.ok());
  EXPECT_DOUBLE_EQ(*error, std::sqrt(0.0625 / (127.0 * 127 + 3.25 * 3.25 + 16)));
}

TEST(RelativeErrorTest, HoldsThePermutationAndThePreScale) {
  std::vector<float> w(32);
  for (size_t i = 0; i < 32; ++i) w[i] = static_cast<float>(i % 8);
  auto q = quantize_ok(w, 1, *Format::parse("int4-g16"), ScaleRule::kAbsmax);
  ASSERT_EQ(*relative_error(q, view(w, 1, 32)), 0);
  // Stored column j is original column 31 - j, and x is multiplied by 2 in column 5.
  for (int32_t j = 31; j >= 0; --j) q.k_perm.push_back(j);
  q.pre_scale.assign(32, 1);
  q.pre_scale[5] = 2;
  std::vector<float> moved(32);
  for (size_t j = 0; j < 32; ++j) moved[31 - j] = w[j];
  moved[5] *= 2;
  EXPECT_EQ(*relative_error(q, view(moved, 1, 32)), 0);
}

TEST(RelativeErrorTest, OfZerosIsZeroOrInfinite) {
  const std::vector<float> zeros(16), ones(16, 1.0f);
  const Format format = *Format::parse("int4-g16");
  EXPECT_EQ(*relative_error(quantize_ok(zeros, 1, format), view(zeros, 1, 16)), 0);
  EXPECT_EQ(*relative_error(quantize_ok(ones, 1, format), view(zeros, 1, 16)), INFINITY);
}

TEST(RelativeErrorTest, RefusesAnotherShapeDtypeOrNan) {
  std::vector<float> w(32, 1.0f);
  const auto q = quantize_ok(w, 2, *Format::parse("int4-g16"));
  EXPECT_FALSE(relative_error(q, view(w, 1, 32)).ok());
  EXPECT_FALSE(relative_error(q, {w.data(), DType::kI32, {2, 16}}).ok());
  w[20] = NAN;
  const auto error = relative_error(q, view(w, 2, 16));
  ASSERT_FALSE(error.ok());
  EXPECT_NE(error.status().message().find("[1, 4]"), std::string::npos);
}

}  // namespace
}  // namespace nibble
