// bitsandbytes NF4 and FP4, read; NF4, written. Layer "a.b" is
//   a.b.weight                                [bytes, 1], HIGH nibble first, flat over [n, k]; u8,
//   or
//                                             any dtype of those bytes (bnb_4bit_quant_storage)
//   a.b.weight.absmax                         f32 [blocks]; u8 when nested
//   a.b.weight.quant_map                      f32 [16]: the codebook; FP4's is not in E2M1's order
//   a.b.weight.quant_state.bitsandbytes__nf4  (or __fp4) u8: JSON with quant_type, blocksize,
//   dtype,
//                                             shape, and of nested scales blocksize and offset
//   a.b.weight.nested_absmax, .nested_quant_map   f32 [ceil(blocks / nested_blocksize)], f32 [256]
// Blocks are counted over the flat weight: they may cross rows, and the last may be short.
//   w = RN(quant_map[q] * absmax);  nested: absmax = RN(RN(map[a] * nested_absmax) + nested_offset)
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "checkpoint/flat_blocks.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kWeight[] = "weight", kAbsmax[] = "weight.absmax", kMap[] = "weight.quant_map";
constexpr char kState[] = "weight.quant_state.bitsandbytes__nf4";
constexpr char kFp4State[] = "weight.quant_state.bitsandbytes__fp4";
constexpr char kNestedAbsmax[] = "weight.nested_absmax", kNestedMap[] = "weight.nested_quant_map";
constexpr char kInt8Scale[] = "SCB";  ///< of LLM.int8() layers

struct Scheme {
  Format format;
  FlatBlocks blocks;
  std::string dense_only;  ///< why `format` means nothing
  const TensorInfo* codes = nullptr;
  const TensorInfo* absmax = nullptr;
  const TensorInfo* map = nullptr;
  // Nested scales alone.
  const TensorInfo* nested_absmax = nullptr;
  const TensorInfo* nested_map = nullptr;
  int64_t nested_block = 0;
  float nested_offset = 0;
};

int64_t integer_or(const Json& value, int64_t otherwise) {
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

/// A block length of the JSON. Errors: kCorruptFile.
Result<int64_t> block_length(const Json& state, const char* key) {
  const int64_t block = integer_or(member(state, key), 0);
  if (block >= 1 && block <= INT32_MAX) return block;
  return corrupt_file(std::string("its ") + key + " is " + shown(member(state, key).dump()) +
                      ", not a number of elements");
}

Result<Json> read_state(const Source& source, const std::string& layer) {
  const TensorInfo* nf4 = find_part(source, layer, kState);
  const TensorInfo* fp4 = find_part(source, layer, kFp4State);
  if (nf4 != nullptr && fp4 != nullptr) return corrupt_file("it is both nf4 and fp4");
  const TensorInfo& tensor = nf4 != nullptr ? *nf4 : *fp4;
  constexpr int64_t kMaxStateBytes = 1 << 16;  // real ones have less than 300
  if (tensor.bytes > kMaxStateBytes) {
    return corrupt_file("tensor " + shown(tensor.name) + " has " + std::to_string(tensor.bytes) +
                        " bytes of JSON");
  }
  const Buffer text = source.tensors.bytes(tensor);
  NIBBLE_ASSIGN_OR_RETURN(Json json, parse_json({reinterpret_cast<const char*>(text.data()),
                                                 static_cast<size_t>(text.bytes())},
                                                "tensor " + shown(tensor.name)));
  const char* type = nf4 != nullptr ? "nf4" : "fp4";
  if (member(json, "quant_type") != type) {
    return corrupt_file("its quant_type is " + shown(member(json, "quant_type").dump()) + ", not " +
                        type);
  }
  return json;
}

/// The double quantization of the scales.
Status read_nested(const Source& source, const std::string& layer, const Json& state,
                   Scheme& scheme) {
  NIBBLE_ASSIGN_OR_RETURN(scheme.nested_block, block_length(state, "nested_blocksize"));
  const Json& offset = member(state, "nested_offset");
  scheme.nested_offset = offset.is_number() ? static_cast<float>(offset.get<double>()) : NAN;
  if (!std::isfinite(scheme.nested_offset)) {
    return corrupt_file("its nested_offset is " + shown(offset.dump()));
  }
  const Json& dtype = member(state, "nested_dtype");
  if (dtype != "float32") {
    return unsupported("its nested_dtype is " + shown(dtype.dump()) + "; only float32 is read");
  }
  const int64_t blocks[] = {(scheme.blocks.count() - 1) / scheme.nested_block + 1}, map[] = {256};
  NIBBLE_ASSIGN_OR_RETURN(scheme.nested_absmax,
                          require_part(source, layer, kNestedAbsmax, bits(DType::kF32), blocks));
  NIBBLE_ASSIGN_OR_RETURN(scheme.nested_map,
                          require_part(source, layer, kNestedMap, bits(DType::kF32), map));
  return {};
}

Result<Scheme> scheme_of(const Source& source, const std::string& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Json state, read_state(source, layer));
  Scheme scheme;
  FlatBlocks& blocks = scheme.blocks;
  const Json& shape = member(state, "shape");
  if (!shape.is_array() || shape.size() != 2) {
    return corrupt_file("its shape is " + shown(shape.dump()) + ", not [n, k]");
  }
  blocks.n = integer_or(shape[0], 0);
  blocks.k = integer_or(shape[1], 0);
  const auto elements = checked_product(blocks.n, blocks.k);
  if (blocks.n < 1 || blocks.k < 1 || !elements) {
    return corrupt_file("its shape is [" + std::to_string(blocks.n) + ", " +
                        std::to_string(blocks.k) + "]");
  }
  NIBBLE_ASSIGN_OR_RETURN(blocks.block, block_length(state, "blocksize"));

  scheme.codes = find_part(source, layer, kWeight);
  const int64_t code_bytes = *elements / 2 + *elements % 2;
  const TensorInfo* codes = scheme.codes;
  if (codes == nullptr || codes->shape.size() != 2 || codes->shape[1] != 1 ||
      codes->bytes != code_bytes) {
    return corrupt_file(codes == nullptr
                            ? "tensor " + shown(part_name(layer, kWeight)) + " is missing"
                            : "tensor " + shown(codes->name) + " is " + codes->dtype_name + " " +
                                  shape_text(codes->shape) + ", a weight [" +
                                  std::to_string(blocks.n) + ", " + std::to_string(blocks.k) +
                                  "] needs one column of " + std::to_string(code_bytes) + " bytes");
  }
  const bool nested =
      !member(state, "nested_blocksize").is_null() || find_part(source, layer, kNestedAbsmax);
  const int64_t scale_shape[] = {blocks.count()}, map_shape[] = {16};
  NIBBLE_ASSIGN_OR_RETURN(scheme.absmax,
                          require_part(source, layer, kAbsmax,
                                       nested ? bits(DType::kU8) : bits(DType::kF32), scale_shape));
  NIBBLE_ASSIGN_OR_RETURN(scheme.map,
                          require_part(source, layer, kMap, bits(DType::kF32), map_shape));
  if (nested) NIBBLE_RETURN_IF_ERROR(read_nested(source, layer, state, scheme));

  const std::optional<int32_t> group = blocks.group();
  if (!group) scheme.dense_only = blocks.why_dense();
  scheme.format = {Element::kNF4, group.value_or(0), DType::kF32, ZeroKind::kNone};
  return scheme;
}

std::optional<std::string> layer_of(const TensorInfo& tensor) {
  auto name = without_suffix(tensor.name, std::string(".") + kState);
  return name ? name : without_suffix(tensor.name, std::string(".") + kFp4State);
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "bitsandbytes";
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (layer_of(tensor)) return true;
  }
  return false;
}

/// A layer of 8 bits: listed, so that it is not taken for a plain tensor.
LayerInfo int8_layer(const Source& source, const std::string& name) {
  LayerInfo layer;
  layer.name = name;
  for (const char* part : {kWeight, kInt8Scale, "weight_format"}) add_part(source, layer, part);
  layer.status = unsupported("LLM.int8() weights are not read, only NF4 and FP4");
  return layer;
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (const auto eight = without_suffix(tensor.name, std::string(".") + kInt8Scale)) {
      out.push_back(int8_layer(source, *eight));
      continue;
    }
    const auto name = layer_of(tensor);
    const bool is_fp4 = tensor.name.ends_with(kFp4State);
    if (!name || (is_fp4 && find_part(source, *name, kState) != nullptr)) continue;
    LayerInfo layer;
    layer.name = *name;
    for (const char* part :
         {kWeight, kAbsmax, kMap, kState, kFp4State, kNestedAbsmax, kNestedMap}) {
      add_part(source, layer, part);
    }
    const Result<Scheme> scheme = scheme_of(source, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->blocks.n;
      layer.k = scheme->blocks.k;
      layer.dense_only = scheme->dense_only;
      if (scheme->nested_map != nullptr) layer.remark = "nested scales";
      if (is_fp4) {
        layer.remark += layer.remark.empty() ? "FP4 codebook" : ", FP4 codebook";
      }
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// One f32 a block. Each step rounds once, in the tool's order.
Result<Buffer> block_scales(const Source& source, const Scheme& scheme) {
  NIBBLE_ASSIGN_OR_RETURN(const Buffer stored, source.tensors.values(*scheme.absmax));
  if (scheme.nested_map == nullptr) return stored;
  NIBBLE_ASSIGN_OR_RETURN(const Buffer map, source.tensors.values(*scheme.nested_map));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer outer, source.tensors.values(*scheme.nested_absmax));
  const auto* map_values = reinterpret_cast<const float*>(map.data());
  const auto* outer_values = reinterpret_cast<const float*>(outer.data());
  const int64_t count = scheme.blocks.count();
  NIBBLE_ASSIGN_OR_RETURN(Buffer scales, Buffer::allocate(4 * count));
  auto* out = reinterpret_cast<float*>(scales.mutable_data());
  for (int64_t begin = 0; begin < count; begin += scheme.nested_block) {
    const float factor = outer_values[begin / scheme.nested_block];
    const int64_t end = std::min(count, begin + scheme.nested_block);
    for (int64_t i = begin; i < end; ++i) {
      const float product = map_values[stored.data()[i]] * factor;
      out[i] = product + scheme.nested_offset;
    }
  }
  return scales;
}

Result<std::array<float, 16>> read_codebook(const Source& source, const Scheme& scheme) {
  std::array<float, 16> out;
  std::memcpy(out.data(), source.tensors.bytes(*scheme.map).data(), sizeof(out));
  for (const float value : out) {
    if (!std::isfinite(value)) {
      return corrupt_file("its quant_map holds a value that is not finite");
    }
  }
  return out;
}

uint8_t swap_nibbles(uint8_t byte) { return static_cast<uint8_t>(byte << 4 | byte >> 4); }

/// Rows of low-first codes from the flat high-first ones. With an odd k every second row begins in
/// the middle of a byte.
Result<Buffer> row_codes(const Source& source, const Scheme& scheme) {
  const int64_t n = scheme.blocks.n, k = scheme.blocks.k;
  const Buffer stored = source.tensors.bytes(*scheme.codes);
  const int64_t row_bytes = scheme.format.code_row_bytes(k);
  NIBBLE_ASSIGN_OR_RETURN(Buffer codes, Buffer::allocate(n * row_bytes));
  if (k % 2 == 0) {
    const uint8_t* in = stored.data();
    uint8_t* out = codes.mutable_data();
    const int64_t count = stored.bytes();
    for (int64_t i = 0; i < count; ++i) out[i] = swap_nibbles(in[i]);
    return codes;
  }
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* in = stored.data() + row * k / 2;
    uint8_t* out = codes.mutable_data() + row * row_bytes;
    const bool high_first = row % 2 == 0;
    for (int64_t i = 0; i < k / 2; ++i) {
      out[i] = high_first ? swap_nibbles(in[i])
                          : static_cast<uint8_t>((in[i] & 0x0F) | (in[i + 1] & 0xF0));
    }
    const uint8_t last = in[k / 2];
    out[k / 2] = high_first ? static_cast<uint8_t>(last >> 4) : static_cast<uint8_t>(last & 0x0F);
  }
  return codes;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.blocks.n;
  q.k = scheme.blocks.k;
  NIBBLE_ASSIGN_OR_RETURN(q.codebook, read_codebook(source, scheme));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer scales, block_scales(source, scheme));
  NIBBLE_ASSIGN_OR_RETURN(q.scales, scheme.blocks.per_group(scales, 4, scheme.format.group));
  NIBBLE_ASSIGN_OR_RETURN(q.codes, row_codes(source, scheme));
  return q;
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(const auto codebook, read_codebook(source, scheme));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer scales, block_scales(source, scheme));
  const auto* values = reinterpret_cast<const float*>(scales.data());
  const FlatBlocks blocks = scheme.blocks;
  for (int64_t i = 0; i < blocks.count(); ++i) {
    if (!std::isfinite(values[i])) {
      return corrupt_file("the scale of block " + std::to_string(i) + " is not finite");
    }
  }
  const Buffer codes = source.tensors.bytes(*scheme.codes);
  return DenseRows{
      blocks.n, blocks.k,
      [codes, scales, values, codebook, blocks](int64_t begin, int64_t end, float* out) {
        for (int64_t i = begin * blocks.k; i < end * blocks.k; ++i) {
          const uint8_t byte = codes.data()[i / 2];
          const size_t code = i % 2 == 0 ? byte >> 4 : byte & 15;
          *out++ = codebook[code] * values[i / blocks.block];
        }
        return ok_status();
      }};
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
  const auto& [name, format, n, k, source_dtype, pre_scale] = layer;
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
const ReadSpelling kReadBitsandbytes = {"bitsandbytes", claims, layers, load, dense};
extern const WriteSpelling kWriteBitsandbytes;
const WriteSpelling kWriteBitsandbytes = {"bitsandbytes", takes, check, tensors, encode, config};

}  // namespace nibble::checkpoint
