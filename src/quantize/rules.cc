#include "quantize/rules.h"

#include <algorithm>
#include <limits>

namespace nibble {
namespace {

/// Multiples of the plain scale between which the best one lies: 96 % of the groups of Gaussian
/// and heavy-tailed (Student t, 4 degrees of freedom) weights under an exhaustive search. A whole
/// row has more outliers than a group and clips deeper.
struct Span {
  float low, high;
};
Span candidate_span(Element element, bool whole_row) {
  switch (element) {
    case Element::kInt4:
      return whole_row ? Span{0.15f, 1.05f} : Span{0.68f, 1.20f};
    case Element::kUint4:
      return whole_row ? Span{0.20f, 1.05f} : Span{0.66f, 1.15f};
    case Element::kInt8:
    case Element::kUint8:
      return whole_row ? Span{0.40f, 1.02f} : Span{0.94f, 1.20f};
    case Element::kE2M1:
      return whole_row ? Span{0.30f, 1.10f} : Span{0.78f, 1.65f};
    case Element::kNF4:
      return whole_row ? Span{0.30f, 1.10f} : Span{0.82f, 1.60f};
  }
  return {1, 1};
}

void set_codes(Element element, TensorRules& rules) {
  const auto set = [&rules](float divisor, float second, int32_t code_min, int32_t code_max) {
    rules.divisor = divisor;
    rules.second_divisor = second;
    rules.code_min = code_min;
    rules.code_max = code_max;
  };
  switch (element) {
    case Element::kInt4:
      return set(7, 8, -8, 7);
    case Element::kUint4:
      return set(15, 0, 0, 15);
    case Element::kInt8:
      return set(127, 128, -128, 127);
    case Element::kUint8:
      return set(255, 0, 0, 255);
    case Element::kE2M1:
      return set(6, 0, 0, 0);
    case Element::kNF4:
      return set(1, 0, 0, 0);
  }
}

void set_e4m3_table(const Format& format, const TensorRange& range, TensorRules& rules) {
  const bool divides = rules.tensor_scale_op == TensorScaleOp::kDivide;
  if (range.amax == 0) {
    rules.tensor_scale = 1;
  } else {
    // A range with a zero holds 0; its width is taken in f64 because it may pass f32's end.
    const double width = static_cast<double>(range.max) - static_cast<double>(range.min);
    const double most = static_cast<double>(rules.divisor) * 448.0;
    const float largest = rules.divisor * 448.0f;
    if (divides) {
      const float g =
          format.zero == ZeroKind::kNone ? largest / range.amax : static_cast<float>(most / width);
      rules.tensor_scale = std::min(g, std::numeric_limits<float>::max());  // of tiny weights
    } else {
      const float t =
          format.zero == ZeroKind::kNone ? range.amax / largest : static_cast<float>(width / most);
      rules.tensor_scale = std::max(t, 0x1p-149f);  // of weights so small that t underflows
    }
  }
  for (int byte = 0; byte < 0x7F; ++byte) {
    const float scale = e4m3_to_f32(static_cast<uint8_t>(byte));
    rules.table[byte] = divides ? scale / rules.tensor_scale : scale * rules.tensor_scale;
  }
  rules.first_byte = 1;  // 2^-9
  rules.last_byte = 0x7E;
  while (rules.table[rules.first_byte] == 0) ++rules.first_byte;
  rules.bytes_below = format.group == 0 ? 12 : 7;
}

void set_e8m0_table(const QuantizeOptions& options, TensorRules& rules) {
  for (int byte = 0; byte < 0xFF; ++byte) {
    rules.table[byte] = e8m0_to_f32(static_cast<uint8_t>(byte));
  }
  rules.first_byte = 0;
  rules.last_byte = 0xFE;
  rules.bytes_below = 8;
  rules.next_exponent_competes = options.mxfp == MxfpRule::kSmallestError;
  switch (options.mxfp) {
    case MxfpRule::kSmallestError:
    case MxfpRule::kOcp:
      break;
    case MxfpRule::kModelOpt:
      rules.round_up_from = (1 << 22) + 1;
      break;  // amax > 1.5 * 2^e
    case MxfpRule::kCompressedTensors:
      rules.round_up_from = 3 << 21;
      break;  // 1.75 * 2^e
  }
}

void set_nf4(TensorRules& rules) {
  std::copy(kNf4Codebook.begin(), kNf4Codebook.end(), rules.nf4);
  for (int i = 0; i < 15; ++i) {
    rules.nf4_threshold[i] = 0.5f * rules.nf4[i] + 0.5f * rules.nf4[i + 1];
  }
  // Thresholds are at least 0.08 apart and no bin is wider than 1/16 but the outermost, which
  // hold none; none lies on a bin's edge (a test walks the edges).
  for (int bin = 0; bin < 32; ++bin) {
    const float begin = (static_cast<float>(bin) - 16.5f) / 16;
    int code = 0;
    while (code < 15 && rules.nf4_threshold[code] < begin) ++code;
    rules.nf4_below[bin] = rules.nf4[code];
    rules.nf4_above[bin] = rules.nf4[std::min(code + 1, 15)];
    rules.nf4_split[bin] = code < 15 ? rules.nf4_threshold[code] : 2.0f;
  }
}

}  // namespace

TensorRules make_tensor_rules(const Format& format, const QuantizeOptions& options,
                              const TensorRange& range) {
  TensorRules rules;
  rules.scale = format.scale;
  rules.zero = format.zero;
  rules.bits = format.bits();
  rules.search = options.scales == ScaleRule::kMse;
  rules.tensor_scale_op = options.tensor_scale_op;
  set_codes(format.element, rules);
  if (format.scale == DType::kE4M3) set_e4m3_table(format, range, rules);
  if (format.scale == DType::kE8M0) set_e8m0_table(options, rules);

  const Span span = candidate_span(format.element, format.group == 0);
  rules.grid_step = (span.high - span.low) / (kCandidates - 3);
  rules.grid[0] = rules.grid[1] = 1;
  for (int i = 2; i < kCandidates; ++i) {
    rules.grid[i] = span.low + rules.grid_step * static_cast<float>(i - 2);
  }
  set_nf4(rules);
  return rules;
}

CodeKind code_kind(Element element) {
  switch (element) {
    case Element::kInt4:
    case Element::kInt8:
      return CodeKind::kInteger;
    case Element::kUint4:
    case Element::kUint8:
      return CodeKind::kZeroInteger;
    case Element::kE2M1:
      return CodeKind::kE2M1;
    case Element::kNF4:
      return CodeKind::kNf4;
  }
  return CodeKind::kInteger;
}

}  // namespace nibble
