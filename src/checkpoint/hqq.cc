// Reads HQQ's 4bit_u8 and 8bit_u8 packings. Layer "a.b" is
//   a.b.W_q            u8 [rows/2, columns] (8 bits: [rows, columns]), or with `view_as_float` f16,
//                      bf16 or f32 of the same bytes, the last extent shorter by the dtype's size
//   a.b.scale, .zero   f16, bf16 or f32: [rows, 1] with axis 1, [1, columns] with axis 0, [] where
//   one
//                      serves the whole weight (channel_wise off); or both in one tensor
//   a.b.zero_scale     [2, ...] of them, the zeros first (offload_meta)
//   a.b.shape          i64 [2] = n, k; scalars axis, nbits, quant_scale, quant_zero; text `packing`
// The weight [n, k] was reshaped, row after row, to [rows, columns] = [n*k/group, group] (axis 1)
// or [group, n*k/group] (axis 0) and quantized along the axis; its HIGH nibbles are the first half
// of the rows and its low nibbles the second, so that flat element i stands in byte i mod n*k/2.
//   w = RN(RN(q - zero) * scale) in f32. The tool computes in `compute_dtype`; where that is f16 or
// bf16 it rounds both steps to it, which is its arithmetic, not the format's.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "checkpoint/flat_blocks.h"
#include "checkpoint/nibbles.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kCodes[] = "W_q", kScale[] = "scale", kZero[] = "zero", kBoth[] = "zero_scale";
constexpr uint32_t kFloats = bits(DType::kF32, DType::kF16, DType::kBF16);

struct Scheme {
  Format format;
  int64_t n = 0, k = 0;
  int64_t columns = 0;     ///< of the reshaped weight
  bool by_column = false;  ///< axis 0: element i of the flat weight has scale i mod columns
  FlatBlocks blocks;       ///< otherwise
  std::string dense_only;
  const TensorInfo* codes = nullptr;
  const TensorInfo* scale = nullptr;  ///< of zero_scale both are that tensor
  const TensorInfo* zero = nullptr;
};

/// A stored number: HQQ writes integers as i32, flags as u8, and 1.58 bits as f32.
Result<double> number(const Source& source, const std::string& layer, const char* suffix) {
  const TensorInfo* tensor = find_part(source, layer, suffix);
  const auto shape = tensor != nullptr && tensor->shape.size() == 1
                         ? std::span<const int64_t>(tensor->shape)
                         : std::span<const int64_t>();
  NIBBLE_ASSIGN_OR_RETURN(
      tensor,
      require_part(source, layer, suffix,
                   bits(DType::kI32, DType::kI64, DType::kU8, DType::kBool, DType::kF32), shape));
  if (!tensor->shape.empty() && tensor->shape[0] != 1) {
    return corrupt_file("tensor " + shown(tensor->name) + " is " + shape_text(tensor->shape) +
                        ", not one number");
  }
  const Buffer bytes = source.tensors.bytes(*tensor);
  const auto read = [&bytes](auto value) {
    std::memcpy(&value, bytes.data(), sizeof(value));
    return static_cast<double>(value);
  };
  if (*tensor->dtype == DType::kI32) return read(int32_t{});
  if (*tensor->dtype == DType::kI64) return read(int64_t{});
  if (*tensor->dtype == DType::kF32) return read(float{});
  return read(uint8_t{});
}

std::string number_text(double value) {
  std::string text = std::to_string(value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

/// Bits a code takes in the file, by `packing`. Codes of 5 and 6 bits are stored as bytes.
Result<int> stored_bits(const Source& source, const std::string& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const double nbits, number(source, layer, "nbits"));
  const int wanted = nbits == 4 ? 4 : nbits == 5 || nbits == 6 || nbits == 8 ? 8 : 0;
  const TensorInfo* tensor = find_part(source, layer, "packing");
  std::string packing = wanted == 0 ? "" : std::to_string(wanted) + "bit_u8";
  if (tensor != nullptr) {
    const int64_t count = std::min<int64_t>(tensor->bytes, 64);
    const Buffer text = source.tensors.bytes(*tensor, 0, count);
    packing.assign(reinterpret_cast<const char*>(text.data()), static_cast<size_t>(count));
  }
  if (wanted == 0) {
    return unsupported("weights of " + number_text(nbits) + " bits, packing " + shown(packing) +
                       ", are not read, only 4bit_u8 and 8bit_u8");
  }
  if (packing != std::to_string(wanted) + "bit_u8") {
    return corrupt_file("its packing is " + shown(packing) + " with " + number_text(nbits) +
                        " bits");
  }
  return wanted;
}

Status read_shape(const Source& source, const std::string& layer, Scheme& scheme) {
  const int64_t two[] = {2};
  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                          require_part(source, layer, "shape", bits(DType::kI64), two));
  std::array<int64_t, 2> shape{};
  std::memcpy(shape.data(), source.tensors.bytes(*tensor).data(), sizeof(shape));
  scheme.n = shape[0];
  scheme.k = shape[1];
  if (scheme.n < 1 || scheme.k < 1 || !checked_product(scheme.n, scheme.k)) {
    return corrupt_file("its shape is " + shape_text(shape));
  }
  return {};
}

/// Finds `scale` and `zero`, which have this shape, or both in `zero_scale`.
Status find_scales(const Source& source, const std::string& layer, std::span<const int64_t> shape,
                   Scheme& scheme) {
  if (find_part(source, layer, kBoth) != nullptr) {
    std::vector<int64_t> both = {2};
    both.insert(both.end(), shape.begin(), shape.end());
    NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kBoth, kFloats, both));
    scheme.zero = scheme.scale;
    return {};
  }
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kScale, kFloats, shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.zero, require_part(source, layer, kZero, kFloats, shape));
  return {};
}

Result<Scheme> scheme_of(const Source& source, const std::string& layer) {
  Scheme scheme;
  for (const char* flag : {"quant_scale", "quant_zero"}) {
    if (find_part(source, layer, flag) == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(const double value, number(source, layer, flag));
    if (value != 0) {
      return unsupported("its scales or zeros are quantized themselves (" + std::string(flag) +
                         "), which is not read");
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const int width, stored_bits(source, layer));
  NIBBLE_RETURN_IF_ERROR(read_shape(source, layer, scheme));
  NIBBLE_ASSIGN_OR_RETURN(const double axis, number(source, layer, "axis"));
  if (axis != 0 && axis != 1) return corrupt_file("its axis is " + number_text(axis));

  const int64_t elements = scheme.n * scheme.k;
  scheme.codes = find_part(source, layer, kCodes);
  const TensorInfo& codes = *scheme.codes;
  const bool is_codes =
      codes.dtype && (*codes.dtype == DType::kU8 || (kFloats & bit(*codes.dtype)));
  int64_t rows = 0;
  if (is_codes && codes.shape.size() == 2 && codes.shape[0] >= 1 && codes.shape[1] >= 1) {
    rows = codes.shape[0] * (8 / width);
    scheme.columns = codes.shape[1] * dtype_bytes(*codes.dtype);
  }
  if (rows < 1 || elements % rows != 0 || elements / rows != scheme.columns) {
    return corrupt_file("tensor " + shown(codes.name) + " is " + codes.dtype_name + " " +
                        shape_text(codes.shape) + ", which does not hold " +
                        shape_text(std::array{scheme.n, scheme.k}) + " in " +
                        std::to_string(width) + " bits");
  }

  const TensorInfo* scale = find_part(source, layer, kScale);
  const bool single = scale != nullptr && scale->shape.empty();
  scheme.by_column = !single && axis == 0 && scheme.columns > 1;
  const int64_t by_row[] = {rows, 1}, by_column[] = {1, scheme.columns};
  NIBBLE_RETURN_IF_ERROR(find_scales(source, layer,
                                     single      ? std::span<const int64_t>()
                                     : axis == 0 ? std::span<const int64_t>(by_column)
                                                 : std::span<const int64_t>(by_row),
                                     scheme));
  scheme.blocks = {scheme.n, scheme.k, single || axis == 0 ? elements : scheme.columns};
  const std::optional<int32_t> group = scheme.by_column ? std::nullopt : scheme.blocks.group();
  if (scheme.by_column) {
    scheme.dense_only = "axis 0: the columns of a row have different scales, " +
                        std::to_string(scheme.columns) + " over the weight, so no group has one";
  } else if (!group) {
    scheme.dense_only = scheme.blocks.why_dense();
  }
  // A Format stores scale and zero in one dtype; f32 holds any two.
  const DType dtype =
      *scheme.scale->dtype == *scheme.zero->dtype ? *scheme.scale->dtype : DType::kF32;
  scheme.format = {width == 4 ? Element::kUint4 : Element::kUint8, group.value_or(0), dtype,
                   ZeroKind::kFloatCode};
  return scheme;
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "hqq";
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (tensor.name.ends_with(std::string(".") + kCodes)) return true;
  }
  return false;
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto name = without_suffix(tensor.name, std::string(".") + kCodes);
    if (!name) continue;
    LayerInfo layer;
    layer.name = *name;
    for (const char* part : {kCodes,
                             kScale,
                             kZero,
                             kBoth,
                             "scale_q",
                             "zero_q",
                             "shape",
                             "axis",
                             "group_size",
                             "nbits",
                             "packing",
                             "unpack_view_dtype",
                             "view_as_float",
                             "compute_dtype",
                             "quant_scale",
                             "quant_zero",
                             "channel_wise",
                             "optimize",
                             "round_zero",
                             "offload_meta",
                             "encoded_state_dict",
                             "stores_quant_config"}) {
      add_part(source, layer, part);
    }
    const Result<Scheme> scheme = scheme_of(source, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.dense_only = scheme->dense_only;
      if (scheme->by_column) layer.remark = "axis 0";
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// The values in `dtype`, which is theirs or f32.
Result<Buffer> in_dtype(const Buffer& values, DType from, DType dtype) {
  if (from == dtype) return values;
  const int64_t count = values.bytes() / dtype_bytes(from);
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(count * dtype_bytes(dtype)));
  for (int64_t i = 0; i < count; ++i) {
    store_from_f32(out.mutable_data(), dtype, i, load_as_f32(values.data(), from, i));
  }
  return out;
}

/// One a block or column, in the Format's scale dtype.
struct Scales {
  Buffer scale, zero;
};
Result<Scales> read_scales(const Source& source, const Scheme& scheme) {
  NIBBLE_ASSIGN_OR_RETURN(const Buffer scale, source.tensors.values(*scheme.scale));
  if (scheme.scale == scheme.zero) {
    const int64_t half = scale.bytes() / 2;
    return Scales{scale.slice(half, half), scale.slice(0, half)};
  }
  NIBBLE_ASSIGN_OR_RETURN(const Buffer zero, source.tensors.values(*scheme.zero));
  Scales out;
  const DType dtype = scheme.format.scale;
  NIBBLE_ASSIGN_OR_RETURN(out.scale, in_dtype(scale, *scheme.scale->dtype, dtype));
  NIBBLE_ASSIGN_OR_RETURN(out.zero, in_dtype(zero, *scheme.zero->dtype, dtype));
  return out;
}

/// Rows of low-first codes from the halves that W_q's nibbles are.
Result<Buffer> row_codes(const Source& source, const Scheme& scheme) {
  const Buffer stored = source.tensors.bytes(*scheme.codes);
  if (scheme.format.bits() == 8) return stored;
  const int64_t n = scheme.n, k = scheme.k, half = stored.bytes();
  const int64_t row_bytes = scheme.format.code_row_bytes(k);
  NIBBLE_ASSIGN_OR_RETURN(Buffer codes, Buffer::allocate(n * row_bytes));
  const uint8_t* in = stored.data();
  uint8_t* out = codes.mutable_data();
  if (k % 2 != 0) {  // n is even then, so that the halves are rows
    for (int64_t row = 0; row < n; ++row) {
      join_nibbles(in + row % (n / 2) * k, row < n / 2 ? 4 : 0, k, out + row * row_bytes);
    }
    return codes;
  }
  join_nibbles(in, 4, half / 2 * 2, out);
  if (half % 2 != 0) {  // the first byte of the second half has a code of each
    out[half / 2] = static_cast<uint8_t>(in[half - 1] >> 4 | (in[0] & 15) << 4);
    join_nibbles(in + 1, 0, half - 1, out + half / 2 + 1);
  } else {
    join_nibbles(in, 0, half, out + half / 2);
  }
  return codes;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(const Scales scales, read_scales(source, scheme));
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  const int64_t bytes = dtype_bytes(q.format.scale);
  NIBBLE_ASSIGN_OR_RETURN(q.scales, scheme.blocks.per_group(scales.scale, bytes, q.format.group));
  NIBBLE_ASSIGN_OR_RETURN(q.zeros, scheme.blocks.per_group(scales.zero, bytes, q.format.group));
  NIBBLE_ASSIGN_OR_RETURN(q.codes, row_codes(source, scheme));
  return q;
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(const Scales scales, read_scales(source, scheme));
  const int64_t count = scheme.by_column ? scheme.columns : scheme.blocks.count();
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(load_as_f32(scales.scale.data(), scheme.format.scale, i)) ||
        !std::isfinite(load_as_f32(scales.zero.data(), scheme.format.scale, i))) {
      return corrupt_file("scale or zero " + std::to_string(i) + " is not finite");
    }
  }
  const Buffer codes = source.tensors.bytes(*scheme.codes);
  return DenseRows{
      scheme.n, scheme.k, [codes, scales, scheme](int64_t begin, int64_t end, float* out) {
        const DType dtype = scheme.format.scale;
        const int64_t half = codes.bytes(), k = scheme.k;
        const bool bytes = scheme.format.bits() == 8;
        for (int64_t i = begin * k; i < end * k; ++i) {
          const uint8_t byte = codes.data()[bytes || i < half ? i : i - half];
          const int code = bytes ? byte : i < half ? byte >> 4 : byte & 15;
          const int64_t at = scheme.by_column ? i % scheme.columns : i / scheme.blocks.block;
          const float difference =
              static_cast<float>(code) - load_as_f32(scales.zero.data(), dtype, at);
          *out++ = difference * load_as_f32(scales.scale.data(), dtype, at);
        }
        return ok_status();
      }};
}

}  // namespace

extern const ReadSpelling kReadHqq;
const ReadSpelling kReadHqq = {"hqq", claims, layers, load, dense};

}  // namespace nibble::checkpoint
