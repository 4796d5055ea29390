// kPrepareX rows: the scalar ones against the words of types.h and args.h, all others against the
// scalar ones, byte for byte.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/x_scalar.h"
#include "kernels/table.h"
#include "tests/internal/kernel_data.h"
#include "tests/internal/kernel_run.h"

namespace nibble::harness {
namespace {

int64_t form_bytes(XForm form, int64_t m, int64_t columns) {
  switch (form) {
    case XForm::kRaw:
      return 0;
    case XForm::kF32Rows:
      return m * columns * 4;
    case XForm::kBf16Rows:
      return m * columns * 2;
    case XForm::kInt8Tiles:
      return m * (columns / 32) * kInt8RowBlockBytes;
  }
  return 0;
}

struct Source {
  Matrix x;
  std::vector<int32_t> k_perm;
  std::vector<float> pre_scale;
};

std::vector<uint8_t> prepare(const KernelInfo& row, const Source& source, bool tile_by_tile) {
  const Matrix& x = source.x;
  const int64_t columns = round_up(x.cols(), 32);
  // The output ends at an unmapped page: nothing may be written past it.
  const GuardedMemory out(form_bytes(row.row.x_form, x.rows(), columns), kNanByte);
  const PrepareArgs args{x.view().data,
                         x.stride_bytes(),
                         x.dtype(),
                         source.k_perm.empty() ? nullptr : source.k_perm.data(),
                         source.pre_scale.empty() ? nullptr : source.pre_scale.data(),
                         x.rows(),
                         x.cols(),
                         columns,
                         out.data()};
  const int64_t tiles = ceil_div(x.rows(), 8);
  if (tile_by_tile) {
    for (int64_t tile = tiles - 1; tile >= 0; --tile) row.cpu_prepare(args, {tile, tile + 1});
  } else {
    row.cpu_prepare(args, {0, tiles});
  }
  EXPECT_TRUE(out.front_is_untouched()) << row.row.name;
  return {out.data(), out.data() + out.bytes()};
}

const KernelInfo* scalar_row(XForm form, Compute compute) {
  for (const KernelInfo& info : cpu_kernels()) {
    if (info.row.kind == StepKind::kPrepareX && info.row.isa == Isa::kScalar &&
        info.row.x_form == form && info.row.compute == compute) {
      return &info;
    }
  }
  return nullptr;
}

template <class T>
T load(const std::vector<uint8_t>& bytes, int64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// Ordinary values, and all that quantizing must get right: ties, zeros of both signs, blocks that
// are tiny, huge, subnormal, or hold Inf or NaN.
Source make_source(DType dtype, int64_t m, int64_t k, uint64_t turn) {
  Rng rng(turn + 1);
  Source source{Matrix(dtype, m, k, static_cast<int64_t>(turn % 4), kNanByte), {}, {}};
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t begin = 0; begin < k; begin += 32) {
      const int64_t kind = rng.between(0, 11);
      for (int64_t j = begin; j < std::min(begin + 32, k); ++j) {
        double value = rng.gaussian();
        if (kind == 0) value = 0;
        if (kind == 1) value *= 0x1p-101;
        if (kind == 2) value *= 0x1p-140;
        if (kind == 3) value *= dtype == DType::kF16 ? 1e4 : 0x1p125;
        if (kind == 4) value = static_cast<double>(rng.between(-254, 254)) / 2;  // ties at 127
        if (kind == 5 && j == begin) value = std::numeric_limits<double>::infinity();
        if (kind == 6 && j == begin) value = std::numeric_limits<double>::quiet_NaN();
        if (kind == 7) value = j % 2 == 0 ? -0.0 : 0x1p-100;
        source.x.set(row, j, static_cast<float>(value));
      }
      if (kind == 4) source.x.set(row, begin, 127);
    }
  }
  if (turn % 3 == 1) {
    // 7 divides none of the sizes used here.
    for (int64_t j = 0; j < k; ++j) source.k_perm.push_back(static_cast<int32_t>((j * 7 + 3) % k));
  }
  if (turn % 4 >= 2) {
    for (int64_t j = 0; j < k; ++j) {
      source.pre_scale.push_back(static_cast<float>(std::exp(rng.gaussian())));
    }
  }
  return source;
}

TEST(PrepareX, EveryRowWritesTheBytesOfTheScalarRow) {
  static constexpr int64_t kK[] = {32, 2, 34, 64, 30, 160, 33, 258, 1, 96, 514};
  static constexpr int64_t kM[] = {1, 8, 3, 9, 16, 17, 5, 2};
  int compared = 0;
  for (const KernelInfo& row : cpu_kernels()) {
    if (row.row.kind != StepKind::kPrepareX || !Device::this_cpu().has(row.row.isa)) continue;
    const KernelInfo* specification = scalar_row(row.row.x_form, row.row.compute);
    ASSERT_NE(specification, nullptr) << row.row.name;
    for (uint64_t turn = 0; turn < static_cast<uint64_t>(repetitions(264)); ++turn) {
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        if ((row.row.x_dtypes & bit(dtype)) == 0) continue;
        Source source = make_source(dtype, kM[turn % 8], kK[turn % 11], turn);
        if (!row.row.gathers) source.k_perm.clear();
        if (!row.row.pre_scales) source.pre_scale.clear();
        const std::vector<uint8_t> want = prepare(*specification, source, false);
        const std::vector<uint8_t> got = prepare(row, source, turn % 2 == 1);
        const auto differs = std::mismatch(got.begin(), got.end(), want.begin()).first;
        ASSERT_TRUE(differs == got.end())
            << row.row.name << " m=" << source.x.rows() << " k=" << source.x.cols() << " "
            << dtype_name(dtype) << (source.k_perm.empty() ? "" : " k_perm")
            << (source.pre_scale.empty() ? "" : " pre_scale") << " turn=" << turn << ": byte "
            << differs - got.begin() << " of " << got.size() << " differs from "
            << specification->row.name;
        ++compared;
      }
    }
  }
  EXPECT_GT(compared, 0);
}

TEST(PrepareX, F32RowsGatherScaleAndFillWithZeros) {
  Source source{Matrix(DType::kBF16, 2, 3, 1, kNanByte), {2, 0, 1}, {2, 3, 0.5f}};
  for (int64_t j = 0; j < 3; ++j) {
    source.x.set(0, j, static_cast<float>(j + 1));
    source.x.set(1, j, static_cast<float>(-10 * (j + 1)));
  }
  const auto bytes = prepare(*scalar_row(XForm::kF32Rows, Compute::kExact), source, false);
  ASSERT_EQ(bytes.size(), 2u * 32 * 4);
  const float want[2][3] = {{1.5f, 2, 6}, {-15, -20, -60}};
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t j = 0; j < 32; ++j) {
      EXPECT_EQ(load<float>(bytes, 4 * (32 * row + j)), j < 3 ? want[row][j] : 0.0f);
    }
  }
}

TEST(PrepareX, Bf16RowsSwapTheMiddleTwoOfEachFour) {
  Source source{Matrix(DType::kBF16, 1, 34, 0, kNanByte), {}, {}};
  for (int64_t j = 0; j < 34; ++j) source.x.set(0, j, static_cast<float>(j + 1));
  const auto bytes = prepare(*scalar_row(XForm::kBf16Rows, Compute::kExact), source, false);
  ASSERT_EQ(bytes.size(), 64u * 2);
  const int64_t order[4] = {0, 2, 1, 3};
  for (int64_t place = 0; place < 64; ++place) {
    const int64_t column = place / 4 * 4 + order[place % 4];
    const float want = column < 34 ? static_cast<float>(column + 1) : 0.0f;
    EXPECT_EQ(bf16_to_f32(load<uint16_t>(bytes, 2 * place)), want) << place;
  }
}

TEST(PrepareX, Int8TilesHoldCodesThenSumsThenScales) {
  constexpr int64_t kRows = 11, kColumns = 70;  // tiles of 8 and 3 rows, 3 blocks, the last short
  Rng rng(4);
  const Source source{make_random_x(DType::kF32, {kRows, 1, kColumns}, 0, false, rng), {}, {}};
  const auto bytes = prepare(*scalar_row(XForm::kInt8Tiles, Compute::kInt8), source, false);
  ASSERT_EQ(static_cast<int64_t>(bytes.size()), kRows * 3 * kInt8RowBlockBytes);
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t first = row / 8 * 8, r = row - first, rows = std::min<int64_t>(8, kRows - first);
    for (int64_t block = 0; block < 3; ++block) {
      const int64_t at = (first * 3 + block * rows) * kInt8RowBlockBytes;
      float amax = 0;
      for (int64_t j = 32 * block; j < std::min<int64_t>(kColumns, 32 * block + 32); ++j) {
        amax = std::max(amax, std::fabs(source.x.at(row, j)));
      }
      int32_t sums[2] = {0, 0};
      for (int64_t j = 0; j < 32; ++j) {
        const int64_t column = 32 * block + j;
        const float value = column < kColumns ? source.x.at(row, column) : 0.0f;
        const auto want = static_cast<int8_t>(std::lrint(value * (127.0f / amax)));
        ASSERT_EQ(load<int8_t>(bytes, at + 32 * r + j), want) << row << " " << column;
        sums[j / 16] += want;
      }
      for (int64_t half = 0; half < 2; ++half) {
        EXPECT_EQ(load<int32_t>(bytes, at + 32 * rows + 4 * (half * rows + r)), sums[half]);
      }
      EXPECT_EQ(load<float>(bytes, at + 40 * rows + 4 * r), amax / 127.0f);
    }
  }
}

TEST(QuantizeBlock, KeepsSpecialBlocksApart) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto block_of = [](float first, float rest) {
    float x[32];
    std::fill(x, x + 32, rest);
    x[0] = first;
    return quantize_block(x);
  };
  const Int8Block zeros = block_of(-0.0f, 0.0f);
  EXPECT_EQ(zeros.scale, 1.0f);
  EXPECT_EQ(zeros.codes[0], 0);
  EXPECT_EQ(block_of(std::nextafter(0x1p-100f, 0.0f), 0).scale, 1.0f) << "below the smallest amax";
  const Int8Block smallest = block_of(-0x1p-100f, 0);
  EXPECT_EQ(smallest.scale, 0x1p-100f / 127.0f);
  EXPECT_EQ(smallest.codes[0], -127);
  for (const float hostile : {kInfinity, -kInfinity, std::nanf("")}) {
    const Int8Block block = block_of(hostile, 3);
    uint32_t scale_bits;
    std::memcpy(&scale_bits, &block.scale, sizeof(scale_bits));
    EXPECT_EQ(scale_bits, 0x7FC00000u);
    for (const int8_t code : block.codes) EXPECT_EQ(code, 0);
    EXPECT_EQ(block.sums[0], 0);
    EXPECT_EQ(block.sums[1], 0);
  }
  // Ties go to the even code: 127 / amax = 1 here.
  const Int8Block ties = block_of(127, 2.5f);
  EXPECT_EQ(ties.codes[1], 2);
  EXPECT_EQ(block_of(127, 3.5f).codes[1], 4);
  EXPECT_EQ(ties.sums[0], 127 + 15 * 2);
  EXPECT_EQ(ties.sums[1], 16 * 2);
  EXPECT_EQ(block_of(std::numeric_limits<float>::max(), 0).codes[0], 127) << "no overflow";
}

// The figures of docs/numerics.md: for weights without structure the relative error of y is that
// of x.
TEST(QuantizeBlock, ErrsAsMuchAsDocumented) {
  for (const int64_t outliers_in_100 : {0, 1}) {
    Rng rng(12);
    constexpr int64_t kColumns = 4096;
    std::vector<float> channel(kColumns, 1.0f);
    for (float& factor : channel) {
      if (outliers_in_100 != 0 && rng.one_in(100)) factor = 20;
    }
    double error = 0, magnitude = 0;
    for (int row = 0; row < 64; ++row) {
      for (int64_t begin = 0; begin < kColumns; begin += 32) {
        float x[32];
        for (int64_t j = 0; j < 32; ++j) {
          x[j] = static_cast<float>(rng.gaussian()) * channel[static_cast<size_t>(begin + j)];
        }
        const Int8Block block = quantize_block(x);
        for (int64_t j = 0; j < 32; ++j) {
          const double value = static_cast<double>(x[j]);
          const double rounded = block.codes[j] * static_cast<double>(block.scale);
          error += (rounded - value) * (rounded - value);
          magnitude += value * value;
        }
      }
    }
    const double relative = std::sqrt(error / magnitude);
    RecordProperty(outliers_in_100 == 0 ? "gaussian" : "outliers", std::to_string(relative));
    if (outliers_in_100 == 0) {
      EXPECT_NEAR(relative, 0.0054, 0.0002);
    } else {
      EXPECT_NEAR(relative, 0.0113, 0.0012);
    }
  }
}

}  // namespace
}  // namespace nibble::harness
