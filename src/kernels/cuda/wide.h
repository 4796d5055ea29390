// What a launch of a wide kernel (wide.cuh) is made of; wide_geometry.h derives it.
#ifndef NIBBLE_KERNELS_CUDA_WIDE_H_
#define NIBBLE_KERNELS_CUDA_WIDE_H_

#include "kernels/args.h"

namespace nibble {

constexpr int kWideRows = 128;  // of weights a block computes: two warpgroups of 64
constexpr int kWidePanels = kWideRows / 16;
constexpr int kWideMostSplit = 8;  // blocks of a cluster that split K

/// How scales meet codes: a BF16 scale times an exact BF16 value, or both in FP32.
enum class WideScale : uint8_t { kBf16, kF32 };

/// Tokens of a block and how many blocks of a cluster share its K.
struct WideGeometry {
  int32_t tokens;  ///< 64, 128 or 256
  int32_t split;
};

struct WideArgs {
  MatmulArgs matmul;
  int32_t blocks;            ///< of 64 columns
  int32_t split;             ///< blocks of a cluster that share a tile
  int32_t tiles_n, tiles_m;  ///< of kWideRows rows, of the kernel's tokens
  int32_t group_shift;       ///< groups of 64 and more: block >> group_shift is the group
  bool whole_blocks;         ///< K is a multiple of 64: a box of x may hold several blocks
  int32_t scale_bytes;       ///< of one value
  bool vectors;              ///< outputs need a factor a row alone; y takes 16 bytes at a time
};

/// A compiled kernel, its threads and dynamic shared memory.
struct WideKernel {
  const void* kernel;
  int32_t threads, shared_bytes;
  int32_t blocks;  ///< of 64 columns in a stage
};
/// Of an Expand, group and way of scaling; one definition an instance file.
using WideInstance = WideKernel (*)(int32_t tokens, bool zeros);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_WIDE_H_
