// The general rows for any CPU: any Format in any Layout, x as the caller has it, no workspace.
//
// One work item is 16 rows of w (a panel) against `block_m` rows of x, taken 8 at a time. Columns
// are walked in chunks of 128 that are decoded once for the 8 rows:
//
//            lane 0..15 = rows of the panel
//   column  +--------------------------------+
//     0     |  value - zero, FP32            |  segment: columns of one group (int8: of one
//     ..    |                                |  block of x), at most 128
//    127    +--------------------------------+
//
// Order of the FP32 additions, for each (row of x, row of w):
//   segment = sum over its columns in rising order
//   part   += segment * scale             (int8: segment * (x_scale * scale))
//   total  += part, part = 0              every part_columns(k): 256, more above K = 4096
// Three levels keep every chain of additions short, and so one-sided sums within tolerance at any K
// (docs/numerics.md).
#include "kernels/cpu/epilogue.h"
#include "kernels/cpu/x_scalar.h"
#include "nibble/core.h"

namespace nibble {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRows = 8;
constexpr int64_t kChunkColumns = 128;
constexpr int64_t kBlockColumns = 32;  // of LayoutId::kCpuPanel16
constexpr int64_t kMaxCodes = 256;
static_assert(kChunkColumns % kInt8BlockColumns == 0);

// Columns that are summed before they meet the total: at most 16 parts a row.
int64_t part_columns(int64_t k) {
  int64_t columns = 2 * kChunkColumns;
  while (columns * 16 < k) columns *= 2;
  return columns;
}

// Rows of w that a work item covers, in packed order.
struct Panel {
  int64_t index;
  int64_t lanes;  // row-major: fewer than 16 at the end of the matrix
};

// 128 columns of 8 rows of x. int8: codes as FP32 values, and one scale per block of 32.
struct XChunk {
  float values[kRows][kChunkColumns];
  float scales[kRows][kChunkColumns / kInt8BlockColumns] = {};
};

using LaneSums = float[kRows][kLanes];

// Value of each stored code, the layout's XOR undone.
void make_value_table(const WeightArgs& w, float* table) {
  const uint8_t flip = layout_code_xor(w.layout, w.element);
  const int64_t codes = w.element == Element::kInt8 || w.element == Element::kUint8 ? 256 : 16;
  for (int64_t code = 0; code < codes; ++code) {
    table[code] = decode_element(w.element, static_cast<uint8_t>(code ^ flip), w.codebook);
  }
}

bool has_8_bit_codes(Element element) {
  switch (element) {
    case Element::kInt8:
    case Element::kUint8:
      return true;
    case Element::kInt4:
    case Element::kUint4:
    case Element::kE2M1:
    case Element::kNF4:
      return false;
  }
  return false;
}

// Codes of one column of a panel: code(lane) = (first[lane * stride] >> shift) & mask.
struct ColumnCodes {
  const uint8_t* first;
  int64_t stride_bytes;
  int shift;
  uint8_t mask;
};

ColumnCodes column_codes(const WeightArgs& w, bool wide, int64_t panel, int64_t column) {
  const uint8_t mask = wide ? 255 : 15;
  switch (w.layout) {
    case LayoutId::kRowMajor: {
      const int64_t row_bytes = wide ? w.k : (w.k + 1) / 2;
      const uint8_t* row = w.codes + panel * kLanes * row_bytes;
      if (wide) return {row + column, row_bytes, 0, mask};
      return {row + column / 2, row_bytes, static_cast<int>(4 * (column & 1)), mask};
    }
    case LayoutId::kCpuPanel16: {
      const int64_t block = panel * (w.k_padded / kBlockColumns) + column / kBlockColumns;
      const int64_t within = column % kBlockColumns;
      if (wide) return {w.codes + block * 512 + 64 * (within / 4) + within % 4, 4, 0, mask};
      const uint8_t* vector = w.codes + block * 256 + 64 * (within % 16 / 4);
      return {vector + within % 4, 4, within < 16 ? 0 : 4, mask};
    }
    case LayoutId::kCudaFrag16:
      break;  // no CPU row reads it
  }
  return {};
}

int64_t scale_index(const WeightArgs& w, const Panel& panel, int64_t lane, int64_t group) {
  switch (w.layout) {
    case LayoutId::kRowMajor:
      return (panel.index * kLanes + lane) * w.num_groups + group;
    case LayoutId::kCpuPanel16:
      return (panel.index * w.num_groups + group) * kLanes + lane;
    case LayoutId::kCudaFrag16:
      break;  // no CPU row reads it
  }
  return 0;
}

// Scales and zeros of one group, a lane each; 0 for lanes past the end of the matrix.
struct GroupScales {
  float scale[kLanes] = {};
  float subtracted[kLanes] = {};  // from the code
  float added[kLanes] = {};       // to the weight
};

GroupScales load_group(const WeightArgs& w, const Panel& panel, int64_t group) {
  GroupScales out;
  for (int64_t lane = 0; lane < panel.lanes; ++lane) {
    const int64_t index = scale_index(w, panel, lane, group);
    out.scale[lane] = load_as_f32(w.scales, w.scale_dtype, index);
    switch (w.zero_kind) {
      case ZeroKind::kNone:
        break;
      case ZeroKind::kInteger:
        out.subtracted[lane] = load_as_f32(w.zeros, DType::kU8, index);
        break;
      case ZeroKind::kFloatCode:
        out.subtracted[lane] = load_as_f32(w.zeros, w.scale_dtype, index);
        break;
      case ZeroKind::kAdditive:
        out.added[lane] = load_as_f32(w.zeros, w.scale_dtype, index);
        break;
    }
  }
  return out;
}

// Columns [begin, end) of one group as values (minus zero), for all rows of x.
struct Segment {
  int64_t begin, end;
  GroupScales group;
  float values[kChunkColumns][kLanes];
};

void decode_segment(const WeightArgs& w, const Panel& panel, const float* table, Segment* segment) {
  const bool wide = has_8_bit_codes(w.element);
  for (int64_t j = 0; j < segment->end - segment->begin; ++j) {
    const ColumnCodes codes = column_codes(w, wide, panel.index, segment->begin + j);
    float* values = segment->values[j];
    for (int64_t lane = 0; lane < panel.lanes; ++lane) {
      const int code = (codes.first[lane * codes.stride_bytes] >> codes.shift) & codes.mask;
      values[lane] = table[code] - segment->group.subtracted[lane];
    }
    for (int64_t lane = panel.lanes; lane < kLanes; ++lane) values[lane] = 0;
  }
}

template <Compute kCompute>
void load_x_chunk(const XSource& source, int64_t row, int64_t rows, int64_t column, XChunk* chunk) {
  for (int64_t r = 0; r < rows; ++r) {
    gather_x(source, row + r, column, kChunkColumns, chunk->values[r]);
    if constexpr (kCompute == Compute::kInt8) {
      for (int64_t b = 0; b < kChunkColumns / kInt8BlockColumns; ++b) {
        float* values = chunk->values[r] + b * kInt8BlockColumns;
        const Int8Block block = quantize_block(values);
        chunk->scales[r][b] = block.scale;
        for (int64_t j = 0; j < kInt8BlockColumns; ++j) {
          values[j] = static_cast<float>(block.codes[j]);
        }
      }
    }
  }
}

// sums[lane] = sum of x[j] * values[j][lane], j rising. Four columns a step: gcc 12 keeps the sums
// in memory, so that one column a step waits for its own stores (2.0 times slower, SSE2).
void sum_products(const Segment& segment, const float* x, float* sums) {
  const int64_t count = segment.end - segment.begin;
  for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] = 0;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    const auto* v = segment.values + j;
    const float x0 = x[j], x1 = x[j + 1], x2 = x[j + 2], x3 = x[j + 3];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] =
          sums[lane] + x0 * v[0][lane] + x1 * v[1][lane] + x2 * v[2][lane] + x3 * v[3][lane];
    }
  }
  for (; j < count; ++j) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += x[j] * segment.values[j][lane];
  }
}

// part += (sum of x * value over the segment) * scale, for one row of x.
template <Compute kCompute>
void add_segment(const Segment& segment, ZeroKind zero_kind, const float* x, float x_scale,
                 float* part) {
  float sums[kLanes];
  sum_products(segment, x, sums);
  float x_sum = 0;
  for (int64_t j = 0; j < segment.end - segment.begin; ++j) x_sum += x[j];
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    float scale = segment.group.scale[lane];
    if constexpr (kCompute == Compute::kInt8) scale = x_scale * scale;
    part[lane] += sums[lane] * scale;
    if (zero_kind == ZeroKind::kAdditive) {
      float added = x_sum * segment.group.added[lane];
      if constexpr (kCompute == Compute::kInt8) added = added * x_scale;
      part[lane] += added;
    }
  }
}

// Sums of `rows` <= 8 rows of x with one panel.
template <Compute kCompute>
void multiply_tile(const MatmulArgs& args, const Panel& panel, const float* table, int64_t row,
                   int64_t rows, LaneSums& total) {
  const WeightArgs& w = args.w;
  const XSource source = {args.x,      args.x_stride_bytes, args.x_dtype,
                          args.k_perm, args.pre_scale,      w.k};
  constexpr int64_t kLongest = kCompute == Compute::kInt8 ? kInt8BlockColumns : kChunkColumns;
  const int64_t step = w.group < kLongest ? w.group : kLongest;
  NIBBLE_ASSUME(w.group >= w.k || (kChunkColumns % w.group == 0 && w.group >= 16));

  const int64_t part_step = part_columns(w.k);
  LaneSums part = {};
  XChunk chunk;
  Segment segment;
  for (int64_t column = 0; column < w.k; column += kChunkColumns) {
    load_x_chunk<kCompute>(source, row, rows, column, &chunk);
    const int64_t chunk_end = column + kChunkColumns < w.k ? column + kChunkColumns : w.k;
    for (int64_t begin = column; begin < chunk_end; begin += step) {
      segment.begin = begin;
      segment.end = begin + step < chunk_end ? begin + step : chunk_end;
      segment.group = load_group(w, panel, begin / w.group);
      decode_segment(w, panel, table, &segment);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t offset = begin - column;
        add_segment<kCompute>(segment, w.zero_kind, chunk.values[r] + offset,
                              chunk.scales[r][offset / kInt8BlockColumns], part[r]);
      }
    }
    if ((column + kChunkColumns) % part_step != 0 && column + kChunkColumns < w.k) continue;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        total[r][lane] += part[r][lane];
        part[r][lane] = 0;
      }
    }
  }
}

template <Compute kCompute>
void multiply(const MatmulArgs& args, Range items) {
  const WeightArgs& w = args.w;
  float table[kMaxCodes] = {};
  make_value_table(w, table);
  for (int64_t item = items.begin; item < items.end; ++item) {
    const int64_t panel_index = item % args.grid.items_n;
    const int64_t left = w.n_padded - panel_index * kLanes;
    const Panel panel = {panel_index, left < kLanes ? left : kLanes};
    const int64_t row_begin = item / args.grid.items_n * args.grid.block_m;
    const int64_t block_end = row_begin + args.grid.block_m;
    const int64_t row_end = block_end < args.m ? block_end : args.m;
    for (int64_t row = row_begin; row < row_end; row += kRows) {
      const int64_t rows = row_end - row < kRows ? row_end - row : kRows;
      LaneSums total = {};
      multiply_tile<kCompute>(args, panel, table, row, rows, total);
      finish_tile(args, {total[0], row, rows, panel.index});
    }
  }
}

}  // namespace

/// Compute::kExact: x meets the decoded weight in FP32.
void matmul_any_scalar(const MatmulArgs& args, Range items) {
  multiply<Compute::kExact>(args, items);
}

/// Compute::kInt8: x is quantized on the fly with the codes and scales of XForm::kInt8Tiles.
void matmul_any_int8_scalar(const MatmulArgs& args, Range items) {
  multiply<Compute::kInt8>(args, items);
}

}  // namespace nibble
