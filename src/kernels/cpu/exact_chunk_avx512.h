// The loops over a chunk that the exact rows share: they differ in how 8 columns are multiplied.
//
// FP32 order of one output, the same for every m, tile and thread count:
//   quarter = sum over 8 columns of a block, from 0                  C::multiply_step
//   group   = sum of its quarters, one after the other               (within kSumColumns)
//   y      += scale * group                                          (FMA)
// Quarters are short chains so that one row of x with one panel, which has no other outputs to turn
// to, keeps four of them in flight; additions run on ports that multiplication leaves free.
#ifndef NIBBLE_KERNELS_CPU_EXACT_CHUNK_AVX512_H_
#define NIBBLE_KERNELS_CPU_EXACT_CHUNK_AVX512_H_

#include "kernels/cpu/panel_walk_avx512.h"

namespace nibble {

enum class Groups { k16, kWide };

/// y += scale * acc
template <class C>
NIBBLE_INLINE void add_scaled(typename C::Sums& y, const typename C::Sums& acc,
                              const __m512 (&scales)[C::kPanels]) {
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
    const __m512 scale = scales[p];
    NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
      y[r][p] = _mm512_fmadd_ps(acc[r][p], scale, y[r][p]);
    }
  }
}

/// to += from
template <class C>
NIBBLE_INLINE void add(typename C::Sums& to, const typename C::Sums& from) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
      to[r][p] = _mm512_add_ps(to[r][p], from[r][p]);
    }
  }
}

/// to = from
template <class C>
NIBBLE_INLINE void copy(typename C::Sums& to, const typename C::Sums& from) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) to[r][p] = from[r][p];
  }
}

/// Keeps the compiler from moving work on `sums` across this point. gcc 12 would otherwise start
/// all quarters of a block at once, run out of registers and spill.
template <class C>
NIBBLE_INLINE void hold(typename C::Sums& sums) {
  NIBBLE_UNROLL for (int r = 0; r < C::kRows; ++r) {
    NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) __asm__ volatile("" : "+v"(sums[r][p]));
  }
}

/// quarters[i] = w * x over columns 8 * (first + i) .. + 7 of the block that `c` stands at, all in
/// step with each other.
template <class C, int kCount>
NIBBLE_INLINE void multiply_quarters(typename C::Sums (&quarters)[kCount], const Chunk& c,
                                     typename C::Table table, const typename C::Zeros& zeros,
                                     int first) {
  NIBBLE_UNROLL for (int i = 0; i < kCount; ++i) {
    fill_zero<C::kRows, C::kPanels>(quarters[i]);
    if constexpr (kCount == 1) hold<C>(quarters[i]);
  }
  NIBBLE_UNROLL for (int step = 0; step < C::kSteps; ++step) {
    NIBBLE_UNROLL for (int i = 0; i < kCount; ++i) {
      C::multiply_step(quarters[i], c, table, zeros, first + i, step);
    }
  }
}

/// group = columns 16 * half .. + 15 of the block.
template <class C>
NIBBLE_INLINE void multiply_half(typename C::Sums& group, const Chunk& c, typename C::Table table,
                                 const typename C::Zeros& zeros, int half) {
  typename C::Sums quarters[2];
  if constexpr (kIsStream<C::kRows, C::kPanels>) {
    multiply_quarters<C, 2>(quarters, c, table, zeros, 2 * half);
  } else {  // 8 chains in each quarter already
    typename C::Sums quarter[1];
    multiply_quarters<C, 1>(quarter, c, table, zeros, 2 * half);
    copy<C>(quarters[0], quarter[0]);
    multiply_quarters<C, 1>(quarter, c, table, zeros, 2 * half + 1);
    copy<C>(quarters[1], quarter[0]);
  }
  copy<C>(group, quarters[0]);
  add<C>(group, quarters[1]);
}

/// group += the block.
template <class C>
NIBBLE_INLINE void multiply_block(typename C::Sums& group, const Chunk& c, typename C::Table table,
                                  const typename C::Zeros& zeros) {
  if constexpr (kIsStream<C::kRows, C::kPanels>) {
    typename C::Sums quarters[4];
    multiply_quarters<C, 4>(quarters, c, table, zeros, 0);
    NIBBLE_UNROLL for (int i = 0; i < 4; ++i) add<C>(group, quarters[i]);
  } else {
    NIBBLE_UNROLL for (int i = 0; i < 4; ++i) {
      typename C::Sums quarter[1];
      multiply_quarters<C, 1>(quarter, c, table, zeros, i);
      add<C>(group, quarter[0]);
      hold<C>(group);
    }
  }
}

/// Moves on by one block of columns.
template <class C>
NIBBLE_INLINE void next_block(Chunk& c) {
  next_codes<C::kPanels, C::kBlockBytes>(c);
  c.x += C::kXBytes * kBlockColumns;
}

/// y += `blocks` blocks with two groups each.
template <class C>
NIBBLE_INLINE void multiply_groups_of_16(typename C::Sums& y, Chunk& c, typename C::Table table,
                                         int64_t blocks) {
  ScaleBatch<C::kRows, C::kPanels> batch;
  load_batch(batch, c, 2 * blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
      typename C::Zeros zeros;
      typename C::Sums group;
      __m512 scales[C::kPanels];
      C::load_zeros(zeros, c);
      multiply_half<C>(group, c, table, zeros, half);
      NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) {
        scales[p] = _mm512_load_ps(batch.at[p]);
        batch.at[p] += 16;
      }
      add_scaled<C>(y, group, scales);
      next_group<C::kPanels>(c, 1);
    }
    next_block<C>(c);
  }
}

/// y += blocks that share one group.
template <class C>
NIBBLE_INLINE void multiply_run(typename C::Sums& y, Chunk& c, typename C::Table table,
                                int64_t blocks) {
  typename C::Zeros zeros;
  typename C::Sums group;
  C::load_zeros(zeros, c);
  fill_zero<C::kRows, C::kPanels>(group);
  for (int64_t block = 0; block < blocks; ++block) {
    multiply_block<C>(group, c, table, zeros);
    next_block<C>(c);
  }
  __m512 scales[C::kPanels];
  NIBBLE_UNROLL for (int p = 0; p < C::kPanels; ++p) scales[p] =
      scale_of<C::kRows, C::kPanels>(c, p);
  add_scaled<C>(y, group, scales);
}

/// part[panel][row][16] += the products of one chunk.
template <class C>
static void multiply_exact_chunk(const Chunk& chunk, float* part) {
  Chunk c = chunk;
  const typename C::Table table = C::load_table(c);
  for (Runs runs = runs_of(c); runs.left > 0; runs.sum_left = min_i64(kSumBlocks, runs.left)) {
    typename C::Sums y;
    fill_zero<C::kRows, C::kPanels>(y);
    if constexpr (C::kGroups == Groups::k16) {
      for (int64_t blocks; runs.sum_left > 0; runs.sum_left -= blocks, runs.left -= blocks) {
        blocks = min_i64(kBatchBlocks, runs.sum_left);
        multiply_groups_of_16<C>(y, c, table, blocks);
      }
    } else {
      while (runs.sum_left > 0) {
        const int64_t blocks = run_blocks(runs);
        multiply_run<C>(y, c, table, blocks);
        if (end_run(runs, c, blocks)) next_group<C::kPanels>(c, 1);
      }
    }
    add_to<C::kRows, C::kPanels>(part, y);
  }
}

/// body(row, group, sum of x over the columns of `group` in the chunk), for what zeros leave over.
/// A group that reaches past kSumColumns comes several times. `columns(x)` loads 16 columns.
template <int64_t kXBytes, class Columns, class Body>
NIBBLE_INLINE void for_each_x_sum(const Chunk& c, int64_t rows, Columns columns, Body body) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* x = c.x + r * c.x_stride;
    const auto sum_of_halves = [&](int64_t halves) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t i = 0; i < halves; ++i, x += 16 * kXBytes) sum = _mm512_add_ps(sum, columns(x));
      return _mm512_reduce_add_ps(sum);
    };
    int64_t group = 0;
    if (c.group_blocks == 0) {
      for (; group < 2 * c.blocks; ++group) body(r, group, sum_of_halves(1));
      continue;
    }
    for (Runs runs = runs_of(c); runs.left > 0;) {
      const int64_t blocks = run_blocks(runs);
      body(r, group, sum_of_halves(2 * blocks));
      if (end_run(runs, c, blocks)) ++group;
      if (runs.sum_left == 0) runs.sum_left = min_i64(kSumBlocks, runs.left);
    }
  }
}

// NOTE: in an anonymous namespace, or kFn would be a symbol that the linker merges across files.
namespace {

/// The register tiles of a family: Config<rows, panels> is its compile-time part.
template <template <int, int> class Config>
struct ExactTiles {
  static constexpr ChunkFn kFn[kTileRows][kTilePanels] = {
      {multiply_exact_chunk<Config<1, 1>>, multiply_exact_chunk<Config<1, 2>>},
      {multiply_exact_chunk<Config<2, 1>>, multiply_exact_chunk<Config<2, 2>>},
      {multiply_exact_chunk<Config<3, 1>>, multiply_exact_chunk<Config<3, 2>>},
      {multiply_exact_chunk<Config<4, 1>>, multiply_exact_chunk<Config<4, 2>>}};
};

}  // namespace

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_EXACT_CHUNK_AVX512_H_
