#include "checkpoint/onnx_operators.h"

#include <bit>

#include "checkpoint/json.h"

namespace nibble::checkpoint {
namespace {

constexpr int64_t kMaxColumns = INT64_MAX / 256;

std::string tensor_text(const TensorInfo& tensor) {
  return "tensor " + shown(tensor.name) + " is " + tensor.dtype_name + " " +
         shape_text(tensor.shape);
}

/// The stored tensor of a node's input; null when the node has no such input.
/// Errors: kUnsupported when something computes it.
Result<const TensorInfo*> stored_input(const Source& source, const OnnxNode& node, size_t input,
                                       const char* what) {
  const int32_t value = node.input(input);
  if (value < 0) return static_cast<const TensorInfo*>(nullptr);
  const OnnxTensor* tensor = source.graph->tensor_of(value);
  const TensorInfo* info = tensor != nullptr ? source.tensors.find(tensor->name) : nullptr;
  if (info != nullptr) return info;
  return unsupported(std::string("its ") + what + " " +
                     shown(source.graph->values[static_cast<size_t>(value)].name) +
                     " is no stored tensor");
}

Result<const TensorInfo*> required_input(const Source& source, const OnnxNode& node, size_t input,
                                         const char* what) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* tensor, stored_input(source, node, input, what));
  if (tensor == nullptr) return corrupt_file(std::string("it has no ") + what);
  return tensor;
}

int64_t elements_of(const TensorInfo& tensor) {
  int64_t count = 1;  // the container has checked the product
  for (const int64_t extent : tensor.shape) count *= extent;
  return count;
}

bool has_dtype(const TensorInfo& tensor, uint32_t dtypes) {
  return tensor.dtype && (dtypes & bit(*tensor.dtype)) != 0;
}

constexpr uint32_t kFloats = bits(DType::kF32, DType::kF16, DType::kBF16);

/// The tensor has rows * columns values, as a list, a matrix or rows of parts.
Status check_rows(const TensorInfo& tensor, int64_t rows, int64_t columns) {
  const auto wanted = checked_product(rows, columns);
  const bool by_rows =
      tensor.shape.size() == 1 || (tensor.shape.size() > 1 && tensor.shape.front() == rows);
  if (by_rows && wanted == elements_of(tensor)) return {};
  return corrupt_file(tensor_text(tensor) + ", the layer needs [" + std::to_string(rows) + ", " +
                      std::to_string(columns) + "]");
}

Result<int64_t> positive(const OnnxNode& node, const char* key) {
  const int64_t value = node.integer(key, 0);
  if (value >= 1 && value <= kMaxColumns) return value;
  return corrupt_file(std::string("its attribute ") + key + " is " + std::to_string(value));
}

Status check_scales(const TensorInfo& scales) {
  if (has_dtype(scales, kFloats)) return {};
  return unsupported(tensor_text(scales) + "; scales are FLOAT, FLOAT16 or BFLOAT16");
}

}  // namespace

Result<OnnxWeight> matmul_nbits_weight(const Source& source, const OnnxNode& node) {
  OnnxWeight w;
  NIBBLE_ASSIGN_OR_RETURN(w.n, positive(node, "N"));
  NIBBLE_ASSIGN_OR_RETURN(w.k, positive(node, "K"));
  NIBBLE_ASSIGN_OR_RETURN(w.group_length, positive(node, "block_size"));
  const int64_t bits = node.integer("bits", 4);
  if (bits != 4 && bits != 8) {
    return unsupported("codes of " + std::to_string(bits) + " bits: 4 and 8 are read");
  }
  w.bits = static_cast<int>(bits);
  if (w.group_length < 16 || !std::has_single_bit(static_cast<uint64_t>(w.group_length))) {
    return unsupported("block_size " + std::to_string(w.group_length) +
                       " is not a power of two from 16 on");
  }
  if (const int64_t prepacked = node.integer("weight_prepacked", 0); prepacked != 0) {
    return unsupported("weight_prepacked is " + std::to_string(prepacked) +
                       ": packed for one kernel, in an order that is not published");
  }
  w.groups = ceil_div(w.k, w.group_length);
  NIBBLE_ASSIGN_OR_RETURN(w.codes, required_input(source, node, 1, "B"));
  if (!has_dtype(*w.codes, bit(DType::kU8))) {
    return unsupported(tensor_text(*w.codes) + "; B is UINT8");
  }
  w.code_row_stride = w.groups * w.group_length;  // at most twice kMaxColumns
  w.code_column_stride = 1;
  NIBBLE_RETURN_IF_ERROR(check_rows(*w.codes, w.n, w.code_row_stride / 8 * w.bits));

  NIBBLE_ASSIGN_OR_RETURN(w.scales, required_input(source, node, 2, "scales"));
  NIBBLE_RETURN_IF_ERROR(check_scales(*w.scales));
  NIBBLE_RETURN_IF_ERROR(check_rows(*w.scales, w.n, w.groups));
  w.scale_grid = w.zero_grid = {1, w.groups, 1};

  NIBBLE_ASSIGN_OR_RETURN(w.zeros, stored_input(source, node, 3, "zero_points"));
  if (w.zeros == nullptr) {
    w.zero = OnnxWeight::Zero::kMiddle;
  } else if (has_dtype(*w.zeros, bit(DType::kU8))) {
    w.zero = OnnxWeight::Zero::kCodes;
    const int64_t row_bytes = ceil_div(w.groups * w.bits, 8);  // each row padded to a byte
    NIBBLE_RETURN_IF_ERROR(check_rows(*w.zeros, w.n, row_bytes));
    w.zero_grid.row_stride = row_bytes * 8 / w.bits;
  } else if (has_dtype(*w.zeros, kFloats)) {
    w.zero = OnnxWeight::Zero::kFloats;
    NIBBLE_RETURN_IF_ERROR(check_rows(*w.zeros, w.n, w.groups));
  } else {
    return unsupported(tensor_text(*w.zeros) +
                       "; zero points are UINT8, FLOAT, FLOAT16 or BFLOAT16");
  }
  NIBBLE_ASSIGN_OR_RETURN(w.index, stored_input(source, node, 4, "g_idx"));
  if (w.index != nullptr) {
    const int64_t count = elements_of(*w.index);
    if (!has_dtype(*w.index, bit(DType::kI32)) || (count != w.k && count != w.code_row_stride)) {
      return corrupt_file(tensor_text(*w.index) + ", the layer needs INT32 [" +
                          std::to_string(w.k) + "]");
    }
  }
  if (const int32_t bias = node.input(5); bias >= 0) {
    w.remark = "bias in " + shown(source.graph->values[static_cast<size_t>(bias)].name);
  }
  return w;
}

namespace {

/// Sets what the type of the codes says. Errors: kUnsupported.
Status set_codes(const TensorInfo& codes, OnnxWeight& w) {
  w.codes = &codes;
  const std::string& type = codes.dtype_name;
  w.bits = type == "INT4" || type == "UINT4" || type == "FLOAT4E2M1" ? 4 : 8;
  w.is_signed = type == "INT4" || type == "INT8";
  w.is_e2m1 = type == "FLOAT4E2M1";
  w.is_e4m3 = type == "FLOAT8E4M3FN";
  if (w.bits == 4 || w.is_signed || w.is_e4m3 || type == "UINT8") return {};
  return unsupported(tensor_text(codes) +
                     "; weights of INT4, UINT4, INT8, UINT8, FLOAT4E2M1 and FLOAT8E4M3FN are read");
}

std::string shape_or_scalar(const TensorInfo& tensor) {
  return tensor.shape.empty() ? "scalar" : shape_text(tensor.shape);
}

/// Where scales of this shape lie for a matrix [rows, columns] of `order`. Sets group_length,
/// groups and both grids.
Status set_grid(const TensorInfo& scales, int64_t axis, int64_t block, OnnxOrder order,
                OnnxWeight& w) {
  const bool by_rows = order == OnnxOrder::kRowsAreOutputs;
  const int64_t extents[2] = {by_rows ? w.n : w.k, by_rows ? w.k : w.n};
  const bool along_k = (axis == 1) == by_rows;
  OnnxGrid grid;
  if (block == 0 && elements_of(scales) == 1 && scales.shape.size() <= 1) {
    grid.rows_per_value = w.n;
  } else if (block == 0) {
    if (scales.shape.size() != 1 || scales.shape[0] != extents[axis]) {
      return corrupt_file(tensor_text(scales) + ", the weight " + shape_text(extents) +
                          " needs one scale or [" + std::to_string(extents[axis]) +
                          "] along axis " + std::to_string(axis));
    }
    if (along_k) {
      grid = {w.n, 0, 1};
      w.group_length = 1;
      w.groups = w.k;
    } else {
      grid = {1, 1, 0};
    }
  } else {
    const int64_t blocks = ceil_div(extents[axis], block);
    int64_t wanted[2] = {extents[0], extents[1]};
    wanted[axis] = blocks;
    if (scales.shape.size() != 2 || scales.shape[0] != wanted[0] || scales.shape[1] != wanted[1]) {
      return corrupt_file(tensor_text(scales) + ", the weight " + shape_text(extents) +
                          " with blocks of " + std::to_string(block) + " along axis " +
                          std::to_string(axis) + " needs " + shape_text(wanted));
    }
    const int64_t row_stride = by_rows ? wanted[1] : 1, group_stride = by_rows ? 1 : wanted[1];
    if (along_k) {
      grid = {1, row_stride, group_stride};
      w.group_length = block;
      w.groups = blocks;
    } else {  // every column has scales of its own, each for `block` rows
      grid = {block, row_stride, group_stride};
      w.group_length = 1;
      w.groups = w.k;
    }
  }
  w.scale_grid = w.zero_grid = grid;
  return {};
}

/// The type in which a DequantizeLinear computes; 0 where it is that of its scale.
Result<DType> output_dtype(const OnnxNode& node, DType scale) {
  const int64_t code = node.integer("output_dtype", 0);
  if (code == 0) return scale;
  const OnnxType* type =
      code <= INT32_MAX && code > 0 ? onnx_type(static_cast<int32_t>(code)) : nullptr;
  if (type != nullptr && type->dtype && (bit(*type->dtype) & kFloats) != 0) return *type->dtype;
  return unsupported("its output_dtype is " + std::to_string(code) +
                     ", not FLOAT, FLOAT16 or BFLOAT16");
}

/// Scales that are stored, or are themselves dequantized by one scale.
Status set_scales(const Source& source, const OnnxNode& node, OnnxWeight& w) {
  const OnnxNode* product = source.graph->producer_of(node.input(1));
  const bool stored = source.graph->tensor_of(node.input(1)) != nullptr;
  if (stored || product == nullptr || !product->is("", "DequantizeLinear")) {
    NIBBLE_ASSIGN_OR_RETURN(w.scales, required_input(source, node, 1, "scale"));
    if (has_dtype(*w.scales, kFloats | bit(DType::kE8M0))) return {};
    return unsupported(tensor_text(*w.scales) +
                       "; scales are FLOAT, FLOAT16, BFLOAT16 or FLOAT8E8M0");
  }
  NIBBLE_ASSIGN_OR_RETURN(w.scales, required_input(source, *product, 0, "stored scale"));
  if (!has_dtype(*w.scales, bit(DType::kE4M3))) {
    return unsupported(tensor_text(*w.scales) + "; dequantized scales are FLOAT8E4M3FN");
  }
  NIBBLE_ASSIGN_OR_RETURN(w.tensor_scale, required_input(source, *product, 1, "scale's scale"));
  NIBBLE_RETURN_IF_ERROR(check_scales(*w.tensor_scale));
  if (elements_of(*w.tensor_scale) != 1) {
    return unsupported(tensor_text(*w.tensor_scale) + "; scales are dequantized by one scale");
  }
  NIBBLE_ASSIGN_OR_RETURN(w.scale_zero, stored_input(source, *product, 2, "scale's zero point"));
  if (w.scale_zero != nullptr && w.scale_zero->dtype != w.scales->dtype) {
    return corrupt_file(tensor_text(*w.scale_zero) + ", the scales are " + w.scales->dtype_name);
  }
  NIBBLE_ASSIGN_OR_RETURN(w.scale_product, output_dtype(*product, *w.tensor_scale->dtype));
  return {};
}

}  // namespace

Result<OnnxWeight> dequantize_weight(const Source& source, const OnnxNode& node, OnnxOrder order) {
  OnnxWeight w;
  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* codes, required_input(source, node, 0, "weight"));
  NIBBLE_RETURN_IF_ERROR(set_codes(*codes, w));
  if (codes->shape.size() != 2 || codes->shape[0] < 1 || codes->shape[1] < 1) {
    return unsupported(tensor_text(*codes) + "; matrices are read");
  }
  const int64_t columns = codes->shape[1];
  const bool by_rows = order == OnnxOrder::kRowsAreOutputs;
  w.n = codes->shape[by_rows ? 0 : 1];
  w.k = codes->shape[by_rows ? 1 : 0];
  w.code_row_stride = by_rows ? columns : 1;
  w.code_column_stride = by_rows ? 1 : columns;

  NIBBLE_RETURN_IF_ERROR(set_scales(source, node, w));
  int64_t axis = node.integer("axis", 1);
  if (axis < 0) axis += 2;
  const int64_t block = node.integer("block_size", 0);
  if (axis < 0 || axis > 1 || block < 0 || block > kMaxColumns) {
    return corrupt_file("its axis is " + std::to_string(node.integer("axis", 1)) +
                        ", its block_size " + std::to_string(block));
  }
  NIBBLE_RETURN_IF_ERROR(set_grid(*w.scales, axis, block, order, w));

  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* zeros, stored_input(source, node, 2, "zero point"));
  if (zeros == nullptr) return w;
  if (zeros->dtype_name != codes->dtype_name || zeros->shape != w.scales->shape) {
    return corrupt_file(tensor_text(*zeros) + ", the weight needs " + codes->dtype_name + " " +
                        shape_or_scalar(*w.scales));
  }
  if (w.is_e2m1 || w.is_e4m3) {
    w.float_zero = zeros;
  } else {
    w.zero = OnnxWeight::Zero::kCodes;
    w.zeros = zeros;
  }
  return w;
}

Result<OnnxWeight> gather_weight(const Source& source, const OnnxNode& node) {
  OnnxWeight w;
  NIBBLE_ASSIGN_OR_RETURN(const TensorInfo* codes, required_input(source, node, 0, "data"));
  NIBBLE_RETURN_IF_ERROR(set_codes(*codes, w));
  const int64_t bits = node.integer("bits", 4);
  const bool is_u8 = codes->dtype == DType::kU8;
  if (w.is_e2m1 || w.is_e4m3 || codes->dtype == DType::kI8 || (is_u8 && bits != 4 && bits != 8)) {
    return unsupported(tensor_text(*codes) + " with " + std::to_string(bits) +
                       " bits; INT4, UINT4 and UINT8 with 4 or 8 bits are read");
  }
  if (is_u8) w.bits = static_cast<int>(bits);
  if (codes->shape.size() != 2 || codes->shape[0] < 1 || codes->shape[1] < 1) {
    return unsupported(tensor_text(*codes) + "; matrices are read");
  }
  int64_t gather_axis = node.integer("gather_axis", 0);
  int64_t axis = node.integer("quantize_axis", 1);
  if (gather_axis < 0) gather_axis += 2;
  if (axis < 0) axis += 2;
  if (gather_axis != 0 || axis != 1) {
    return unsupported("gather_axis " + std::to_string(gather_axis) + ", quantize_axis " +
                       std::to_string(axis) + ": rows quantized along their columns are read");
  }
  const int64_t block = node.integer("block_size", 128);
  if (block < 16 || !std::has_single_bit(static_cast<uint64_t>(block))) {
    return unsupported("block_size " + std::to_string(block) + " is not a power of two from 16 on");
  }
  w.n = codes->shape[0];
  w.k = is_u8 ? codes->shape[1] * 8 / w.bits : codes->shape[1];
  w.code_row_stride = w.k;
  w.code_column_stride = 1;
  w.group_length = block;
  w.groups = ceil_div(w.k, block);
  w.scale_grid = w.zero_grid = {1, w.groups, 1};
  NIBBLE_ASSIGN_OR_RETURN(w.scales, required_input(source, node, 2, "scales"));
  NIBBLE_RETURN_IF_ERROR(check_scales(*w.scales));
  NIBBLE_RETURN_IF_ERROR(check_rows(*w.scales, w.n, w.groups));
  NIBBLE_ASSIGN_OR_RETURN(w.zeros, stored_input(source, node, 3, "zero_points"));
  if (w.zeros == nullptr) {
    w.zero = is_u8 ? OnnxWeight::Zero::kMiddle : OnnxWeight::Zero::kNone;
    return w;
  }
  w.zero = OnnxWeight::Zero::kCodes;
  if (w.zeros->dtype_name != codes->dtype_name) {
    return corrupt_file(tensor_text(*w.zeros) + ", the data is " + codes->dtype_name);
  }
  const int64_t row_values = is_u8 ? ceil_div(w.groups * w.bits, 8) : w.groups;
  NIBBLE_RETURN_IF_ERROR(check_rows(*w.zeros, w.n, row_values));
  w.zero_grid.row_stride = is_u8 ? row_values * 8 / w.bits : w.groups;
  return w;
}

}  // namespace nibble::checkpoint
