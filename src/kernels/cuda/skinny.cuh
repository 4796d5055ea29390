// y = x * W^T for few rows of x: weights in LayoutId::kCudaFrag16 stream once through all SMs.
//
//   W is the A operand (16 rows x 16 columns a step), x the B operand (8 columns of y a tile):
//
//              64 columns = 4 steps        tokens (x parts)
//            ┌─────────────────────┐        ┌───┐
//    16 rows │ a lane's 16 bytes   │   x    │ B │ 8 columns     =  16 x 8 sums in registers
//            └─────────────────────┘        └───┘
//
//   * A warp owns items (one panel of 16 rows x a part of K) and keeps its own ring of chunks of
//   256
//     columns in shared memory, filled by the copy engine (sm_90) or cp.async: no barrier between
//     warps while weights stream.
//   * x is staged once a slice in the order of the B fragment, split into BF16 parts whose sum is x
//     (1 for BF16, 2 for FP16, 3 for FP32): parts are further columns of B.
//   * Each group of 16, 32 or 64 columns is summed by the tensor core from 0, then
//     FP32 total += sum * scale. A zero enters as zero * (sum of x), which a second MMA with an A
//     of ones gives.
//   * Parts of K meet in shared memory, blocks of a cluster through its distributed shared memory,
//   in
//     a fixed order: the same bits every time, no atomics, no workspace.
#ifndef NIBBLE_KERNELS_CUDA_SKINNY_CUH_
#define NIBBLE_KERNELS_CUDA_SKINNY_CUH_

#include "kernels/cuda/skinny_x.cuh"

namespace nibble {

/// FP32 totals of an item: rows g (0, 1) and g + 8 (2, 3) x columns 2t, 2t + 1 of each tile.
template <class Config>
struct SkinnyTotals {
  float value[Config::kTiles][4];

  NIBBLE_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < Config::kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[j][i] = 0;
    }
  }
};

template <class Config>
struct SkinnyExpander {
  ExpandConstants constants;
  uint32_t table;  // shared address of this lane's column of the pair table

  /// The A fragment of step `step` of a block; `codes` are the lane's 16 (8 bits: 32) bytes.
  NIBBLE_DEVICE void operator()(const uint4* codes, int step, uint32_t (&a)[4]) const {
    if constexpr (Config::kExpand == Expand::kInteger8) {
      const uint4& half = codes[step / 2];
      uint32_t low[2], high[2];
      expand_integer8(step % 2 == 0 ? half.x : half.z, constants, low);
      expand_integer8(step % 2 == 0 ? half.y : half.w, constants, high);
      a[0] = low[0];
      a[1] = low[1];
      a[2] = high[0];
      a[3] = high[1];
    } else {
      const uint4& q = codes[0];
      const uint32_t word = step == 0 ? q.x : step == 1 ? q.y : step == 2 ? q.z : q.w;
      if constexpr (Config::kExpand == Expand::kInteger4) {
        expand_integer4(word, constants, a);
      } else if constexpr (Config::kExpand == Expand::kE2M1) {
        expand_e2m1(word, a);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Entries of a lane lie 128 bytes apart: every lane has a bank of its own.
          const uint32_t at = i == 0 ? word << 7 : word >> (8 * i - 7);
          a[i] = load_shared_4(table + (at & 0x7F80));
        }
      }
    }
  }
};

/// kCount floats of shared memory.
template <int kCount>
NIBBLE_DEVICE void load_floats(uint32_t at, float (&out)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint4 v = load_shared_16(at + 4 * i);
      out[i] = __uint_as_float(v.x);
      out[i + 1] = __uint_as_float(v.y);
      out[i + 2] = __uint_as_float(v.z);
      out[i + 3] = __uint_as_float(v.w);
    }
  } else {
    const uint2 v = load_shared_8(at);
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
  }
}

/// Scales and zeros of a chunk as floats in the warp's scratch, each converted by one lane.
template <class Config>
NIBBLE_DEVICE void share_scales(const SkinnyArgs& args, const Chunk<Config>& chunk,
                                uint32_t scratch, int32_t lane) {
  constexpr int kCount = Config::kValues;
  const WeightArgs& w = args.matmul.w;
  float scale[kCount];
  chunk.scales.decode(w.scale_dtype, scale);
  store_floats(scratch + 4 * kCount * lane, scale);
  if constexpr (Config::kZeros) {
    float zero[kCount];
    chunk.zeros.decode(w.zero_kind == ZeroKind::kInteger ? DType::kU8 : w.scale_dtype, zero);
    // The sum of x is multiplied by b, or by -z s: (q - z) s = q s - z s.
    if (w.zero_kind != ZeroKind::kAdditive) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) zero[i] *= -scale[i];
    }
    store_floats(scratch + 4 * Config::kScratchFloats + 4 * kCount * lane, zero);
  }
  __syncwarp();
}

/// Adds one block of 64 columns; `scratch` and `x_block` are its places in shared memory.
template <class Config>
NIBBLE_DEVICE void add_block(const uint4* codes, uint32_t scratch, uint32_t x_block,
                             const SkinnyExpander<Config>& expand, const StagedX<Config>& x,
                             SkinnyTotals<Config>& totals) {
  constexpr int kTiles = Config::kTiles, kGroups = Config::kGroupsPerBlock;
  float scale[2 * kGroups], zero[2 * kGroups];
  load_floats(scratch, scale);
  if constexpr (Config::kZeros) load_floats(scratch + 4 * Config::kScratchFloats, zero);
  float sum[kTiles][4], sum_x[kTiles][4];
  uint4 b[kTiles];
  constexpr uint32_t kOnes[4] = {kBf16One, kBf16One, kBf16One, kBf16One};
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    if (step % 2 == 0) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) b[j] = x.load(x_block + step / 2 * x.half_stride, j);
    }
    uint32_t a[4];
    expand(codes, step, a);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (step % Config::kStepsPerGroup == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[j][i] = sum_x[j][i] = 0;
      }
      const uint32_t b0 = step % 2 == 0 ? b[j].x : b[j].z, b1 = step % 2 == 0 ? b[j].y : b[j].w;
      mma_bf16(sum[j], a, b0, b1);
      if constexpr (Config::kZeros) mma_bf16(sum_x[j], kOnes, b0, b1);
      if (step % Config::kStepsPerGroup == Config::kStepsPerGroup - 1) {
        const int group = step / Config::kStepsPerGroup;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = i / 2 * kGroups + group;
          totals.value[j][i] = fmaf(sum[j][i], scale[at], totals.value[j][i]);
          if constexpr (Config::kZeros) {
            totals.value[j][i] = fmaf(sum_x[j][i], zero[at], totals.value[j][i]);
          }
        }
      }
    }
  }
}

/// Sum of `count` floats `stride` apart, in their order.
NIBBLE_DEVICE float strided_sum(const float* at, int32_t count, int32_t stride) {
  float sum = 0;
#pragma unroll 1
  for (; count >= 4; count -= 4, at += 4 * stride) {
    const float v0 = at[0], v1 = at[stride], v2 = at[2 * stride], v3 = at[3 * stride];
    sum = (((sum + v0) + v1) + v2) + v3;
  }
#pragma unroll 1
  for (; count > 0; --count, at += stride) sum += *at;
  return sum;
}

/// Sum of one row of a panel and one token over the parts of this block.
NIBBLE_DEVICE float block_sum(const SkinnyArgs& args, const float* partials, int32_t panel,
                              int32_t row, int32_t token) {
  const int32_t stride = kSkinnyPanelRows * args.columns;
  const float* at =
      partials + panel * args.geometry.parts * stride + row * args.columns + token * args.terms;
  float sum = strided_sum(at, args.geometry.parts, stride);
#pragma unroll 1
  for (int32_t term = 1; term < args.terms; ++term) {
    sum += strided_sum(at + term, args.geometry.parts, stride);
  }
  return sum;
}

// Out of line: most calls have nothing to add, and the kernel's code stays small.
static __device__ __noinline__ void finish_any(const SkinnyArgs& args, int64_t token,
                                               int64_t column, int64_t packed, float sum,
                                               float up) {
  if (args.matmul.w.paired) {
    finish_gated(args.matmul, token, column, packed, sum, up);
  } else {
    finish_plain(args.matmul, token, column, packed, sum);
  }
}

/// Adds the items of one warp in the order in which ChunkFeed loads them.
template <class Config>
struct ChunkSums {
  const SkinnyArgs& args;
  const SkinnyExpander<Config>& expand;
  const StagedX<Config>& x;
  float* slot;  // of the next item, this lane's first element
  int32_t lane, slice;
  int32_t item_chunks, chunks, panels;  // of an item; left of it; items left
  uint32_t x_item, x_chunk;             // shared address of this lane's x
  SkinnyTotals<Config> totals;

  NIBBLE_DEVICE void add(const Chunk<Config>& chunk, uint32_t scratch) {
    share_scales(args, chunk, scratch, lane);
    constexpr int kFloats = 2 * Config::kGroupsPerBlock;  // of a lane and block
    const uint32_t own = scratch + 4 * kFloats * (lane / 4);
#pragma unroll
    for (int block = 0; block < Config::kChunkBlocks; ++block) {
      add_block(chunk.codes + block * Config::kBlockLoads, own + block * 4 * 8 * kFloats,
                x_chunk + block * 2 * x.half_stride, expand, x, totals);
    }
    x_chunk += 2 * Config::kChunkBlocks * x.half_stride;
    if (--chunks == 0) leave_item();
  }

  /// Puts the totals where the other parts of K will meet them.
  NIBBLE_DEVICE void leave_item() {
    const int32_t t = lane % 4;
#pragma unroll
    for (int j = 0; j < Config::kTiles; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (8 * j + 2 * t + i % 2 >= args.columns) continue;
        float& place = slot[8 * j + i / 2 * 8 * args.columns + i % 2];
        place = slice == 0 ? totals.value[j][i] : place + totals.value[j][i];
      }
    }
    totals.clear();
    slot += args.panel_step * args.geometry.parts * kSkinnyPanelRows * args.columns;
    chunks = item_chunks;
    x_chunk = x_item;
    --panels;
  }
};

template <class Config>
__global__ void __launch_bounds__(32 * Config::kMostWarps,
                                  skinny_blocks_an_sm(Config::kTiles, Config::kZeros))
    skinny_kernel(const __grid_constant__ SkinnyArgs args) {
#if NIBBLE_SM80
  extern __shared__ __align__(128) uint8_t memory[];
  const SkinnyGeometry& geometry = args.geometry;
  const MatmulArgs& a = args.matmul;
  const int32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t shared = shared_address(memory);
  const int64_t token0 = int64_t{blockIdx.y} * args.tokens;
  auto* partials = reinterpret_cast<float*>(memory + args.memory.partials);
  const StagedX<Config> x{shared + static_cast<uint32_t>(args.memory.x + g * 64 + t * 16),
                          static_cast<uint32_t>(args.x_half_bytes), args.columns - g};
  const uint32_t scratch =
      shared + static_cast<uint32_t>(args.memory.scratch + static_cast<int32_t>(threadIdx.x / 32) *
                                                               args.memory.scratch_bytes);
  SkinnyExpander<Config> expand{};
  Chunk<Config> even, odd;
  even.clear();
  odd.clear();

#pragma unroll 1
  for (int32_t slice = 0; slice < args.slices; ++slice) {
    const WarpWork work = warp_work(args, slice);
    ChunkFeed<Config> feed(args, work, lane);
    // Weights of an op are constant: they may travel while the kernel before is still running.
    const bool early = slice == 0 && a.device.weights_constant && a.device.programmatic;
    if (early) {
      feed.load(even);
      feed.load(odd);
    }
    if (slice == 0) {
      wait_for_earlier_kernels();
      let_next_kernel_start();
    } else {
      __syncthreads();  // all have read the slice before
    }
    const int32_t rank = static_cast<int32_t>(blockIdx.x) & (geometry.cluster - 1);
    const int32_t first = rank * args.rank_chunks + slice * geometry.slice_chunks;
    const int32_t x_chunks =
        min(geometry.slice_chunks, min((rank + 1) * args.rank_chunks, args.chunks) - first);
    const int64_t x_begin = int64_t{first} * Config::kChunkColumns;
    // Whole parts of 256 columns; those past K become 0.
    const int32_t row_parts = (max(0, x_chunks) * Config::kChunkColumns + 255) / 256;
    // x is asked for before the weights: it comes from L2, and nothing can begin without it.
    constexpr int kRunsAtOnce = Config::kTiles > 1 ? 8 : Config::kZeros ? 2 : 4;
    XRuns<kRunsAtOnce> runs{
        args,      shared + static_cast<uint32_t>(args.memory.x), token0, x_begin,
        row_parts, args.x_in_runs ? row_parts * args.tokens : 0,  {},     {}};
    int32_t x_part = static_cast<int32_t>(threadIdx.x / 32);
    runs.load(x_part);
    if (!early) {
      feed.load(even);
      feed.load(odd);
    }
    runs.store(x_part);
#pragma unroll 1
    for (x_part += kRunsAtOnce * geometry.warps; x_part < runs.parts;
         x_part += kRunsAtOnce * geometry.warps) {
      runs.load(x_part);
      runs.store(x_part);
    }
    if (!args.x_in_runs) {
      stage_x_pairs(args, shared + args.memory.x, token0, x_begin, row_parts * 256);
    }
    if (slice == 0) {
      expand.constants = expand_constants(a.w.element);
      if constexpr (Config::kExpand == Expand::kTable4) {
        auto* table = reinterpret_cast<uint32_t*>(memory + args.memory.table);
        for (int32_t i = threadIdx.x; i < 256 * 32; i += blockDim.x) {
          table[i] = table_entry(args.codebook, static_cast<uint32_t>(i / 32));
        }
        expand.table = shared + static_cast<uint32_t>(args.memory.table + 4 * lane);
      }
    }
    __syncthreads();

    const int32_t stride = kSkinnyPanelRows * args.columns;
    const int32_t local_panel =
        work.panel - static_cast<int32_t>(blockIdx.x >> args.cluster_log2) * geometry.panels;
    ChunkSums<Config> sums{
        args,
        expand,
        x,
        partials + (local_panel * geometry.parts + work.part) * stride + g * args.columns + 2 * t,
        lane,
        slice,
        work.chunks,
        work.chunks,
        work.panels,
        0,
        0,
        {}};
    sums.x_item = sums.x_chunk = x.base + static_cast<uint32_t>(work.begin - first) *
                                              (2 * Config::kChunkBlocks) * x.half_stride;
    sums.totals.clear();
    if (work.chunks == 0 && slice == 0) {
      while (sums.panels > 0) sums.leave_item();  // a part without columns: sums of 0
    }
    if (work.chunks > 0) {
#pragma unroll 1
      while (sums.panels > 0) {
        sums.add(even, scratch);
        feed.load(even);
        if (sums.panels == 0) break;
        sums.add(odd, scratch + args.memory.scratch_bytes / 2);
        feed.load(odd);
      }
    }
  }
  __syncthreads();

  const int32_t rank = static_cast<int32_t>(blockIdx.x) & (geometry.cluster - 1);
  const int32_t first_panel =
      static_cast<int32_t>(blockIdx.x >> args.cluster_log2) * geometry.panels;
  const int32_t panels = min(geometry.panels, args.panels - first_panel);
#if NIBBLE_SM90
  // With a cluster, each block leaves its sums in the place of part 0's first column, and each
  // finishes a share of the outputs.
  if (geometry.cluster > 1) {
    for (int32_t i = threadIdx.x; i < panels * kSkinnyPanelRows * args.tokens; i += blockDim.x) {
      const int32_t row = i % kSkinnyPanelRows, rest = i / kSkinnyPanelRows;
      const int32_t panel = divided(rest, args.tokens_inverse), token = rest - panel * args.tokens;
      const float sum = block_sum(args, partials, panel, row, token);
      partials[(panel * geometry.parts * kSkinnyPanelRows + row) * args.columns +
               token * args.terms] = sum;
    }
    cluster_barrier();
  }
#endif
  const bool paired = a.w.paired;
  const int32_t rows = paired ? kSkinnyPanelRows / 2 : kSkinnyPanelRows;
  for (int32_t i = threadIdx.x + rank * blockDim.x; i < panels * rows * args.tokens;
       i += geometry.cluster * blockDim.x) {
    const int32_t row = i & (rows - 1), rest = i >> (paired ? 3 : 4);
    const int32_t panel = divided(rest, args.tokens_inverse), token = rest - panel * args.tokens;
    if (token0 + token >= a.m) continue;
    const int64_t packed = (int64_t{first_panel} + panel) * kSkinnyPanelRows + row;
    const int64_t column = paired ? (int64_t{first_panel} + panel) * 8 + row : packed;
    if (column >= (paired ? a.w.n / 2 : a.w.n)) continue;
    const auto total = [&](int32_t at) {
      if (geometry.cluster == 1) return block_sum(args, partials, panel, at, token);
      float sum = 0;
#if NIBBLE_SM90
      const uint32_t address =
          shared + static_cast<uint32_t>(
                       args.memory.partials +
                       4 * ((panel * geometry.parts * kSkinnyPanelRows + at) * args.columns +
                            token * args.terms));
      for (int32_t r = 0; r < geometry.cluster; ++r) sum += load_cluster(address, r);
#endif
      return sum;
    };
    float sum = total(row);
    if (args.plain_epilogue) {
      if (a.w.row_scale != nullptr) sum *= a.w.row_scale[packed];
      store_value(static_cast<uint8_t*>(a.y) + (token0 + token) * a.y_stride_bytes, a.y_dtype,
                  column, sum * a.epilogue.alpha);
    } else {
      finish_any(args, token0 + token, column, packed, sum, paired ? total(row + 8) : 0.0f);
    }
  }
#if NIBBLE_SM90
  if (geometry.cluster > 1) cluster_barrier();  // others may still read this block's sums
#endif
#endif  // NIBBLE_SM80
}

template <Expand kExpand, int kGroup, bool kZeros>
const void* skinny_of_tiles(int32_t tiles) {
  if (tiles == 1)
    return reinterpret_cast<const void*>(skinny_kernel<SkinnyConfig<kExpand, kGroup, 1, kZeros>>);
  if (tiles == 2)
    return reinterpret_cast<const void*>(skinny_kernel<SkinnyConfig<kExpand, kGroup, 2, kZeros>>);
  return reinterpret_cast<const void*>(skinny_kernel<SkinnyConfig<kExpand, kGroup, 4, kZeros>>);
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SKINNY_CUH_
