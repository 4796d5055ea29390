// Weights of any spelling as rows of floats, and how far two of them are apart.
#ifndef NIBBLE_FRONTENDS_CLI_WEIGHT_ROWS_H_
#define NIBBLE_FRONTENDS_CLI_WEIGHT_ROWS_H_

#include <string>

#include "nibble/checkpoint.h"

namespace nibble::cli {

/// The rows times their pre_scale, in FP32: the matrix that x as it is would be multiplied by.
DenseRows with_pre_scale(DenseRows rows);

/// The weight of a layer, pre_scale included: of a quantized layer, or the float tensor
/// `layer`.weight, whose extents but the last count as rows.
/// Errors: those of Checkpoint, kInvalidArgument (neither a layer nor a float matrix).
Result<DenseRows> weight_of(const Checkpoint& checkpoint, const std::string& layer);

/// The float tensor `layer`.weight, or null when it is none or has other than two or more
/// extents.
const TensorInfo* float_weight(const Checkpoint& checkpoint, const std::string& layer);

struct WeightDifference {
  double relative_error = 0;  ///< ||a - b||_F / ||b||_F; infinite where b alone is 0
  bool identical = true;      ///< the same bits
};
/// The same result whatever the thread count. Errors: kInvalidArgument (other shapes, a value of b
/// that is not finite).
Result<WeightDifference> compare_weights(const DenseRows& a, const DenseRows& b, ThreadPool* pool);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_WEIGHT_ROWS_H_
