// Reads ModelOpt (TensorRT Model Optimizer). The tensors' own dtypes and shapes say how a layer
// decodes; `quant_algo` of hf_quant_config.json or config.json must agree where it is given.
//
//   NVFP4      weight u8 [n, k/2], low first; weight_scale e4m3 [n, k/16]; weight_scale_2 f32 []
//              e2m1 * RN(weight_scale * weight_scale_2): it multiplies
//   MXFP4      weight u8 [n, k/2]; weight_scale e8m0 as u8 [n, k/32]; zeros are -0 codes
//   INT4 AWQ   weight u8 [n/2, k], packed along N: the low nibble is row 2r, the high one row 2r+1,
//              two's complement; weight_scale [n, k/group]. The weight_scale_2 of W4A8_AWQ is the
//              scale with which FP8 kernels round the decoded weight; it is no part of the weight
//   INT8       weight i8 [n, k]; weight_scale [n] or []
//   FP8        weight e4m3 [n, k]; weight_scale [], [n] or one per block of rows and columns
//   MXFP8      weight e4m3 [n, k]; weight_scale e8m0 as u8 [n, k/32]
// The last two fit no Format and are read as dense rows, RN(e4m3 * weight_scale). pre_quant_scale
// [k] multiplies x; input_scale is for kernels that round x, and is not read.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "checkpoint/flat_blocks.h"
#include "checkpoint/group_index.h"
#include "checkpoint/nibbles.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {
namespace {

constexpr char kWeight[] = "weight", kScale[] = "weight_scale", kScale2[] = "weight_scale_2";
constexpr char kPreScale[] = "pre_quant_scale";
constexpr uint32_t kFloats = bits(DType::kF32, DType::kF16, DType::kBF16);
constexpr uint32_t kExponents = bits(DType::kU8, DType::kE8M0);

enum class Kind : uint8_t { kNvfp4, kMxfp4, kInt4, kInt8, kFp8, kMxfp8 };

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kNvfp4:
      return "NVFP4";
    case Kind::kMxfp4:
      return "MXFP4";
    case Kind::kInt4:
      return "INT4 packed along N";
    case Kind::kInt8:
      return "INT8";
    case Kind::kFp8:
      return "FP8";
    case Kind::kMxfp8:
      return "MXFP8";
  }
  return "";
}

/// Every `quant_algo` that is read, in upper case; ModelOpt writes some in lower case.
struct Algorithm {
  const char* name;
  Kind kind;
};
constexpr Algorithm kAlgorithms[] = {{"NVFP4", Kind::kNvfp4},
                                     {"NVFP4_STATIC", Kind::kNvfp4},
                                     {"NVFP4_AWQ", Kind::kNvfp4},
                                     {"W4A16_NVFP4", Kind::kNvfp4},
                                     {"W4A8_NVFP4_FP8", Kind::kNvfp4},
                                     {"MXFP4", Kind::kMxfp4},
                                     {"W4A8_MXFP4_FP8", Kind::kMxfp4},
                                     {"INT4_AWQ", Kind::kInt4},
                                     {"W4A16_AWQ", Kind::kInt4},
                                     {"W4A8_AWQ", Kind::kInt4},
                                     {"W8A16", Kind::kInt8},
                                     {"W8A8_SQ_PER_CHANNEL", Kind::kInt8},
                                     {"FP8", Kind::kFp8},
                                     {"FP8_PER_CHANNEL_PER_TOKEN", Kind::kFp8},
                                     {"FP8_PC_PT", Kind::kFp8},
                                     {"FP8_PB_WO", Kind::kFp8},
                                     {"FP8_PB_REAL", Kind::kFp8},
                                     {"MXFP8", Kind::kMxfp8}};

/// How one layer decodes, with the tensors that hold it.
struct Scheme {
  Kind kind = Kind::kNvfp4;
  Format format;
  int64_t groups = 0;  ///< kInt4: scales a row, and what they are in the Format
  GroupMap map;
  FlatBlocks blocks;                          ///< kInt8: how far a scale reaches
  int64_t scale_rows = 0, scale_columns = 0;  ///< kFp8, kMxfp8: the same, in rows and columns
  int64_t n = 0, k = 0;
  std::string dense_only;
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale = nullptr;
  const TensorInfo* scale_2 = nullptr;    ///< kNvfp4 only
  const TensorInfo* pre_scale = nullptr;  ///< null: none
};

std::string upper(const Json& text) {
  std::string out = text.is_string() ? text.get<std::string>() : "";
  for (char& c : out) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  return out;
}

/// The `quant_algo` for a layer, in upper case; "" where nothing is said of it.
std::string declared_algorithm(const Source& source, const std::string& layer) {
  for (const Json* details : {&member(source.hf_quant, "quantization"), &source.quantization}) {
    const std::string all = upper(member(*details, "quant_algo"));
    const std::string own =
        upper(member(member(member(*details, "quantized_layers"), layer.c_str()), "quant_algo"));
    if (!own.empty()) return own;
    if (!all.empty()) return all == "MIXED_PRECISION" ? "" : all;
  }
  return "";
}

/// What the dtypes of weight and weight_scale say.
std::optional<Kind> stored_kind(const TensorInfo& weight, const TensorInfo& scale) {
  if (!weight.dtype || !scale.dtype) return std::nullopt;
  const bool exponents = (kExponents & bit(*scale.dtype)) != 0;
  const bool floats = (kFloats & bit(*scale.dtype)) != 0;
  if (*weight.dtype == DType::kU8) {
    if (*scale.dtype == DType::kE4M3) return Kind::kNvfp4;
    if (exponents) return Kind::kMxfp4;
    if (floats) return Kind::kInt4;
  }
  if (*weight.dtype == DType::kE4M3) {
    if (exponents) return Kind::kMxfp8;
    if (floats) return Kind::kFp8;
  }
  if (*weight.dtype == DType::kI8 && floats) return Kind::kInt8;
  return std::nullopt;
}

Status check_algorithm(const std::string& algorithm, Kind kind) {
  if (algorithm.empty()) return {};
  const auto* row = std::find_if(std::begin(kAlgorithms), std::end(kAlgorithms),
                                 [&](const Algorithm& a) { return algorithm == a.name; });
  if (row == std::end(kAlgorithms)) {
    return unsupported("quant_algo " + shown(algorithm) +
                       " is not read; NVFP4, MXFP4, INT4 AWQ, INT8, FP8 and MXFP8 are");
  }
  if (row->kind == kind) return {};
  return corrupt_file("quant_algo is " + algorithm + ", but its tensors hold " + kind_name(kind));
}

/// A scale of each `group` columns, from the number of them in a row; `usual` where several fit.
Result<int32_t> group_of(int64_t k, int64_t columns, int32_t usual) {
  for (const int32_t group : {usual, 16, 32, 64, 128}) {
    if (ceil_div(k, group) == columns) return group;
  }
  return unsupported(std::to_string(columns) + " scales for k = " + std::to_string(k) +
                     " fit no group of 16, 32, 64 or 128");
}

Status read_fp4(const Source& source, const std::string& layer, Scheme& scheme) {
  const bool nvfp4 = scheme.kind == Kind::kNvfp4;
  scheme.n = scheme.weight->shape[0];
  scheme.k = 2 * scheme.weight->shape[1];
  const int64_t columns = scheme.scale->shape.size() == 2 ? scheme.scale->shape[1] : 0;
  const int64_t scale_shape[] = {scheme.n, std::max<int64_t>(1, columns)};
  NIBBLE_ASSIGN_OR_RETURN(
      scheme.scale,
      require_part(source, layer, kScale, nvfp4 ? bits(DType::kE4M3) : kExponents, scale_shape));
  NIBBLE_ASSIGN_OR_RETURN(const int32_t group, group_of(scheme.k, columns, nvfp4 ? 16 : 32));
  scheme.format = {Element::kE2M1, group, nvfp4 ? DType::kE4M3 : DType::kE8M0, ZeroKind::kNone};
  if (!nvfp4) return {};
  const TensorInfo* scale_2 = find_part(source, layer, kScale2);
  const int64_t one[] = {1};
  const auto shape = std::span<const int64_t>(
      one, scale_2 != nullptr && scale_2->shape.size() == 1 ? size_t{1} : size_t{0});
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale_2,
                          require_part(source, layer, kScale2, bits(DType::kF32), shape));
  return {};
}

Status read_int4(const Source& source, const std::string& layer, Scheme& scheme) {
  scheme.n = 2 * scheme.weight->shape[0];
  scheme.k = scheme.weight->shape[1];
  const std::vector<int64_t>& shape = scheme.scale->shape;
  scheme.groups = shape.size() == 2 ? std::max<int64_t>(1, shape[1]) : 1;
  const int64_t wanted[] = {scheme.n, scheme.groups};
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kScale, kFloats, wanted));
  if (scheme.k % scheme.groups != 0) {
    return corrupt_file(std::to_string(scheme.groups) +
                        " scales for k = " + std::to_string(scheme.k) + " give no whole group");
  }
  scheme.map = equal_groups(scheme.k, scheme.k / scheme.groups);
  scheme.dense_only = scheme.map.dense_only;
  scheme.format = {Element::kInt4, scheme.map.group, *scheme.scale->dtype, ZeroKind::kNone};
  return {};
}

/// One scale a row, or one for the weight.
Status read_int8(const Source& source, const std::string& layer, Scheme& scheme) {
  scheme.n = scheme.weight->shape[0];
  scheme.k = scheme.weight->shape[1];
  const std::vector<int64_t>& shape = scheme.scale->shape;
  const bool single = shape.empty() || (shape.size() == 1 && shape[0] == 1);
  scheme.blocks = {scheme.n, scheme.k, single ? scheme.n * scheme.k : scheme.k};
  scheme.format = {Element::kInt8, 0, *scheme.scale->dtype, ZeroKind::kNone};
  if (single) return {};
  const int64_t rows[] = {scheme.n, 1};
  const auto wanted = std::span<const int64_t>(rows, shape.size() == 2 ? 2u : 1u);
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kScale, kFloats, wanted));
  return {};
}

/// FP8 by tensor, by row or by square blocks of a power of two, which the number of scales tells.
Status read_fp8(Scheme& scheme) {
  scheme.n = scheme.weight->shape[0];
  scheme.k = scheme.weight->shape[1];
  std::vector<int64_t> shape = scheme.scale->shape;
  std::erase(shape, 1);
  scheme.scale_rows = scheme.n;
  scheme.scale_columns = scheme.k;
  scheme.dense_only = "FP8 weights have no Format; they are read as dense rows";
  if (shape.empty()) return {};
  if (shape.size() == 1 && scheme.scale->shape[0] == scheme.n && shape[0] == scheme.n) {
    scheme.scale_rows = 1;
    return {};
  }
  if (scheme.scale->shape.size() == 2 || scheme.scale->shape.size() == 4) {
    const size_t second = scheme.scale->shape.size() / 2;
    const int64_t rows = scheme.scale->shape[0], columns = scheme.scale->shape[second];
    for (int64_t block = 16; block <= 512; block *= 2) {
      if (ceil_div(scheme.n, block) != rows || ceil_div(scheme.k, block) != columns ||
          scheme.scale->bytes != rows * columns * dtype_bytes(*scheme.scale->dtype)) {
        continue;
      }
      scheme.scale_rows = scheme.scale_columns = block;
      return {};
    }
  }
  return corrupt_file("tensor " + shown(scheme.scale->name) + " is " + scheme.scale->dtype_name +
                      " " + shape_text(scheme.scale->shape) + ", which fits no rows or blocks of " +
                      shape_text(scheme.weight->shape));
}

Status read_mxfp8(const Source& source, const std::string& layer, Scheme& scheme) {
  scheme.n = scheme.weight->shape[0];
  scheme.k = scheme.weight->shape[1];
  scheme.scale_rows = 1;
  scheme.scale_columns = 32;
  const int64_t shape[] = {scheme.n, ceil_div(scheme.k, 32)};
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kScale, kExponents, shape));
  scheme.dense_only = "MXFP8 weights have no Format; they are read as dense rows";
  return {};
}

Result<Scheme> scheme_of(const Source& source, const std::string& layer) {
  Scheme scheme;
  scheme.weight = find_part(source, layer, kWeight);
  scheme.scale = find_part(source, layer, kScale);
  for (const char* residual : {"svdquant_lora_a", "svdquant_lora_b"}) {
    if (find_part(source, layer, residual) == nullptr) continue;
    return unsupported("a low-rank residual (SVDQuant's " + std::string(residual) +
                       ") belongs to it, which is not read");
  }
  if (scheme.scale == nullptr) {
    return corrupt_file("tensor " + shown(part_name(layer, kScale)) + " is missing");
  }
  const std::vector<int64_t>& shape = scheme.weight->shape;
  if (shape.size() != 2) {
    return unsupported("tensor " + shown(scheme.weight->name) + " is " + scheme.weight->dtype_name +
                       " " + shape_text(shape) + "; only matrices are read");
  }
  if (shape[0] < 1 || shape[1] < 1 || shape[1] > INT64_MAX / 64) {
    return corrupt_file("tensor " + shown(scheme.weight->name) + " is " + shape_text(shape));
  }
  const std::optional<Kind> kind = stored_kind(*scheme.weight, *scheme.scale);
  if (!kind) {
    return unsupported("weight " + scheme.weight->dtype_name + " with weight_scale " +
                       scheme.scale->dtype_name + " is no form of ModelOpt that is read");
  }
  scheme.kind = *kind;
  NIBBLE_RETURN_IF_ERROR(check_algorithm(declared_algorithm(source, layer), *kind));
  switch (*kind) {
    case Kind::kNvfp4:
    case Kind::kMxfp4:
      NIBBLE_RETURN_IF_ERROR(read_fp4(source, layer, scheme));
      break;
    case Kind::kInt4:
      NIBBLE_RETURN_IF_ERROR(read_int4(source, layer, scheme));
      break;
    case Kind::kInt8:
      NIBBLE_RETURN_IF_ERROR(read_int8(source, layer, scheme));
      break;
    case Kind::kFp8:
      NIBBLE_RETURN_IF_ERROR(read_fp8(scheme));
      break;
    case Kind::kMxfp8:
      NIBBLE_RETURN_IF_ERROR(read_mxfp8(source, layer, scheme));
      break;
  }
  if (*kind != Kind::kNvfp4 && *kind != Kind::kInt4 && find_part(source, layer, kScale2)) {
    return unsupported(std::string(kind_name(*kind)) + " with a weight_scale_2 is not read");
  }
  if (find_part(source, layer, kPreScale) != nullptr) {
    if (!scheme.dense_only.empty()) {
      return unsupported(std::string(kind_name(*kind)) +
                         " with pre_quant_scale is not read: dense rows have no place for it");
    }
    const int64_t columns[] = {scheme.k};
    NIBBLE_ASSIGN_OR_RETURN(scheme.pre_scale,
                            require_part(source, layer, kPreScale, kFloats, columns));
  }
  return scheme;
}

bool is_quantized(const TensorInfo& tensor) {
  return tensor.dtype && (bits(DType::kU8, DType::kE4M3, DType::kI8) & bit(*tensor.dtype)) != 0;
}

/// Without configuration: 4-bit weights, whose tensors no other spelling has. FP8 alone is written
/// by many tools.
bool has_four_bit_layers(const Source& source) {
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto layer = without_suffix(tensor.name, std::string(".") + kWeight);
    if (!layer || tensor.dtype != DType::kU8 || tensor.shape.size() != 2) continue;
    const TensorInfo* scale = find_part(source, *layer, kScale);
    if (scale != nullptr && scale->shape.size() == 2 && stored_kind(tensor, *scale)) return true;
  }
  return false;
}

bool claims(const Source& source) {
  if (source.container != "safetensors") return false;
  if (!source.method.empty()) return source.method.starts_with("modelopt");
  const Json& algorithm = member(member(source.hf_quant, "quantization"), "quant_algo");
  return algorithm.is_string() || has_four_bit_layers(source);
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    if (!is_quantized(tensor)) continue;
    LayerInfo layer;
    const auto name = without_suffix(tensor.name, std::string(".") + kWeight);
    if (!name) {
      // Experts that share a module: `experts.gate_up_proj` with
      // `experts.gate_up_proj_weight_scale`.
      const TensorInfo* scale = source.tensors.find(tensor.name + "_" + kScale);
      if (scale == nullptr) continue;
      layer.name = tensor.name;
      layer.tensors = {tensor.name, scale->name};
      layer.stored_bytes = tensor.bytes + scale->bytes;
      layer.status = unsupported("tensor " + shown(tensor.name) + " is " + tensor.dtype_name + " " +
                                 shape_text(tensor.shape) + ", a stack of experts; only matrices " +
                                 "named .weight are read");
      out.push_back(std::move(layer));
      continue;
    }
    layer.name = *name;
    for (const char* part : {kWeight, kScale, kScale2, "input_scale", kPreScale}) {
      add_part(source, layer, part);
    }
    const Result<Scheme> scheme = scheme_of(source, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.dense_only = scheme->dense_only;
      if (scheme->kind == Kind::kFp8 || scheme->kind == Kind::kMxfp8) {
        layer.remark = kind_name(scheme->kind);
      }
      if (scheme->pre_scale != nullptr) layer.remark = "pre_quant_scale";
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// Rows of low-first codes from bytes that hold two rows each.
Result<Buffer> int4_codes(const Source& source, const Scheme& scheme) {
  const Buffer stored = source.tensors.bytes(*scheme.weight);
  const int64_t row_bytes = ceil_div(scheme.k, 2);
  NIBBLE_ASSIGN_OR_RETURN(Buffer codes, Buffer::allocate(scheme.n * row_bytes));
  for (int64_t row = 0; row < scheme.n; ++row) {
    join_nibbles(stored.data() + row / 2 * scheme.k, row % 2 == 0 ? 0 : 4, scheme.k,
                 codes.mutable_data() + row * row_bytes);
  }
  return codes;
}

/// Codes and the scales as they are stored, without weight_scale_2 and pre_quant_scale.
Result<QuantizedTensor> stored_parts(const Source& source, const Scheme& scheme) {
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  NIBBLE_ASSIGN_OR_RETURN(q.scales, source.tensors.values(*scheme.scale));
  if (scheme.kind == Kind::kInt4) {
    NIBBLE_ASSIGN_OR_RETURN(q.codes, int4_codes(source, scheme));
  } else {
    q.codes = source.tensors.bytes(*scheme.weight);
  }
  return q;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, stored_parts(source, scheme));
  const int64_t scale_bytes = dtype_bytes(q.format.scale);
  if (scheme.kind == Kind::kInt4) {
    NIBBLE_ASSIGN_OR_RETURN(q.scales, with_source_groups(std::move(q.scales), q.n, scheme.groups,
                                                         scale_bytes, scheme.map));
  } else if (scheme.kind == Kind::kInt8) {
    NIBBLE_ASSIGN_OR_RETURN(q.scales, scheme.blocks.per_group(q.scales, scale_bytes, 0));
  }
  if (scheme.scale_2 != nullptr) {
    float factor;
    std::memcpy(&factor, source.tensors.bytes(*scheme.scale_2).data(), sizeof(factor));
    if (!std::isfinite(factor)) return corrupt_file("weight_scale_2 is " + std::to_string(factor));
    q.tensor_scales = {{0, factor}};
    q.tensor_scale_op = TensorScaleOp::kMultiply;
  }
  if (scheme.pre_scale != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const Buffer values, source.tensors.values(*scheme.pre_scale));
    q.pre_scale.resize(static_cast<size_t>(q.k));
    for (int64_t j = 0; j < q.k; ++j) {
      q.pre_scale[static_cast<size_t>(j)] = load_as_f32(values.data(), *scheme.pre_scale->dtype, j);
    }
  }
  return q;
}

/// INT4 in groups of no Format; FP8 and MXFP8, one product a weight, one rounding.
Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Scheme scheme, scheme_of(source, layer.name));
  if (scheme.kind == Kind::kInt4) {
    NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor parts, stored_parts(source, scheme));
    return rows_by_index(std::move(parts), scheme.groups,
                         equal_index(scheme.k, scheme.k / scheme.groups));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Buffer scales, source.tensors.values(*scheme.scale));
  const DType dtype = scheme.kind == Kind::kMxfp8 ? DType::kE8M0 : *scheme.scale->dtype;
  const int64_t count = scheme.scale->bytes / dtype_bytes(dtype);
  std::vector<float> factors(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    factors[static_cast<size_t>(i)] = load_as_f32(scales.data(), dtype, i);
    if (!std::isfinite(factors[static_cast<size_t>(i)])) {
      return corrupt_file("value " + std::to_string(i) + " of weight_scale is not finite");
    }
  }
  std::array<float, 256> values;
  for (size_t code = 0; code < values.size(); ++code) {
    values[code] = e4m3_to_f32(static_cast<uint8_t>(code));
  }
  const Buffer codes = source.tensors.bytes(*scheme.weight);
  const int64_t n = scheme.n, k = scheme.k, rows = scheme.scale_rows,
                columns = scheme.scale_columns;
  const auto read = [=, factors = std::move(factors)](int64_t begin, int64_t end,
                                                      float* out) -> Status {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* line = codes.data() + row * k;
      const float* factor = factors.data() + row / rows * ceil_div(k, columns);
      for (int64_t j = 0; j < k; ++j, ++out) {
        if ((line[j] & 0x7F) == 0x7F) {
          return corrupt_file("weight [" + std::to_string(row) + ", " + std::to_string(j) +
                              "] is NaN");
        }
        *out = values[line[j]] * factor[j / columns];
      }
    }
    return {};
  };
  return DenseRows{n, k, read};
}

}  // namespace

extern const ReadSpelling kReadModelOpt;
const ReadSpelling kReadModelOpt = {"modelopt", claims, layers, load, dense};

}  // namespace nibble::checkpoint
