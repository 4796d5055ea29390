#include "checkpoint/gguf_write.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "checkpoint/gguf.h"
#include "checkpoint/gguf_blocks.h"

namespace nibble::checkpoint {
namespace {

constexpr uint32_t kVersion = 3, kQuantizationVersion = 2;
constexpr int64_t kBlock = 32;  ///< values a block of every type that is written

template <class T>
void append(std::string& out, T value) {
  static_assert(std::is_arithmetic_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}
void append_text(std::string& out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out += text;
}

int64_t integer_or(const Json& value, int64_t otherwise) {
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

/// llama.cpp's number for a file that is mostly of this type; -1 for types that are only carried
/// over, whose files have more than one number.
int32_t file_type_of(std::string_view type) {
  struct Row {
    std::string_view type;
    int32_t number;
  };
  constexpr Row kRows[] = {{"F32", 0},  {"F16", 1},  {"BF16", 32},
                           {"Q4_0", 2}, {"Q8_0", 7}, {"MXFP4", 38}};
  for (const Row& row : kRows) {
    if (row.type == type) return row.number;
  }
  return -1;
}

/// The type with most weights, vectors aside where there are matrices.
std::string_view main_type(std::span<const TensorInfo> tensors) {
  std::map<std::string_view, int64_t> weights[2];
  for (const TensorInfo& tensor : tensors) {
    int64_t count = 1;
    for (const int64_t extent : tensor.shape) count *= extent;
    weights[tensor.shape.size() > 1 ? 1 : 0][tensor.dtype_name] += count;
  }
  const auto& counted = weights[weights[1].empty() ? 0 : 1];
  const auto most =
      std::max_element(counted.begin(), counted.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == counted.end() ? std::string_view() : most->first;
}

Status append_tensor(const TensorInfo& tensor, int64_t offset, std::string& out) {
  const GgmlType* type = ggml_type(tensor.dtype_name);
  if (type == nullptr || type->block_bytes == 0) {
    return unsupported("its type " + shown(tensor.dtype_name) + " is none of ggml's");
  }
  if (tensor.shape.size() > kMaxGgufRank) {
    return unsupported(shape_text(tensor.shape) + " has more than " + std::to_string(kMaxGgufRank) +
                       " dimensions");
  }
  const Result<int64_t> bytes = ggml_bytes(*type, tensor.shape);
  if (!bytes.ok()) return unsupported(bytes.status().message());
  if (*bytes != tensor.bytes) {
    return invalid_argument(tensor.dtype_name + " " + shape_text(tensor.shape) + " has " +
                            std::to_string(*bytes) + " bytes, not " + std::to_string(tensor.bytes));
  }
  std::vector<int64_t> shape = tensor.shape;
  if (shape.empty()) shape = {1};
  append_text(out, tensor.name);
  append(out, static_cast<uint32_t>(shape.size()));
  for (auto extent = shape.rbegin(); extent != shape.rend(); ++extent) {
    append(out, static_cast<uint64_t>(*extent));
  }
  append(out, type->id);
  append(out, static_cast<uint64_t>(offset));
  return {};
}

}  // namespace

// ------------------------------------------------------------------------------------- pairs

Result<GgufPairs> GgufPairs::of_file(const MappedFile& file, const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const GgufFile parsed, parse_gguf(file, path));
  GgufPairs out;
  for (const GgufPair& pair : parsed.pairs) {
    if (pair.key.starts_with("split.")) continue;
    out.pairs_.push_back({std::string(pair.key),
                          {reinterpret_cast<const char*>(file.data()) + pair.begin,
                           static_cast<size_t>(pair.end - pair.begin)}});
  }
  return out;
}

GgufPairs GgufPairs::of_config(const Json& config, const std::string& name) {
  GgufPairs out;
  const Json& model_type = member(config, "model_type");
  const std::string architecture =
      model_type.is_string() ? model_type.get<std::string>() : "unknown";
  out.set("general.architecture", architecture);
  if (!name.empty()) out.set("general.name", name);
  constexpr const char* kKeys[][2] = {
      {"num_hidden_layers", "block_count"},
      {"max_position_embeddings", "context_length"},
      {"hidden_size", "embedding_length"},
      {"intermediate_size", "feed_forward_length"},
      {"num_attention_heads", "attention.head_count"},
      {"num_key_value_heads", "attention.head_count_kv"},
      {"vocab_size", "vocab_size"},
  };
  for (const auto& [from, to] : kKeys) {
    const int64_t value = integer_or(member(config, from), -1);
    if (value >= 0 && value <= UINT32_MAX) {
      out.set(architecture + "." + to, static_cast<uint32_t>(value));
    }
  }
  return out;
}

bool GgufPairs::has(std::string_view key) const {
  return std::any_of(pairs_.begin(), pairs_.end(),
                     [key](const Pair& pair) { return pair.key == key; });
}

void GgufPairs::put(const std::string& key, uint32_t type, std::string_view value) {
  Pair pair{key, {}};
  append_text(pair.bytes, key);
  append(pair.bytes, type);
  pair.bytes += value;
  for (Pair& each : pairs_) {
    if (each.key != key) continue;
    each = std::move(pair);
    return;
  }
  pairs_.push_back(std::move(pair));
}

void GgufPairs::set(const std::string& key, uint32_t value) {
  put(key, static_cast<uint32_t>(GgufValue::kU32),
      {reinterpret_cast<const char*>(&value), sizeof(value)});
}

void GgufPairs::set(const std::string& key, std::string_view text) {
  std::string value;
  append_text(value, text);
  put(key, static_cast<uint32_t>(GgufValue::kString), value);
}

int64_t GgufPairs::alignment() const {
  for (const Pair& pair : pairs_) {
    if (pair.key != kGgufAlignment) continue;
    uint32_t value = 0;  // the reader accepts no other size, and `set` writes this one
    if (pair.bytes.size() < sizeof(value)) break;
    std::memcpy(&value, pair.bytes.data() + pair.bytes.size() - sizeof(value), sizeof(value));
    return value;
  }
  return kGgufDefaultAlignment;
}

std::string GgufPairs::bytes() const {
  std::string out;
  for (const Pair& pair : pairs_) out += pair.bytes;
  return out;
}

Result<GgufHeader> gguf_header(std::span<TensorInfo> tensors, GgufPairs pairs) {
  const int64_t alignment = pairs.alignment();
  if (alignment < 1 || (alignment & (alignment - 1)) != 0) {
    return invalid_argument("general.alignment = " + std::to_string(alignment) +
                            " is not a power of two");
  }
  std::string infos;
  int64_t offset = 0;
  bool quantized = false;
  for (TensorInfo& tensor : tensors) {
    NIBBLE_RETURN_IF_ERROR(
        append_tensor(tensor, offset, infos).with_context("tensor " + shown(tensor.name)));
    tensor.file_offset = offset;
    if (tensor.bytes > INT64_MAX / 4 - offset) {
      return invalid_argument("the tensors have more than 2^61 bytes");
    }
    // Readers expect the padding after the last tensor too.
    offset = round_up(offset + tensor.bytes, alignment);
    quantized |= ggml_blocks_of(tensor.dtype_name) != nullptr;
  }
  if (const int32_t type = file_type_of(main_type(tensors)); type >= 0) {
    pairs.set("general.file_type", static_cast<uint32_t>(type));
  }
  if (quantized && !pairs.has("general.quantization_version")) {
    pairs.set("general.quantization_version", kQuantizationVersion);
  }
  GgufHeader header;
  std::string& out = header.bytes;
  out = kGgufMagic;
  append(out, kVersion);
  append(out, static_cast<uint64_t>(tensors.size()));
  append(out, static_cast<uint64_t>(pairs.size()));
  out += pairs.bytes() + infos;
  const int64_t begin = round_up(static_cast<int64_t>(out.size()), alignment);
  out.resize(static_cast<size_t>(begin), '\0');
  for (TensorInfo& tensor : tensors) tensor.file_offset += begin;
  header.file_bytes = begin + offset;
  return header;
}

// ------------------------------------------------------------------------------------ weights

const char* gguf_type_of(const Format& format) {
  // Q5_0 shares a Format with Q8_0, which is the one that holds every code of it.
  for (const char* type : {"Q4_0", "Q8_0", "MXFP4"}) {
    if (ggml_blocks_of(type)->format == format) return type;
  }
  return nullptr;
}

namespace {

bool takes(const Format& format) { return gguf_type_of(format) != nullptr; }

Status check(const LayerSpec& layer) {
  if (!takes(layer.format)) {
    return unsupported(
        "GGUF is written with int4-g32:f16 (Q4_0), int8-g32:f16 (Q8_0) and mxfp4 "
        "weights, not " +
        layer.format.name());
  }
  if (layer.k % kBlock == 0) return {};
  return unsupported("k = " + std::to_string(layer.k) + " is not a multiple of " +
                     std::to_string(kBlock) + ", the block of " + gguf_type_of(layer.format));
}

std::vector<TensorInfo> tensors(const LayerSpec& layer) {
  const GgmlType* type = ggml_type(gguf_type_of(layer.format));
  TensorInfo tensor;
  tensor.name = part_name(layer.name, "weight");
  tensor.dtype_name = type->name;
  tensor.shape = {layer.n, layer.k};
  tensor.bytes = layer.n * (layer.k / type->block) * type->block_bytes;
  return {tensor};
}

/// The inverse of gguf_blocks.cc: scale, then codes.
void encode_block(const Format& format, const uint8_t* codes, const uint8_t* scale, uint8_t* out) {
  const auto scale_bytes = static_cast<size_t>(dtype_bytes(format.scale));
  std::memcpy(out, scale, scale_bytes);
  out += scale_bytes;
  if (format.bits() == 8) {
    std::memcpy(out, codes, kBlock);
  } else {
    join_halves(codes, format.element == Element::kInt4 ? 0x88 : 0, out);
  }
}

Status encode(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink) {
  for (const TensorScale& scale : q.tensor_scales) {
    if (scale.value == 1.0f) continue;
    return unsupported(std::string(gguf_type_of(q.format)) + " has no place for the tensor scale " +
                       std::to_string(scale.value));
  }
  const GgmlType* type = ggml_type(gguf_type_of(q.format));
  const int64_t row_blocks = layer.k / kBlock, row_bytes = row_blocks * type->block_bytes;
  const int64_t code_bytes = kBlock * q.format.bits() / 8,
                scale_bytes = dtype_bytes(q.format.scale);
  const int64_t piece = std::min(rows_per_piece(row_bytes), layer.n);
  std::vector<uint8_t> out(static_cast<size_t>(piece * row_bytes));
  for (int64_t begin = 0; begin < layer.n; begin += piece) {
    const int64_t blocks = std::min(piece, layer.n - begin) * row_blocks;
    const int64_t first = begin * row_blocks;
    for (int64_t i = 0; i < blocks; ++i) {
      encode_block(q.format, q.codes.data() + (first + i) * code_bytes,
                   q.scales.data() + (first + i) * scale_bytes, out.data() + i * type->block_bytes);
    }
    NIBBLE_RETURN_IF_ERROR(
        sink.append(0, std::span(out).first(static_cast<size_t>(blocks * type->block_bytes))));
  }
  return {};
}

}  // namespace

const WriteSpelling kWriteGguf = {"gguf", takes, check, tensors, encode, nullptr, "gguf"};

}  // namespace nibble::checkpoint
