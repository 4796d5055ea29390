// How the skinny kernels read a weight: chunks of four 16-byte loads a lane, with the scales that
// belong to them, straight to registers.
#ifndef NIBBLE_KERNELS_CUDA_SKINNY_FEED_CUH_
#define NIBBLE_KERNELS_CUDA_SKINNY_FEED_CUH_

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/skinny.h"

namespace nibble {

template <Expand kExpandAs, int kGroupColumns, int kColumnTiles, bool kHasZeros>
struct SkinnyConfig {
  static constexpr Expand kExpand = kExpandAs;
  static constexpr int kGroup = kGroupColumns;  // columns per sum that meets a scale
  static constexpr int kTiles = kColumnTiles;
  static constexpr bool kZeros = kHasZeros;
  static constexpr int kGroupsPerBlock = kSkinnyBlockColumns / kGroup;
  static constexpr int kStepsPerGroup = kGroup / 16;
  static constexpr int kCodeBits = kExpand == Expand::kInteger8 ? 8 : 4;
  static constexpr int kBlockLoads = kCodeBits / 4;  // of 16 bytes a lane
  static constexpr int kBlockBytes = 512 * kBlockLoads;
  // A chunk is what a lane loads at once: four times 16 bytes.
  static constexpr int kChunkBlocks = 4 / kBlockLoads;
  static constexpr int kChunkColumns = kChunkBlocks * kSkinnyBlockColumns;
  // Scales of a chunk, shared out over the lanes: a lane's lie in one block.
  static constexpr int kValues = kSkinnyPanelRows * kGroupsPerBlock * kChunkBlocks / 32;
  static constexpr int kLanesPerBlock = 32 / kChunkBlocks;
  static constexpr int kScratchFloats = 32 * kValues;
  static constexpr int kMostWarps = skinny_most_warps(kTiles, kZeros);
  static_assert(kGroup == 16 || kGroup == 32 || kGroup == 64, "a block holds whole groups");
  static_assert(!kZeros || kExpand == Expand::kInteger4 || kExpand == Expand::kInteger8,
                "only unsigned integers have zeros");
};

/// kCount values of one dtype as they lie in memory, aligned to all of them.
template <int kCount>
struct RawValues {
  uint32_t word[kCount];

  NIBBLE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) word[i] = 0;
  }
  NIBBLE_DEVICE void load(const uint8_t* at, int32_t value_bytes) {
    if (value_bytes == 2) {
      load_bytes<2 * kCount>(at);
    } else if (value_bytes == 1) {
      load_bytes<kCount>(at);
    } else {
      load_bytes<4 * kCount>(at);
    }
  }
  NIBBLE_DEVICE void decode(DType dtype, float (&out)[kCount]) const {
    if (dtype == DType::kBF16) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        out[i] = __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xFFFF0000u);
    } else if (dtype == DType::kE4M3) {
      // Sign and magnitude fall in place together; NaN is refused before packing.
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t byte = word[i / 4] >> (8 * (i % 4));
        out[i] = __uint_as_float((byte & 0x7F) << 20 | (byte & 0x80) << 24) * 0x1p120f;
      }
    } else if (dtype == DType::kF32) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) out[i] = __uint_as_float(word[i]);
    } else if (dtype == DType::kF16) {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        out[i] = half_to_float(static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2))));
    } else {
      const bool exponent = dtype == DType::kE8M0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const uint32_t byte = word[i / 4] >> (8 * (i % 4)) & 0xFF;
        out[i] = exponent ? __uint_as_float(byte == 0 ? 0x00400000u : byte << 23)
                          : static_cast<float>(byte);
      }
    }
  }

 private:
  template <int kBytes>
  NIBBLE_DEVICE void load_bytes(const uint8_t* at) {
    if constexpr (kBytes >= 16) {
#pragma unroll
      for (int i = 0; i < kBytes / 4; i += 4) {
        const uint4 v = load_global_16(at + 4 * i);
        word[i] = v.x;
        word[i + 1] = v.y;
        word[i + 2] = v.z;
        word[i + 3] = v.w;
      }
    } else if constexpr (kBytes == 8) {
      const uint2 v = load_global_8(at);
      word[0] = v.x;
      word[1] = v.y;
    } else if constexpr (kBytes == 4) {
      word[0] = load_global_4(at);
    } else if constexpr (kBytes == 2) {
      word[0] = load_global_2(at);
    } else {
      word[0] = load_global_1(at);
    }
  }
};

/// One chunk in the registers of a warp.
template <class Config>
struct Chunk {
  uint4 codes[4];
  RawValues<Config::kValues> scales, zeros;

  NIBBLE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 4; ++i) codes[i] = make_uint4(0, 0, 0, 0);
    scales.clear();
    if constexpr (Config::kZeros) zeros.clear();
  }
};

/// value / d for the inverse that skinny_geometry.h made of d.
NIBBLE_DEVICE int32_t divided(int32_t value, uint32_t inverse) {
  return inverse == 0 ? value
                      : static_cast<int32_t>(__umulhi(static_cast<uint32_t>(value), inverse));
}

/// What one warp does in one slice: the same chunks of K of every `panel_step`-th panel.
struct WarpWork {
  int32_t begin, chunks;  // of K
  int32_t blocks;         // of them; fewer than whole chunks at the end of K
  int32_t panel, panels;  // first panel of the block's; how many
  int32_t part;
};
NIBBLE_DEVICE WarpWork warp_work(const SkinnyArgs& args, int32_t slice) {
  const SkinnyGeometry& g = args.geometry;
  const int32_t warp = threadIdx.x / 32, chunk_blocks = args.chunk_blocks;
  const int32_t rank = static_cast<int32_t>(blockIdx.x) & (g.cluster - 1);
  const int32_t first_panel = static_cast<int32_t>(blockIdx.x >> args.cluster_log2) * g.panels;
  const int32_t local_panels = min(g.panels, args.panels - first_panel);
  const int32_t lane_of_panels = warp * args.parts_inverse >> 16;  // warp / parts
  WarpWork w;
  w.part = warp - lane_of_panels * g.parts;
  const int32_t rank_begin = rank * args.rank_chunks;
  const int32_t rank_end = min(rank_begin + args.rank_chunks, args.chunks);
  const int32_t slice_begin = rank_begin + slice * g.slice_chunks;
  const int32_t slice_end = min(slice_begin + g.slice_chunks, rank_end);
  w.begin = slice_begin + w.part * args.part_chunks;
  const int32_t end = min(w.begin + args.part_chunks, slice_end);
  w.chunks = max(0, end - w.begin);
  w.blocks = min(w.chunks * chunk_blocks, args.blocks_of_row - w.begin * chunk_blocks);
  w.panel = first_panel + lane_of_panels;
  const int32_t left = local_panels - lane_of_panels;
  w.panels = left <= 0 ? 0 : (left + args.panel_step - 1) * args.panel_step_inverse >> 16;
  return w;
}

/// Loads the chunks of one warp, panel after panel.
template <class Config>
struct ChunkFeed {
  const SkinnyArgs& args;
  const uint8_t *codes, *scales, *zeros;  // this lane's, of the next chunk
  int32_t item_blocks, item_chunks;
  int32_t blocks, panels;  // left: of the item, with it
  int32_t lane_block;      // block of the chunk whose scales this lane loads

  NIBBLE_DEVICE ChunkFeed(const SkinnyArgs& a, const WarpWork& work, int32_t lane) : args(a) {
    const WeightArgs& w = a.matmul.w;
    lane_block = lane / Config::kLanesPerBlock;
    codes = w.codes + work.panel * a.panel_code_bytes +
            work.begin * int64_t{Config::kChunkBlocks * Config::kBlockBytes} + 16 * lane;
    // Values of a chunk lie as the scratch wants them; with groups longer than a block the lanes of
    // several blocks load the same.
    int64_t value = work.panel * a.panel_values + int64_t{work.begin} * a.chunk_values;
    if constexpr (Config::kGroup == kSkinnyBlockColumns) {
      value += (lane_block >> a.group_shift) * kSkinnyPanelRows +
               lane * Config::kValues % kSkinnyPanelRows;
    } else {
      value += lane * Config::kValues;
    }
    scales = static_cast<const uint8_t*>(w.scales) + value * a.scale_bytes;
    if constexpr (Config::kZeros) {
      zeros = static_cast<const uint8_t*>(w.zeros) + value * a.zero_bytes;
    }
    item_blocks = blocks = work.blocks;
    item_chunks = work.chunks;
    panels = work.chunks > 0 ? work.panels : 0;
  }

  // Blocks past K keep what an earlier chunk left: their x is 0, and every code is finite.
  NIBBLE_DEVICE void load(Chunk<Config>& to) {
    if (panels == 0) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i / Config::kBlockLoads < blocks) to.codes[i] = load_global_16(codes + 512 * i);
    }
    if (lane_block < blocks) {
      to.scales.load(scales, args.scale_bytes);
      if constexpr (Config::kZeros) to.zeros.load(zeros, args.zero_bytes);
    }
    codes += Config::kChunkBlocks * Config::kBlockBytes;
    scales += args.chunk_values * args.scale_bytes;
    if constexpr (Config::kZeros) zeros += args.chunk_values * args.zero_bytes;
    blocks -= Config::kChunkBlocks;
    if (blocks <= 0) next_panel();
  }

 private:
  NIBBLE_DEVICE void next_panel() {
    --panels;
    blocks = item_blocks;
    codes += args.panel_step * args.panel_code_bytes -
             int64_t{item_chunks} * (Config::kChunkBlocks * Config::kBlockBytes);
    const int64_t values =
        args.panel_step * args.panel_values - int64_t{item_chunks} * args.chunk_values;
    scales += values * args.scale_bytes;
    if constexpr (Config::kZeros) zeros += values * args.zero_bytes;
  }
};

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_SKINNY_FEED_CUH_
