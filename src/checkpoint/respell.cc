// convert_exactly: the same weight in parts that another spelling stores. Every change below is
// exact by itself, and the result is compared with the source value by value all the same.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "checkpoint/spelling.h"
#include "nibble/checkpoint.h"

namespace nibble {

using namespace checkpoint;  // NOLINT: this file implements part of that namespace's front

namespace {

bool same_bits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

float applied(TensorScaleOp op, float scale, float factor) {
  return op == TensorScaleOp::kMultiply ? scale * factor : scale / factor;
}

// ------------------------------------------------------------------------------- tensor scales

/// The factor of operation `op` that gives every occurring scale byte the same product as the
/// weight's own tensor scale. Only the rounded reciprocal and its neighbours can.
Result<float> equivalent_factor(const QuantizedTensor& q, TensorScaleOp op) {
  if (q.tensor_scales.empty()) return 1.0f;
  const float own = q.tensor_scales[0].value;
  for (const TensorScale& segment : q.tensor_scales) {
    if (!same_bits(segment.value, own)) {
      return unsupported("its rows have " + std::to_string(q.tensor_scales.size()) +
                         " different tensor scales");
    }
  }
  if (q.tensor_scale_op == op) return own;
  std::array<bool, 256> occurs{};
  for (const uint8_t byte : q.scales.span()) occurs[byte] = true;
  constexpr int32_t kNeighbours = 8;
  const auto nearest = std::bit_cast<int32_t>(1.0f / own);
  for (int32_t step = 0; step <= 2 * kNeighbours; ++step) {
    const int32_t distance = (step + 1) / 2 * (step % 2 == 0 ? -1 : 1);
    const auto factor = std::bit_cast<float>(nearest + distance);
    if (!std::isfinite(factor) || factor == 0) continue;
    bool same = true;
    for (size_t byte = 0; byte < occurs.size() && same; ++byte) {
      if (!occurs[byte]) continue;
      const float scale = e4m3_to_f32(static_cast<uint8_t>(byte));
      same = same_bits(applied(op, scale, factor), applied(q.tensor_scale_op, scale, own));
    }
    if (same) return factor;
  }
  const bool divides = q.tensor_scale_op == TensorScaleOp::kDivide;
  return unsupported(std::string("its tensor scale ") + (divides ? "divides" : "multiplies") +
                     ", and no number near its reciprocal " + (divides ? "multiplies" : "divides") +
                     " every block scale that occurs to the same bits");
}

// ----------------------------------------------------------------------------------- the parts

/// The weight with its tensor scale multiplied in, group by group in stored order.
struct Parts {
  const QuantizedTensor* q = nullptr;
  int64_t groups = 0;
  std::vector<float> scales;   ///< RN32(scale op tensor_scale), [n, groups]
  std::vector<uint8_t> zeros;  ///< where every zero is an integer in the range of codes
  bool integer_zeros = false;
  bool middle_zeros = false;  ///< all of them 2^(bits - 1)
};

std::vector<float> folded_scales(const QuantizedTensor& q) {
  const int64_t groups = q.format.groups(q.k);
  std::vector<float> out(static_cast<size_t>(q.n * groups));
  size_t segment = 0;
  for (int64_t row = 0; row < q.n; ++row) {
    while (segment + 1 < q.tensor_scales.size() && q.tensor_scales[segment + 1].row_begin <= row) {
      ++segment;
    }
    for (int64_t g = row * groups; g < (row + 1) * groups; ++g) {
      const float scale = load_as_f32(q.scales.data(), q.format.scale, g);
      out[static_cast<size_t>(g)] =
          q.tensor_scales.empty()
              ? scale
              : applied(q.tensor_scale_op, scale, q.tensor_scales[segment].value);
    }
  }
  return out;
}

/// The integer z with (q - z) * s = q * s + b for every code, or -1.
int equivalent_zero(float scale, float bias, int bits) {
  const int codes = 1 << bits;
  const float guess = scale == 0 ? 0.0f : std::nearbyint(-bias / scale);
  if (!(guess >= 0 && guess < static_cast<float>(codes))) return -1;
  const int zero = static_cast<int>(guess);
  for (int code = 0; code < codes; ++code) {
    const float product = static_cast<float>(code) * scale;
    const float shifted = static_cast<float>(code - zero) * scale;
    if (!same_bits(product + bias, shifted)) return -1;
  }
  return zero;
}

/// Zeros of any kind as integers, where that decodes to the same bits.
void find_integer_zeros(Parts& parts) {
  const QuantizedTensor& q = *parts.q;
  const bool is_unsigned =
      q.format.element == Element::kUint4 || q.format.element == Element::kUint8;
  if (q.format.zero == ZeroKind::kNone || !is_unsigned) return;
  const int middle = 1 << (q.format.bits() - 1);
  parts.zeros.resize(parts.scales.size());
  parts.middle_zeros = true;
  for (size_t i = 0; i < parts.zeros.size(); ++i) {
    int zero = -1;
    if (q.format.zero == ZeroKind::kInteger) {
      zero = q.zeros.data()[i];
    } else {
      const float stored =
          load_as_f32(q.zeros.data(), q.format.zero_dtype(), static_cast<int64_t>(i));
      if (q.format.zero == ZeroKind::kAdditive) {
        zero = equivalent_zero(parts.scales[i], stored, q.format.bits());
      } else if (stored >= 0 && stored < static_cast<float>(2 * middle) &&
                 stored == std::floor(stored)) {
        zero = static_cast<int>(stored);
      }
    }
    if (zero < 0) return;
    parts.zeros[i] = static_cast<uint8_t>(zero);
    parts.middle_zeros &= zero == middle;
  }
  parts.integer_zeros = true;
}

/// For groups of `group` columns in original order, the stored group that each lies in; empty when
/// one has columns of several.
std::vector<int64_t> source_groups(const QuantizedTensor& q, int32_t group) {
  Format format = q.format;
  format.group = group;
  const int64_t columns = format.group_columns(q.k), own = q.format.group_columns(q.k);
  std::vector<int64_t> out(static_cast<size_t>(format.groups(q.k)), -1);
  for (int64_t j = 0; j < q.k; ++j) {
    const int64_t column = q.k_perm.empty() ? j : q.k_perm[static_cast<size_t>(j)];
    int64_t& of = out[static_cast<size_t>(column / columns)];
    if (of >= 0 && of != j / own) return {};
    of = j / own;
  }
  return out;
}

/// How the elements and zeros may be spelled, the simplest first.
struct Elements {
  Element element;
  ZeroKind zero;
};
std::vector<Elements> spellings_of(const Parts& parts) {
  const Format& format = parts.q->format;
  std::vector<Elements> out;
  if (parts.integer_zeros) {
    const bool four = format.bits() == 4;
    if (parts.middle_zeros) {
      out.push_back({four ? Element::kInt4 : Element::kInt8, ZeroKind::kNone});
    }
    out.push_back({format.element, ZeroKind::kInteger});
  }
  if (!parts.integer_zeros || format.zero != ZeroKind::kInteger) {
    out.push_back({format.element, format.zero});
  }
  return out;
}

// ------------------------------------------------------------------------------- building anew

/// `value` as a scale of `dtype`; false when that has no such value.
bool store_exactly(uint8_t* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kE8M0) {
    const int exponent = std::ilogb(value);
    if (!(value > 0) || exponent < -127 || exponent > 127) return false;
    data[index] = static_cast<uint8_t>(exponent + 127);
  } else {
    store_from_f32(data, dtype, index, value);
  }
  return same_bits(load_as_f32(data, dtype, index), value);
}

/// Codes in original column order, each XOR `flip`.
Result<Buffer> plain_codes(const QuantizedTensor& q, uint8_t flip) {
  if (q.k_perm.empty() && flip == 0) return q.codes;
  const int64_t row = q.format.code_row_bytes(q.k);
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(q.codes.bytes()));
  uint8_t* to = out.mutable_data();
  if (q.k_perm.empty()) {
    for (int64_t i = 0; i < out.bytes(); ++i) {
      to[i] = static_cast<uint8_t>(q.codes.data()[i] ^ flip);
    }
  } else {
    std::memset(to, 0, static_cast<size_t>(out.bytes()));
    for (int64_t r = 0; r < q.n; ++r) {
      const uint8_t* from = q.codes.data() + r * row;
      for (int64_t j = 0; j < q.k; ++j) {
        const int64_t column = q.k_perm[static_cast<size_t>(j)];
        if (q.format.bits() == 8) {
          to[r * row + column] = static_cast<uint8_t>(from[j] ^ flip);
        } else {
          const int code = (from[j / 2] ^ flip) >> (4 * (j & 1)) & 15;
          to[r * row + column / 2] =
              static_cast<uint8_t>(to[r * row + column / 2] | code << (4 * (column & 1)));
        }
      }
    }
  }
  if (q.format.bits() == 4 && q.k % 2 != 0) {
    for (int64_t r = 1; r <= q.n; ++r) to[r * row - 1] &= 15;
  }
  return out;
}

class Builder {
 public:
  Builder(const Parts& parts, const Format& format, const std::vector<int64_t>& of)
      : parts_(parts), q_(*parts.q), of_(of) {
    out_.format = format;
    out_.n = q_.n;
    out_.k = q_.k;
    out_.codebook = q_.codebook;
    // Scale bytes stay as they are where the target keeps a tensor scale of its own, or there is
    // none.
    keeps_scales_ = format.scale == q_.format.scale &&
                    (q_.tensor_scales.empty() || format.scale == DType::kE4M3);
  }

  Result<QuantizedTensor> build(const WriteSpelling& target) {
    if (keeps_scales_ && out_.format.scale == DType::kE4M3 && target.tensor_scale_op) {
      NIBBLE_ASSIGN_OR_RETURN(const float factor, equivalent_factor(q_, *target.tensor_scale_op));
      out_.tensor_scales = {{0, factor}};
      out_.tensor_scale_op = *target.tensor_scale_op;
    } else if (keeps_scales_ && !q_.tensor_scales.empty()) {
      keeps_scales_ = false;  // no place for the tensor scale: it goes into the scales
    }
    NIBBLE_RETURN_IF_ERROR(build_scales());
    NIBBLE_RETURN_IF_ERROR(build_zeros());
    const bool becomes_signed =
        out_.format.zero == ZeroKind::kNone && q_.format.zero != ZeroKind::kNone;
    const uint8_t flip = !becomes_signed ? 0 : q_.format.bits() == 4 ? 0x88 : 0x80;
    NIBBLE_ASSIGN_OR_RETURN(out_.codes, plain_codes(q_, flip));
    return std::move(out_);
  }

 private:
  bool same_groups() const { return q_.k_perm.empty() && out_.format.group == q_.format.group; }

  Status build_scales() {
    if (keeps_scales_ && same_groups()) {
      out_.scales = q_.scales;
      return {};
    }
    const auto groups = static_cast<int64_t>(of_.size());
    const DType dtype = out_.format.scale;
    NIBBLE_ASSIGN_OR_RETURN(out_.scales, Buffer::allocate(q_.n * groups * dtype_bytes(dtype)));
    uint8_t* to = out_.scales.mutable_data();
    const auto bytes = static_cast<size_t>(dtype_bytes(dtype));
    for (int64_t row = 0; row < q_.n; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = row * parts_.groups + of_[static_cast<size_t>(g)];
        const int64_t at = row * groups + g;
        if (keeps_scales_) {
          std::memcpy(to + static_cast<size_t>(at) * bytes,
                      q_.scales.data() + static_cast<size_t>(from) * bytes, bytes);
        } else if (!store_exactly(to, dtype, at, parts_.scales[static_cast<size_t>(from)])) {
          return unsupported(
              "the scale " + std::to_string(parts_.scales[static_cast<size_t>(from)]) + " of row " +
              std::to_string(row) + ", group " + std::to_string(of_[static_cast<size_t>(g)]) +
              " is no value of " + dtype_name(dtype));
        }
      }
    }
    return {};
  }

  Status build_zeros() {
    if (out_.format.zero == ZeroKind::kNone) return {};
    const bool integer = out_.format.zero == ZeroKind::kInteger;
    if (!integer && !keeps_scales_) {
      return unsupported("its zeros have the dtype of its scales, which would change");
    }
    if (same_groups() && out_.format.zero == q_.format.zero) {
      out_.zeros = q_.zeros;
      return {};
    }
    const uint8_t* source = integer ? parts_.zeros.data() : q_.zeros.data();
    const auto bytes = static_cast<size_t>(dtype_bytes(out_.format.zero_dtype()));
    const size_t groups = of_.size();
    NIBBLE_ASSIGN_OR_RETURN(out_.zeros,
                            Buffer::allocate(q_.n * static_cast<int64_t>(groups * bytes)));
    for (size_t row = 0; row < static_cast<size_t>(q_.n); ++row) {
      for (size_t g = 0; g < groups; ++g) {
        const size_t from = row * static_cast<size_t>(parts_.groups) + static_cast<size_t>(of_[g]);
        std::memcpy(out_.zeros.mutable_data() + (row * groups + g) * bytes, source + from * bytes,
                    bytes);
      }
    }
    return {};
  }

  const Parts& parts_;
  const QuantizedTensor& q_;
  const std::vector<int64_t>& of_;
  QuantizedTensor out_;
  bool keeps_scales_ = false;
};

// --------------------------------------------------------------------------------- comparing

/// Whether both are views of the same bytes, decoded in the same way.
bool share_everything(const QuantizedTensor& a, const QuantizedTensor& b) {
  return a.format == b.format && a.codes.data() == b.codes.data() &&
         a.scales.data() == b.scales.data() && a.zeros.data() == b.zeros.data() &&
         a.k_perm == b.k_perm && a.tensor_scales == b.tensor_scales &&
         a.tensor_scale_op == b.tensor_scale_op;
}

/// The first row in which the two differ, or -1.
int64_t first_difference(const QuantizedTensor& a, const QuantizedTensor& b, ThreadPool* pool) {
  if (share_everything(a, b)) return -1;
  constexpr int64_t kBandValues = 1 << 18;
  const int64_t band = std::clamp<int64_t>(kBandValues / a.k, 1, a.n);
  std::atomic<int64_t> first = INT64_MAX;
  const auto compare = [&](int64_t index) {
    const int64_t begin = index * band, end = std::min(a.n, begin + band);
    if (first.load(std::memory_order_relaxed) < begin) return;
    const auto count = static_cast<size_t>((end - begin) * a.k);
    std::vector<float> left(count), right(count);
    a.dequantize(begin, end, left.data());
    b.dequantize(begin, end, right.data());
    if (std::memcmp(left.data(), right.data(), count * sizeof(float)) == 0) return;
    int64_t known = first.load();
    while (begin < known && !first.compare_exchange_weak(known, begin)) {
    }
  };
  const int64_t bands = ceil_div(a.n, band);
  if (pool != nullptr) {
    pool->for_each(bands, compare);
  } else {
    for (int64_t i = 0; i < bands; ++i) compare(i);
  }
  return first == INT64_MAX ? -1 : first.load();
}

std::string why_no_format(const Parts& parts, const WriteSpelling& target, bool scattered) {
  const Format& format = parts.q->format;
  std::string why = std::string(target.name) + " has no exact form for " + format.name();
  if (format.zero == ZeroKind::kAdditive && !parts.integer_zeros) {
    why += ", whose q * s + b is no (q - z) * s with an integer z";
  } else if (format.zero != ZeroKind::kNone && !parts.integer_zeros) {
    why += ", whose zero points are not integers in the range of codes";
  } else if (format.zero != ZeroKind::kNone && !parts.middle_zeros) {
    why += ", whose zero points are not all " + std::to_string(1 << (format.bits() - 1));
  }
  if (scattered) why += "; act-order scatters the columns of its groups";
  return why;
}

}  // namespace

Result<QuantizedTensor> convert_exactly(const QuantizedTensor& q, std::string_view spelling,
                                        ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* target, find_write_spelling(spelling));
  NIBBLE_RETURN_IF_ERROR(q.validate());
  const bool scales_x = std::any_of(q.pre_scale.begin(), q.pre_scale.end(),
                                    [](float factor) { return factor != 1.0f; });
  if (scales_x && !target->holds_pre_scale) {
    return unsupported(std::string(target->name) +
                       " has no place for its pre_scale, the factors that multiply x");
  }

  Parts parts{&q, q.format.groups(q.k), folded_scales(q), {}};
  find_integer_zeros(parts);
  std::vector<DType> scale_dtypes = {q.format.scale};
  for (const DType dtype : {DType::kF16, DType::kBF16, DType::kF32, DType::kE4M3, DType::kE8M0}) {
    if (dtype != q.format.scale) scale_dtypes.push_back(dtype);
  }
  LayerSpec spec;
  spec.n = q.n;
  spec.k = q.k;
  spec.pre_scale = scales_x;
  std::string reason;
  bool scattered = false;
  for (const Elements& each : spellings_of(parts)) {
    for (const int32_t group : {q.format.group, 0, 128, 64, 32, 16}) {
      const std::vector<int64_t> of = source_groups(q, group);
      if (of.empty()) {
        scattered |= !q.k_perm.empty();
        continue;
      }
      for (const DType dtype : scale_dtypes) {
        spec.format = {each.element, group, dtype, each.zero};
        if (!spec.format.validate().ok() || !target->takes(spec.format)) continue;
        if (Status fits = target->check(spec); !fits.ok()) {
          if (reason.empty()) reason = fits.message();
          continue;
        }
        Result<QuantizedTensor> out = Builder(parts, spec.format, of).build(*target);
        if (!out.ok() && out.status().code() != Code::kUnsupported) return out.status();
        if (!out.ok()) {
          if (reason.empty()) reason = out.status().message();
          continue;
        }
        if (scales_x) out->pre_scale = q.pre_scale;
        if (const int64_t row = first_difference(q, *out, pool); row >= 0) {
          return internal_error("a conversion to " + spec.format.name() +
                                " that should be exact differs near row " + std::to_string(row));
        }
        return out;
      }
    }
  }
  return unsupported(reason.empty() || scattered ? why_no_format(parts, *target, scattered)
                                                 : reason);
}

}  // namespace nibble
