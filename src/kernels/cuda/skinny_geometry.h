// Launch numbers of the skinny kernels: pure functions of shape, format and device, tested without
// a GPU (skinny_host_test.cc).
#ifndef NIBBLE_KERNELS_CUDA_SKINNY_GEOMETRY_H_
#define NIBBLE_KERNELS_CUDA_SKINNY_GEOMETRY_H_

#include <algorithm>

#include "kernels/cuda/skinny.h"

namespace nibble {
namespace skinny {

constexpr int64_t kSharedAlign = 128;
constexpr int32_t kMostPortableCluster = 8;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int32_t align(int64_t bytes) {
  return static_cast<int32_t>(ceil_div(bytes, kSharedAlign) * kSharedAlign);
}
inline int32_t value_bytes(DType dtype) {
  if (dtype == DType::kF32) return 4;
  return dtype == DType::kF16 || dtype == DType::kBF16 ? 2 : 1;
}
inline bool eight_bits(const WeightArgs& w) {
  return w.element == Element::kInt8 || w.element == Element::kUint8;
}
inline int32_t chunk_blocks(const WeightArgs& w) { return eight_bits(w) ? 2 : 4; }
/// Which of the compiled group sizes serves a weight: 16, 32, or 64 for 64 and above.
inline int32_t group_instance(const WeightArgs& w) {
  return w.group == 16 || w.group == 32 ? static_cast<int32_t>(w.group) : 64;
}
/// Scales of a chunk.
inline int32_t chunk_values(const WeightArgs& w) {
  return kSkinnyPanelRows * (kSkinnyBlockColumns / group_instance(w)) * chunk_blocks(w);
}
/// BF16 parts that hold a value of x exactly.
inline int32_t terms(DType x_dtype, bool pre_scaled) {
  if (pre_scaled || x_dtype == DType::kF32) return 3;
  return x_dtype == DType::kF16 ? 2 : 1;
}
/// Tiles of eight columns a block computes: 1, 2 or 4.
inline int32_t tiles(int64_t m, int32_t terms) {
  return m * terms <= 8 ? 1 : m * terms <= 16 ? 2 : 4;
}
/// Columns of 64 bytes, and 16 so that stores to successive half blocks meet other banks.
inline int32_t x_half_bytes(int32_t columns) { return 64 * columns + 16; }
inline int32_t inverse16(int32_t divisor) { return (65536 + divisor - 1) / divisor; }
inline uint32_t inverse32(uint32_t divisor) {
  return static_cast<uint32_t>(((uint64_t{1} << 32) + divisor - 1) / divisor);
}

inline SkinnyMemory memory(const WeightArgs& w, const SkinnyGeometry& g, int32_t columns) {
  SkinnyMemory m{};
  const int32_t arrays = w.zero_kind == ZeroKind::kNone ? 1 : 2;  // scales, zeros
  m.scratch_bytes = 2 * arrays * 4 * chunk_values(w);             // of two chunks
  m.x = m.scratch + align(int64_t{g.warps} * m.scratch_bytes);
  // Whole parts of 256 columns, in half blocks.
  const int64_t x_blocks = ceil_div(int64_t{g.slice_chunks} * chunk_blocks(w), 4) * 4;
  m.partials = m.x + align(2 * x_blocks * x_half_bytes(columns));
  m.table = m.partials + align(int64_t{g.panels} * g.parts * kSkinnyPanelRows * columns * 4);
  m.total = m.table + (w.element == Element::kNF4 ? kSkinnyTableBytes : 0);
  return m;
}

/// Warps and parts that leave the busiest warp least to do; fewer parts mean fewer sums to add.
/// Warps are a multiple of parts: a warp keeps its part of K for all its panels.
inline void share_out(SkinnyGeometry& g, int64_t own_chunks, int32_t most_warps) {
  int64_t least = INT64_MAX;
  for (int32_t warps = most_warps; warps >= most_warps / 2; --warps) {
    for (int32_t parts = 1; parts <= std::min<int64_t>(warps, own_chunks); ++parts) {
      if (warps % parts != 0) continue;
      const int64_t chunks = ceil_div(g.panels, warps / parts) * ceil_div(own_chunks, parts);
      const int64_t steps = chunks * 64 + parts;
      if (steps >= least) continue;
      least = steps;
      g.warps = warps;
      g.parts = parts;
    }
  }
}

inline SkinnyGeometry geometry(const WeightArgs& w, int32_t columns, int32_t tiles,
                               const CudaDevice& device) {
  const bool zeros = w.zero_kind != ZeroKind::kNone;
  const int32_t most_warps = skinny_most_warps(tiles, zeros);
  const int32_t blocks_an_sm = skinny_blocks_an_sm(tiles, zeros);
  const int64_t panels = w.n_padded / kSkinnyPanelRows;
  const int64_t chunks = ceil_div(w.k_padded / kSkinnyBlockColumns, chunk_blocks(w));
  SkinnyGeometry best{};
  double best_cost = 0;
  for (int32_t cluster = 1; cluster <= (device.sm >= 90 ? kMostPortableCluster : 1); cluster *= 2) {
    if (cluster > chunks) break;
    // Clusters at once. Large ones must find their place in one GPC, and some GPCs lack SMs.
    const int64_t usable = cluster < 4 ? device.num_sms : device.num_sms * 9 / 10;
    const int64_t slots = std::max<int64_t>(1, usable * blocks_an_sm / cluster);
    SkinnyGeometry g{};
    g.cluster = cluster;
    g.panels = static_cast<int32_t>(ceil_div(panels, slots));
    const int64_t own_chunks = ceil_div(chunks, cluster);
    g.slice_chunks = static_cast<int32_t>(own_chunks);
    share_out(g, own_chunks, most_warps);
    // What is left of an SM's shared memory for each block, less what the system takes.
    const int64_t shared = device.shared_bytes / blocks_an_sm - (blocks_an_sm > 1 ? 1024 : 0);
    while (memory(w, g, columns).total > shared) {
      // x in more slices first, then fewer panels a block.
      if (g.slice_chunks > 4 || (g.panels == 1 && g.slice_chunks > 1)) {
        g.slice_chunks = static_cast<int32_t>(ceil_div(g.slice_chunks, 2));
      } else if (g.panels > 1) {
        g.panels = static_cast<int32_t>(ceil_div(g.panels, 2));
      } else {
        break;  // a launch that is refused; no format and device get here
      }
      g.warps = most_warps;
      share_out(g, std::min<int64_t>(own_chunks, g.slice_chunks), most_warps);
    }
    // Bytes that the busiest SM reads: weights, x, and what a cluster's
    // barriers and the sums at the end take in the time of bytes.
    const double waves = static_cast<double>(ceil_div(ceil_div(panels, g.panels), slots));
    const double weights = waves * g.panels * static_cast<double>(own_chunks) * 2200;
    const double x = waves * static_cast<double>(own_chunks) * chunk_blocks(w) *
                     kSkinnyBlockColumns * columns * 2;
    const double sums = waves * g.panels * kSkinnyPanelRows * columns * 80;
    const double cost = weights + 1.5 * x + sums + (cluster > 1 ? 24000 : 0);
    if (best.warps == 0 || cost < best_cost) {
      best = g;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace skinny

/// Sets everything that follows from a geometry.
inline void skinny_set_geometry(SkinnyArgs& args, const SkinnyGeometry& g) {
  const WeightArgs& w = args.matmul.w;
  args.geometry = g;
  args.memory = skinny::memory(w, g, args.columns);
  args.rank_chunks = static_cast<int32_t>(skinny::ceil_div(args.chunks, g.cluster));
  args.slices = static_cast<int32_t>(skinny::ceil_div(args.rank_chunks, g.slice_chunks));
  args.part_chunks =
      static_cast<int32_t>(skinny::ceil_div(std::min(args.rank_chunks, g.slice_chunks), g.parts));
  args.cluster_log2 = 0;
  while ((1 << args.cluster_log2) < g.cluster) ++args.cluster_log2;
  args.panel_step = g.warps / g.parts;
  args.parts_inverse = skinny::inverse16(g.parts);
  args.panel_step_inverse = skinny::inverse16(args.panel_step);
  args.tokens_inverse =
      args.tokens == 1 ? 0 : skinny::inverse32(static_cast<uint32_t>(args.tokens));
  const int64_t columns =
      int64_t{std::min(args.rank_chunks, g.slice_chunks)} * args.chunk_blocks * kSkinnyBlockColumns;
  args.full_row_parts = static_cast<int32_t>(skinny::ceil_div(columns, 256));
  args.row_parts_inverse =
      args.full_row_parts == 1 ? 0 : skinny::inverse32(static_cast<uint32_t>(args.full_row_parts));
  args.x_half_bytes = skinny::x_half_bytes(args.columns);
  const MatmulArgs& a = args.matmul;
  args.x_in_runs =
      args.terms == 1 && a.k_perm == nullptr &&
      ((reinterpret_cast<uintptr_t>(a.x) | static_cast<uint64_t>(a.x_stride_bytes)) & 15) == 0;
  const EpilogueArgs& e = a.epilogue;
  args.plain_epilogue = !w.paired &&
                        (w.row_scale == nullptr || w.row_scale_op == TensorScaleOp::kMultiply) &&
                        e.bias == nullptr && e.c == nullptr && e.residual == nullptr &&
                        e.activation == Activation::kNone;
}

/// Geometry, memory and column counts of a call.
inline SkinnyArgs skinny_args(const MatmulArgs& matmul) {
  SkinnyArgs args{};
  const WeightArgs& w = matmul.w;
  args.matmul = matmul;
  args.terms = skinny::terms(matmul.x_dtype, matmul.pre_scale != nullptr);
  const int32_t tiles = skinny::tiles(matmul.m, args.terms);
  args.tokens = static_cast<int32_t>(std::min<int64_t>(matmul.m, 8 * tiles / args.terms));
  args.columns = args.tokens * args.terms;
  args.panels = static_cast<int32_t>(w.n_padded / kSkinnyPanelRows);
  args.blocks_of_row = static_cast<int32_t>(w.k_padded / kSkinnyBlockColumns);
  args.chunk_blocks = skinny::chunk_blocks(w);
  args.chunks = static_cast<int32_t>(skinny::ceil_div(args.blocks_of_row, args.chunk_blocks));
  args.scale_bytes = skinny::value_bytes(w.scale_dtype);
  args.zero_bytes = w.zero_kind == ZeroKind::kInteger ? 1 : args.scale_bytes;
  args.group_shift = w.num_groups == 1 ? 31 : w.group == 2 * kSkinnyBlockColumns ? 1 : 0;
  args.panel_code_bytes = int64_t{args.blocks_of_row} * kSkinnyPanelRows * kSkinnyBlockColumns /
                          (skinny::eight_bits(w) ? 1 : 2);
  args.panel_values = kSkinnyPanelRows * w.num_groups;
  args.chunk_values = skinny::chunk_values(w);
  if (args.group_shift > 0) {
    args.chunk_values = args.group_shift == 31 ? 0 : args.chunk_values / 2;
  }
  skinny_set_geometry(args, skinny::geometry(w, args.columns, tiles, matmul.device));
  if (w.codebook != nullptr) {
    for (int i = 0; i < 16; ++i) args.codebook[i] = w.codebook[i];
  }
  return args;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SKINNY_GEOMETRY_H_
