// y = x * W^T for many rows of x on sm_90a: warpgroup MMA with the weights in registers.
//
//   A block computes 128 rows of W (eight panels of LayoutId::kCudaFrag16) times kTokens rows of x.
//   One thread feeds a ring of stages in shared memory, each part a box of a tensor map:
//
//     x       kBlocks times [kTokens][64 columns], swizzled
//     codes   [8 panels][kBlocks][512 bytes]
//     scales  [8 panels][kBlocks][values of a block]; groups longer than a block: [8
//     panels][values] zeros   likewise
//
//   Two warpgroups of 64 rows each expand a block of codes to BF16 fragments (value * scale,
//   rounded to BF16) while the tensor cores work on the block before. Where tiles are few, the
//   blocks of a cluster share a tile's K; their FP32 parts meet through distributed shared memory
//   in the order of ranks: the same bits every time.
#ifndef NIBBLE_KERNELS_CUDA_WIDE_CUH_
#define NIBBLE_KERNELS_CUDA_WIDE_CUH_

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/wide_expand.cuh"
#include "kernels/cuda/wide_maps.h"

namespace nibble {

template <Expand kExpandAs, int kGroupColumns, WideScale kScaleAs, bool kHasZeros, int kTokenTile>
struct WideConfig {
  static constexpr Expand kExpand = kExpandAs;
  static constexpr WideScale kScale = kScaleAs;
  static constexpr bool kZeros = kHasZeros;
  static constexpr int kTokens = kTokenTile;
  static constexpr int kGroupsPerBlock = 64 / kGroupColumns;
  static constexpr int kBlocks = kTokens == 256 ? 1 : 2;  // of 64 columns in a stage
  static constexpr int kWarpgroups = kWideRows / 64;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);

  // A stage. Scales have at most 4 bytes, BF16 ones 2; one value a row, group and block.
  static constexpr int kXBytes = kBlocks * kTokens * 128;
  static constexpr int kCodeBytes = kBlocks * kWidePanels * 512;
  static constexpr int kPanelValues = 16 * kGroupsPerBlock;  // of a block
  static constexpr int kScaleBytes =
      kBlocks * kWidePanels * kPanelValues * (kScale == WideScale::kF32 ? 4 : 2);
  static constexpr int kZeroBytes = kZeros ? kBlocks * kWidePanels * kPanelValues : 0;
  static constexpr int kCodesAt = kXBytes, kScalesAt = kCodesAt + kCodeBytes,
                       kZerosAt = kScalesAt + kScaleBytes;
  static constexpr int kStageBytes = (kZerosAt + kZeroBytes + 1023) / 1024 * 1024;

  // Sums of 64 rows x 64 tokens of a warpgroup on their way to y, rows padded against conflicts.
  static constexpr int kSumStride = 64 + 4;
  static constexpr int kStagingBytes = kWarpgroups * 64 * kSumStride * 4;
  static constexpr int kBarrierBytes = 1024;
  static constexpr int kMostShared = 227 * 1024;
  static constexpr int kFit = (kMostShared - kStagingBytes - kBarrierBytes - 1024) / kStageBytes;
  static constexpr int kStages = kFit < 12 ? kFit : 12;
  static constexpr int kSharedBytes =
      1024 + kStages * kStageBytes + kStagingBytes + kBarrierBytes;  // 1024: alignment
  static constexpr int kPartStride = kWideRows + 4;  // of a token's part sums in a cluster
  static_assert(kStages >= 4 && 16 * kStages <= kBarrierBytes);
  static_assert(kTokens * kPartStride * 4 <= kStages * kStageBytes);
};

#if NIBBLE_SM90A

/// Position in the ring of stages.
template <int kStages>
struct RingPlace {
  uint32_t stage = 0, phase = 0;
  NIBBLE_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// Shared memory of a block.
template <class Config>
struct WideMemory {
  uint8_t* stages;
  float* staging;
  uint32_t full, empty;  // barriers of the stages

  NIBBLE_DEVICE explicit WideMemory(uint8_t* raw) {
    stages = raw + (-shared_address(raw) & 1023);
    staging = reinterpret_cast<float*>(stages + Config::kStages * Config::kStageBytes);
    full = shared_address(staging) + Config::kStagingBytes;
    empty = full + 8 * Config::kStages;
  }
  NIBBLE_DEVICE uint8_t* stage(uint32_t i) const { return stages + i * Config::kStageBytes; }
};

/// The tile of 128 rows and kTokens tokens with number `tile`: neighbours share rows of W, in
/// squares that keep their x in L2.
struct WideTile {
  int32_t n, m;
};
NIBBLE_DEVICE WideTile tile_of(const WideArgs& args, int32_t tile) {
  constexpr int32_t kBand = 8;
  const int32_t band = tile / (args.tiles_n * kBand), inside = tile % (args.tiles_n * kBand);
  const int32_t height = min(kBand, args.tiles_m - band * kBand);
  return {inside / height, band * kBand + inside % height};
}

/// Blocks of 64 columns of this part of K, in whole stages: blocks past K arrive as zeros.
struct BlockRange {
  int32_t begin, end;
};
template <int kBlocks>
NIBBLE_DEVICE BlockRange blocks_of_part(const WideArgs& args, int32_t part) {
  const int32_t stages = (args.blocks + kBlocks - 1) / kBlocks;
  return {kBlocks * (stages * part / args.split), kBlocks * (stages * (part + 1) / args.split)};
}

/// The feeding thread. Every copy is a box of a tensor map: one instruction for eight panels, and
/// panels, blocks and tokens past the end arrive as zeros.
template <class Config>
struct WideFeed {
  const WideArgs& args;
  const WideMaps& maps;
  const WideMemory<Config>& memory;

  NIBBLE_DEVICE void weights(const WideTile& tile, int32_t first, uint32_t stage) {
    const uint32_t barrier = memory.full + 8 * stage;
    const uint32_t to = shared_address(memory.stage(stage));
    const int32_t panel = tile.n * kWidePanels;
    // A stage is no longer than the shortest group of more than a block, so it lies in one such.
    const bool one_group = Config::kGroupsPerBlock == 1 && args.group_shift > 0;
    const int32_t values = (one_group ? 1 : Config::kBlocks) * kWidePanels * Config::kPanelValues;
    const int32_t place = one_group ? first >> args.group_shift : first;
    barrier_expect(
        barrier, static_cast<uint32_t>(Config::kXBytes + Config::kCodeBytes +
                                       values * args.scale_bytes + (Config::kZeros ? values : 0)));
    copy_box(to + Config::kCodesAt, &maps.codes, 0, first, panel, barrier);
    copy_box(to + Config::kScalesAt, &maps.scales, 0, place, panel, barrier);
    if (Config::kZeros) copy_box(to + Config::kZerosAt, &maps.zeros, 0, place, panel, barrier);
  }

  NIBBLE_DEVICE void tokens(const WideTile& tile, int32_t first, uint32_t stage) {
    const uint32_t to = shared_address(memory.stage(stage)), barrier = memory.full + 8 * stage;
    const int32_t token = tile.m * Config::kTokens;
    if (args.whole_blocks) {
      copy_box(to, &maps.x, 0, token, first, barrier);
      return;
    }
#pragma unroll
    for (int32_t b = 0; b < Config::kBlocks; ++b) {
      copy_box(to + b * Config::kTokens * 128, &maps.x, (first + b) * 64, token, barrier);
    }
  }
};

NIBBLE_DEVICE uint32_t pack_two(DType dtype, float low, float high) {
  uint32_t d;
  if (dtype == DType::kBF16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  }
  return d;
}

/// Four neighbouring outputs of a token: rows 4 * four.. of a panel order that begins at
/// `first_row`; paired panels hold gate rows in their first half.
struct FourOutputs {
  const WideArgs& args;
  int64_t packed;  // first of the four rows
  int64_t column;  // first of the four outputs
  int32_t local;   // packed - first_row

  NIBBLE_DEVICE FourOutputs(const WideArgs& a, int64_t first_row, int32_t four) : args(a) {
    const bool paired = args.matmul.w.paired;
    local = paired ? four / 2 * 16 + four % 2 * 4 : 4 * four;
    packed = first_row + local;
    column = paired ? first_row / 2 + 4 * four : packed;
  }

  /// `sums` are those of row `packed` and the rows after it.
  NIBBLE_DEVICE void finish(int64_t token, const float* sums) const {
    const MatmulArgs& a = args.matmul;
    if (token >= a.m) return;
    if (a.w.paired) {
      for (int i = 0; i < 4 && column + i < a.w.n / 2; ++i) {
        finish_gated(a, token, column + i, packed + i, sums[i], sums[8 + i]);
      }
    } else {
      for (int i = 0; i < 4 && packed + i < a.w.n; ++i) {
        finish_plain(a, token, packed + i, packed + i, sums[i]);
      }
    }
  }
};

/// One warpgroup's half of a tile.
template <class Config>
struct WideConsumer {
  const WideArgs& args;
  const WideMemory<Config>& memory;
  ExpandConstants constants;
  int32_t warpgroup, thread;
  RingPlace<Config::kStages> place;
  float sums[Config::kTokens / 2];

  /// Adds the columns of `range`.
  NIBBLE_DEVICE void multiply(const BlockRange& range) {
#pragma unroll
    for (int i = 0; i < Config::kTokens / 2; ++i) sums[i] = 0;
    int32_t pending = -1;  // the stage that the running MMAs read
    uint32_t a[2][4][4];
    // Two stages a round, so that the two fragment buffers take turns at places the compiler sees.
    int32_t left = (range.end - range.begin) / Config::kBlocks;
    for (; left >= 2; left -= 2) {
      add_stage<0>(pending, a);
      add_stage<Config::kBlocks % 2>(pending, a);
    }
    if (left > 0) add_stage<0>(pending, a);
    mma_wait<0>();
    if (pending >= 0) give_back(pending);
  }

  /// The sums of a tile → y where all that meets them is a factor a row (WideArgs::vectors): 64
  /// tokens at a time are turned in shared memory and leave 16 bytes a thread.
  NIBBLE_DEVICE void store_vectors(const WideTile& tile) {
    const MatmulArgs& a = args.matmul;
    const int32_t warp = thread / 32, lane = thread % 32;
    const int64_t first_row = int64_t{tile.n} * kWideRows + warpgroup * 64;
    float factor[2] = {1, 1};
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first_row + 16 * warp + lane / 4 + 8 * half;
      if (a.w.row_scale != nullptr && row < a.w.n) factor[half] = a.w.row_scale[row];
    }
    const bool divide = a.w.row_scale_op == TensorScaleOp::kDivide;
    const auto scaled = [&](float sum, int half) {
      return (divide ? sum / factor[half] : sum * factor[half]) * a.epilogue.alpha;
    };
    // [token][8 chunks of 8 rows]; chunk c of token t lies at c ^ (t & 7): no bank meets twice.
    const auto* staging =
        reinterpret_cast<const uint8_t*>(memory.staging + warpgroup * 64 * Config::kSumStride);
    const uint32_t place = shared_address(staging);
#pragma unroll
    for (int part = 0; part < Config::kTokens / 64; ++part) {
      barrier_of_warpgroup();
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const float* d = sums + 32 * part + 4 * c;
        const int32_t token = 8 * c + lane % 8, chunk = 2 * warp + lane / 8 % 2;
        store_transposed(place + token * 128 + ((chunk ^ (token & 7)) << 4),
                         pack_two(a.y_dtype, scaled(d[0], 0), scaled(d[1], 0)),
                         pack_two(a.y_dtype, scaled(d[2], 1), scaled(d[3], 1)));
      }
      barrier_of_warpgroup();
#pragma unroll
      for (int32_t i = thread; i < 64 * 8; i += 128) {
        const int32_t token = i / 8, chunk = i % 8;
        const int64_t m = int64_t{tile.m} * Config::kTokens + 64 * part + token;
        const int64_t row = first_row + 8 * chunk;
        if (m >= a.m || row >= a.w.n) continue;
        *reinterpret_cast<uint4*>(static_cast<uint8_t*>(a.y) + m * a.y_stride_bytes + 2 * row) =
            *reinterpret_cast<const uint4*>(staging + token * 128 + ((chunk ^ (token & 7)) << 4));
      }
    }
  }

  /// The sums of a tile → y, whatever meets them.
  NIBBLE_DEVICE void store(const WideTile& tile) {
    float* staging = memory.staging + warpgroup * 64 * Config::kSumStride;
    const int32_t warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
    const int64_t first_row = int64_t{tile.n} * kWideRows + warpgroup * 64;
    const int32_t fours = args.matmul.w.paired ? 8 : 16;
    const FourOutputs outputs(args, first_row, thread % fours);
#pragma unroll 1  // the code that finishes outputs is long
    for (int part = 0; part < Config::kTokens / 64; ++part) {
      barrier_of_warpgroup();
#pragma unroll
      for (int p = 0; p < Config::kTokens / 64; ++p) {
        if (p != part) continue;  // sums are registers: known places only
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const int32_t token = 8 * (i / 4) + 2 * t + i % 2, row = 16 * warp + g + i / 2 % 2 * 8;
          staging[token * Config::kSumStride + row] = sums[32 * p + i];
        }
      }
      barrier_of_warpgroup();
      const int64_t first_token = int64_t{tile.m} * Config::kTokens + 64 * part;
      const float* from = staging + outputs.local;
#pragma unroll 1
      for (int32_t token = thread / fours; token < 64; token += 128 / fours) {
        outputs.finish(first_token + token, from + token * Config::kSumStride);
      }
    }
  }

  /// The sums → shared memory, where the cluster adds them: [token][row].
  NIBBLE_DEVICE void leave_part() {
    // Stages are free once both warpgroups have read the last.
    asm volatile("bar.sync 7, %0;" ::"n"(128 * Config::kWarpgroups) : "memory");
    auto* part = reinterpret_cast<float*>(memory.stages);
    const int32_t warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
#pragma unroll
    for (int i = 0; i < Config::kTokens / 2; ++i) {
      const int32_t token = 8 * (i / 4) + 2 * t + i % 2;
      const int32_t row = 64 * warpgroup + 16 * warp + g + i / 2 % 2 * 8;
      part[token * Config::kPartStride + row] = sums[i];
    }
  }

 private:
  NIBBLE_DEVICE void barrier_of_warpgroup() const {
    asm volatile("bar.sync %0, 128;" ::"r"(warpgroup + 1) : "memory");
  }
  NIBBLE_DEVICE void give_back(int32_t stage) const {
    if (thread == 0) barrier_arrive(memory.empty + 8 * stage);
  }

  template <int kFirstBuffer>
  NIBBLE_DEVICE void add_stage(int32_t& pending, uint32_t (&a)[2][4][4]) {
    barrier_wait(memory.full + 8 * place.stage, place.phase);
    const uint8_t* stage = memory.stage(place.stage);
    const uint64_t x = token_descriptor(shared_address(stage));
    const int32_t panel = warpgroup * 4 + thread / 32, lane = thread % 32;
#pragma unroll
    for (int b = 0; b < Config::kBlocks; ++b) {
      const int32_t local = panel * Config::kBlocks + b;
      const uint4 codes =
          *reinterpret_cast<const uint4*>(stage + Config::kCodesAt + local * 512 + lane * 16);
      const bool one_group = Config::kGroupsPerBlock == 1 && args.group_shift > 0;
      const int32_t values = (one_group ? panel : local) * Config::kPanelValues;
      BlockScales<Config> scales;
      scales.load(args, stage + Config::kScalesAt + values * args.scale_bytes,
                  stage + Config::kZerosAt + values, lane / 4);
      auto& fragments = a[(kFirstBuffer + b) % 2];
      scaled_fragment(codes.x, constants, scales, 0, fragments[0]);
      scaled_fragment(codes.y, constants, scales, 1, fragments[1]);
      scaled_fragment(codes.z, constants, scales, 2, fragments[2]);
      scaled_fragment(codes.w, constants, scales, 3, fragments[3]);
      mma_fence();
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        WeightsTimesTokens<Config::kTokens>::run(sums, fragments[step],
                                                 x + b * (Config::kTokens * 128 / 16) + 2 * step);
      }
      mma_commit();
      mma_wait<1>();  // the block before is done: its fragments and its stage are free
      if (b == 0 && pending >= 0) give_back(pending);
    }
    pending = static_cast<int32_t>(place.stage);
    place.advance();
  }
};

#endif  // NIBBLE_SM90A

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    wide_kernel(const __grid_constant__ WideMaps maps, const __grid_constant__ WideArgs args) {
#if NIBBLE_SM90A
  extern __shared__ uint8_t raw[];
  const WideMemory<Config> memory(raw);
  const auto warpgroup = static_cast<int32_t>(threadIdx.x / 128);
  const auto part = static_cast<int32_t>(blockIdx.x) % args.split;  // rank in the cluster
  const int32_t tiles = args.tiles_n * args.tiles_m;
  const auto first_tile = static_cast<int32_t>(blockIdx.x) / args.split;
  const auto stride = static_cast<int32_t>(gridDim.x) / args.split;
  const BlockRange range = blocks_of_part<Config::kBlocks>(args, part);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      barrier_init(memory.full + 8 * i, 1);
      barrier_init(memory.empty + 8 * i, Config::kWarpgroups);
    }
    barrier_init_done();
  }
  __syncthreads();

  if (warpgroup == Config::kWarpgroups) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
    if (threadIdx.x % 128 == 0) {
      WideFeed<Config> feed{args, maps, memory};
      RingPlace<Config::kStages> place;
      // Weights of an op are constant, so the first stages travel while the kernel before is still
      // running; x may not.
      const WideTile first = tile_of(args, first_tile);
      int32_t ahead = 0;
      if (args.matmul.device.weights_constant) {
        for (; ahead < Config::kStages; ++ahead) {
          const int32_t block = range.begin + ahead * Config::kBlocks;
          if (block >= range.end) break;
          feed.weights(first, block, static_cast<uint32_t>(ahead));
        }
      }
      wait_for_earlier_kernels();
      let_next_kernel_start();
      for (int32_t tile = first_tile; tile < tiles; tile += stride) {
        const WideTile at = tile_of(args, tile);
        for (int32_t block = range.begin; block < range.end; block += Config::kBlocks) {
          if (ahead > 0) {
            --ahead;
          } else {
            barrier_wait(memory.empty + 8 * place.stage, place.phase ^ 1);
            feed.weights(at, block, place.stage);
          }
          feed.tokens(at, block, place.stage);
          place.advance();
        }
      }
    } else {
      wait_for_earlier_kernels();
      let_next_kernel_start();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
    wait_for_earlier_kernels();
    let_next_kernel_start();
    WideConsumer<Config> consumer{args, memory, expand_constants(args.matmul.w.element), warpgroup,
                                  static_cast<int32_t>(threadIdx.x % 128)};
    for (int32_t tile = first_tile; tile < tiles; tile += stride) {
      consumer.multiply(range);
      if (args.split > 1) {
        consumer.leave_part();
      } else if (args.vectors) {
        consumer.store_vectors(tile_of(args, tile));
      } else {
        consumer.store(tile_of(args, tile));
      }
    }
  }
  if (args.split == 1) return;

  cluster_barrier();
  const WideTile tile = tile_of(args, first_tile);
  const auto* parts = reinterpret_cast<const float*>(memory.stages);
  const int32_t halves = args.matmul.w.paired ? 1 : 2;  // a panel has 8 or 16 outputs
  const int32_t fours = kWidePanels * 2 * halves;
  for (int32_t i = part * Config::kThreads + static_cast<int32_t>(threadIdx.x);
       i < Config::kTokens * fours; i += args.split * Config::kThreads) {
    const int32_t token = i / fours, four = i % fours;
    const FourOutputs outputs(args, int64_t{tile.n} * kWideRows, four);
    alignas(16) float sums[12] = {};
    const uint32_t address = shared_address(parts + token * Config::kPartStride + outputs.local);
    for (int32_t rank = 0; rank < args.split; ++rank) {
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        if (up == 1 && halves == 2) break;
        const float4 v = load_cluster_16(address + 32 * up, rank);
        sums[8 * up] += v.x;
        sums[8 * up + 1] += v.y;
        sums[8 * up + 2] += v.z;
        sums[8 * up + 3] += v.w;
      }
    }
    outputs.finish(int64_t{tile.m} * Config::kTokens + token, sums);
  }
  cluster_barrier();  // others may still read this block's part
#endif
}

template <Expand kExpand, int kGroup, WideScale kScale, bool kZeros>
WideKernel wide_of_tokens(int32_t tokens) {
  const auto row = [](auto config) {
    using Config = decltype(config);
    return WideKernel{reinterpret_cast<const void*>(wide_kernel<Config>), Config::kThreads,
                      Config::kSharedBytes, Config::kBlocks};
  };
  if (tokens == 64) return row(WideConfig<kExpand, kGroup, kScale, kZeros, 64>{});
  if (tokens == 128) return row(WideConfig<kExpand, kGroup, kScale, kZeros, 128>{});
  return row(WideConfig<kExpand, kGroup, kScale, kZeros, 256>{});
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_WIDE_CUH_
