// The oracle: x * decode(w) in double precision, with exactly the roundings that a row of the table
// declares, and the tolerance that is left for everything it does not declare. Written from the
// QuantizedTensor, never from packed bytes, and sharing no loop with a kernel.
#ifndef NIBBLE_KERNELS_REFERENCE_H_
#define NIBBLE_KERNELS_REFERENCE_H_

#include <vector>

#include "kernels/args.h"
#include "nibble/core.h"

namespace nibble {

/// Decoded weight after the roundings of `Numerics`, tensor scale included, rows in tensor order,
/// columns in stored order.
struct ReferenceWeight {
  int64_t n = 0, k = 0;
  std::vector<double> values;      ///< [n][k]
  std::vector<double> code_parts;  ///< [n][k] |code part|, where a zero may enter apart; else empty
  std::vector<double> zero_parts;  ///< [n][k] |zero part|, likewise
  std::vector<double> scale_sums;  ///< [n] sum over columns of |value| + |scale|
};
ReferenceWeight reference_weight(const QuantizedTensor& w, const Numerics& numerics);

/// x [m, k] as the row meets it: gathered by k_perm, times pre_scale (RN32), and for int8 compute
/// code * scale of its block of 32 stored columns. A block with Inf or NaN is NaN.
std::vector<double> reference_x(const QuantizedTensor& w, const MatrixView& x,
                                const Numerics& numerics);

/// One sum of products p_j = x_j * w_j over the columns.
struct ReferenceSum {
  double value = 0;
  double squares = 0;    ///< sum of p_j^2
  double magnitude = 0;  ///< sum of |p_j|
  double tolerance = 0;  ///< docs/numerics.md, "The sum"
};
/// [m][n]; `x` from reference_x.
std::vector<ReferenceSum> reference_sums(const ReferenceWeight& w, const std::vector<double>& x,
                                         const Numerics& numerics);

/// One output before its rounding to y's dtype, and the largest error a stored output may have.
struct ReferenceOutput {
  double value = 0;
  double tolerance = 0;
};
struct ReferenceShape {
  int64_t m = 0, n = 0;
  bool paired = false;
  DType y_dtype = DType::kF32;
};
/// [m][n], paired [m][n/2]. Pointers of `epilogue` as a kernel gets them; c is read, so it must not
/// be the y that a kernel has already written.
std::vector<ReferenceOutput> reference_outputs(const std::vector<ReferenceSum>& sums,
                                               const ReferenceShape& shape,
                                               const EpilogueArgs& epilogue);

/// Unit roundoff: 2^-24 (f32), 2^-11 (f16), 2^-8 (bf16).
double unit_roundoff(DType dtype);
/// Half the smallest subnormal of `dtype`: the largest error of a rounding near zero.
double smallest_error(DType dtype);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_REFERENCE_H_
