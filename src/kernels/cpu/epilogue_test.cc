// finish_tile step by step: it is what vectorised epilogues are compared with, so its own roundings
// are checked here against double precision. (RN32 of a double sum, product or quotient of two FP32
// values is the FP32 operation itself: 53 >= 2 * 24 + 2 bits.)
#include "kernels/cpu/epilogue.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "nibble/core.h"

namespace nibble {
namespace {

float rn32(double value) { return static_cast<float>(value); }
double wide(float value) { return static_cast<double>(value); }

// Values with full mantissas, so that every rounding shows.
float value_at(int i) { return std::sin(static_cast<float>(i) * 1.37f + 0.3f) * 2.5f; }

struct Tile {
  int64_t rows = 3, n = 21;  // the second panel holds 5 outputs
  bool paired = false;
  DType dtype = DType::kF32;
  MatmulArgs args{};
  std::vector<float> row_scale, bias;
  std::vector<uint8_t> y, c, residual;

  int64_t outputs() const { return paired ? n / 2 : n; }
  int64_t stride() const { return (outputs() + 2) * dtype_bytes(dtype); }
  float sum(int64_t panel, int64_t row, int64_t lane) const {
    return value_at(static_cast<int>(100 * panel + 16 * row + lane));
  }
  void fill(std::vector<uint8_t>& matrix, int seed) const {
    matrix.assign(static_cast<size_t>(rows * stride()), 0xA5);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t col = 0; col < outputs(); ++col) {
        store_from_f32(matrix.data() + r * stride(), dtype, col,
                       value_at(seed + static_cast<int>(r * 50 + col)));
      }
    }
  }
  void prepare() {
    for (int i = 0; i < 64; ++i) row_scale.push_back(1.1f + std::fabs(value_at(i + 7)));
    for (int64_t i = 0; i < n; ++i) bias.push_back(value_at(static_cast<int>(i) + 900));
    y.assign(static_cast<size_t>(rows * stride()), 0xA5);
    fill(c, 300);
    fill(residual, 600);
    args.w.n = n;
    args.w.paired = paired;
    args.y = y.data();
    args.y_stride_bytes = stride();
    args.y_dtype = dtype;
    args.m = rows;
    args.epilogue.alpha = 1;
  }
  void run() {
    for (int64_t panel = 0; panel * (paired ? 8 : 16) < outputs(); ++panel) {
      std::vector<float> sums;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t lane = 0; lane < 16; ++lane) sums.push_back(sum(panel, r, lane));
      }
      finish_tile(args, {sums.data(), 0, rows, panel});
    }
  }
  float at(const std::vector<uint8_t>& matrix, int64_t row, int64_t col) const {
    return load_as_f32(matrix.data() + row * stride(), dtype, col);
  }
  float y_at(int64_t row, int64_t col) const { return at(y, row, col); }
};

template <class Want>
void expect_each(const Tile& tile, const Want& want) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    for (int64_t col = 0; col < tile.outputs(); ++col) {
      EXPECT_EQ(tile.y_at(r, col), want(r, col)) << r << " " << col;
    }
  }
}

TEST(FinishTile, DividesByTheRowScaleWhereItIsADivisor) {
  Tile tile;
  tile.prepare();
  tile.args.w.row_scale = tile.row_scale.data();
  tile.args.w.row_scale_op = TensorScaleOp::kDivide;
  tile.run();
  int unlike_inverse = 0;
  expect_each(tile, [&](int64_t r, int64_t col) {
    const float sum = tile.sum(col / 16, r, col % 16);
    const float scale = tile.row_scale[static_cast<size_t>(col)];
    const float want = rn32(wide(sum) / wide(scale));
    unlike_inverse += want != sum * (1 / scale);
    return want;
  });
  EXPECT_GT(unlike_inverse, 0);
}

TEST(FinishTile, RoundsOnceAStepInTheDocumentedOrder) {
  Tile tile;
  tile.prepare();
  tile.args.w.row_scale = tile.row_scale.data();
  tile.args.w.row_scale_op = TensorScaleOp::kMultiply;
  EpilogueArgs& epilogue = tile.args.epilogue;
  epilogue.alpha = 1.7f;
  epilogue.beta = -0.6f;
  epilogue.c = tile.c.data();
  epilogue.residual = tile.residual.data();
  epilogue.c_stride_bytes = epilogue.residual_stride_bytes = tile.stride();
  epilogue.bias = tile.bias.data();
  epilogue.bias_dtype = DType::kF32;
  tile.run();
  int unlike_fma = 0;
  expect_each(tile, [&](int64_t r, int64_t col) {
    const auto i = static_cast<size_t>(col);
    float t = rn32(wide(tile.sum(col / 16, r, col % 16)) * wide(tile.row_scale[i]));
    t = rn32(wide(epilogue.alpha) * wide(t));
    t = rn32(wide(t) + wide(tile.bias[i]));
    const float fused = std::fma(epilogue.beta, tile.at(tile.c, r, col), t);
    t = rn32(wide(t) + wide(rn32(wide(epilogue.beta) * wide(tile.at(tile.c, r, col)))));
    unlike_fma += fused != t;
    return rn32(wide(t) + wide(tile.at(tile.residual, r, col)));
  });
  EXPECT_GT(unlike_fma, 0);
}

TEST(FinishTile, GatesLanes0To7WithLanes8To15) {
  Tile tile;
  tile.paired = true;
  tile.n = 22;  // 11 outputs: panels of 8 and 3
  tile.prepare();
  tile.args.w.row_scale = tile.row_scale.data();
  tile.args.w.row_scale_op = TensorScaleOp::kMultiply;
  tile.args.epilogue.bias = tile.bias.data();
  tile.args.epilogue.activation = Activation::kRelu;
  tile.run();
  expect_each(tile, [&](int64_t r, int64_t col) {
    const int64_t panel = col / 8, lane = col % 8;
    const auto scaled = [&](int64_t packed_lane, int64_t bias_row) {
      const float scale = tile.row_scale[static_cast<size_t>(16 * panel + packed_lane)];
      const float t = rn32(wide(tile.sum(panel, r, packed_lane)) * wide(scale));
      return rn32(wide(t) + wide(tile.bias[static_cast<size_t>(bias_row)]));
    };
    const float gate = scaled(lane, col), up = scaled(8 + lane, 11 + col);
    return rn32(wide(gate > 0 ? gate : 0.0f) * wide(up));
  });
}

TEST(FinishTile, WritesNothingBesideItsOutputs) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    Tile tile;
    tile.dtype = dtype;
    tile.prepare();
    tile.run();
    for (int64_t r = 0; r < tile.rows; ++r) {
      const uint8_t* row = tile.y.data() + r * tile.stride();
      for (int64_t b = tile.n * dtype_bytes(dtype); b < tile.stride(); ++b) {
        EXPECT_EQ(row[b], 0xA5) << dtype_name(dtype) << " row " << r << " byte " << b;
      }
    }
    expect_each(tile, [&](int64_t r, int64_t col) {
      uint8_t rounded[4];
      store_from_f32(rounded, dtype, 0, tile.sum(col / 16, r, col % 16));
      return load_as_f32(rounded, dtype, 0);
    });
  }
}

TEST(FinishTile, MinusZeroSurvivesWhereNothingIsAdded) {
  Tile tile;
  tile.rows = 1;
  tile.prepare();
  const std::vector<float> sums(16, -0.0f);
  finish_tile(tile.args, {sums.data(), 0, 1, 0});
  EXPECT_TRUE(std::signbit(tile.y_at(0, 0)));
}

}  // namespace
}  // namespace nibble
