// How the skinny kernels stage x: in the order of B fragments, split into BF16 parts.
#ifndef NIBBLE_KERNELS_CUDA_SKINNY_X_CUH_
#define NIBBLE_KERNELS_CUDA_SKINNY_X_CUH_

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/skinny_feed.cuh"

namespace nibble {

/// Where a pair of x lies among the B fragments of a slice: [half block][column][t][16 bytes], half
/// blocks 16 bytes further apart than their columns need, so that stores meet no bank twice.
NIBBLE_DEVICE uint32_t x_place(const SkinnyArgs& args, int32_t run, int32_t column) {
  return (run / 4) * args.x_half_bytes + column * 64 + run % 4 * 4;
}

/// x in BF16 without gather or pre-scale, rows aligned to 16 bytes, K a multiple of 8: a lane moves
/// runs of 8 columns. Loads and stores are apart, so that weights can be asked for between them.
template <int kAtOnce>
struct XRuns {
  const SkinnyArgs& args;
  uint32_t to;
  int64_t token0, begin;
  int32_t row_parts, parts;  // of 32 runs: in a row, in all
  uint4 v[kAtOnce];
  uint32_t place[kAtOnce];

  NIBBLE_DEVICE void load(int32_t first) {
    const MatmulArgs& a = args.matmul;
    const int32_t warps = args.geometry.warps;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      v[i] = make_uint4(0, 0, 0, 0);
      const int32_t part = first + i * warps;
      if (part >= parts) continue;
      const int32_t token = row_parts == args.full_row_parts ? divided(part, args.row_parts_inverse)
                                                             : part / row_parts;
      const int32_t run = (part - token * row_parts) * 32 + threadIdx.x % 32;
      place[i] = to + x_place(args, run, token);
      const int64_t k = begin + 8 * run;
      if (token0 + token < a.m && k < a.w.k) {
        v[i] = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(a.x) +
                                               (token0 + token) * a.x_stride_bytes + 2 * k);
      }
    }
  }
  NIBBLE_DEVICE void store(int32_t first) {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * args.geometry.warps >= parts) continue;
      store_shared_4(place[i], v[i].x);
      store_shared_4(place[i] + 16, v[i].y);
      store_shared_4(place[i] + 32, v[i].z);
      store_shared_4(place[i] + 48, v[i].w);
    }
  }
};

/// Any x: gathered, pre-scaled, split into parts; a thread moves two columns.
static __device__ __noinline__ void stage_x_pairs(const SkinnyArgs& args, uint32_t to,
                                                  int64_t token0, int64_t begin, int32_t columns) {
  const MatmulArgs& a = args.matmul;
  for (int32_t token = 0; token < args.tokens; ++token) {
    const bool present = token0 + token < a.m;
    const auto* row = static_cast<const uint8_t*>(a.x) + (token0 + token) * a.x_stride_bytes;
#pragma unroll 1
    for (int32_t pair = threadIdx.x; pair < columns / 2; pair += blockDim.x) {
      float value[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int64_t k = begin + 2 * pair + j;
        if (!present || k >= a.w.k) continue;
        const int64_t source = a.k_perm == nullptr ? k : a.k_perm[k];
        value[j] = load_activation(row, a.x_dtype, source);
        if (a.pre_scale != nullptr) value[j] *= a.pre_scale[source];
      }
      const uint32_t place = to + x_place(args, pair / 4, token * args.terms) + pair % 4 * 16;
#pragma unroll 1
      for (int part = 0; part < args.terms; ++part) {
        store_shared_4(place + part * 64,
                       bf16_pair(bf16_part(value[0], part), bf16_part(value[1], part)));
      }
    }
  }
}

/// Where lane (g, t) finds its part of x: its 16 bytes of each half block and tile.
template <class Config>
struct StagedX {
  uint32_t base;         // shared address of this lane's column of tile 0
  uint32_t half_stride;  // bytes of half a block
  int32_t columns;       // from this lane's on

  NIBBLE_DEVICE uint4 load(uint32_t half_block, int tile) const {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (8 * tile < columns) v = load_shared_16(half_block + tile * (8 * 64));
    return v;
  }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SKINNY_X_CUH_
