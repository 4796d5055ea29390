#include <algorithm>
#include <cmath>
#include <cstring>

#include "nibble/core.h"

namespace nibble {
namespace {

std::string sizes(const QuantizedTensor& q) {
  return q.format.name() + " [" + std::to_string(q.n) + ", " + std::to_string(q.k) + "]";
}

Status check_bytes(const QuantizedTensor& q, const char* part, int64_t have,
                   std::optional<int64_t> want) {
  if (!want.has_value())
    return invalid_argument(sizes(q) + ": the size of its " + part + " overflows");
  if (have == *want) return {};
  return invalid_argument(sizes(q) + ": " + part + " holds " + std::to_string(have) +
                          " bytes, the rule says " + std::to_string(*want));
}

Status check_permutation(const QuantizedTensor& q) {
  if (q.k_perm.empty()) return {};
  if (static_cast<int64_t>(q.k_perm.size()) != q.k) {
    return invalid_argument(sizes(q) + ": k_perm has " + std::to_string(q.k_perm.size()) +
                            " entries, not k");
  }
  std::vector<bool> seen(static_cast<size_t>(q.k));
  for (size_t j = 0; j < q.k_perm.size(); ++j) {
    const int32_t column = q.k_perm[j];
    if (column < 0 || column >= q.k || seen[static_cast<size_t>(column)]) {
      return invalid_argument(sizes(q) + ": k_perm[" + std::to_string(j) +
                              "] = " + std::to_string(column) + " is out of range or stands twice");
    }
    seen[static_cast<size_t>(column)] = true;
  }
  return {};
}

/// Index of the first value that is Inf or NaN, or -1. Plain bit tests, so that compilers vectorise
/// them: every pack reads all scales once.
template <class Word>
int64_t first_with_bits(const uint8_t* data, int64_t count, Word mask) {
  for (int64_t begin = 0; begin < count; begin += 256) {
    const int64_t end = std::min(count, begin + 256);
    bool any = false;
    for (int64_t i = begin; i < end; ++i) {
      Word word;
      std::memcpy(&word, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
      any |= (word & mask) == mask;
    }
    if (!any) continue;
    for (int64_t i = begin; i < end; ++i) {
      Word word;
      std::memcpy(&word, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
      if ((word & mask) == mask) return i;
    }
  }
  return -1;
}

Status check_finite(const QuantizedTensor& q, const char* part, const Buffer& values,
                    int64_t count) {
  int64_t bad = -1;
  switch (dtype_bytes(q.format.scale)) {
    case 4:
      bad = first_with_bits<uint32_t>(values.data(), count, 0x7F800000u);
      break;
    case 2:
      bad = first_with_bits<uint16_t>(values.data(), count,
                                      q.format.scale == DType::kF16 ? 0x7C00 : 0x7F80);
      break;
    case 1:
      bad = first_with_bits<uint8_t>(values.data(), count,
                                     q.format.scale == DType::kE4M3 ? 0x7F : 0xFF);
      break;
    default:
      break;
  }
  if (bad < 0) return {};
  const int64_t groups = q.format.groups(q.k);
  return invalid_argument(sizes(q) + ": the " + part + " of row " + std::to_string(bad / groups) +
                          ", group " + std::to_string(bad % groups) + " is not finite");
}

/// RN32(scale op tensor_scale) of the segment that holds `row`.
float scaled(const QuantizedTensor& q, int64_t row, float scale) {
  if (q.tensor_scales.empty()) return scale;
  float factor = q.tensor_scales.front().value;
  for (const TensorScale& segment : q.tensor_scales) {
    if (segment.row_begin <= row) factor = segment.value;
  }
  return q.tensor_scale_op == TensorScaleOp::kMultiply ? scale * factor : scale / factor;
}

/// One row's decode with everything that does not depend on the column taken out of the loop.
float decode_value(const QuantizedTensor& q, float element, float scale, int64_t group_index) {
  switch (q.format.zero) {
    case ZeroKind::kNone:
      return element * scale;
    case ZeroKind::kInteger:
    case ZeroKind::kFloatCode: {
      const float difference =
          element - load_as_f32(q.zeros.data(), q.format.zero_dtype(), group_index);
      return difference * scale;
    }
    case ZeroKind::kAdditive: {
      const float product = element * scale;
      return product + load_as_f32(q.zeros.data(), q.format.zero_dtype(), group_index);
    }
  }
  return 0;
}

}  // namespace

Status QuantizedTensor::validate() const {
  NIBBLE_RETURN_IF_ERROR(format.validate());
  if (n < 1 || k < 1) return invalid_argument(sizes(*this) + ": n and k must be at least 1");
  if (k > INT64_MAX / 16) return invalid_argument(sizes(*this) + ": k is too large");
  const int64_t groups = format.groups(k);
  const auto values = checked_product(n, groups);
  const auto of_values = [&](int64_t each) {
    return values ? checked_product(*values, each) : std::nullopt;
  };
  NIBBLE_RETURN_IF_ERROR(
      check_bytes(*this, "codes", codes.bytes(), checked_product(n, format.code_row_bytes(k))));
  NIBBLE_RETURN_IF_ERROR(
      check_bytes(*this, "scales", scales.bytes(), of_values(dtype_bytes(format.scale))));
  const int64_t zero_bytes = format.zero == ZeroKind::kNone ? 0 : dtype_bytes(format.zero_dtype());
  NIBBLE_RETURN_IF_ERROR(check_bytes(*this, "zeros", zeros.bytes(), of_values(zero_bytes)));
  NIBBLE_RETURN_IF_ERROR(check_permutation(*this));
  if (!pre_scale.empty() && static_cast<int64_t>(pre_scale.size()) != k) {
    return invalid_argument(sizes(*this) + ": pre_scale has " + std::to_string(pre_scale.size()) +
                            " entries, not k");
  }
  for (size_t j = 0; j < pre_scale.size(); ++j) {
    if (!std::isfinite(pre_scale[j])) {
      return invalid_argument(sizes(*this) + ": pre_scale[" + std::to_string(j) +
                              "] is not finite");
    }
  }
  if (tensor_scales.size() > kMaxTensorScales) {
    return unsupported(sizes(*this) + ": " + std::to_string(tensor_scales.size()) +
                       " tensor scales, at most " + std::to_string(kMaxTensorScales));
  }
  if (!tensor_scales.empty() && format.zero == ZeroKind::kAdditive) {
    return unsupported(sizes(*this) + ": an additive zero cannot meet a tensor scale");
  }
  for (size_t i = 0; i < tensor_scales.size(); ++i) {
    const bool rising = i == 0 ? tensor_scales[i].row_begin == 0
                               : tensor_scales[i].row_begin > tensor_scales[i - 1].row_begin;
    if (!rising || tensor_scales[i].row_begin >= n) {
      return invalid_argument(sizes(*this) + ": tensor scale " + std::to_string(i) +
                              " begins at row " + std::to_string(tensor_scales[i].row_begin) +
                              ", not in rising order from 0");
    }
    if (!std::isfinite(tensor_scales[i].value)) {
      return invalid_argument(sizes(*this) + ": tensor scale " + std::to_string(i) +
                              " is not finite");
    }
  }
  const bool float_zeros =
      format.zero == ZeroKind::kFloatCode || format.zero == ZeroKind::kAdditive;
  NIBBLE_RETURN_IF_ERROR(check_finite(*this, "scale", scales, *values));
  if (float_zeros) NIBBLE_RETURN_IF_ERROR(check_finite(*this, "zero", zeros, *values));
  if (format.bits() == 4 && k % 2 != 0) {
    for (int64_t row = 0; row < n; ++row) {
      if (codes.data()[(row + 1) * format.code_row_bytes(k) - 1] >> 4 != 0) {
        return invalid_argument(sizes(*this) + ": row " + std::to_string(row) +
                                " has bits past its last column");
      }
    }
  }
  return {};
}

uint8_t QuantizedTensor::code(int64_t row, int64_t stored_column) const {
  const uint8_t* bytes = codes.data() + row * format.code_row_bytes(k);
  if (format.bits() == 8) return bytes[stored_column];
  return static_cast<uint8_t>((bytes[stored_column / 2] >> (4 * (stored_column & 1))) & 15);
}

float QuantizedTensor::decode(int64_t row, int64_t stored_column) const {
  const int64_t index = row * format.groups(k) + stored_column / format.group_columns(k);
  const float scale = scaled(*this, row, load_as_f32(scales.data(), format.scale, index));
  return decode_value(*this,
                      decode_element(format.element, code(row, stored_column), codebook.data()),
                      scale, index);
}

void QuantizedTensor::dequantize(int64_t row_begin, int64_t row_end, float* out) const {
  const int64_t groups = format.groups(k), columns = format.group_columns(k);
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* line = out + (row - row_begin) * k;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t index = row * groups + g;
      const float scale = scaled(*this, row, load_as_f32(scales.data(), format.scale, index));
      for (int64_t j = g * columns; j < std::min(k, (g + 1) * columns); ++j) {
        const float value = decode_element(format.element, code(row, j), codebook.data());
        line[k_perm.empty() ? j : k_perm[static_cast<size_t>(j)]] =
            decode_value(*this, value, scale, index);
      }
    }
  }
}

bool identical(const QuantizedTensor& a, const QuantizedTensor& b) {
  const auto same = [](const Buffer& x, const Buffer& y) {
    return x.bytes() == y.bytes() &&
           (x.empty() || std::memcmp(x.data(), y.data(), static_cast<size_t>(x.bytes())) == 0);
  };
  const auto same_bits = [](const auto& x, const auto& y) {
    return x.size() == y.size() &&
           (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(x[0])) == 0);
  };
  const auto same_segment = [](const TensorScale& x, const TensorScale& y) {
    return x.row_begin == y.row_begin && std::memcmp(&x.value, &y.value, sizeof(float)) == 0;
  };
  return a.format == b.format && a.n == b.n && a.k == b.k && same(a.codes, b.codes) &&
         same(a.scales, b.scales) && same(a.zeros, b.zeros) &&
         std::equal(a.tensor_scales.begin(), a.tensor_scales.end(), b.tensor_scales.begin(),
                    b.tensor_scales.end(), same_segment) &&
         (a.tensor_scales.empty() || a.tensor_scale_op == b.tensor_scale_op) &&
         a.k_perm == b.k_perm && same_bits(a.pre_scale, b.pre_scale) &&
         (a.format.element != Element::kNF4 || same_bits(a.codebook, b.codebook));
}

Result<QuantizedTensor> make_quantized_tensor(const Format& format, int64_t n, int64_t k) {
  NIBBLE_RETURN_IF_ERROR(format.validate());
  QuantizedTensor q;
  q.format = format;
  q.n = n;
  q.k = k;
  if (n < 1 || k < 1 || k > INT64_MAX / 16)
    return invalid_argument(sizes(q) + ": n and k must be at least 1");
  const auto zeroed = [](std::optional<int64_t> bytes) -> Result<Buffer> {
    if (!bytes) return invalid_argument("the size of a quantized tensor overflows 63 bits");
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(*bytes));
    std::memset(buffer.mutable_data(), 0, static_cast<size_t>(*bytes));
    return buffer;
  };
  const auto values = checked_product(n, format.groups(k));
  if (!values) return invalid_argument("the size of a quantized tensor overflows 63 bits");
  NIBBLE_ASSIGN_OR_RETURN(q.codes, zeroed(checked_product(n, format.code_row_bytes(k))));
  NIBBLE_ASSIGN_OR_RETURN(q.scales, zeroed(checked_product(*values, dtype_bytes(format.scale))));
  if (format.zero != ZeroKind::kNone) {
    NIBBLE_ASSIGN_OR_RETURN(q.zeros,
                            zeroed(checked_product(*values, dtype_bytes(format.zero_dtype()))));
  }
  if (format.element == Element::kNF4) q.codebook = kNf4Codebook;
  return q;
}

}  // namespace nibble
