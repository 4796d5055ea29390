// Float weights → QuantizedTensor.
#ifndef NIBBLE_QUANTIZE_H_
#define NIBBLE_QUANTIZE_H_

#include "nibble/core.h"

namespace nibble {

enum class ScaleRule : uint8_t {
  kMse,     ///< the candidate scale with the smallest squared error of the group (default)
  kAbsmax,  ///< the plain rule of docs/formats.md
};

/// How an mxfp4 exponent follows from a group's largest magnitude (docs/formats.md).
enum class MxfpRule : uint8_t {
  kSmallestError,      ///< the candidate with the smallest squared error (default)
  kOcp,                ///< floor(log2(amax)) - 2
  kModelOpt,           ///< ceil(log2(amax / 6))
  kCompressedTensors,  ///< rounds up from a mantissa of 1.75
};

struct QuantizeOptions {
  ScaleRule scales = ScaleRule::kMse;
  MxfpRule mxfp = MxfpRule::kSmallestError;
  /// How the tensor scale of nvfp4 (and other e4m3 scales) is kept: t = amax / 2688 that
  /// multiplies, or 2688 / amax that divides. A checkpoint spelling holds one of the two;
  /// quantizing for it keeps what is written identical to what was computed.
  TensorScaleOp tensor_scale_op = TensorScaleOp::kMultiply;
  ThreadPool* pool = nullptr;  ///< null: the calling thread alone. The bits do not depend on it.
  std::string name;            ///< the tensor's name, for error messages
};

/// Rounds a weight [n, k] (f32, f16 or bf16, row-major) to `format`. The same bits whatever the
/// thread count. Any n >= 1 and k >= 1; a last group may be short.
/// Errors: kInvalidArgument for a wrong rank or dtype, an impossible Format, a NaN or infinite
/// weight (the message holds the tensor's name and the index), or a group whose scale or additive
/// zero is above f16's largest value where the Format stores f16.
Result<QuantizedTensor> quantize(const TensorView& w, const Format& format,
                                 const QuantizeOptions& options = {});

/// ||a - b||_F / ||b||_F of the dequantized tensor, times pre_scale where it has one, against the
/// float weight [n, k] in f32, f16 or bf16. 0 where they are equal, infinite where b alone is 0.
/// Errors: kInvalidArgument for another shape or dtype, or a weight that is not finite.
Result<double> relative_error(const QuantizedTensor& a, const TensorView& b,
                              ThreadPool* pool = nullptr);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_H_
