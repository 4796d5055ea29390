// Reads AWQ of version gemm, as AutoAWQ writes it. Layer "a.b" of n outputs and k inputs is
//
//   a.b.qweight  i32 [k, ceil(n/8)]        field i of word (r, c): output 8c + kAwqOrder[i], input
//   r a.b.qzeros   i32 [groups, ceil(n/8)]   in the same order a.b.scales   f16, bf16 or f32
//   [groups, n]
//
// w = (q - z) * scale. The activations' scales are folded into the layer before, so nothing is left
// of them here.
#include <algorithm>

#include "checkpoint/group_index.h"
#include "checkpoint/qweight.h"
#include "checkpoint/spelling.h"
#include "checkpoint/transpose.h"

namespace nibble::checkpoint {
namespace {

struct Declared {
  std::optional<int64_t> group;
};

/// The integer under the first of two keys that there is.
std::optional<int64_t> integer_of(const Json& config, const char* key, const char* other) {
  const Json& value = member(config, member(config, key).is_null() ? other : key);
  return value.is_number_integer() ? std::optional(value.get<int64_t>()) : std::nullopt;
}

Result<Declared> read_declared(const Json& config) {
  for (const char* key : {"version", "checkpoint_format", "format"}) {
    if (!member(config, key).is_string()) continue;
    const std::string version = lower_case(member(config, key).get<std::string>());
    if (version == "gemm") break;
    return unsupported("its " + std::string(key) + " is " + shown(version) +
                       "; AWQ of version gemm is read");
  }
  const auto bits = integer_of(config, "bits", "w_bit");
  if (bits && *bits != 4) {
    return unsupported("its weights have " + std::to_string(*bits) +
                       " bits; AWQ of 4 bits is read");
  }
  Declared out;
  out.group = integer_of(config, "group_size", "q_group_size");
  if (out.group) out.group = std::max<int64_t>(0, *out.group);  // -1: the whole row
  return out;
}

struct Scheme {
  Format format;
  int64_t n = 0, k = 0, groups = 0, length = 0;
  const TensorInfo* weight = nullptr;
  const TensorInfo* zeros = nullptr;
  const TensorInfo* scales = nullptr;
  GroupMap map;
};

Result<Scheme> scheme_of(const Source& source, const Result<Declared>& declared,
                         const std::string& layer) {
  if (!declared.ok()) return declared.status();
  Scheme scheme;
  NIBBLE_ASSIGN_OR_RETURN(scheme.weight, matrix_part(source, layer, kQWeight));
  NIBBLE_ASSIGN_OR_RETURN(scheme.scales, matrix_part(source, layer, kQScales));
  scheme.k = scheme.weight->shape[0];
  scheme.groups = scheme.scales->shape[0];
  scheme.n = scheme.scales->shape[1];
  const int64_t words = ceil_div(scheme.n, 8);
  const int64_t weight_shape[] = {scheme.k, words}, zero_shape[] = {scheme.groups, words};
  const int64_t scale_shape[] = {scheme.groups, scheme.n};
  NIBBLE_ASSIGN_OR_RETURN(scheme.weight,
                          require_part(source, layer, kQWeight, bits(DType::kI32), weight_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.zeros,
                          require_part(source, layer, kQZeros, bits(DType::kI32), zero_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.scales,
                          require_part(source, layer, kQScales,
                                       bits(DType::kF16, DType::kBF16, DType::kF32), scale_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.length, group_length(scheme.k, scheme.groups, declared->group));
  scheme.map = equal_groups(scheme.k, scheme.length);
  scheme.format = {Element::kUint4, scheme.map.group, *scheme.scales->dtype, ZeroKind::kInteger};
  return scheme;
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "awq";
  return has_qweight_layer(source, [&source](const std::string& layer, const TensorInfo& weight,
                                             const TensorInfo& scales) {
    return weight.shape[1] == ceil_div(scales.shape[1], 8) &&
           find_part(source, layer, "g_idx") == nullptr;
  });
}

std::vector<LayerInfo> layers(const Source& source) {
  const auto declared = read_declared(source.quantization);
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto name = without_suffix(tensor.name, std::string(".") + kQWeight);
    if (!name) continue;
    LayerInfo layer;
    layer.name = *name;
    for (const char* part : {kQWeight, kQZeros, kQScales}) add_part(source, layer, part);
    const Result<Scheme> scheme = scheme_of(source, declared, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.dense_only = scheme->map.dense_only;
      if (layer.dense_only.empty()) layer.status = layer.format.validate();
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

Result<QuantizedTensor> read_parts(const Source& source, const Scheme& scheme,
                                   std::span<const int32_t> picked) {
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  const Buffer zeros = source.tensors.bytes(*scheme.zeros);
  NIBBLE_ASSIGN_OR_RETURN(
      q.zeros, unpacked_zeros({zeros.data(), scheme.groups, scheme.n, 4, 0, kAwqOrder}, picked));
  const Buffer scales = source.tensors.bytes(*scheme.scales);
  NIBBLE_ASSIGN_OR_RETURN(
      q.scales, transposed(scales.data(), scheme.n, dtype_bytes(scheme.format.scale), picked));
  const Buffer words = source.tensors.bytes(*scheme.weight);
  NIBBLE_ASSIGN_OR_RETURN(q.codes, rows_from_awq_words({words.data(), scheme.n, scheme.k, 4, 0}));
  return q;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme,
                          scheme_of(source, read_declared(source.quantization), layer.name));
  return read_parts(source, scheme, picked_groups(scheme.map, scheme.groups));
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme,
                          scheme_of(source, read_declared(source.quantization), layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor parts,
                          read_parts(source, scheme, picked_groups({}, scheme.groups)));
  return rows_by_index(std::move(parts), scheme.groups, equal_index(scheme.k, scheme.length));
}

}  // namespace

extern const ReadSpelling kReadAwq;
const ReadSpelling kReadAwq = {"awq", claims, layers, load, dense};

}  // namespace nibble::checkpoint
