// Writes ModelOpt's spelling, weights alone (activations are not quantized):
//   NVFP4  weight u8 [n, k/2], low nibble first; weight_scale e4m3 [n, k/16]; weight_scale_2 f32 []
//          that multiplies; pre_quant_scale f32 [k] where there is a pre_scale
//   MXFP4  weight u8 [n, k/2]; weight_scale u8 [n, k/32]
//   INT4   weight u8 [n/2, k], packed along n: low nibble row 2r, high nibble row 2r + 1;
//          weight_scale f32 [n, k/group]; pre_quant_scale as above
// config.json says it in `quantization_config`, and hf_quant_config.json once more.
#include <algorithm>
#include <cmath>
#include <map>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kWeight[] = "weight", kScale[] = "weight_scale", kScale2[] = "weight_scale_2";
constexpr char kPreScale[] = "pre_quant_scale";

bool is_nvfp4(const Format& format) {
  return format.element == Element::kE2M1 && format.group == 16 && format.scale == DType::kE4M3;
}
bool is_mxfp4(const Format& format) {
  return format.element == Element::kE2M1 && format.group == 32 && format.scale == DType::kE8M0;
}
bool is_int4(const Format& format) {
  return format.element == Element::kInt4 && format.zero == ZeroKind::kNone && format.group != 0 &&
         format.scale == DType::kF32;
}

bool takes(const Format& format) { return is_nvfp4(format) || is_mxfp4(format) || is_int4(format); }

Status check(const LayerSpec& layer) {
  const std::string k = "k = " + std::to_string(layer.k);
  if (layer.k % layer.format.group != 0) {
    return unsupported(k + " is not a multiple of " + std::to_string(layer.format.group) +
                       ": the ModelOpt spelling tells the group from the number of scales");
  }
  if (is_int4(layer.format) && layer.n % 2 != 0) {
    return unsupported("n = " + std::to_string(layer.n) +
                       " is odd: ModelOpt packs two rows of int4 into one");
  }
  if (is_mxfp4(layer.format) && layer.pre_scale) {
    return unsupported("ModelOpt has no MXFP4 with a pre_quant_scale");
  }
  return {};
}

std::vector<TensorInfo> tensors(const LayerSpec& layer) {
  const int64_t groups = layer.format.groups(layer.k);
  std::vector<TensorInfo> out;
  if (is_int4(layer.format)) {
    out = {output_tensor(layer.name, kWeight, DType::kU8, {layer.n / 2, layer.k}),
           output_tensor(layer.name, kScale, DType::kF32, {layer.n, groups})};
  } else {
    const DType scale = is_mxfp4(layer.format) ? DType::kU8 : DType::kE4M3;
    out = {output_tensor(layer.name, kWeight, DType::kU8, {layer.n, layer.k / 2}),
           output_tensor(layer.name, kScale, scale, {layer.n, groups})};
    if (is_nvfp4(layer.format)) {
      out.push_back(output_tensor(layer.name, kScale2, DType::kF32, {}));
    }
  }
  // F32, so that no factor is rounded.
  if (layer.pre_scale) {
    out.push_back(output_tensor(layer.name, kPreScale, DType::kF32, {layer.k}));
  }
  return out;
}

template <class T>
std::span<const uint8_t> bytes_of(const T* values, size_t count) {
  return {reinterpret_cast<const uint8_t*>(values), count * sizeof(T)};
}

/// Two rows of nibbles become one row of bytes.
Status append_row_pairs(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  const int64_t row = layer.format.code_row_bytes(layer.k), pairs = layer.n / 2;
  const int64_t piece = std::min(rows_per_piece(layer.k), pairs);
  std::vector<uint8_t> out(static_cast<size_t>(piece * layer.k));
  for (int64_t begin = 0; begin < pairs; begin += piece) {
    const int64_t count = std::min(piece, pairs - begin);
    for (int64_t pair = 0; pair < count; ++pair) {
      const uint8_t* even = q.codes.data() + 2 * (begin + pair) * row;
      const uint8_t* odd = even + row;
      uint8_t* to = out.data() + pair * layer.k;
      // k is even: a multiple of the group.
      for (int64_t i = 0; i < row; ++i) {
        to[2 * i] = static_cast<uint8_t>((even[i] & 15) | odd[i] << 4);
        to[2 * i + 1] = static_cast<uint8_t>(even[i] >> 4 | (odd[i] & 0xF0));
      }
    }
    NIBBLE_RETURN_IF_ERROR(
        sink.append(0, std::span(out).first(static_cast<size_t>(count * layer.k))));
  }
  return {};
}

Status encode(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  const float factor = q.tensor_scales.empty() ? 1.0f : q.tensor_scales[0].value;
  if (!is_nvfp4(layer.format) && factor != 1.0f) {
    return unsupported("ModelOpt has no place for the tensor scale " + std::to_string(factor) +
                       " of " + layer.format.name());
  }
  if (!std::isfinite(factor)) {
    return unsupported("the tensor scale " + std::to_string(factor) + " is not finite");
  }
  size_t next = 0;
  if (is_int4(layer.format)) {
    NIBBLE_RETURN_IF_ERROR(append_row_pairs(layer, q, sink));
    ++next;
  } else {
    NIBBLE_RETURN_IF_ERROR(sink.append(next++, q.codes.span()));
  }
  NIBBLE_RETURN_IF_ERROR(sink.append(next++, q.scales.span()));
  if (is_nvfp4(layer.format)) {
    NIBBLE_RETURN_IF_ERROR(sink.append(next++, bytes_of(&factor, 1)));
  }
  if (!layer.pre_scale) return {};
  return sink.append(next, bytes_of(q.pre_scale.data(), q.pre_scale.size()));
}

// ------------------------------------------------------------------------------- configuration

/// `quant_algo` and what stands beside it for one kind of layer.
OrderedJson algorithm(const LayerSpec& layer) {
  if (is_mxfp4(layer.format)) return {{"quant_algo", "MXFP4"}, {"group_size", 32}};
  if (is_nvfp4(layer.format) && !layer.pre_scale) {
    return {{"quant_algo", "W4A16_NVFP4"}, {"group_size", 16}};
  }
  return {{"quant_algo", is_nvfp4(layer.format) ? "NVFP4_AWQ" : "W4A16_AWQ"},
          {"group_size", layer.format.group},
          {"has_zero_point", false},
          {"pre_quant_scale", true}};
}

/// AWQ algorithms allow layers without a pre_quant_scale: one such layer does not make a mixture.
OrderedJson common_algorithm(std::span<const LayerSpec> layers) {
  LayerSpec first = layers.front();
  for (const LayerSpec& layer : layers) first.pre_scale |= layer.pre_scale;
  for (const LayerSpec& layer : layers) {
    if (layer.format != first.format) return {{"quant_algo", "MIXED_PRECISION"}};
  }
  return algorithm(first);
}

/// Readers look at the producer's name; the version is that of the tool whose files these follow.
OrderedJson producer() { return {{"name", "modelopt"}, {"version", "0.47.0"}}; }

OrderedJson quantized_layers(std::span<const LayerSpec> layers) {
  std::map<std::string, OrderedJson> sorted;
  for (const LayerSpec& layer : layers) sorted[layer.name] = algorithm(layer);
  OrderedJson out = OrderedJson::object();
  for (auto& [name, entry] : sorted) out.emplace(name, std::move(entry));
  return out;
}

OrderedJson ignored(std::span<const LayerSpec> layers, std::span<const std::string> untouched) {
  OrderedJson out = OrderedJson(std::vector<std::string>(untouched.begin(), untouched.end()));
  // A head that shares the embedding's weight is stored nowhere, but is a Linear all the same.
  const auto is_head = [](const auto& name) { return name == "lm_head"; };
  const bool named = std::any_of(untouched.begin(), untouched.end(), is_head) ||
                     std::any_of(layers.begin(), layers.end(),
                                 [&](const LayerSpec& layer) { return is_head(layer.name); });
  if (!named) out.push_back("lm_head");
  return out;
}

OrderedJson config(std::span<const LayerSpec> layers, std::span<const std::string> untouched) {
  const OrderedJson common = common_algorithm(layers);
  OrderedJson out = OrderedJson::object();
  if (common["quant_algo"] == "W4A16_NVFP4") {
    const OrderedJson weights = {
        {"dynamic", false}, {"num_bits", 4}, {"type", "float"}, {"group_size", 16}};
    out["config_groups"] = {
        {"group_0", {{"weights", weights}, {"targets", OrderedJson::array({"Linear"})}}}};
  }
  out["ignore"] = ignored(layers, untouched);
  out["quant_algo"] = common["quant_algo"];
  if (common["quant_algo"] == "MIXED_PRECISION") out["quantized_layers"] = quantized_layers(layers);
  out["producer"] = producer();
  out["quant_method"] = "modelopt";
  return out;
}

std::vector<TextFile> files(std::span<const LayerSpec> layers,
                            std::span<const std::string> untouched) {
  const OrderedJson common = common_algorithm(layers);
  OrderedJson quantization = {{"quant_algo", common["quant_algo"]},
                              {"kv_cache_quant_algo", nullptr}};
  for (const auto& [key, value] : common.items()) quantization[key] = value;
  if (common["quant_algo"] == "MIXED_PRECISION") {
    quantization["quantized_layers"] = quantized_layers(layers);
  }
  quantization["exclude_modules"] = ignored(layers, untouched);
  const OrderedJson out = {{"producer", producer()}, {"quantization", std::move(quantization)}};
  return {{"hf_quant_config.json", out.dump(4)}};
}

}  // namespace

extern const WriteSpelling kWriteModelOpt;
const WriteSpelling kWriteModelOpt = {"modelopt", takes,  check,         tensors,
                                      encode,     config, "safetensors", TensorScaleOp::kMultiply,
                                      true,       files};

}  // namespace nibble::checkpoint
