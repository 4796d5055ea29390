// Launch numbers of the wide kernels: pure functions, tested without a GPU (wide_host_test.cc).
#ifndef NIBBLE_KERNELS_CUDA_WIDE_GEOMETRY_H_
#define NIBBLE_KERNELS_CUDA_WIDE_GEOMETRY_H_

#include <algorithm>
#include <array>

#include "kernels/cuda/wide.h"

namespace nibble {
namespace wide {

/// Clusters of each size that fit the device at once: blocks of a cluster lie in one group of
/// processors, so they are fewer than its processors divided by the size.
using ClusterSlots = std::array<int32_t, kWideMostSplit + 1>;

inline int64_t tiles_of(int64_t count, int64_t tile) { return (count + tile - 1) / tile; }

/// Cycles of one block for 64 columns: the MMAs of both warpgroups and the expansion of codes,
/// which they do not hide when tokens are few. Measured on an H200.
inline double block_cycles(int32_t tokens) {
  return tokens == 64 ? 540 : tokens == 128 ? 700 : 1150;
}

/// The tile and split with the shortest busiest slot.
inline WideGeometry geometry(int64_t n_padded, int64_t k_padded, int64_t m,
                             const ClusterSlots& slots) {
  constexpr double kStartCycles = 4000;    // launch, first copies, last stores
  constexpr double kClusterCycles = 5000;  // two barriers and the sum of the parts, 64 tokens
  const int64_t blocks = k_padded / 64;
  WideGeometry best{256, 1};
  double best_cycles = 0;
  for (const int32_t tokens : {64, 128, 256}) {
    const int64_t tiles = tiles_of(n_padded, kWideRows) * tiles_of(m, tokens);
    for (int32_t split = 1; split <= kWideMostSplit; ++split) {
      if (slots[static_cast<size_t>(split)] < 1 || (split > 1 && blocks < 4 * split)) continue;
      const int64_t waves = tiles_of(tiles, slots[static_cast<size_t>(split)]);
      const double cycles =
          static_cast<double>(waves) *
              (static_cast<double>(tiles_of(blocks, split)) * block_cycles(tokens) + 4.0 * tokens +
               (split > 1 ? kClusterCycles * tokens / 64 : 0)) +
          kStartCycles;
      if (best_cycles == 0 || cycles < best_cycles) {
        best_cycles = cycles;
        best = {tokens, split};
      }
    }
  }
  return best;
}

}  // namespace wide

inline WideArgs wide_args(const MatmulArgs& matmul, const WideGeometry& geometry) {
  const WeightArgs& w = matmul.w;
  WideArgs args{};
  args.matmul = matmul;
  args.blocks = static_cast<int32_t>(w.k_padded / 64);
  args.split = geometry.split;
  args.tiles_n = static_cast<int32_t>(wide::tiles_of(w.n_padded, kWideRows));
  args.tiles_m = static_cast<int32_t>(wide::tiles_of(matmul.m, geometry.tokens));
  args.group_shift = w.num_groups == 1 ? 31 : w.group == 128 ? 1 : 0;
  args.whole_blocks = w.k % 64 == 0;
  args.scale_bytes = w.scale_dtype == DType::kF32                                    ? 4
                     : w.scale_dtype == DType::kBF16 || w.scale_dtype == DType::kF16 ? 2
                                                                                     : 1;
  const EpilogueArgs& e = matmul.epilogue;
  args.vectors =
      !w.paired && w.n % 8 == 0 && e.activation == Activation::kNone && e.bias == nullptr &&
      e.c == nullptr && e.residual == nullptr && matmul.y_dtype != DType::kF32 &&
      ((reinterpret_cast<uintptr_t>(matmul.y) | static_cast<uintptr_t>(matmul.y_stride_bytes)) &
       15) == 0;
  return args;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_WIDE_GEOMETRY_H_
