// Reads the quantized tensors of a GGUF file: layer "blk.0.ffn_up" is
//   blk.0.ffn_up.weight        [n, k] or, of experts, [experts, n, k] in a quantized ggml type
//   blk.0.ffn_up.scale         f32 [1] or [experts], where the converter found a scale of the whole
//                              weight (NVFP4); also spelled blk.0.ffn_up.weight.scale
//   blk.0.ffn_up.input_scale   of the activations; they are never rounded here
// Experts become rows of one weight [experts * n, k].
#include <cmath>
#include <cstring>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_blocks.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kWeight[] = ".weight";
constexpr const char* kScales[] = {"scale", "weight.scale"};

struct Scheme {
  const GgmlBlocks* blocks = nullptr;
  Format format;
  int64_t n = 0, k = 0;
  int64_t experts = 1;
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale = nullptr;  ///< null: none
};

bool is_quantized(const TensorInfo& tensor) { return !tensor.dtype; }

std::string layer_name(const TensorInfo& tensor) {
  return without_suffix(tensor.name, kWeight).value_or(tensor.name);
}

/// Types that are read, for messages.
std::string readable_types() {
  std::string out;
  for (const GgmlBlocks& row : ggml_blocks())
    out += (out.empty() ? "" : ", ") + std::string(row.type);
  return out;
}

Status find_scale(const Source& source, const std::string& layer, Scheme& scheme) {
  for (const char* part : kScales) {
    if (scheme.scale == nullptr) scheme.scale = find_part(source, layer, part);
  }
  if (scheme.scale == nullptr) return {};
  const int64_t values = scheme.scale->bytes / 4;
  if (scheme.scale->dtype != DType::kF32 || (values != 1 && values != scheme.experts)) {
    return corrupt_file("tensor " + shown(scheme.scale->name) + " is " + scheme.scale->dtype_name +
                        " " + shape_text(scheme.scale->shape) + ", not one F32 for each of " +
                        std::to_string(scheme.experts) + " experts");
  }
  if (scheme.format.zero == ZeroKind::kAdditive) {
    return unsupported(std::string(scheme.weight->dtype_name) +
                       " has minimums, which cannot meet " + shown(scheme.scale->name));
  }
  // More segments than a QuantizedTensor holds: the scales are multiplied out. That is exact,
  // because decode rounds scale * tensor_scale to f32 before it meets the code.
  if (values > kMaxTensorScales) scheme.format.scale = DType::kF32;
  return {};
}

Result<Scheme> scheme_of(const Source& source, const TensorInfo& weight) {
  Scheme scheme;
  scheme.weight = &weight;
  scheme.blocks = ggml_blocks_of(weight.dtype_name);
  if (scheme.blocks == nullptr) {
    return unsupported("its type " + weight.dtype_name +
                       " is not read; these are: " + readable_types());
  }
  scheme.format = scheme.blocks->format;
  // "a" and "a.weight" would be one layer.
  const std::string layer = layer_name(weight);
  const TensorInfo* twins[] = {source.tensors.find(layer), source.tensors.find(layer + kWeight)};
  if (twins[0] != nullptr && twins[1] != nullptr && is_quantized(*twins[0]) &&
      is_quantized(*twins[1])) {
    return corrupt_file("tensors " + shown(twins[0]->name) + " and " + shown(twins[1]->name) +
                        " are both a weight of this name");
  }
  std::optional<int64_t> rows = 1;
  for (size_t i = 0; i + 1 < weight.shape.size(); ++i) {
    rows = rows ? checked_product(*rows, weight.shape[i]) : std::nullopt;
  }
  scheme.k = weight.shape.empty() ? 1 : weight.shape.back();
  scheme.n = rows.value_or(0);
  if (scheme.n < 1 || scheme.k < 1) {
    return corrupt_file(weight.dtype_name + " " + shape_text(weight.shape) + " holds no weight");
  }
  if (weight.shape.size() > 2) scheme.experts = scheme.n / weight.shape[weight.shape.size() - 2];
  NIBBLE_RETURN_IF_ERROR(find_scale(source, layer, scheme));
  return scheme;
}

bool claims(const Source& source) {
  if (source.container != "gguf") return false;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (is_quantized(tensor)) return true;
  }
  return false;
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (!is_quantized(tensor)) continue;
    LayerInfo layer;
    layer.name = layer_name(tensor);
    layer.tensors = {tensor.name};
    layer.stored_bytes = tensor.bytes;
    layer.remark = tensor.dtype_name;
    for (const char* part : {kScales[0], kScales[1], "input_scale"}) add_part(source, layer, part);
    const Result<Scheme> scheme = scheme_of(source, tensor);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      if (tensor.shape.size() > 2) {
        layer.remark += ", " + std::to_string(scheme->experts) + " experts of " +
                        std::to_string(scheme->n / scheme->experts) + " rows";
      }
      if (scheme->scale != nullptr) layer.remark += ", tensor scale";
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// The scales of the whole weight, of one expert each.
Status apply_scales(const Source& source, const Scheme& scheme, QuantizedTensor& q) {
  const Buffer stored = source.tensors.bytes(*scheme.scale);
  std::vector<float> values(static_cast<size_t>(stored.bytes() / 4));
  std::memcpy(values.data(), stored.data(), values.size() * sizeof(float));
  const int64_t rows = scheme.n / static_cast<int64_t>(values.size());
  if (values.size() <= kMaxTensorScales) {
    for (const float value : values) {
      q.tensor_scales.push_back({static_cast<int64_t>(q.tensor_scales.size()) * rows, value});
    }
    return {};
  }
  const DType from = scheme.blocks->format.scale;
  const int64_t groups = scheme.format.groups(scheme.k);
  NIBBLE_ASSIGN_OR_RETURN(Buffer scales, Buffer::allocate(4 * scheme.n * groups));
  for (int64_t row = 0; row < scheme.n; ++row) {
    const float factor = values[static_cast<size_t>(row / rows)];
    for (int64_t i = row * groups; i < (row + 1) * groups; ++i) {
      store_from_f32(scales.mutable_data(), DType::kF32, i,
                     load_as_f32(q.scales.data(), from, i) * factor);
    }
  }
  q.scales = std::move(scales);
  return {};
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  const TensorInfo* weight = source.tensors.find(layer.tensors.front());
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, *weight));
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  if (scheme.blocks->codebook != nullptr) q.codebook = *scheme.blocks->codebook;
  // Sizes are those of the file but for a factor: nothing overflows.
  const Format& stored_format = scheme.blocks->format;
  const int64_t values = scheme.n * stored_format.groups(scheme.k);
  const int64_t scale_bytes = values * dtype_bytes(stored_format.scale);
  NIBBLE_ASSIGN_OR_RETURN(q.codes,
                          Buffer::allocate(scheme.n * stored_format.code_row_bytes(scheme.k)));
  NIBBLE_ASSIGN_OR_RETURN(q.scales, Buffer::allocate(scale_bytes));
  BlockParts parts{q.codes.mutable_data(), q.scales.mutable_data()};
  if (stored_format.zero != ZeroKind::kNone) {
    NIBBLE_ASSIGN_OR_RETURN(q.zeros, Buffer::allocate(scale_bytes));
    parts.zeros = q.zeros.mutable_data();
  }
  const Buffer stored = source.tensors.bytes(*weight);
  const int64_t block_bytes = ggml_type(weight->dtype_name)->block_bytes;
  scheme.blocks->decode(stored.data(), stored.bytes() / block_bytes, parts);
  if (scheme.scale != nullptr) NIBBLE_RETURN_IF_ERROR(apply_scales(source, scheme, q));
  return q;
}

}  // namespace

extern const ReadSpelling kReadGguf;
const ReadSpelling kReadGguf = {"gguf", claims, layers, load};

}  // namespace nibble::checkpoint
