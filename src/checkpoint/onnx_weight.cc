#include "checkpoint/onnx_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "checkpoint/json.h"
#include "checkpoint/transpose.h"

namespace nibble::checkpoint {
namespace {

std::vector<int32_t> first_indices(int64_t count) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

uint8_t flip_of(const OnnxWeight& weight) {
  const bool stored_signed = weight.zero == OnnxWeight::Zero::kCodes && weight.is_signed;
  const bool middle = weight.zero == OnnxWeight::Zero::kMiddle;
  if (!stored_signed && !middle) return 0;
  return weight.bits == 4 ? 8 : 128;
}

/// Codes of any order, element by element.
Result<Buffer> gathered_codes(const OnnxWeight& weight, const uint8_t* stored, uint8_t flip,
                              const std::vector<int32_t>& order) {
  const int64_t row_bytes = ceil_div(weight.k * weight.bits, 8);
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(weight.n * row_bytes));
  std::memset(out.mutable_data(), 0, static_cast<size_t>(out.bytes()));
  for (int64_t row = 0; row < weight.n; ++row) {
    uint8_t* const line = out.mutable_data() + row * row_bytes;
    for (int64_t j = 0; j < weight.k; ++j) {
      const int64_t column = order.empty() ? j : order[static_cast<size_t>(j)];
      const int64_t at = row * weight.code_row_stride + column * weight.code_column_stride;
      if (weight.bits == 8) {
        line[j] = static_cast<uint8_t>(stored[at] ^ flip);
      } else {
        const int code = (stored[at / 2] >> (4 * (at & 1)) & 15) ^ flip;
        line[j / 2] = static_cast<uint8_t>(line[j / 2] | code << (4 * (j & 1)));
      }
    }
  }
  return out;
}

/// The codes as canonical rows; `order` is the map's.
Result<Buffer> canonical_codes(const Source& source, const OnnxWeight& weight,
                               const std::vector<int32_t>& order) {
  const Buffer stored = source.tensors.bytes(*weight.codes);
  const uint8_t flip = flip_of(weight);
  const int64_t row_bytes = ceil_div(weight.k * weight.bits, 8);
  const StoredCodes codes = {stored.data(), weight.n, weight.k, weight.bits, flip};
  const bool whole_bytes = weight.code_row_stride * weight.bits % 8 == 0;
  if (weight.code_column_stride == 1 && whole_bytes) {
    const int64_t stored_row_bytes = weight.code_row_stride * weight.bits / 8;
    const bool clean_padding = weight.bits == 8 || weight.k % 2 == 0;
    if (flip == 0 && order.empty() && stored_row_bytes == row_bytes && clean_padding) {
      return stored;
    }
    return rows_with_columns(codes, stored_row_bytes, order);
  }
  if (weight.code_row_stride == 1 && order.empty()) {
    if (weight.bits == 4) return rows_from_nibbles_along_n(codes);
    NIBBLE_ASSIGN_OR_RETURN(Buffer out,
                            transposed(stored.data(), weight.n, 1, first_indices(weight.k)));
    if (flip != 0) {
      uint8_t* const bytes = out.mutable_data();
      for (int64_t i = 0; i < out.bytes(); ++i) bytes[i] ^= flip;
    }
    return out;
  }
  return gathered_codes(weight, stored.data(), flip, order);
}

/// Values of one, two or four bytes in the order of `grid` as [n, groups of the map].
Result<Buffer> canonical_values(const OnnxWeight& weight, const OnnxGrid& grid, Buffer values,
                                int64_t value_bytes, const GroupMap& map) {
  const int64_t n = weight.n;
  const bool row_after_row = grid.group_stride == 1 && grid.row_stride == weight.groups;
  const bool one_a_row = weight.groups == 1 && grid.row_stride == 1;
  if (grid.rows_per_value == 1 && (row_after_row || one_a_row)) {
    return with_source_groups(std::move(values), n, weight.groups, value_bytes, map);
  }
  const std::vector<int32_t> picked =
      map.source.empty() ? first_indices(weight.groups) : map.source;
  if (grid.rows_per_value == 1 && grid.row_stride == 1 && grid.group_stride == n) {
    return transposed(values.data(), n, value_bytes, picked);
  }
  const auto count = checked_product(n, static_cast<int64_t>(picked.size()));
  const auto bytes = count ? checked_product(*count, value_bytes) : std::nullopt;
  if (!bytes) return unsupported("the scales' size overflows 63 bits");
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(*bytes));
  uint8_t* to = out.mutable_data();
  for (int64_t row = 0; row < n; ++row) {
    const int64_t begin = grid.at(row, 0);
    for (const int32_t group : picked) {
      std::memcpy(to, values.data() + (begin + group * grid.group_stride) * value_bytes,
                  static_cast<size_t>(value_bytes));
      to += value_bytes;
    }
  }
  return out;
}

/// One byte a zero point in the order in which they are stored, moved as the codes are.
Result<Buffer> zero_bytes(const Source& source, const OnnxWeight& weight) {
  const Buffer stored = source.tensors.bytes(*weight.zeros);
  const uint8_t flip = flip_of(weight);
  if (weight.bits == 8 && flip == 0) return stored;
  const bool packed = weight.bits == 4;
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(stored.bytes() * (packed ? 2 : 1)));
  uint8_t* const to = out.mutable_data();
  for (int64_t i = 0; i < stored.bytes(); ++i) {
    const uint8_t byte = stored.data()[i];
    if (packed) {
      to[2 * i] = static_cast<uint8_t>((byte & 15) ^ flip);
      to[2 * i + 1] = static_cast<uint8_t>((byte >> 4) ^ flip);
    } else {
      to[i] = static_cast<uint8_t>(byte ^ flip);
    }
  }
  // An odd number of 4-bit values leaves half a byte.
  int64_t values = out.bytes();
  if (packed && !weight.zeros->dtype) {
    values = 1;
    for (const int64_t extent : weight.zeros->shape) values *= extent;
  }
  return out.slice(0, values);
}

/// Floats of `from` in `to`, which holds all of their values or rounds to nearest.
Result<Buffer> converted(const Buffer& values, DType from, DType to, float factor) {
  const int64_t count = values.bytes() / dtype_bytes(from);
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(count * dtype_bytes(to)));
  for (int64_t i = 0; i < count; ++i) {
    store_from_f32(out.mutable_data(), to, i, load_as_f32(values.data(), from, i) * factor);
  }
  return out;
}

/// All bytes are 0, or that of -0.
Status check_all_zero(const Source& source, const TensorInfo* zeros, bool nibbles) {
  if (zeros == nullptr) return {};
  const Buffer stored = source.tensors.bytes(*zeros);
  const auto mask = static_cast<uint8_t>(nibbles ? 0x77 : 0x7F);
  for (const uint8_t byte : stored.span()) {
    if ((byte & mask) != 0) {
      return unsupported("tensor " + shown(zeros->name) +
                         " holds zero points other than 0 of a float type");
    }
  }
  return {};
}

struct ScaleValues {
  Buffer values;  ///< in stored order
  DType dtype;
  std::optional<float> tensor_scale;
};

bool scales_are_widened(const OnnxWeight& weight) {
  return weight.zero == OnnxWeight::Zero::kFloats && weight.zeros->dtype != weight.scales->dtype;
}

DType scale_dtype(const OnnxWeight& weight) {
  if (weight.tensor_scale != nullptr && weight.scale_product != DType::kF32) {
    return weight.scale_product;
  }
  return scales_are_widened(weight) ? DType::kF32 : *weight.scales->dtype;
}

Result<ScaleValues> scale_values(const Source& source, const OnnxWeight& weight) {
  NIBBLE_RETURN_IF_ERROR(check_all_zero(source, weight.float_zero, weight.bits == 4));
  NIBBLE_RETURN_IF_ERROR(check_all_zero(source, weight.scale_zero, false));
  ScaleValues out;
  out.dtype = scale_dtype(weight);
  NIBBLE_ASSIGN_OR_RETURN(out.values, source.tensors.values(*weight.scales));
  float factor = 1;
  if (weight.tensor_scale != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const Buffer one, source.tensors.values(*weight.tensor_scale));
    factor = load_as_f32(one.data(), *weight.tensor_scale->dtype, 0);
    if (!std::isfinite(factor)) {
      return corrupt_file("tensor " + shown(weight.tensor_scale->name) + " is not finite");
    }
    if (weight.scale_product == DType::kF32) {
      out.tensor_scale = factor;
      return out;
    }
  }
  if (out.dtype == *weight.scales->dtype) return out;
  // A product that the model rounds to 16 bits, or a widening that changes no value.
  NIBBLE_ASSIGN_OR_RETURN(out.values,
                          converted(out.values, *weight.scales->dtype, out.dtype, factor));
  return out;
}

/// The stored zero points in stored order: bytes, or floats in the scales' dtype.
Result<Buffer> zero_values(const Source& source, const OnnxWeight& weight, DType dtype) {
  if (weight.zero == OnnxWeight::Zero::kCodes) return zero_bytes(source, weight);
  NIBBLE_ASSIGN_OR_RETURN(Buffer values, source.tensors.values(*weight.zeros));
  if (*weight.zeros->dtype == dtype) return values;
  return converted(values, *weight.zeros->dtype, dtype, 1);
}

}  // namespace

Result<GroupMap> onnx_groups(const Source& source, const OnnxWeight& weight) {
  GroupMap map;
  if (weight.index != nullptr) {
    std::vector<int32_t> index = index_values(source, *weight.index);
    index.resize(static_cast<size_t>(weight.k));
    NIBBLE_ASSIGN_OR_RETURN(map, indexed_groups(weight.index->name, index, weight.groups));
  } else if (weight.group_length > 0) {
    map = equal_groups(weight.k, weight.group_length);
  }
  if (weight.is_e4m3) map.dense_only = "its codes are 8-bit floats, which no Format has";
  return map;
}

Format onnx_format(const OnnxWeight& weight, const GroupMap& map) {
  const bool four = weight.bits == 4;
  const Element with_sign = four ? Element::kInt4 : Element::kInt8;
  const Element without_sign = four ? Element::kUint4 : Element::kUint8;
  Format format;
  format.group = map.group;
  format.scale = scale_dtype(weight);
  if (weight.is_e2m1) {
    format.element = Element::kE2M1;
    return format;
  }
  switch (weight.zero) {
    case OnnxWeight::Zero::kNone:
      format.element = weight.is_signed ? with_sign : without_sign;
      format.zero = weight.is_signed ? ZeroKind::kNone : ZeroKind::kInteger;
      break;
    case OnnxWeight::Zero::kMiddle:
      format.element = with_sign;
      break;
    case OnnxWeight::Zero::kCodes:
      format.element = without_sign;
      format.zero = ZeroKind::kInteger;
      break;
    case OnnxWeight::Zero::kFloats:
      format.element = without_sign;
      format.zero = ZeroKind::kFloatCode;
      break;
  }
  return format;
}

Result<QuantizedTensor> load_onnx_weight(const Source& source, const OnnxWeight& weight,
                                         const GroupMap& map) {
  QuantizedTensor q;
  q.format = onnx_format(weight, map);
  q.n = weight.n;
  q.k = weight.k;
  q.k_perm = map.order;
  NIBBLE_ASSIGN_OR_RETURN(q.codes, canonical_codes(source, weight, map.order));
  NIBBLE_ASSIGN_OR_RETURN(ScaleValues scales, scale_values(source, weight));
  if (scales.tensor_scale) q.tensor_scales = {{0, *scales.tensor_scale}};
  NIBBLE_ASSIGN_OR_RETURN(q.scales,
                          canonical_values(weight, weight.scale_grid, std::move(scales.values),
                                           dtype_bytes(scales.dtype), map));
  if (q.format.zero == ZeroKind::kNone) return q;
  if (weight.zeros == nullptr) {  // an unsigned type without a zero point: it is 0
    const int64_t count = q.scales.bytes() / dtype_bytes(q.format.scale);
    NIBBLE_ASSIGN_OR_RETURN(q.zeros, Buffer::allocate(count));
    std::memset(q.zeros.mutable_data(), 0, static_cast<size_t>(count));
    return q;
  }
  NIBBLE_ASSIGN_OR_RETURN(Buffer zeros, zero_values(source, weight, q.format.scale));
  NIBBLE_ASSIGN_OR_RETURN(q.zeros, canonical_values(weight, weight.zero_grid, std::move(zeros),
                                                    dtype_bytes(q.format.zero_dtype()), map));
  return q;
}

Result<DenseRows> dense_onnx_weight(const Source& source, const OnnxWeight& weight) {
  struct State {
    OnnxWeight weight;
    Buffer codes, zeros;
    ScaleValues scales;
    std::vector<int32_t> index;
    uint8_t flip = 0;
  };
  auto state = std::make_shared<State>();
  state->weight = weight;
  state->flip = flip_of(weight);
  state->codes = source.tensors.bytes(*weight.codes);
  NIBBLE_ASSIGN_OR_RETURN(state->scales, scale_values(source, weight));
  const int64_t count = state->scales.values.bytes() / dtype_bytes(state->scales.dtype);
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(load_as_f32(state->scales.values.data(), state->scales.dtype, i))) {
      return corrupt_file("value " + std::to_string(i) + " of tensor " +
                          shown(weight.scales->name) + " is not finite");
    }
  }
  if (weight.zeros != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(state->zeros, zero_values(source, weight, state->scales.dtype));
  }
  if (weight.index != nullptr) state->index = index_values(source, *weight.index);
  const auto read = [state](int64_t begin, int64_t end, float* out) {
    const OnnxWeight& w = state->weight;
    const Element element = onnx_format(w, {}).element;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < w.k; ++column) {
        const int64_t group = state->index.empty()
                                  ? (w.groups == 1 ? 0 : column / w.group_length)
                                  : int64_t{state->index[static_cast<size_t>(column)]};
        const int64_t at = row * w.code_row_stride + column * w.code_column_stride;
        const uint8_t byte = state->codes.data()[w.bits == 4 ? at / 2 : at];
        const auto code =
            static_cast<uint8_t>((w.bits == 4 ? byte >> (4 * (at & 1)) & 15 : byte) ^ state->flip);
        float value = w.is_e4m3 ? e4m3_to_f32(code) : decode_element(element, code, nullptr);
        const int64_t zero_at = w.zero_grid.at(row, group);
        if (w.zero == OnnxWeight::Zero::kCodes) {
          value -= static_cast<float>(state->zeros.data()[zero_at]);
        } else if (w.zero == OnnxWeight::Zero::kFloats) {
          value -= load_as_f32(state->zeros.data(), state->scales.dtype, zero_at);
        }
        float scale = load_as_f32(state->scales.values.data(), state->scales.dtype,
                                  w.scale_grid.at(row, group));
        if (state->scales.tensor_scale) scale *= *state->scales.tensor_scale;
        *out++ = value * scale;
      }
    }
    return ok_status();
  };
  return DenseRows{weight.n, weight.k, read};
}

}  // namespace nibble::checkpoint
