// Launch numbers of the wide kernels, without a GPU.
#include <gtest/gtest.h>

#include "kernels/cuda/wide_geometry.h"

namespace nibble {
namespace {

// What cudaOccupancyMaxActiveClusters says on an H200: 132 processors in groups of 16, 18 and
// fewer.
constexpr wide::ClusterSlots kH200 = {0, 132, 66, 43, 30, 23, 20, 15, 15};

MatmulArgs call(int64_t n, int64_t k, int64_t m, int64_t group) {
  MatmulArgs a{};
  a.m = m;
  a.w.n = n;
  a.w.k = k;
  a.w.n_padded = (n + 15) / 16 * 16;
  a.w.k_padded = (k + 63) / 64 * 64;
  a.w.group = group;
  a.w.num_groups = (a.w.k_padded + group - 1) / group;
  a.w.scale_dtype = DType::kBF16;
  a.y_dtype = DType::kBF16;
  a.y_stride_bytes = 2 * n;
  return a;
}

TEST(WideGeometry, FewTokensTakeTheSmallestTile) {
  EXPECT_EQ(wide::geometry(16384, 2048, 17, kH200).tokens, 64);
  EXPECT_EQ(wide::geometry(16384, 2048, 64, kH200).tokens, 64);
  EXPECT_EQ(wide::geometry(16384, 2048, 4096, kH200).tokens, 256);
}

TEST(WideGeometry, ALongKWithFewRowsIsSplitOverAClusterThatFitsAtOnce) {
  const WideGeometry g = wide::geometry(2048, 16384, 64, kH200);  // 16 tiles on 132 processors
  EXPECT_GT(g.split, 2);
  EXPECT_GE(kH200[static_cast<size_t>(g.split)], 16);
}

TEST(WideGeometry, TilesThatFillTheDeviceAreNotSplit) {
  EXPECT_EQ(wide::geometry(16384, 2048, 64, kH200).split, 1);
  EXPECT_EQ(wide::geometry(8192, 8192, 4096, kH200).split, 1);
}

TEST(WideGeometry, EverySplitHasWorkForEachOfItsBlocks) {
  for (const int64_t k : {64, 128, 320, 1000, 4304}) {
    for (const int64_t n : {16, 304, 4096}) {
      const int64_t k_padded = (k + 63) / 64 * 64;
      const WideGeometry g = wide::geometry(n, k_padded, 100, kH200);
      EXPECT_GE(k_padded / 64, g.split == 1 ? 1 : 4 * g.split) << n << " " << k;
    }
  }
}

TEST(WideArgs, TilesCoverRaggedShapes) {
  const WideArgs args = wide_args(call(300, 4304, 257, 16), {128, 1});
  EXPECT_EQ(args.tiles_n, 3);
  EXPECT_EQ(args.tiles_m, 3);
  EXPECT_EQ(args.blocks, 68);
  EXPECT_EQ(args.group_shift, 0);
}

TEST(WideArgs, GroupsLongerThanABlockAreShifts) {
  EXPECT_EQ(wide_args(call(128, 1024, 64, 64), {64, 1}).group_shift, 0);
  EXPECT_EQ(wide_args(call(128, 1024, 64, 128), {64, 1}).group_shift, 1);
  EXPECT_EQ(wide_args(call(128, 1024, 64, 1024), {64, 1}).group_shift, 31);  // the whole row
}

TEST(WideArgs, SixteenBytesAreStoredOnlyWhereNothingElseMeetsTheSums) {
  MatmulArgs a = call(128, 1024, 64, 128);
  EXPECT_TRUE(wide_args(a, {64, 1}).vectors);
  a.y_dtype = DType::kF32;
  EXPECT_FALSE(wide_args(a, {64, 1}).vectors);
  a = call(128, 1024, 64, 128);
  a.epilogue.activation = Activation::kSilu;
  EXPECT_FALSE(wide_args(a, {64, 1}).vectors);
  a = call(132, 1024, 64, 128);  // rows of y are not multiples of 16 bytes
  EXPECT_FALSE(wide_args(a, {64, 1}).vectors);
  const float bias[128] = {};
  a = call(128, 1024, 64, 128);
  a.epilogue.bias = bias;
  EXPECT_FALSE(wide_args(a, {64, 1}).vectors);
}

}  // namespace
}  // namespace nibble
