// One quantized weight of an ONNX graph, whichever operator decodes it, and how it becomes a
// QuantizedTensor or dense rows.
#ifndef NIBBLE_CHECKPOINT_ONNX_WEIGHT_H_
#define NIBBLE_CHECKPOINT_ONNX_WEIGHT_H_

#include <string>

#include "checkpoint/group_index.h"
#include "checkpoint/onnx.h"
#include "checkpoint/spelling.h"

namespace nibble::checkpoint {

/// Where the scale (or zero point) of row r and group g lies in its tensor, in values:
/// r / rows_per_value * row_stride + g * group_stride.
struct OnnxGrid {
  int64_t rows_per_value = 1;
  int64_t row_stride = 0, group_stride = 0;

  int64_t at(int64_t row, int64_t group) const {
    return row / rows_per_value * row_stride + group * group_stride;
  }
  bool operator==(const OnnxGrid&) const = default;
};

/// w[r, c] = (code - zero) * scale, the code at element r * code_row_stride + c *
/// code_column_stride of `codes` (4-bit elements: low nibble first), scale and zero those of group
/// c / group_length, or of group index[c]. All tensors' sizes are checked against this.
struct OnnxWeight {
  enum class Zero : uint8_t {
    kNone,    ///< the code is the value
    kMiddle,  ///< 8 or 128, not stored
    kCodes,   ///< stored in the type of the codes
    kFloats,  ///< stored as floats
  };
  int64_t n = 0, k = 0;
  const TensorInfo* codes = nullptr;
  int64_t code_row_stride = 0, code_column_stride = 0;
  int bits = 4;
  bool is_signed = false;
  bool is_e2m1 = false;
  bool is_e4m3 = false;  ///< 8-bit floats, which no Format has

  int64_t group_length = 0;           ///< 0: the whole row
  int64_t groups = 1;                 ///< of a row, as stored
  const TensorInfo* index = nullptr;  ///< i32: the group of each column; may be longer than k
  const TensorInfo* scales = nullptr;
  OnnxGrid scale_grid;
  Zero zero = Zero::kNone;
  const TensorInfo* zeros = nullptr;  ///< null for kNone and kMiddle
  OnnxGrid zero_grid;
  /// One more scale by which all are multiplied, rounded to `scale_product`; null: none.
  const TensorInfo* tensor_scale = nullptr;
  DType scale_product = DType::kF32;
  /// Zero points of floats, which must all be zero.
  const TensorInfo* float_zero = nullptr;
  const TensorInfo* scale_zero = nullptr;  ///< the same, of the scales
  std::string remark;

  bool operator==(const OnnxWeight&) const = default;
};

/// Which groups of a Format hold the weight; reads the index alone. Errors: kCorruptFile.
Result<GroupMap> onnx_groups(const Source& source, const OnnxWeight& weight);
/// The Format; its group is the map's.
Format onnx_format(const OnnxWeight& weight, const GroupMap& map);

/// A weight whose map has no dense_only. Errors: kCorruptFile, kUnsupported, kOutOfMemory.
Result<QuantizedTensor> load_onnx_weight(const Source& source, const OnnxWeight& weight,
                                         const GroupMap& map);
/// Any weight. Errors: the same.
Result<DenseRows> dense_onnx_weight(const Source& source, const OnnxWeight& weight);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_ONNX_WEIGHT_H_
