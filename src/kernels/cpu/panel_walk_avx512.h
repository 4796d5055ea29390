// How every AVX-512 matmul row walks its work: panels, K in chunks, rows of x in register tiles.
//
//   for each panel (5 and more rows of x: pair)         codes stream from memory once
//     for each chunk of K                               its codes and decoded scales stay in L1
//       for each tile of 1..4 rows of x                 a ChunkFn: all arithmetic
//     epilogue
//
// A `Family` says what is particular to a row of the table:
//   tiles(w) → TileTable                        the register tiles for this weight
//   table(w)                                    what Chunk::table points at
//   decode_zeros(w, from, out)                  zeros of some groups; true: call `correct`
//   set_rows(args, k_end, row, k, chunk)        where x lies
//   correct(chunk, rows, panels, part)          adds what the register tiles leave out
//   finish(w, sums, floats)                     last step on the sums
//   kPrefetchesOneRow                           one row of x takes longer than reading its weights
//
// FP32 sums have three levels (note in epilogue.h), at columns that depend on K alone, so that bits
// depend neither on m nor on the split: a ChunkFn's registers over kSumColumns, `part` over
// kPartColumns, and the total.
//
// Row-major weights pass through the same loops: 16 rows of a chunk are brought into panel order in
// scratch first, which all rows of x then share.
#ifndef NIBBLE_KERNELS_CPU_PANEL_WALK_AVX512_H_
#define NIBBLE_KERNELS_CPU_PANEL_WALK_AVX512_H_

#include "kernels/cpu/epilogue_avx512.h"
#include "kernels/cpu/panel_avx512.h"
#include "kernels/cpu/repack_avx512.h"

namespace nibble {

constexpr int kTileRows = 4;
constexpr int kTilePanels = 2;
constexpr int64_t kSumColumns = 512;
constexpr int64_t kSumBlocks = kSumColumns / kBlockColumns;
constexpr int64_t kPartColumns = 4096;
constexpr int64_t kRowsAtOnce = 64;  // rows whose sums lie in L1 while K is walked
constexpr int64_t kMaxSums = kRowsAtOnce * kTilePanels * 16;

// Up to kStreamRows rows of x wait for memory more than they compute. One panel at a time is one
// stream of codes, which reads best, and long chunks keep what happens between them rare. Zen 4
// with huge pages, int4-g128, one row: 33 GB/s; two panels 25; with software prefetch 29 and 23.
// Where arithmetic takes longer than reading, the hardware's prefetch falls asleep at each page and
// software prefetch wins: FP32, one row 15.6 against 14.2 GB/s, two rows 11.7 against 8.6. Three
// and four rows still gain 3 to 10 % over pairs of panels.
constexpr int64_t kStreamRows = kTileRows;
constexpr int64_t kStreamChunkColumns = 2048;
constexpr int64_t kStreamPrefetchBytes = 2048;
constexpr int64_t kTileChunkColumns = kSumColumns;
constexpr int64_t kMaxChunkGroups = kStreamChunkColumns / kSmallestGroup;
static_assert(kStreamChunkColumns >= kTilePanels * kTileChunkColumns, "scratch of all panels");

/// One register tile over one chunk of K: what the innermost loops see.
struct Chunk {
  const uint8_t* codes[kTilePanels];
  const uint8_t* scales[kTilePanels];  ///< [groups of the chunk][16] in `scale_dtype`
  DType scale_dtype;                   ///< kF32, decoded; streams: as stored
  int64_t scale_bytes;                 ///< of a group
  const uint8_t*
      zeros[kTilePanels];  ///< [groups of the chunk][64 bytes], as the Family decodes them
  const float* excess[kTilePanels];  ///< [groups of the chunk][16], if the Family fills it
  const uint8_t* x;                  ///< first row of the tile, first column of the chunk
  const uint8_t* x_sums;             ///< int8: its sum over columns 0-15 of the first block
  const uint8_t* x_scales;           ///< int8: its scale in the first block
  int64_t x_stride;                  ///< int8: rows of the x tile; else bytes from row to row
  const void* table;                 ///< values of the codes, where the Family wants them
  int64_t blocks;
  int64_t first_run_blocks;  ///< blocks left of the group that the chunk begins in
  int64_t group_blocks;      ///< blocks of a whole group; 0: groups of 16
  const uint8_t* prefetch[kTilePanels];
  int64_t prefetch_lines;  ///< cache lines to fetch per block and panel
  bool corrects;           ///< Family::correct has something to add
};

/// part[panel][row][16] += products of the chunk.
using ChunkFn = void (*)(const Chunk&, float* part);

/// Register tiles of one kind of weight: [rows - 1][panels - 1].
using TileTable = const ChunkFn (*)[kTilePanels];

template <int kRows, int kPanels>
using FloatTile = __m512[kRows][kPanels];

template <int kRows, int kPanels>
NIBBLE_INLINE void fill_zero(FloatTile<kRows, kPanels>& sums) {
  NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_setzero_ps();
  }
}

/// to[panel][row][16] += y
template <int kRows, int kPanels>
NIBBLE_INLINE void add_to(float* to, const FloatTile<kRows, kPanels>& y) {
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    NIBBLE_UNROLL for (int r = 0; r < kRows; ++r) {
      float* at = to + 16 * (p * kRows + r);
      _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), y[r][p]));
    }
  }
}

/// Moves the codes on by one block and prefetches a share of what comes later.
template <int kPanels, int64_t kBlockBytes>
NIBBLE_INLINE void next_codes(Chunk& c) {
  for (int64_t line = 0; line < c.prefetch_lines; ++line) {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      _mm_prefetch(c.prefetch[p] + 64 * line, _MM_HINT_T0);
    }
  }
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    c.codes[p] += kBlockBytes;
    c.prefetch[p] += kBlockBytes;
  }
}

/// Tiles that a few rows of x stream through: they decode scales as they go.
template <int kRows, int kPanels>
constexpr bool kIsStream = kRows <= kStreamRows && kPanels == 1;

/// Scales of panel `p`.
template <int kRows, int kPanels>
NIBBLE_INLINE __m512 scale_of(const Chunk& c, int p) {
  if constexpr (kIsStream<kRows, kPanels>) return load_scales(c.scales[p], c.scale_dtype, 0);
  return _mm512_load_ps(c.scales[p]);
}

/// The scales of groups of 16 or 32 of the next few blocks. Streams decode kBatchBlocks blocks at
/// once: a switch over the type in each group costs more than it hides, and longer pauses than
/// this let the memory idle.
constexpr int64_t kBatchBlocks = 16;
template <int kRows, int kPanels>
struct ScaleBatch {
  alignas(64) float decoded[kIsStream<kRows, kPanels> ? kBatchBlocks * 2 * 16 : 1];
  const float* at[kPanels];
};
template <int kRows, int kPanels>
NIBBLE_INLINE void load_batch(ScaleBatch<kRows, kPanels>& batch, const Chunk& c, int64_t groups) {
  if constexpr (kIsStream<kRows, kPanels>) {
    decode_scales(c.scales[0], c.scale_dtype, 0, groups, batch.decoded);
    batch.at[0] = batch.decoded;
  } else {
    NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
      batch.at[p] = reinterpret_cast<const float*>(c.scales[p]);
    }
  }
}

/// Moves on by `count` groups.
template <int kPanels>
NIBBLE_INLINE void next_group(Chunk& c, int count) {
  NIBBLE_UNROLL for (int p = 0; p < kPanels; ++p) {
    c.scales[p] += c.scale_bytes * count;
    c.zeros[p] += 64 * count;
  }
}

/// Walks the blocks of a chunk in runs that end with each group and each kSumColumns columns.
struct Runs {
  int64_t left;        ///< blocks of the chunk
  int64_t sum_left;    ///< blocks until the sum ends
  int64_t group_left;  ///< blocks until the group ends
};
NIBBLE_INLINE Runs runs_of(const Chunk& c) {
  return {c.blocks, min_i64(kSumBlocks, c.blocks), c.first_run_blocks};
}
NIBBLE_INLINE int64_t run_blocks(const Runs& runs) {
  return min_i64(runs.sum_left, runs.group_left);
}
/// Whether the group ends with the run.
NIBBLE_INLINE bool end_run(Runs& runs, const Chunk& c, int64_t blocks) {
  runs.left -= blocks;
  runs.sum_left -= blocks;
  runs.group_left -= blocks;
  if (runs.group_left > 0) return false;
  runs.group_left = c.group_blocks;
  return true;
}

/// Rows [begin, end) of x with `panels` panels from `panel` on.
struct Work {
  const MatmulArgs* args;
  TileTable tiles;
  int64_t k_end;  ///< k rounded up to whole blocks
  int64_t group;  ///< columns a scale covers; k_end for the whole row
  int64_t chunk_columns;
  bool stream;  ///< at most kStreamRows rows, one panel at a time
  Range rows;
  int64_t panel, panels;
  int64_t next_panel;  ///< panel whose codes are wanted after these
};

/// Groups of a chunk, decoded, and what had to be repacked.
struct Scratch {
  alignas(64) float scales[kTilePanels * kTileChunkColumns / kSmallestGroup * 16];
  alignas(64) uint8_t zeros[kMaxChunkGroups * 64];
  alignas(64) float excess[kMaxChunkGroups * 16];
  alignas(64) uint8_t codes[kTilePanels][kTileChunkColumns / kBlockColumns * kByteBlockBytes];
  alignas(64) uint8_t scale_values[kTileChunkColumns / kSmallestGroup * 64];
  alignas(64) uint8_t zero_values[kTileChunkColumns / kSmallestGroup * 64];
};

/// Zeros to decode: vectors of 16 from vector `index` on.
struct ZerosOf {
  const void* zeros;
  int64_t index, groups;
};

/// Rows of x from `row` on that share a register tile: 5..8 rows are split evenly.
NIBBLE_INLINE int64_t tile_rows(int64_t row, int64_t end) {
  const int64_t left = min_i64(row / 8 * 8 + 8, end) - row;
  return left <= kTileRows ? left : (left + 1) / 2;
}

NIBBLE_INLINE int64_t code_block_bytes(Element element) {
  return element == Element::kInt8 || element == Element::kUint8 ? kByteBlockBytes
                                                                 : kNibbleBlockBytes;
}

/// Decodes scales and zeros of `groups` of panel `work.panel + p` and points `c` at them.
template <class Family>
NIBBLE_INLINE void decode_groups(const Work& work, Range groups, int64_t p, Scratch* scratch,
                                 Chunk* c) {
  const WeightArgs& w = work.args->w;
  const int64_t count = groups.end - groups.begin, panel = work.panel + p;
  const int64_t first = p * (kTileChunkColumns / kSmallestGroup);
  const int64_t index = panel * w.num_groups + groups.begin;
  const void* scales = w.scales;
  ZerosOf zeros = {w.zeros, index, count};
  if (w.layout == LayoutId::kRowMajor) {
    repack_values(w, w.scales, scale_bytes(w.scale_dtype), panel, groups, scratch->scale_values);
    scales = scratch->scale_values;
    if (w.zeros != nullptr) {
      repack_values(w, w.zeros, scale_bytes(zero_dtype(w)), panel, groups, scratch->zero_values);
      zeros = {scratch->zero_values, 0, count};
    }
  }
  const int64_t from = w.layout == LayoutId::kRowMajor ? 0 : index;
  if (work.stream) {
    c->scale_dtype = w.scale_dtype;
    c->scale_bytes = 16 * scale_bytes(w.scale_dtype);
    c->scales[p] = static_cast<const uint8_t*>(scales) + from * c->scale_bytes;
  } else {
    c->scale_dtype = DType::kF32;
    c->scale_bytes = 64;
    float* decoded = scratch->scales + 16 * first;
    decode_scales(scales, w.scale_dtype, from, count, decoded);
    c->scales[p] = reinterpret_cast<const uint8_t*>(decoded);
  }
  c->zeros[p] = scratch->zeros + 64 * first;
  c->excess[p] = scratch->excess + 16 * first;
  c->corrects |=
      Family::decode_zeros(w, zeros, scratch->zeros + 64 * first, scratch->excess + 16 * first);
}

/// The fields of a Chunk at column `k` that all its tiles share.
template <class Family>
NIBBLE_INLINE Chunk chunk_at(const Work& work, int64_t k, Scratch* scratch) {
  const WeightArgs& w = work.args->w;
  const int64_t block_bytes = code_block_bytes(w.element);
  const int64_t panel_bytes = work.k_end / kBlockColumns * block_bytes;
  const int64_t end = min_i64(k + work.chunk_columns, work.k_end);
  const Range groups = {k / work.group, (end - 1) / work.group + 1};
  Chunk c = {};
  for (int64_t p = 0; p < work.panels; ++p) {
    const int64_t panel = work.panel + p;
    if (w.layout == LayoutId::kCpuPanel16) {
      c.codes[p] = w.codes + panel * panel_bytes + k / kBlockColumns * block_bytes;
      c.prefetch[p] = work.stream ? c.codes[p] + kStreamPrefetchBytes
                      : end == work.k_end
                          ? w.codes + (work.next_panel + p) * panel_bytes
                          : c.codes[p] + work.chunk_columns / kBlockColumns * block_bytes;
    } else {
      repack_codes(w, panel, {k, end}, scratch->codes[p]);
      c.codes[p] = c.prefetch[p] = scratch->codes[p];
    }
    decode_groups<Family>(work, groups, p, scratch, &c);
  }
  c.table = Family::table(w);
  c.blocks = (end - k) / kBlockColumns;
  c.group_blocks = work.group / kBlockColumns;
  c.first_run_blocks = ((groups.begin + 1) * work.group - k) / kBlockColumns;
  return c;
}

/// to += from, from = 0.
NIBBLE_INLINE void move_sums(float* to, float* from, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) {
    _mm512_store_ps(to + i, _mm512_add_ps(_mm512_load_ps(to + i), _mm512_load_ps(from + i)));
    _mm512_store_ps(from + i, _mm512_setzero_ps());
  }
}

NIBBLE_INLINE void clear_sums(float* sums, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) _mm512_store_ps(sums + i, _mm512_setzero_ps());
}

/// All of K for the rows and panels of `work`, and the epilogue.
template <class Family>
NIBBLE_INLINE void multiply_panels(const Work& work) {
  const MatmulArgs& args = *work.args;
  const int64_t num_rows = work.rows.end - work.rows.begin;
  const int64_t floats = num_rows * work.panels * 16;
  const int64_t lines = code_block_bytes(args.w.element) / 64;
  const int64_t num_tiles = (num_rows + kTileRows - 1) / kTileRows;
  const bool hardware_prefetch = work.stream && num_rows == 1 && !Family::kPrefetchesOneRow;
  const int64_t lines_per_tile = hardware_prefetch ? 0 : (lines + num_tiles - 1) / num_tiles;
  // Corrections have sums of their own: mixed into `part`, their order would depend on the chunks.
  alignas(64) float sums[kMaxSums], part[kMaxSums], corrections[kMaxSums];
  bool corrected = false;
  Scratch scratch;
  clear_sums(sums, floats);
  clear_sums(part, floats);
  clear_sums(corrections, floats);
  for (int64_t k = 0; k < work.k_end; k += work.chunk_columns) {
    Chunk c = chunk_at<Family>(work, k, &scratch);
    corrected |= c.corrects;
    float* tile_part = part;
    int64_t lines_left = lines;
    for (int64_t row = work.rows.begin, rows; row < work.rows.end; row += rows) {
      rows = tile_rows(row, work.rows.end);
      Family::set_rows(args, work.k_end, row, k, &c);
      c.prefetch_lines = min_i64(lines_per_tile, lines_left);
      work.tiles[rows - 1][work.panels - 1](c, tile_part);
      if (c.corrects) {
        Family::correct(c, rows, work.panels, corrections + (tile_part - part));
      }
      tile_part += rows * work.panels * 16;
      for (int64_t p = 0; p < work.panels; ++p) c.prefetch[p] += 64 * c.prefetch_lines;
      lines_left -= c.prefetch_lines;
    }
    const int64_t end = k + work.chunk_columns;
    if (end % kPartColumns != 0 && end < work.k_end) continue;
    move_sums(sums, part, floats);
    if (corrected) move_sums(sums, corrections, floats);
  }
  Family::finish(args.w, sums, floats);
  const float* tile_sums = sums;
  for (int64_t row = work.rows.begin, rows; row < work.rows.end; row += rows) {
    rows = tile_rows(row, work.rows.end);
    for (int64_t p = 0; p < work.panels; ++p, tile_sums += 16 * rows) {
      finish_tile_avx512(args, {tile_sums, row, rows, work.panel + p});
    }
  }
}

/// The work items of a CpuGrid.
template <class Family>
NIBBLE_INLINE void walk_items(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  Work work = {};
  work.args = &args;
  work.tiles = Family::tiles(w);
  work.k_end = (w.k_padded + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
  work.group = w.num_groups == 1 ? work.k_end : w.group;
  for (int64_t item = items.begin; item < items.end;) {
    const int64_t m_begin = item / args.grid.items_n * args.grid.block_m;
    const int64_t m_end = min_i64(m_begin + args.grid.block_m, args.m);
    const int64_t panel_begin = item % args.grid.items_n;
    const int64_t panel_end = min_i64(args.grid.items_n, panel_begin + items.end - item);
    work.stream = m_end - m_begin <= kStreamRows;
    const int64_t panels = work.stream ? 1 : kTilePanels;
    work.chunk_columns =
        work.stream && w.layout == LayoutId::kCpuPanel16 ? kStreamChunkColumns : kTileChunkColumns;
    NIBBLE_ASSUME(m_begin % 8 == 0);
    for (work.panel = panel_begin; work.panel < panel_end; work.panel += work.panels) {
      work.panels = min_i64(panels, panel_end - work.panel);
      for (int64_t row = m_begin; row < m_end; row += kRowsAtOnce) {
        work.rows = {row, min_i64(row + kRowsAtOnce, m_end)};
        work.next_panel = row + kRowsAtOnce < m_end ? work.panel : work.panel + work.panels;
        multiply_panels<Family>(work);
      }
    }
    item += panel_end - panel_begin;
  }
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_PANEL_WALK_AVX512_H_
