// Reads GPTQ as AutoGPTQ and gptqmodel write it, versions 1 and 2, 4 and 8 bits. Layer "a.b" of n
// outputs and k inputs is
//
//   a.b.qweight  i32 [ceil(k*bits/32), n]        field i of word (r, c): output c, input
//   r*(32/bits)+i a.b.qzeros   i32 [groups, ceil(n*bits/32)]   fields along n; version 1 stores
//   each word minus
//                                                0x11111111 (8 bits: 0x01010101), borrows included
//   a.b.scales   f16, bf16 or f32 [groups, n]
//   a.b.g_idx    i32 [k]                         group of each input; may be absent
//
// w = (q - z) * scale. g_idx says which inputs share a scale, whatever desc_act says. Where
// config.json says `sym`, every z is 8 (128) and the weight is read as signed codes without zeros;
// that is checked when the layer is loaded.
#include <algorithm>

#include "checkpoint/group_index.h"
#include "checkpoint/qweight.h"
#include "checkpoint/spelling.h"
#include "checkpoint/transpose.h"

namespace nibble::checkpoint {
namespace {

constexpr char kGIdx[] = "g_idx";

/// What `quantization_config` says.
struct Declared {
  std::optional<int64_t> bits, group;
  bool symmetric = false;
  bool act_order = false;
  bool by_layer = false;  ///< single layers may differ from all of the above (`dynamic`)
  bool known = false;     ///< there is such a configuration
  bool version_2 = false;
};

Result<Declared> read_declared(const Json& config) {
  Declared out;
  out.known = config.is_object();
  for (const Json& entry : member(config, "dynamic")) out.by_layer |= !entry.empty();
  const Json& bits = member(config, "bits");
  if (bits.is_number_integer() && !out.by_layer) out.bits = bits.get<int64_t>();
  const Json& group = member(config, "group_size");
  if (group.is_number_integer() && !out.by_layer) {
    out.group = std::max<int64_t>(0, group.get<int64_t>());  // -1: the whole row
  }
  out.symmetric = member(config, "sym") == true && !out.by_layer;
  out.act_order = member(config, "desc_act") == true;

  for (const char* key : {"checkpoint_format", "format"}) {
    if (!member(config, key).is_string()) continue;
    const std::string form = lower_case(member(config, key).get<std::string>());
    if (form != "gptq" && form != "gptq_v2") {
      return unsupported(std::string("its ") + key + " is " + shown(form) +
                         "; gptq and gptq_v2 are read");
    }
    out.version_2 = form == "gptq_v2";
    break;
  }
  if (member(config, "is_marlin_format") == true) {
    return unsupported("its weights are in Marlin's order; gptq and gptq_v2 are read");
  }
  const Json& word = member(config, "pack_dtype");
  if (word.is_string() && word != "int32") {
    return unsupported("its pack_dtype is " + shown(word.get<std::string>()) + "; int32 is read");
  }
  return out;
}

/// How one layer decodes, with the tensors that hold it.
struct Scheme {
  Format format;
  int64_t n = 0, k = 0, groups = 0;
  bool symmetric = false;
  uint32_t add_to_zeros = 0;  ///< to each word, modulo 2^32
  const TensorInfo* weight = nullptr;
  const TensorInfo* zeros = nullptr;
  const TensorInfo* scales = nullptr;
  std::vector<int32_t> index;  ///< group of each column; empty: equal groups of `length`
  int64_t length = 0;
  GroupMap map;
};

/// The width of which the shapes allow only one, or the one that config.json says.
Result<int> find_bits(const Scheme& scheme, const TensorInfo* g_idx, const Declared& declared) {
  if (declared.bits && *declared.bits != 4 && *declared.bits != 8) {
    return unsupported("its weights have " + std::to_string(*declared.bits) +
                       " bits; GPTQ of 4 and 8 bits is read");
  }
  const int64_t rows = scheme.weight->shape[0], zero_words = scheme.zeros->shape[1];
  uint32_t fitting = 0;
  for (int bits = 2; bits <= 8; ++bits) {
    if (g_idx != nullptr && ceil_div(g_idx->shape[0] * bits, 32) != rows) continue;
    if (ceil_div(scheme.n * bits, 32) == zero_words) fitting |= 1u << bits;
  }
  const std::string facts = "qweight " + shape_text(scheme.weight->shape) + ", qzeros " +
                            shape_text(scheme.zeros->shape) + ", scales " +
                            shape_text(scheme.scales->shape) +
                            (g_idx != nullptr ? ", g_idx " + shape_text(g_idx->shape) : "");
  if (declared.bits) {
    if ((fitting >> *declared.bits & 1) != 0) return static_cast<int>(*declared.bits);
    return corrupt_file(facts + " do not fit together with " + std::to_string(*declared.bits) +
                        " bits");
  }
  const uint32_t readable = fitting & (1u << 4 | 1u << 8);
  if (readable == 1u << 4) return 4;
  if (readable == 1u << 8) return 8;
  if (readable != 0) return unsupported(facts + " fit 4 and 8 bits alike; config.json has to say");
  if (fitting == 0) return corrupt_file(facts + " do not fit together");
  return unsupported(facts + " are not of 4 or 8 bits; GPTQ of those is read");
}

Result<Scheme> scheme_of(const Source& source, const Result<Declared>& declared,
                         const std::string& layer) {
  if (!declared.ok()) return declared.status();
  Scheme scheme;
  NIBBLE_ASSIGN_OR_RETURN(scheme.weight, matrix_part(source, layer, kQWeight));
  NIBBLE_ASSIGN_OR_RETURN(scheme.zeros, matrix_part(source, layer, kQZeros));
  NIBBLE_ASSIGN_OR_RETURN(scheme.scales, matrix_part(source, layer, kQScales));
  scheme.groups = scheme.scales->shape[0];
  scheme.n = scheme.scales->shape[1];
  const TensorInfo* g_idx = find_part(source, layer, kGIdx);
  if (g_idx != nullptr &&
      (g_idx->shape.size() != 1 || g_idx->shape[0] < 1 || g_idx->shape[0] > INT64_MAX / 64)) {
    return corrupt_file("tensor " + shown(g_idx->name) + " is " + shape_text(g_idx->shape) +
                        ", not one group for each of the columns");
  }
  NIBBLE_ASSIGN_OR_RETURN(const int bits, find_bits(scheme, g_idx, *declared));
  scheme.k = g_idx != nullptr ? g_idx->shape[0] : scheme.weight->shape[0] * 32 / bits;

  const int64_t weight_shape[] = {ceil_div(scheme.k * bits, 32), scheme.n};
  const int64_t zero_shape[] = {scheme.groups, ceil_div(scheme.n * bits, 32)};
  const int64_t scale_shape[] = {scheme.groups, scheme.n}, index_shape[] = {scheme.k};
  NIBBLE_ASSIGN_OR_RETURN(scheme.weight, require_part(source, layer, kQWeight,
                                                      nibble::bits(DType::kI32), weight_shape));
  NIBBLE_ASSIGN_OR_RETURN(
      scheme.zeros, require_part(source, layer, kQZeros, nibble::bits(DType::kI32), zero_shape));
  NIBBLE_ASSIGN_OR_RETURN(
      scheme.scales,
      require_part(source, layer, kQScales, nibble::bits(DType::kF16, DType::kBF16, DType::kF32),
                   scale_shape));
  if (g_idx != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        g_idx, require_part(source, layer, kGIdx, nibble::bits(DType::kI32), index_shape));
    scheme.index = index_values(source, *g_idx);
    NIBBLE_ASSIGN_OR_RETURN(scheme.map, indexed_groups(g_idx->name, scheme.index, scheme.groups));
  } else if (declared->act_order) {
    return corrupt_file("it has no g_idx although config.json says desc_act");
  } else {
    NIBBLE_ASSIGN_OR_RETURN(scheme.length, group_length(scheme.k, scheme.groups, declared->group));
    scheme.map = equal_groups(scheme.k, scheme.length);
  }

  scheme.symmetric = declared->symmetric;
  if (!declared->version_2) scheme.add_to_zeros = bits == 4 ? 0x11111111u : 0x01010101u;
  scheme.format.element = bits == 4 ? (scheme.symmetric ? Element::kInt4 : Element::kUint4)
                                    : (scheme.symmetric ? Element::kInt8 : Element::kUint8);
  scheme.format.group = scheme.map.group;
  scheme.format.scale = *scheme.scales->dtype;
  scheme.format.zero = scheme.symmetric ? ZeroKind::kNone : ZeroKind::kInteger;
  return scheme;
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "gptq";
  return has_qweight_layer(
      source, [](const std::string&, const TensorInfo& weight, const TensorInfo& scales) {
        return weight.shape[1] == scales.shape[1];
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
    for (const char* part : {kQWeight, kQZeros, kQScales, kGIdx}) add_part(source, layer, part);
    const Result<Scheme> scheme = scheme_of(source, declared, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.dense_only = scheme->map.dense_only;
      if (layer.dense_only.empty()) layer.status = layer.format.validate();
      if (!scheme->map.order.empty()) layer.remark = "act-order";
      if (!declared->known) {
        layer.remark += (layer.remark.empty() ? "" : ", ") + std::string("version 1 assumed");
      }
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// Codes with `order` applied, scales and zeros of the groups `picked`.
Result<QuantizedTensor> read_parts(const Source& source, const Scheme& scheme,
                                   std::span<const int32_t> order,
                                   std::span<const int32_t> picked) {
  const int bits = scheme.format.bits();
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  const Buffer zeros = source.tensors.bytes(*scheme.zeros);
  const PackedZeros packed = {zeros.data(), scheme.groups, scheme.n, bits, scheme.add_to_zeros};
  if (scheme.symmetric) {
    NIBBLE_RETURN_IF_ERROR(check_symmetric(packed));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(q.zeros, unpacked_zeros(packed, picked));
  }
  const Buffer scales = source.tensors.bytes(*scheme.scales);
  NIBBLE_ASSIGN_OR_RETURN(
      q.scales, transposed(scales.data(), scheme.n, dtype_bytes(scheme.format.scale), picked));
  const Buffer words = source.tensors.bytes(*scheme.weight);
  const auto flip = static_cast<uint8_t>(scheme.symmetric ? 1 << (bits - 1) : 0);
  NIBBLE_ASSIGN_OR_RETURN(
      q.codes, rows_from_words_along_k({words.data(), scheme.n, scheme.k, bits, flip}, order));
  return q;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(Scheme scheme,
                          scheme_of(source, read_declared(source.quantization), layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, read_parts(source, scheme, scheme.map.order,
                                                        picked_groups(scheme.map, scheme.groups)));
  q.k_perm = std::move(scheme.map.order);
  return q;
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(Scheme scheme,
                          scheme_of(source, read_declared(source.quantization), layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor parts,
                          read_parts(source, scheme, {}, picked_groups({}, scheme.groups)));
  if (scheme.index.empty()) scheme.index = equal_index(scheme.k, scheme.length);
  return rows_by_index(std::move(parts), scheme.groups, std::move(scheme.index));
}

}  // namespace

extern const ReadSpelling kReadGptq;
const ReadSpelling kReadGptq = {"gptq", claims, layers, load, dense};

}  // namespace nibble::checkpoint
