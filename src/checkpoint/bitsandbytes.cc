// bitsandbytes NF4, read and written: layer "a.b" is
//   a.b.weight                                u8 [n*k/2, 1], HIGH nibble first, flat over [n, k]
//   a.b.weight.absmax                         f32 [n*k/block]
//   a.b.weight.quant_map                      f32 [16]: the codebook
//   a.b.weight.quant_state.bitsandbytes__nf4  u8: JSON with quant_type, blocksize, dtype, shape
// Blocks are counted over the flat weight, so they are groups only where the block divides k; that
// is the rule for reading and writing here. Nested (double-quantized) scales are refused.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kWeight[] = "weight", kAbsmax[] = "weight.absmax", kMap[] = "weight.quant_map";
constexpr char kState[] = "weight.quant_state.bitsandbytes__nf4";
constexpr char kFp4State[] = "weight.quant_state.bitsandbytes__fp4";
constexpr char kNestedAbsmax[] = "weight.nested_absmax", kNestedMap[] = "weight.nested_quant_map";

struct Scheme {
  Format format;
  int64_t n = 0, k = 0;
  const TensorInfo* codes = nullptr;
  const TensorInfo* absmax = nullptr;
  const TensorInfo* map = nullptr;
};

int64_t integer_or(const Json& value, int64_t otherwise) {
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

Result<Scheme> scheme_of(const Source& source, const std::string& layer) {
  const TensorInfo* state = find_part(source, layer, kState);
  if (state == nullptr) return unsupported("bitsandbytes FP4 weights are not read, only NF4");
  const Buffer text = source.tensors.bytes(*state);
  NIBBLE_ASSIGN_OR_RETURN(const Json json, parse_json({reinterpret_cast<const char*>(text.data()),
                                                       static_cast<size_t>(text.bytes())},
                                                      "tensor " + shown(state->name)));
  if (member(json, "quant_type") != "nf4") return corrupt_file("its quant_type is not nf4");
  if (!member(json, "nested_blocksize").is_null() || find_part(source, layer, kNestedAbsmax)) {
    return unsupported("double-quantized (nested) scales are not read");
  }
  Scheme scheme;
  const Json& shape = member(json, "shape");
  if (!shape.is_array() || shape.size() != 2) return corrupt_file("its shape is not [n, k]");
  scheme.n = integer_or(shape[0], 0);
  scheme.k = integer_or(shape[1], 0);
  const int64_t block = integer_or(member(json, "blocksize"), 0);
  const auto elements = checked_product(scheme.n, scheme.k);
  if (scheme.n < 1 || scheme.k < 1 || !elements) {
    return corrupt_file("its shape is [" + std::to_string(scheme.n) + ", " +
                        std::to_string(scheme.k) + "]");
  }
  if (block < 1 || block > 128 || scheme.k % block != 0) {
    return unsupported("blocks of " + std::to_string(block) +
                       " for k = " + std::to_string(scheme.k) +
                       ": only blocks of 16, 32, 64 or 128 that divide k are groups of a row");
  }
  scheme.format = {Element::kNF4, static_cast<int32_t>(block), DType::kF32, ZeroKind::kNone};
  const int64_t code_shape[] = {*elements / 2, 1}, scale_shape[] = {*elements / block};
  const int64_t map_shape[] = {16};
  NIBBLE_ASSIGN_OR_RETURN(scheme.codes,
                          require_part(source, layer, kWeight, bits(DType::kU8), code_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.absmax,
                          require_part(source, layer, kAbsmax, bits(DType::kF32), scale_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.map,
                          require_part(source, layer, kMap, bits(DType::kF32), map_shape));
  return scheme;
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "bitsandbytes";
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (without_suffix(tensor.name, std::string(".") + kState)) return true;
  }
  return false;
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    auto name = without_suffix(tensor.name, std::string(".") + kState);
    if (!name) name = without_suffix(tensor.name, std::string(".") + kFp4State);
    if (!name) continue;
    LayerInfo layer;
    layer.name = *name;
    for (const char* part :
         {kWeight, kAbsmax, kMap, kState, kFp4State, kNestedAbsmax, kNestedMap}) {
      add_part(source, layer, part);
    }
    const Result<Scheme> scheme = scheme_of(source, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.status = layer.format.validate();
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

uint8_t swap_nibbles(uint8_t byte) { return static_cast<uint8_t>(byte << 4 | byte >> 4); }

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  NIBBLE_ASSIGN_OR_RETURN(q.scales, source.tensors.values(*scheme.absmax));
  std::memcpy(q.codebook.data(), source.tensors.bytes(*scheme.map).data(), sizeof(q.codebook));
  for (const float value : q.codebook) {
    if (!std::isfinite(value))
      return corrupt_file("its quant_map holds a value that is not finite");
  }
  const Buffer stored = source.tensors.bytes(*scheme.codes);
  NIBBLE_ASSIGN_OR_RETURN(q.codes, Buffer::allocate(stored.bytes()));
  uint8_t* codes = q.codes.mutable_data();
  for (int64_t i = 0; i < stored.bytes(); ++i) codes[i] = swap_nibbles(stored.data()[i]);
  return q;
}

// --------------------------------------------------------------------------------------- write

bool takes(const Format& format) { return format.element == Element::kNF4; }

Status check(const LayerSpec& layer) {
  const int32_t block = layer.format.group;
  if (layer.format.scale != DType::kF32) {
    return unsupported(std::string("bitsandbytes stores nf4 scales as f32, not ") +
                       dtype_name(layer.format.scale));
  }
  if (block != 64 && block != 128) {
    return unsupported("bitsandbytes reads nf4 blocks of 64 and larger, not " +
                       layer.format.name());
  }
  if (layer.k % block != 0) {
    return unsupported("k = " + std::to_string(layer.k) + " is not a multiple of " +
                       std::to_string(block) + ": bitsandbytes blocks would cross rows");
  }
  return {};
}

/// The keys in the order and spacing in which the tool writes them.
std::string state_text(const LayerSpec& layer) {
  const char* dtype = layer.source_dtype == DType::kF32   ? "float32"
                      : layer.source_dtype == DType::kF16 ? "float16"
                                                          : "bfloat16";
  return "{\"quant_type\": \"nf4\", \"blocksize\": " + std::to_string(layer.format.group) +
         ", \"dtype\": \"" + dtype + "\", \"shape\": [" + std::to_string(layer.n) + ", " +
         std::to_string(layer.k) + "]}";
}

std::vector<TensorInfo> tensors(const LayerSpec& layer) {
  const auto& [name, format, n, k, source_dtype] = layer;
  return {
      output_tensor(name, kWeight, DType::kU8, {n * k / 2, 1}),
      output_tensor(name, kAbsmax, DType::kF32, {n * format.groups(k)}),
      output_tensor(name, kMap, DType::kF32, {16}),
      output_tensor(name, kState, DType::kU8, {static_cast<int64_t>(state_text(layer).size())})};
}

Status encode(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  if (!q.tensor_scales.empty()) return unsupported("bitsandbytes has no place for a tensor scale");
  constexpr int64_t kPiece = 1 << 20;
  std::vector<uint8_t> piece(static_cast<size_t>(std::min(kPiece, q.codes.bytes())));
  for (int64_t begin = 0; begin < q.codes.bytes(); begin += kPiece) {
    const int64_t count = std::min(kPiece, q.codes.bytes() - begin);
    const uint8_t* codes = q.codes.data() + begin;
    for (int64_t i = 0; i < count; ++i) piece[static_cast<size_t>(i)] = swap_nibbles(codes[i]);
    NIBBLE_RETURN_IF_ERROR(sink.append(0, std::span(piece).first(static_cast<size_t>(count))));
  }
  NIBBLE_RETURN_IF_ERROR(sink.append(1, q.scales.span()));
  NIBBLE_RETURN_IF_ERROR(
      sink.append(2, {reinterpret_cast<const uint8_t*>(q.codebook.data()), sizeof(q.codebook)}));
  const std::string state = state_text(layer);
  return sink.append(3, {reinterpret_cast<const uint8_t*>(state.data()), state.size()});
}

OrderedJson config(std::span<const LayerSpec> layers, std::span<const std::string> untouched) {
  const DType compute = layers.front().source_dtype;
  OrderedJson skip = OrderedJson(std::vector<std::string>(untouched.begin(), untouched.end()));
  if (std::find(skip.begin(), skip.end(), "lm_head") == skip.end()) skip.push_back("lm_head");
  return {{"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_compute_dtype", compute == DType::kF32   ? "float32"
                                     : compute == DType::kF16 ? "float16"
                                                              : "bfloat16"},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", "nf4"},
          {"bnb_4bit_use_double_quant", false},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", std::move(skip)},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"quant_method", "bitsandbytes"}};
}

}  // namespace

extern const ReadSpelling kReadBitsandbytes;
const ReadSpelling kReadBitsandbytes = {"bitsandbytes", claims, layers, load};
extern const WriteSpelling kWriteBitsandbytes;
const WriteSpelling kWriteBitsandbytes = {"bitsandbytes", takes, check, tensors, encode, config};

}  // namespace nibble::checkpoint
