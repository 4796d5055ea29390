// What a launch of a skinny kernel (skinny.cuh) is made of; skinny_geometry.h derives it.
#ifndef NIBBLE_KERNELS_CUDA_SKINNY_H_
#define NIBBLE_KERNELS_CUDA_SKINNY_H_

#include "kernels/args.h"
#include "kernels/cuda/expand.cuh"

namespace nibble {

constexpr int kSkinnyPanelRows = 16;
constexpr int kSkinnyBlockColumns = 64;  // columns of one 16-byte load a lane (8 bits: two)
constexpr int kSkinnyMostWarps = 12;
/// Blocks that share an SM. Two small ones start and end more evenly than one large; with more
/// tokens one block stages x once, and zeros need more registers.
constexpr int32_t skinny_blocks_an_sm(int32_t tiles, bool zeros) {
  return tiles == 1 && !zeros ? 2 : 1;
}
/// Warps of a block: as many as have registers enough.
constexpr int32_t skinny_most_warps(int32_t tiles, bool zeros) {
  if (tiles == 1) return zeros ? 12 : 8;
  return tiles == 2 && !zeros ? 12 : 8;
}
constexpr int kSkinnyTableBytes = 256 * 32 * 4;

/// How a block of threads and its cluster share the work. One cluster owns `panels` panels of 16
/// rows; its `cluster` blocks split K. In a block, items = panels x parts go round the warps.
struct SkinnyGeometry {
  int32_t warps;
  int32_t panels;        ///< of a cluster
  int32_t parts;         ///< of a slice of a block's K
  int32_t cluster;       ///< blocks that split K; 1 where the device has no clusters
  int32_t slice_chunks;  ///< chunks of K whose x is staged at once
};

/// Places in shared memory, in bytes.
struct SkinnyMemory {
  int32_t scratch, scratch_bytes;  ///< of all warps; of one
  int32_t x, partials, table;
  int32_t total;
};

/// What a launch needs beside MatmulArgs.
struct SkinnyArgs {
  MatmulArgs matmul;
  SkinnyGeometry geometry;
  SkinnyMemory memory;
  int32_t terms;    ///< BF16 parts of a value of x
  int32_t tokens;   ///< rows of x of one block
  int32_t columns;  ///< tokens * terms
  int32_t panels, blocks_of_row;
  int32_t chunks, chunk_blocks;      ///< of K; blocks of a chunk
  int32_t rank_chunks, part_chunks;  ///< of a block of the cluster; of a part of a slice
  int32_t slices;
  int32_t cluster_log2;
  int32_t panel_step;                          ///< warps / parts: panels that are worked on at once
  int32_t parts_inverse, panel_step_inverse;   ///< ceil(2^16 / d)
  uint32_t tokens_inverse, row_parts_inverse;  ///< ceil(2^32 / d); 0 for d = 1
  int32_t full_row_parts;
  int32_t x_half_bytes;                    ///< of half a block of staged x
  int32_t x_in_runs;                       ///< x is aligned BF16 as it is, K a multiple of 8
  int32_t plain_epilogue;                  ///< y = alpha * sum (* row_scale)
  int64_t panel_code_bytes, panel_values;  ///< from panel to panel
  int32_t chunk_values;                    ///< scales from chunk to chunk
  int32_t scale_bytes, zero_bytes;         ///< of one value
  int32_t group_shift;  ///< groups of 64 and more: block >> group_shift is the group
  float codebook[16];
};

/// The kernel of an Expand and group; one definition an instance file.
using SkinnyInstance = const void* (*)(int32_t tiles, bool zeros);

int skinny_launch(const SkinnyArgs& args, void* stream);

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SKINNY_H_
