// What a kernel is called with: plain data, checked by ops before it gets here. C++17, no std.
#ifndef NIBBLE_KERNELS_ARGS_H_
#define NIBBLE_KERNELS_ARGS_H_

#include "nibble/types.h"

#if defined(NIBBLE_CHECKED)
#define NIBBLE_ASSUME(condition)        \
  do {                                  \
    if (!(condition)) __builtin_trap(); \
  } while (false)
#else
#define NIBBLE_ASSUME(condition)               \
  do {                                         \
    if (!(condition)) __builtin_unreachable(); \
  } while (false)
#endif

namespace nibble {

/// Half-open range of work items.
struct Range {
  int64_t begin, end;
};

/// A packed weight as kernels see it. Pointers lie where the kernel runs (host or device). Panel
/// layouts may be read 64 bytes past the end of a section; row-major arrays are often the caller's
/// own and must not be.
struct WeightArgs {
  const uint8_t* codes;
  const void*
      scales;  ///< `scale_dtype`; panel16: [panel][num_groups][16]; row-major: [n][num_groups]
  const void* zeros;       ///< u8 (kInteger) or `scale_dtype`, order of `scales`; null for kNone
  const float* row_scale;  ///< [n_padded]; null: none. Meets the FP32 sum by `row_scale_op`
  const float* codebook;   ///< 16 values, kNF4 only
  Element element;
  DType scale_dtype;
  ZeroKind zero_kind;
  TensorScaleOp row_scale_op;
  LayoutId layout;
  bool paired;         ///< rows 0-7 of each panel are gate rows, 8-15 the matching up rows
  int64_t group;       ///< columns per scale; whole row: k_padded (>= k)
  int64_t num_groups;  ///< groups per row as laid out: ceil(k_padded / group)
  int64_t n, k;
  int64_t n_padded, k_padded;  ///< panel16: multiples of 16 and 32; row-major: n and k
};

/// y = activation(alpha * acc + bias) + beta * c + residual, in FP32, rounded once to y's dtype.
/// Paired weights: y has n/2 columns, y = activation(alpha*gate + bias_gate) * (alpha*up + bias_up)
/// (+ beta * c + residual).
struct EpilogueArgs {
  float alpha;
  float beta;
  const void* c;  ///< y's dtype, `c_stride_bytes`; may be y itself; null when beta == 0
  int64_t c_stride_bytes;
  const void* residual;  ///< y's dtype; null: none
  int64_t residual_stride_bytes;
  const void* bias;  ///< [n] in original row order, `bias_dtype` (f32, f16, bf16); null: none
  DType bias_dtype;
  Activation activation;
};

/// Work items of a CPU matmul: item = m_item * items_n + n_item, where n_item is a panel of
/// 16 outputs (row-major: 16 rows) and m_item a block of `block_m` rows of x.
struct CpuGrid {
  int64_t block_m;
  int64_t items_m, items_n;
};

/// What a CUDA launch depends on beside the operands.
struct CudaDevice {
  int32_t sm;  ///< compute capability * 10
  int32_t num_sms;
  int64_t shared_bytes;   ///< largest dynamic shared memory of a block
  bool weights_constant;  ///< nothing on the stream writes the weight: it may be read early
  bool programmatic;      ///< launch so that the kernel may start before the one before it ends
};

struct MatmulArgs {
  const void*
      x;  ///< caller's x (kRaw) or the prepared form, whose rows have round_up(k, 32) columns
  int64_t x_stride_bytes;  ///< kRaw only
  DType x_dtype;           ///< kRaw only
  const int32_t*
      k_perm;  ///< kRaw rows that gather: stored column j meets x[k_perm[j]]; null: identity
  const float* pre_scale;  ///< kRaw rows that pre-scale: [k], original order; null: none
  WeightArgs w;
  void* y;  ///< [m, n] ([m, n/2] when paired), rows `y_stride_bytes` apart
  int64_t y_stride_bytes;
  DType y_dtype;  ///< f32, f16, bf16
  EpilogueArgs epilogue;
  int64_t m;
  CpuGrid grid;       ///< CPU rows only
  CudaDevice device;  ///< CUDA rows only
};

/// x in its caller's form → a prepared form. Items are tiles of 8 rows.
struct PrepareArgs {
  const void* x;
  int64_t x_stride_bytes;
  DType x_dtype;  ///< f32, f16, bf16
  const int32_t* k_perm;
  const float* pre_scale;
  int64_t m, k, k_padded;  ///< k_padded = round_up(k, 32): the columns written
  void* out;
};

/// XForm::kInt8Tiles. Tile t holds rows 8t .. 8t+r-1, r = min(8, m - 8t) and starts at byte
/// 8t * (k_padded/32) * kInt8RowBlockBytes; inside, per block of 32 columns, without padding:
///   int8  codes[r][32]
///   int32 sums[2][r]   sum of codes over columns 0-15 and 16-31 of the block
///   f32   scales[r]
/// scale = amax/127; code = round-to-nearest-even(x * (127/amax)), all in FP32. A block whose amax
/// is below 2^-100 has codes 0 and scale 1; one whose amax is Inf or NaN has codes 0, scale NaN.
constexpr int64_t kInt8RowBlockBytes = 32 + 2 * 4 + 4;
constexpr float kInt8SmallestAmax = 0x1p-100f;

using CpuMatmulFn = void (*)(const MatmulArgs&, Range items);
using CpuPrepareFn = void (*)(const PrepareArgs&, Range tiles);

/// CUDA rows: 0 or a cudaError_t. `stream` is a cudaStream_t.
using CudaMatmulFn = int (*)(const MatmulArgs&, void* stream);
using CudaPrepareFn = int (*)();  ///< loads the module and sets attributes; may synchronise

/// A loop whose rate is a physical limit of one core.
enum class RoofKind : uint8_t { kRead, kInt8, kBf16, kF32 };
/// kRead: reads `bytes` bytes at `data`, returns their xor folded. Others: run `steps` rounds of
/// kRoofOpsPerStep operations (2 per multiply-add) on registers; `data`/`bytes` unused.
using RoofFn = uint64_t (*)(const void* data, int64_t bytes, int64_t steps);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_ARGS_H_
