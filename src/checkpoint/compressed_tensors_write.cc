// Writes compressed-tensors; compressed_tensors.cc describes the tensors.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

bool is_integer(Element element) {
  switch (element) {
    case Element::kInt4:
    case Element::kUint4:
    case Element::kInt8:
    case Element::kUint8:
      return true;
    case Element::kE2M1:
    case Element::kNF4:
      return false;
  }
  return false;
}

bool is_nvfp4(const Format& format) {
  return format.element == Element::kE2M1 && format.group == 16 && format.scale == DType::kE4M3;
}
bool is_mxfp4(const Format& format) {
  return format.element == Element::kE2M1 && format.group == 32 && format.scale == DType::kE8M0;
}

bool takes(const Format& format) {
  if (!is_integer(format.element)) return is_nvfp4(format) || is_mxfp4(format);
  return is_activation_dtype(format.scale) &&
         (format.zero == ZeroKind::kNone || format.zero == ZeroKind::kInteger);
}

Status check(const LayerSpec& layer) {
  if (!is_integer(layer.format.element) && layer.k % 2 != 0) {
    return unsupported("k = " + std::to_string(layer.k) + " is odd: compressed-tensors stores " +
                       layer.format.name() + " as k/2 bytes a row and nothing else holds k");
  }
  return {};
}

int64_t words(int64_t fields, int bits) { return ceil_div(fields * bits, 32); }

std::vector<TensorInfo> tensors(const LayerSpec& layer) {
  const auto& [name, format, n, k, source_dtype, pre_scale] = layer;
  const int64_t groups = format.groups(k);
  if (is_integer(format.element)) {
    std::vector<TensorInfo> out = {
        output_tensor(name, "weight_packed", DType::kI32, {n, words(k, format.bits())}),
        output_tensor(name, "weight_scale", format.scale, {n, groups}),
        output_tensor(name, "weight_shape", DType::kI64, {2}),
    };
    if (format.zero == ZeroKind::kInteger) {
      out.push_back(
          output_tensor(name, "weight_zero_point", DType::kI32, {words(n, format.bits()), groups}));
    }
    return out;
  }
  // e8m0 scales are U8 in this spelling.
  const DType scale = format.scale == DType::kE8M0 ? DType::kU8 : format.scale;
  std::vector<TensorInfo> out = {output_tensor(name, "weight_packed", DType::kU8, {n, k / 2}),
                                 output_tensor(name, "weight_scale", scale, {n, groups})};
  if (is_nvfp4(format)) {
    out.push_back(output_tensor(name, "weight_global_scale", DType::kF32, {1}));
  }
  return out;
}

Status append_values(TensorSink& sink, size_t index, const void* data, size_t bytes) {
  return sink.append(index, {static_cast<const uint8_t*>(data), bytes});
}

/// Rows of little-endian words from rows of bytes: padded with fields that read as zero points or
/// as code 0, which readers cut off.
Status append_codes(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  const Format& format = layer.format;
  const int64_t row = format.code_row_bytes(layer.k),
                stored_row = 4 * words(layer.k, format.bits());
  const bool is_signed = format.zero == ZeroKind::kNone;
  const bool odd_nibble = format.bits() == 4 && layer.k % 2 != 0;
  if (!is_signed && row == stored_row && !odd_nibble) return sink.append(0, q.codes.span());

  const uint8_t flip = is_signed ? (format.bits() == 4 ? 0x88 : 0x80) : 0;
  const int64_t piece = rows_per_piece(stored_row);
  std::vector<uint8_t> out(static_cast<size_t>(std::min(piece, layer.n) * stored_row));
  for (int64_t begin = 0; begin < layer.n; begin += piece) {
    const int64_t rows = std::min(piece, layer.n - begin);
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* from = q.codes.data() + (begin + r) * row;
      uint8_t* to = out.data() + r * stored_row;
      for (int64_t i = 0; i < row; ++i) to[i] = static_cast<uint8_t>(from[i] ^ flip);
      if (odd_nibble) to[row - 1] &= 15;
      std::memset(to + row, 0, static_cast<size_t>(stored_row - row));
    }
    NIBBLE_RETURN_IF_ERROR(
        append_values(sink, 0, out.data(), static_cast<size_t>(rows * stored_row)));
  }
  return {};
}

/// Zero points of consecutive rows share a word: packed along dim 0.
Status append_zeros(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  const int bits = layer.format.bits();
  const int64_t groups = layer.format.groups(layer.k), fields = 32 / bits;
  std::vector<uint32_t> line(static_cast<size_t>(groups));
  for (int64_t first = 0; first < layer.n; first += fields) {
    std::fill(line.begin(), line.end(), 0u);
    for (int64_t i = 0; i < std::min(fields, layer.n - first); ++i) {
      const uint8_t* zeros = q.zeros.data() + (first + i) * groups;
      for (int64_t g = 0; g < groups; ++g) {
        if (bits == 4 && zeros[g] > 15) {
          return unsupported("the zero point of row " + std::to_string(first + i) + ", group " +
                             std::to_string(g) + " is " + std::to_string(zeros[g]) +
                             "; four bits hold 0 to 15");
        }
        line[static_cast<size_t>(g)] |= static_cast<uint32_t>(zeros[g]) << (bits * i);
      }
    }
    NIBBLE_RETURN_IF_ERROR(append_values(sink, 3, line.data(), line.size() * sizeof(uint32_t)));
  }
  return {};
}

Status encode(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  if (is_integer(layer.format.element)) {
    if (!q.tensor_scales.empty()) {
      return unsupported("pack-quantized has no place for the tensor scale of an integer weight");
    }
    NIBBLE_RETURN_IF_ERROR(append_codes(layer, q, sink));
    NIBBLE_RETURN_IF_ERROR(sink.append(1, q.scales.span()));
    const int64_t shape[] = {layer.n, layer.k};
    NIBBLE_RETURN_IF_ERROR(append_values(sink, 2, shape, sizeof(shape)));
    return q.zeros.empty() ? Status() : append_zeros(layer, q, sink);
  }
  NIBBLE_RETURN_IF_ERROR(sink.append(0, q.codes.span()));
  NIBBLE_RETURN_IF_ERROR(sink.append(1, q.scales.span()));
  const float divisor = q.tensor_scales.empty() ? 1.0f : q.tensor_scales[0].value;
  if (is_nvfp4(layer.format)) {
    if (!std::isfinite(divisor) || divisor == 0) {
      return unsupported("the tensor scale " + std::to_string(divisor) + " cannot divide");
    }
    return append_values(sink, 2, &divisor, sizeof(divisor));
  }
  if (divisor == 1.0f) return {};
  return unsupported("mxfp4-pack-quantized has no place for the tensor scale " +
                     std::to_string(divisor));
}

const char* format_name(const Format& format) {
  return is_integer(format.element) ? "pack-quantized"
         : is_nvfp4(format)         ? "nvfp4-pack-quantized"
                                    : "mxfp4-pack-quantized";
}

OrderedJson weights_config(const Format& format) {
  OrderedJson weights = {{"dynamic", false},
                         {"group_size", nullptr},
                         {"num_bits", format.bits()},
                         {"strategy", format.group == 0 ? "channel" : "group"},
                         {"symmetric", format.zero == ZeroKind::kNone},
                         {"type", is_integer(format.element) ? "int" : "float"}};
  if (format.group != 0) weights["group_size"] = format.group;
  if (is_nvfp4(format)) {
    weights["strategy"] = "tensor_group";
    weights["scale_dtype"] = "torch.float8_e4m3fn";
  } else if (is_mxfp4(format)) {
    weights["scale_dtype"] = "torch.uint8";
  }
  return weights;
}

/// One scheme for all layers targets "Linear" and lists what is to be ignored; several schemes
/// target their layers by name.
OrderedJson config(std::span<const LayerSpec> layers, std::span<const std::string> untouched) {
  // The stored scale dtype is no part of a scheme: formats that differ in it alone share a group.
  struct Scheme {
    OrderedJson entry;
    OrderedJson names = OrderedJson::array();
  };
  std::vector<Scheme> schemes;
  bool quantizes_head = false;
  for (const LayerSpec& layer : layers) {
    OrderedJson entry = {{"format", format_name(layer.format)},
                         {"input_activations", nullptr},
                         {"output_activations", nullptr},
                         {"weights", weights_config(layer.format)}};
    auto found = std::find_if(schemes.begin(), schemes.end(),
                              [&entry](const Scheme& scheme) { return scheme.entry == entry; });
    if (found == schemes.end()) found = schemes.insert(found, Scheme{std::move(entry)});
    found->names.push_back(layer.name);
    quantizes_head |= layer.name == "lm_head";
  }
  OrderedJson groups = OrderedJson::object();
  std::string format;
  for (Scheme& scheme : schemes) {
    scheme.entry["targets"] =
        schemes.size() == 1 ? OrderedJson::array({"Linear"}) : std::move(scheme.names);
    const auto name = scheme.entry["format"].get<std::string>();
    format = format.empty() || format == name ? name : "mixed-precision";
    groups["group_" + std::to_string(groups.size())] = std::move(scheme.entry);
  }
  OrderedJson ignore = OrderedJson(std::vector<std::string>(untouched.begin(), untouched.end()));
  // A head that shares the embedding's weight is stored nowhere, but is a Linear all the same.
  const bool names_head =
      std::find(untouched.begin(), untouched.end(), "lm_head") != untouched.end();
  if (!quantizes_head && !names_head) ignore.push_back("lm_head");
  return {{"config_groups", std::move(groups)},
          {"format", format},
          {"global_compression_ratio", nullptr},
          {"ignore", std::move(ignore)},
          {"kv_cache_scheme", nullptr},
          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"},
          {"sparsity_config", OrderedJson::object()},
          {"transform_config", OrderedJson::object()}};
}

}  // namespace

extern const WriteSpelling kWriteCompressedTensors;
const WriteSpelling kWriteCompressedTensors = {
    "compressed-tensors",  takes, check, tensors, encode, config, "safetensors",
    TensorScaleOp::kDivide};

}  // namespace nibble::checkpoint
