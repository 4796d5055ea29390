// Reads compressed-tensors: pack-quantized (4 and 8 bits), nvfp4-pack-quantized and
// mxfp4-pack-quantized. The tensors' own dtypes and shapes say how they decode; config.json must
// agree, and settles the group of ragged shapes.
//
//   pack-quantized   weight_packed i32 [n, ceil(k*bits/32)], fields low first, value + 2^(bits-1)
//                    weight_scale [n, groups]; weight_shape [2] = n, k
//                    weight_zero_point i32 [ceil(n*bits/32), groups]: packed along dim 0
//                    weight_g_idx i32 [k]: group of each column (versions before 0.20)
//   nvfp4 / mxfp4    weight_packed u8 [n, k/2], low first; weight_scale e4m3 [n, k/16] with
//                    weight_global_scale f32 [1], which divides / e8m0 as u8 [n, k/32]
#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/group_index.h"
#include "checkpoint/spelling.h"
#include "checkpoint/transpose.h"

namespace nibble::checkpoint {
namespace {

constexpr char kPacked[] = "weight_packed", kScale[] = "weight_scale", kShape[] = "weight_shape";
constexpr char kZero[] = "weight_zero_point", kGIdx[] = "weight_g_idx";
constexpr char kGlobal[] = "weight_global_scale";

/// How one layer decodes, with the tensors that hold it.
struct Scheme {
  Format format;
  int64_t n = 0, k = 0;
  const TensorInfo* packed = nullptr;
  const TensorInfo* scale = nullptr;
  const TensorInfo* zero = nullptr;    ///< null: symmetric
  const TensorInfo* global = nullptr;  ///< nvfp4 only
  int64_t groups = 0;                  ///< scales a row
  int64_t length = 0;                  ///< columns a group where `index` is empty
  std::vector<int32_t> index;          ///< group of each column
  GroupMap map;                        ///< of integers
};

/// One entry of `config_groups`.
struct Declared {
  bool is_float = false;
  int64_t bits = 0;
  bool symmetric = true;
  int64_t group = 0;  ///< 0: one scale a row; -1: a strategy that no reader here knows
};

int64_t integer_or(const Json& value, int64_t otherwise) {
  return value.is_number_integer() ? value.get<int64_t>() : otherwise;
}

/// Every layer is compared with every entry, so their number is limited; real files have a few.
Result<std::vector<Declared>> declared_groups(const Json& quantization) {
  constexpr size_t kMaxEntries = 256;
  const Json& entries = member(quantization, "config_groups");
  if (entries.size() > kMaxEntries) {
    return corrupt_file("config_groups has " + std::to_string(entries.size()) +
                        " entries, at most " + std::to_string(kMaxEntries) + " are read");
  }
  std::vector<Declared> out;
  for (const Json& entry : entries) {
    const Json& weights = member(entry, "weights");
    if (!weights.is_object()) continue;  // quantizes activations alone
    Declared declared;
    declared.is_float = member(weights, "type") == "float";
    declared.bits = integer_or(member(weights, "num_bits"), 0);
    declared.symmetric = member(weights, "symmetric") != false;
    const Json& strategy = member(weights, "strategy");
    if (strategy == "channel") {
      declared.group = 0;
    } else if (strategy == "group" || strategy == "tensor_group") {
      declared.group = integer_or(member(weights, "group_size"), -1);
      if (declared.group < 1 || declared.group > INT32_MAX) declared.group = -1;
    } else {
      declared.group = -1;
    }
    out.push_back(declared);
  }
  return out;
}

/// What the tensors say before the group's length is known.
struct Facts {
  bool is_float = false;
  uint32_t bit_widths = 0;  ///< 1 << bits for every width the shapes allow
  bool symmetric = true;
  int64_t k = 0, columns = 0;  ///< columns of the scales
};

std::string describe(const Facts& facts) {
  std::string bits;
  for (const int width : {4, 8}) {
    if ((facts.bit_widths >> width & 1) != 0)
      bits += (bits.empty() ? "" : "/") + std::to_string(width);
  }
  return std::string(facts.symmetric ? "symmetric " : "asymmetric ") + bits + "-bit " +
         (facts.is_float ? "float" : "integers") + " with " + std::to_string(facts.columns) +
         " scales for k = " + std::to_string(facts.k);
}

bool agrees(const Declared& declared, const Facts& facts) {
  if (declared.is_float != facts.is_float || declared.symmetric != facts.symmetric) return false;
  if (declared.bits < 1 || declared.bits > 8) return false;
  if ((facts.bit_widths >> declared.bits & 1) == 0 || declared.group < 0) return false;
  const int64_t columns = declared.group == 0 ? 1 : ceil_div(facts.k, declared.group);
  return columns == facts.columns;
}

struct BitsAndGroup {
  int bits = 0;
  int64_t length = 0;  ///< columns a group; 0: the whole row
};

/// Width and group from config.json where it has groups, else from the shapes alone.
Result<BitsAndGroup> choose(const Facts& facts, const std::vector<Declared>& declared) {
  const Declared* chosen = nullptr;
  for (const Declared& candidate : declared) {
    if (!agrees(candidate, facts)) continue;
    // Two that fit differ in nothing that matters, but for the width of rows of up to 4 columns.
    if (chosen != nullptr && chosen->bits != candidate.bits) {
      return unsupported("config_groups of different widths fit k = " + std::to_string(facts.k));
    }
    if (chosen == nullptr) chosen = &candidate;
  }
  if (chosen == nullptr && !declared.empty()) {
    return corrupt_file("no entry of config_groups fits the stored tensors, which are " +
                        describe(facts));
  }
  BitsAndGroup out;
  if (chosen != nullptr) {
    out.bits = static_cast<int>(chosen->bits);
    out.length = chosen->group;
    return out;
  }
  if ((facts.bit_widths & (facts.bit_widths - 1)) != 0) {
    return unsupported("k = " + std::to_string(facts.k) +
                       " fits 4 and 8 bits alike; config.json has to say which");
  }
  out.bits = facts.bit_widths == 1u << 4 ? 4 : 8;
  NIBBLE_ASSIGN_OR_RETURN(out.length, group_length(facts.k, facts.columns, std::nullopt));
  return out;
}

/// n and k of weight_shape.
Result<std::array<int64_t, 2>> read_shape(const Source& source, const std::string& layer) {
  const int64_t two[] = {2};
  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* tensor,
                          require_part(source, layer, kShape, bits(DType::kI64, DType::kI32), two));
  const Buffer stored = source.tensors.bytes(*tensor);
  std::array<int64_t, 2> shape{};
  if (*tensor->dtype == DType::kI64) {
    std::memcpy(shape.data(), stored.data(), sizeof(shape));
  } else {
    std::array<int32_t, 2> narrow{};
    std::memcpy(narrow.data(), stored.data(), sizeof(narrow));
    shape = {narrow[0], narrow[1]};
  }
  if (shape[0] < 1 || shape[1] < 1 || shape[1] > INT64_MAX / 16) {
    return corrupt_file("weight_shape says [" + std::to_string(shape[0]) + ", " +
                        std::to_string(shape[1]) + "]");
  }
  return shape;
}

Result<Scheme> integer_scheme(const Source& source, const std::vector<Declared>& declared,
                              const std::string& layer, const TensorInfo& packed) {
  Scheme scheme;
  scheme.packed = &packed;
  NIBBLE_ASSIGN_OR_RETURN(const auto shape, read_shape(source, layer));
  scheme.n = shape[0];
  scheme.k = shape[1];

  Facts facts;
  facts.k = scheme.k;
  for (const int width : {4, 8}) {
    if (packed.shape[0] == scheme.n && packed.shape[1] == ceil_div(scheme.k * width, 32)) {
      facts.bit_widths |= 1u << width;
    }
  }
  if (facts.bit_widths == 0) {
    return corrupt_file("weight_packed I32 " + shape_text(packed.shape) + " does not hold [" +
                        std::to_string(scheme.n) + ", " + std::to_string(scheme.k) +
                        "] in 4 or 8 bits");
  }
  scheme.scale = find_part(source, layer, kScale);
  facts.columns =
      scheme.scale != nullptr && scheme.scale->shape.size() == 2 ? scheme.scale->shape[1] : 0;
  const int64_t scale_shape[] = {scheme.n, std::max<int64_t>(1, facts.columns)};
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale,
                          require_part(source, layer, kScale,
                                       bits(DType::kF32, DType::kF16, DType::kBF16), scale_shape));
  scheme.zero = find_part(source, layer, kZero);
  facts.symmetric = scheme.zero == nullptr;

  NIBBLE_ASSIGN_OR_RETURN(const BitsAndGroup found, choose(facts, declared));
  scheme.format.element = found.bits == 4 ? (facts.symmetric ? Element::kInt4 : Element::kUint4)
                                          : (facts.symmetric ? Element::kInt8 : Element::kUint8);
  scheme.groups = facts.columns;
  scheme.length = found.length;
  scheme.map = equal_groups(scheme.k, scheme.length);
  scheme.format.zero = facts.symmetric ? ZeroKind::kNone : ZeroKind::kInteger;
  if (scheme.zero != nullptr) {
    const int64_t zero_shape[] = {ceil_div(scheme.n * found.bits, 32), facts.columns};
    NIBBLE_ASSIGN_OR_RETURN(scheme.zero,
                            require_part(source, layer, kZero, bits(DType::kI32), zero_shape));
  }
  if (find_part(source, layer, kGIdx) != nullptr) {
    const int64_t columns[] = {scheme.k};
    NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* g_idx,
                            require_part(source, layer, kGIdx, bits(DType::kI32), columns));
    scheme.index = index_values(source, *g_idx);
    // The tool initialises the tensor with -1 and leaves it so when columns were not reordered.
    if (std::all_of(scheme.index.begin(), scheme.index.end(), [](int32_t g) { return g == -1; })) {
      scheme.index.clear();
    } else {
      NIBBLE_ASSIGN_OR_RETURN(scheme.map, indexed_groups(g_idx->name, scheme.index, scheme.groups));
    }
  }
  scheme.format.group = scheme.map.group;
  scheme.format.scale = *scheme.scale->dtype;
  return scheme;
}

Result<Scheme> float_scheme(const Source& source, const std::vector<Declared>& declared,
                            const std::string& layer, const TensorInfo& packed) {
  Scheme scheme;
  scheme.packed = &packed;
  scheme.n = packed.shape[0];
  if (scheme.n < 1 || packed.shape[1] < 1 || packed.shape[1] > INT64_MAX / 64) {
    return corrupt_file("weight_packed U8 " + shape_text(packed.shape) + " is no weight");
  }
  scheme.k = 2 * packed.shape[1];
  const TensorInfo* scale = find_part(source, layer, kScale);
  const bool nvfp4 = scale != nullptr && scale->dtype == DType::kE4M3;
  scheme.format = {Element::kE2M1, nvfp4 ? 16 : 32, nvfp4 ? DType::kE4M3 : DType::kE8M0,
                   ZeroKind::kNone};
  const int64_t scale_shape[] = {scheme.n, scheme.format.groups(scheme.k)};
  const uint32_t dtypes = nvfp4 ? bits(DType::kE4M3) : bits(DType::kU8, DType::kE8M0);
  NIBBLE_ASSIGN_OR_RETURN(scheme.scale, require_part(source, layer, kScale, dtypes, scale_shape));
  if (nvfp4) {
    const TensorInfo* global = find_part(source, layer, kGlobal);
    const int64_t one[] = {1};
    const auto shape =
        std::span<const int64_t>(one, global != nullptr && global->shape.empty() ? 0u : 1u);
    NIBBLE_ASSIGN_OR_RETURN(scheme.global,
                            require_part(source, layer, kGlobal, bits(DType::kF32), shape));
  }
  Facts facts;
  facts.is_float = true;
  facts.bit_widths = 1u << 4;
  facts.k = scheme.k;
  facts.columns = scale_shape[1];
  const Result<BitsAndGroup> found = choose(facts, declared);
  if (!found.ok()) return found.status();
  return scheme;
}

Result<Scheme> scheme_of(const Source& source, const Result<std::vector<Declared>>& declared,
                         const std::string& layer) {
  if (!declared.ok()) return declared.status();
  const TensorInfo* packed = find_part(source, layer, kPacked);
  if (packed == nullptr) {
    return unsupported(
        "only weights stored as weight_packed are read (pack-quantized, "
        "nvfp4-pack-quantized, mxfp4-pack-quantized)");
  }
  if (packed->shape.size() == 2 && packed->dtype == DType::kI32) {
    return integer_scheme(source, *declared, layer, *packed);
  }
  if (packed->shape.size() == 2 && packed->dtype == DType::kU8) {
    return float_scheme(source, *declared, layer, *packed);
  }
  return unsupported("weight_packed is " + packed->dtype_name + " " + shape_text(packed->shape) +
                     ", not a matrix of I32 or U8");
}

bool claims(const Source& source) {
  if (!source.method.empty()) return source.method == "compressed-tensors";
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto layer = without_suffix(tensor.name, std::string(".") + kPacked);
    if (!layer) continue;
    if (tensor.dtype == DType::kI32) return true;
    const TensorInfo* scale = find_part(source, *layer, kScale);
    if (scale != nullptr && (scale->dtype == DType::kE4M3 || scale->dtype == DType::kU8))
      return true;
  }
  return false;
}

std::vector<LayerInfo> layers(const Source& source) {
  const auto declared = declared_groups(source.quantization);
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    auto name = without_suffix(tensor.name, std::string(".") + kPacked);
    const char* weight = kPacked;
    if (!name) {
      // An eight-bit float or integer weight that is not packed: listed, so that it is not taken
      // for a plain tensor.
      const bool narrow = tensor.dtype == DType::kE4M3 || tensor.dtype == DType::kI8;
      weight = "weight";
      name = without_suffix(tensor.name, ".weight");
      if (!name || !narrow || find_part(source, *name, kScale) == nullptr) continue;
    }
    LayerInfo layer;
    layer.name = *name;
    for (const char* part : {weight, kScale, kZero, kGlobal, kShape, kGIdx, "input_global_scale",
                             "input_scale", "input_zero_point"}) {
      add_part(source, layer, part);
    }
    const Result<Scheme> scheme = scheme_of(source, declared, layer.name);
    if (scheme.ok()) {
      layer.format = scheme->format;
      layer.n = scheme->n;
      layer.k = scheme->k;
      layer.dense_only = scheme->map.dense_only;
      if (layer.dense_only.empty()) layer.status = layer.format.validate();
      if (!scheme->map.order.empty()) layer.remark = "act-order";
    } else {
      layer.status = scheme.status();
    }
    out.push_back(std::move(layer));
  }
  return out;
}

/// Fields hold value + 2^(bits-1), so signed codes differ from fields in the top bit alone and
/// unsigned ones not at all: those are the file's bytes where its rows are no longer than ours.
Result<Buffer> integer_codes(const Source& source, const Scheme& scheme,
                             std::span<const int32_t> order) {
  const int width = scheme.format.bits();
  const bool is_signed = scheme.zero == nullptr;
  const int64_t stored_row = 4 * scheme.packed->shape[1];
  const bool odd_nibble = width == 4 && scheme.k % 2 != 0;  // the padding may hold anything
  Buffer stored = source.tensors.bytes(*scheme.packed);
  if (!is_signed && order.empty() && stored_row == scheme.format.code_row_bytes(scheme.k) &&
      !odd_nibble) {
    return stored;
  }
  const auto flip = static_cast<uint8_t>(is_signed ? 1 << (width - 1) : 0);
  return rows_with_columns({stored.data(), scheme.n, scheme.k, width, flip}, stored_row, order);
}

/// One byte a zero point from words packed along dim 0: field i of word (r, g) belongs to row
/// r * fields + i. (q - 8) - (z - 8) = q - z, so fields are zeros of unsigned codes as they stand.
Result<Buffer> integer_zeros(const Source& source, const Scheme& scheme) {
  const int width = scheme.format.bits();
  const int64_t fields = 32 / width, groups = scheme.groups;
  const auto mask = (1u << width) - 1;
  const Buffer stored = source.tensors.bytes(*scheme.zero);
  NIBBLE_ASSIGN_OR_RETURN(Buffer zeros, Buffer::allocate(scheme.n * groups));
  for (int64_t row = 0; row < scheme.n; ++row) {
    const uint8_t* words = stored.data() + 4 * (row / fields * groups);
    const int shift = width * static_cast<int>(row % fields);
    uint8_t* out = zeros.mutable_data() + row * groups;
    for (int64_t g = 0; g < groups; ++g) {
      uint32_t word;
      std::memcpy(&word, words + 4 * g, sizeof(word));
      out[g] = static_cast<uint8_t>(word >> shift & mask);
    }
  }
  return zeros;
}

/// Codes with `order` applied, scales and zeros [n, groups] as stored.
Result<QuantizedTensor> read_parts(const Source& source, const Scheme& scheme,
                                   std::span<const int32_t> order) {
  QuantizedTensor q;
  q.format = scheme.format;
  q.n = scheme.n;
  q.k = scheme.k;
  NIBBLE_ASSIGN_OR_RETURN(q.scales, source.tensors.values(*scheme.scale));
  if (scheme.format.element == Element::kE2M1) {
    q.codes = source.tensors.bytes(*scheme.packed);
    return q;
  }
  NIBBLE_ASSIGN_OR_RETURN(q.codes, integer_codes(source, scheme, order));
  if (scheme.zero != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(q.zeros, integer_zeros(source, scheme));
  }
  return q;
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  const auto declared = declared_groups(source.quantization);
  NIBBLE_ASSIGN_OR_RETURN(Scheme scheme, scheme_of(source, declared, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, read_parts(source, scheme, scheme.map.order));
  if (scheme.global != nullptr) {
    float divisor;
    std::memcpy(&divisor, source.tensors.bytes(*scheme.global).data(), sizeof(divisor));
    if (!std::isfinite(divisor) || divisor == 0) {
      return corrupt_file("weight_global_scale is " + std::to_string(divisor));
    }
    q.tensor_scales = {{0, divisor}};
    q.tensor_scale_op = TensorScaleOp::kDivide;
  }
  NIBBLE_ASSIGN_OR_RETURN(
      q.scales, with_source_groups(q.scales, q.n, scheme.groups, dtype_bytes(scheme.format.scale),
                                   scheme.map));
  if (scheme.zero != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(q.zeros,
                            with_source_groups(q.zeros, q.n, scheme.groups, 1, scheme.map));
  }
  q.k_perm = std::move(scheme.map.order);
  return q;
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  const auto declared = declared_groups(source.quantization);
  NIBBLE_ASSIGN_OR_RETURN(Scheme scheme, scheme_of(source, declared, layer.name));
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor parts, read_parts(source, scheme, {}));
  if (scheme.index.empty()) scheme.index = equal_index(scheme.k, scheme.length);
  return rows_by_index(std::move(parts), scheme.groups, std::move(scheme.index));
}

}  // namespace

extern const ReadSpelling kReadCompressedTensors;
const ReadSpelling kReadCompressedTensors = {"compressed-tensors", claims, layers, load, dense};

}  // namespace nibble::checkpoint
