// How every AVX-512 matmul row walks its work: panels side by side, K in chunks, rows of x in
// tiles.
//
//   for each 1, 2 or 4 panels                          codes stream from memory once
//     for each chunk of K                               its codes and decoded scales stay in L1
//       for each tile of 1..4 rows of x                 a ChunkFn: all arithmetic
//     epilogue
//
// A `Family` says what is particular to a row of the table:
//   kChunkColumns                                       at most kMaxChunkColumns
//   panels_at_once(rows, left)                          1, 2 or (up to 2 rows of x) 4
//   tiles(w) → TileTable                                the register tiles for this weight
//   table(w)                                            what Chunk::table points at
//   decode_zeros(w, zeros, index, groups, out)          64 bytes a group; true: call `correct`
//   set_rows(args, k_end, row, k, chunk)                where x lies
//   correct(chunk, rows, panels, part)               adds what the register tile leaves out
//   finish(w, sums, floats)                             last step on the sums
// FP32 sums have three levels (note in epilogue.h): what a ChunkFn adds up, `part` over 4096
// columns, and the total.
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
constexpr int kMaxPanels = 4;
constexpr int64_t kRowsAtOnce = 64;  // rows whose sums lie in L1 while K is walked
constexpr int64_t kMaxSums = kRowsAtOnce * 2 * 16;
constexpr int64_t kPartColumns = 4096;
constexpr int64_t kMaxChunkColumns = 512;
constexpr int64_t kMaxChunkGroups = kMaxChunkColumns / kSmallestGroup;

/// One register tile over one chunk of K: what the innermost loops see.
struct Chunk {
  const uint8_t* codes[kMaxPanels];
  const float* scales[kMaxPanels];  ///< decoded, [groups of the chunk][16]
  const uint8_t*
      zeros[kMaxPanels];    ///< [groups of the chunk][64 bytes], as the Family decodes them
  const uint8_t* x;         ///< first row of the tile, first column of the chunk
  const uint8_t* x_sums;    ///< int8: its sum over columns 0-15 of the first block
  const uint8_t* x_scales;  ///< int8: its scale in the first block
  int64_t x_stride;         ///< int8: rows of the x tile; else bytes from row to row
  const void* table;        ///< values of the codes, where the Family wants them
  int64_t blocks;
  int64_t first_run_blocks;  ///< blocks left of the group that the chunk begins in
  int64_t group_blocks;      ///< blocks of a whole group; 0: groups of 16
  const uint8_t* prefetch[kMaxPanels];
  int64_t prefetch_lines;  ///< cache lines to fetch per block and panel
  bool corrects;           ///< Family::correct has something to add
};

/// part[panel][row][16] += products of the chunk.
using ChunkFn = void (*)(const Chunk&, float* part);

/// Register tiles of one kind of weight: [rows - 1][panels 1, 2, 4]. Four panels: 1 and 2 rows
/// only.
using TileTable = const ChunkFn (*)[3];

/// Rows [begin, end) of x with `panels` panels from `panel` on.
struct Work {
  const MatmulArgs* args;
  TileTable tiles;
  int64_t k_end;  ///< k rounded up to whole blocks
  int64_t group;  ///< columns a scale covers; k_end for the whole row
  Range rows;
  int64_t panel, panels;
  int64_t next_panel;  ///< panel whose codes are wanted after these
};

/// Groups of a chunk, decoded, and its codes where they had to be repacked.
struct Scratch {
  alignas(64) float scales[kMaxPanels][kMaxChunkGroups * 16];
  alignas(64) uint8_t zeros[kMaxPanels][kMaxChunkGroups * 64];
  alignas(64) uint8_t codes[kMaxPanels][kMaxChunkColumns / kBlockColumns * kByteBlockBytes];
  alignas(64) uint8_t values[kMaxChunkGroups * 64];
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

/// Decodes scales and zeros of `groups` of one panel.
template <class Family>
NIBBLE_INLINE bool decode_groups(const WeightArgs& w, int64_t panel, Range groups, int64_t p,
                                 Scratch* scratch) {
  const int64_t count = groups.end - groups.begin;
  if (w.layout == LayoutId::kCpuPanel16) {
    const int64_t index = panel * w.num_groups + groups.begin;
    decode_scales(w.scales, w.scale_dtype, index, count, scratch->scales[p]);
    return Family::decode_zeros(w, w.zeros, index, count, scratch->zeros[p]);
  }
  repack_values(w, w.scales, scale_bytes(w.scale_dtype), panel, groups, scratch->values);
  decode_scales(scratch->values, w.scale_dtype, 0, count, scratch->scales[p]);
  if (w.zeros != nullptr) {
    repack_values(w, w.zeros, scale_bytes(zero_dtype(w)), panel, groups, scratch->values);
  }
  return Family::decode_zeros(w, w.zeros == nullptr ? nullptr : scratch->values, 0, count,
                              scratch->zeros[p]);
}

/// The fields of a Chunk at column `k` that all its tiles share.
template <class Family>
NIBBLE_INLINE Chunk chunk_at(const Work& work, int64_t k, Scratch* scratch) {
  const WeightArgs& w = work.args->w;
  const int64_t block_bytes = code_block_bytes(w.element);
  const int64_t panel_bytes = work.k_end / kBlockColumns * block_bytes;
  const int64_t end = min_i64(k + Family::kChunkColumns, work.k_end);
  const Range groups = {k / work.group, (end - 1) / work.group + 1};
  Chunk c = {};
  for (int64_t p = 0; p < work.panels; ++p) {
    const int64_t panel = work.panel + p;
    if (w.layout == LayoutId::kCpuPanel16) {
      c.codes[p] = w.codes + panel * panel_bytes + k / kBlockColumns * block_bytes;
      c.prefetch[p] = end == work.k_end
                          ? w.codes + (work.next_panel + p) * panel_bytes
                          : c.codes[p] + Family::kChunkColumns / kBlockColumns * block_bytes;
    } else {
      repack_codes(w, panel, {k, end}, scratch->codes[p]);
      c.codes[p] = c.prefetch[p] = scratch->codes[p];
    }
    c.corrects |= decode_groups<Family>(w, panel, groups, p, scratch);
    c.scales[p] = scratch->scales[p];
    c.zeros[p] = scratch->zeros[p];
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
  // Up to 2 rows wait for memory: the hardware's own prefetch of a few plain streams reads faster
  // than it does among software prefetches (measured on Zen 4: 23 against 16 GB/s with 4 panels).
  const int64_t lines_per_tile = num_rows <= 2 ? 0 : (lines + num_tiles - 1) / num_tiles;
  const int64_t choice = work.panels / 2;
  alignas(64) float sums[kMaxSums], part[kMaxSums];
  Scratch scratch;
  clear_sums(sums, floats);
  clear_sums(part, floats);
  for (int64_t k = 0; k < work.k_end; k += Family::kChunkColumns) {
    Chunk c = chunk_at<Family>(work, k, &scratch);
    float* tile_part = part;
    int64_t lines_left = lines;
    for (int64_t row = work.rows.begin, rows; row < work.rows.end; row += rows) {
      rows = tile_rows(row, work.rows.end);
      Family::set_rows(args, work.k_end, row, k, &c);
      c.prefetch_lines = min_i64(lines_per_tile, lines_left);
      work.tiles[rows - 1][choice](c, tile_part);
      if (c.corrects) Family::correct(c, rows, work.panels, tile_part);
      tile_part += rows * work.panels * 16;
      for (int64_t p = 0; p < work.panels; ++p) c.prefetch[p] += 64 * c.prefetch_lines;
      lines_left -= c.prefetch_lines;
    }
    const int64_t end = k + Family::kChunkColumns;
    if (end % kPartColumns == 0 || end >= work.k_end) move_sums(sums, part, floats);
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
    for (work.panel = panel_begin; work.panel < panel_end; work.panel += work.panels) {
      work.panels = Family::panels_at_once(m_end - m_begin, panel_end - work.panel);
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
