// The operators of ONNX graphs that decode a stored weight, each as an OnnxWeight.
#ifndef NIBBLE_CHECKPOINT_ONNX_OPERATORS_H_
#define NIBBLE_CHECKPOINT_ONNX_OPERATORS_H_

#include "checkpoint/onnx_weight.h"

namespace nibble::checkpoint {

inline constexpr char kMicrosoft[] = "com.microsoft";

/// Which of a stored matrix's dimensions are outputs.
enum class OnnxOrder : uint8_t { kRowsAreOutputs, kColumnsAreOutputs };

/// com.microsoft MatMulNBits: B [N, blocks, blob] u8, scales, zero points, group index, bias.
/// Errors: kUnsupported, kCorruptFile, naming the tensor or attribute.
Result<OnnxWeight> matmul_nbits_weight(const Source& source, const OnnxNode& node);
/// DequantizeLinear of a stored matrix: blocked, per axis or with one scale, which may itself be a
/// DequantizeLinear of 8-bit scales by one more scale (NVFP4). Errors: the same.
Result<OnnxWeight> dequantize_weight(const Source& source, const OnnxNode& node, OnnxOrder order);
/// com.microsoft GatherBlockQuantized: an embedding's table [rows, columns], quantized along its
/// columns. Errors: the same.
Result<OnnxWeight> gather_weight(const Source& source, const OnnxNode& node);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_ONNX_OPERATORS_H_
