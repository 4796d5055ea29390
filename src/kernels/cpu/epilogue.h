// What happens to the FP32 sums of a tile on their way to y. Plain declarations: ISA files call
// finish_tile where they have no epilogue of their own.
#ifndef NIBBLE_KERNELS_CPU_EPILOGUE_H_
#define NIBBLE_KERNELS_CPU_EPILOGUE_H_

#include "kernels/args.h"

namespace nibble {

// NOTE: how long a chain of FP32 additions may be. The tolerance that every row is tested with
// (docs/numerics.md) grows like the sum itself, but the error of one accumulator that runs over L
// one-sided products grows like sqrt(L) times the sum: with x >= 0, uint4 codes and a whole-row
// scale, one chain over K = 4304 is 6 times out of tolerance, over K = 16384 12 times. So a partial
// sum covers at most 256 columns (512 when two or more chains share them) before it is added to a
// total; int8 rows, whose chain moves once per 32 columns, at most 32 blocks (1024 columns). Above
// K = 8192 the totals want the same care: at most 32 additions each.

/// Sums of `rows` rows of x with the 16 rows of one panel, before row_scale.
struct SumTile {
  const float* sums;  ///< [rows][16]; lanes past the end of the matrix may hold anything
  int64_t m_begin;    ///< row of x and y that sums[0] belongs to
  int64_t rows;
  int64_t panel;  ///< 16 packed rows; outputs 16*panel + lane, paired: 8*panel + lane
};

/// Writes the outputs of one tile and nothing past row m or column n (n/2 when paired).
///
/// Every step rounds once to FP32, in this order; absent terms (null pointer, alpha == 1,
/// beta == 0) are skipped. A row that promises the bits of this function keeps order and roundings:
///   t = sum * row_scale   or   sum / row_scale
///   t = alpha * t
///   t = t + bias
///   t = activation(t)        paired: t = activation(t_gate) * t_up
///   t = t + beta * c         (two roundings, no FMA)
///   t = t + residual
///   y = t rounded to y_dtype, nearest even
/// y may be c or residual.
void finish_tile(const MatmulArgs& args, const SumTile& tile);

/// The activation in FP32, within 8 units of 2^-24 of |value| of `activate` (docs/numerics.md).
float activate_f32(Activation activation, float value);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_EPILOGUE_H_
