// Quantizing a band of rows on one thread, as plain data and functions compiled once for each
// instruction set (bands_scalar.cc, bands_avx2.cc, bands_avx512_vnni.cc).
#ifndef NIBBLE_QUANTIZE_BANDS_H_
#define NIBBLE_QUANTIZE_BANDS_H_

#include <stdint.h>

#include "nibble/types.h"

namespace nibble {

/// Candidates whose squared errors are found side by side, one a lane of a vector.
inline constexpr int kCandidates = 16;

/// Weights whose squared errors are summed in f32 before they enter the f64 total of a group.
inline constexpr int64_t kErrorRun = 128;

/// What the inner loops differ by.
enum class CodeKind : uint8_t {
  kInteger,      ///< int4, int8
  kZeroInteger,  ///< uint4, uint8: with a zero of any kind
  kE2M1,
  kNf4,
};

/// What a Format and QuantizeOptions mean for the groups of one tensor. docs/quality.md has the
/// same rules in words. A plain scale is range / divisor, where the range is the largest magnitude,
/// or max - min for codes with a zero.
struct TensorRules {
  DType scale = DType::kF32;
  ZeroKind zero = ZeroKind::kNone;
  int32_t bits = 4;
  bool search = true;  ///< all candidates compete; else the plain ones alone
  float divisor = 7;
  float second_divisor = 0;             ///< a second plain scale (int4: 8, int8: 128); 0: none
  int32_t code_min = -8, code_max = 7;  ///< integers only
  float nf4[16] = {};
  float nf4_threshold[15] = {};  ///< between neighbouring quantiles; on one, the lower code
  // The same for quotients y in bin RNE(16 y) + 16, limited to 0..31: quantiles on both sides of
  // the one threshold in it, and that threshold.
  float nf4_below[32] = {}, nf4_above[32] = {}, nf4_split[32] = {};

  // Scales in f32, f16 and bf16: candidates are multiples of the plain scale.
  float grid[kCandidates] = {};  ///< lanes 0 and 1 belong to the plain scales
  float grid_step = 0;

  // Scales in e4m3 and e8m0: candidates are kCandidates neighbouring bytes.
  float table[256] = {};  ///< RN32(value of the byte op tensor_scale)
  int32_t first_byte = 0, last_byte = 0;
  int32_t bytes_below = 0;  ///< how many of the candidates lie below the plain byte
  float tensor_scale = 1;
  TensorScaleOp tensor_scale_op = TensorScaleOp::kMultiply;

  // E2M1 with e8m0 scales: the plain exponent is floor(log2(amax)) - 2, one more where amax's 23
  // mantissa bits reach `round_up_from`.
  int32_t round_up_from = 1 << 23;
  bool next_exponent_competes = true;
};

/// Rows [row_begin, row_end) of a weight [n, k]. The outputs are those of the whole tensor.
struct Band {
  const TensorRules* rules = nullptr;
  const uint8_t* w = nullptr;
  DType dtype = DType::kF32;  ///< f32, f16 or bf16
  int64_t k = 0;
  int64_t row_begin = 0, row_end = 0;
  int64_t group_columns = 0;  ///< k where the row is one group
  int64_t num_groups = 0;     ///< of a row
  int64_t code_row_bytes = 0;
  int64_t piece_columns = 0;  ///< converted to f32 at a time; a multiple of group_columns, or k
  float* scratch = nullptr;   ///< piece_columns + kScratchSlack floats
  uint8_t* codes = nullptr;
  uint8_t* scales = nullptr;
  uint8_t* zeros = nullptr;
};
inline constexpr int64_t kScratchSlack = 32;  // the last weights are read 16 at a time

/// Why a band stopped.
enum class Trouble : uint8_t { kNone, kNotFinite, kScaleOverflow, kZeroOverflow };

/// Smallest, largest and largest absolute weight, 0 included; all finite.
struct TensorRange {
  float min = 0, max = 0, amax = 0;
};

/// The first trouble met, in row-major order; `column` is that of the weight or of its group.
struct BandResult {
  Trouble trouble = Trouble::kNone;
  int64_t row = 0, column = 0;
  TensorRange range;  ///< filled by `scan`
};

/// The functions compiled for one instruction set; all sets give the same bits.
struct BandFunctions {
  Isa isa;
  BandResult (*scan)(const Band&);         ///< range of the weights; reads no rules
  BandResult (*quantize[4])(const Band&);  ///< by CodeKind
};
extern const BandFunctions kBandsScalar;
extern const BandFunctions kBandsAvx2;
extern const BandFunctions kBandsAvx512;

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_BANDS_H_
