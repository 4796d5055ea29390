// Nibble's own spelling, for fp4 weights that no other tool has one for (fp4-g32):
//   weight_packed  u8 [n, k/2], low nibble first along k
//   weight_scale   f32 (or the Format's scale dtype) [n, ceil(k/group)]
// under quantization_config {quant_method: "nibble", format: "fp4-g32", layers: {name: format}},
// where `layers` lists those whose Format is not `format`. Only Nibble reads it.
#include <map>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kPacked[] = "weight_packed", kScale[] = "weight_scale";
constexpr char kDefault[] = "fp4-g32";

struct Scheme {
  Format format;
  int64_t n = 0, k = 0;
  const TensorInfo* packed = nullptr;
  const TensorInfo* scale = nullptr;
};

bool takes(const Format& format) { return format.element == Element::kE2M1; }

Result<Scheme> scheme_of(const Source& source, const std::string& layer) {
  const Json& own = member(member(source.quantization, "layers"), layer.c_str());
  const Json& name = own.is_null() ? member(source.quantization, "format") : own;
  if (!name.is_string() && !source.quantization.is_null()) {
    return corrupt_file("quantization_config names no format for the layer");
  }
  Scheme scheme;
  const std::string text = name.is_string() ? name.get<std::string>() : kDefault;
  NIBBLE_ASSIGN_OR_RETURN(scheme.format, Format::parse(text));
  if (!takes(scheme.format)) return corrupt_file("format " + text + " is not spelled this way");
  scheme.packed = find_part(source, layer, kPacked);
  if (scheme.packed->dtype != DType::kU8 || scheme.packed->shape.size() != 2 ||
      scheme.packed->shape[0] < 1 || scheme.packed->shape[1] < 1 ||
      scheme.packed->shape[1] > INT64_MAX / 64) {
    return corrupt_file("weight_packed is " + scheme.packed->dtype_name + " " +
                        shape_text(scheme.packed->shape) + ", not U8 [n, k/2]");
  }
  scheme.n = scheme.packed->shape[0];
  scheme.k = 2 * scheme.packed->shape[1];
  const int64_t scale_shape[] = {scheme.n, scheme.format.groups(scheme.k)};
  NIBBLE_ASSIGN_OR_RETURN(
      scheme.scale, require_part(source, layer, kScale, bit(scheme.format.scale), scale_shape));
  return scheme;
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "nibble";
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto layer = without_suffix(tensor.name, std::string(".") + kPacked);
    if (!layer || tensor.dtype != DType::kU8) continue;
    const TensorInfo* scale = find_part(source, *layer, kScale);
    if (scale != nullptr && scale->dtype == DType::kF32) return true;
  }
  return false;
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto name = without_suffix(tensor.name, std::string(".") + kPacked);
    if (!name) continue;
    LayerInfo layer;
    layer.name = *name;
    add_part(source, layer, kPacked);
    add_part(source, layer, kScale);
    const Result<Scheme> scheme = scheme_of(source, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  q.codes = source.tensors.bytes(*scheme.packed);
  NIBBLE_ASSIGN_OR_RETURN(q.scales, source.tensors.values(*scheme.scale));
  return q;
}

Status check(const LayerSpec& layer) {
  if (layer.k % 2 == 0) return {};
  return unsupported("k = " + std::to_string(layer.k) + " is odd: " + layer.format.name() +
                     " is stored as k/2 bytes a row");
}

std::vector<TensorInfo> tensors(const LayerSpec& layer) {
  return {output_tensor(layer.name, kPacked, DType::kU8, {layer.n, layer.k / 2}),
          output_tensor(layer.name, kScale, layer.format.scale,
                        {layer.n, layer.format.groups(layer.k)})};
}

Status encode(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  if (!q.tensor_scales.empty()) {
    return unsupported("a tensor scale has no place in the spelling of " + layer.format.name());
  }
  NIBBLE_RETURN_IF_ERROR(sink.append(0, q.codes.span()));
  return sink.append(1, q.scales.span());
}

OrderedJson config(std::span<const LayerSpec> layers, std::span<const std::string>) {
  const std::string format = layers.front().format.name();
  std::map<std::string, std::string> others;
  for (const LayerSpec& layer : layers) {
    if (layer.format.name() != format) others[layer.name] = layer.format.name();
  }
  OrderedJson out = {{"quant_method", "nibble"}, {"format", format}};
  if (!others.empty()) out["layers"] = others;
  return out;
}

}  // namespace

extern const ReadSpelling kReadNibble;
const ReadSpelling kReadNibble = {"nibble", claims, layers, load};
extern const WriteSpelling kWriteNibble;
const WriteSpelling kWriteNibble = {"nibble", takes, check, tensors, encode, config};

}  // namespace nibble::checkpoint
