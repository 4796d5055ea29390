#include "checkpoint/group_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace nibble::checkpoint {
namespace {

using Ints = std::vector<int32_t>;

/// Every column of the map has the scale that the index gives it, and is there once.
void expect_same_groups(const GroupMap& map, const Ints& index) {
  ASSERT_EQ(map.dense_only, "");
  const auto k = static_cast<int64_t>(index.size());
  Ints order = map.order;
  if (order.empty()) {
    order.resize(index.size());
    std::iota(order.begin(), order.end(), 0);
  }
  ASSERT_EQ(order.size(), index.size());
  const int64_t columns = map.group == 0 ? k : map.group;
  for (int64_t j = 0; j < k; ++j) {
    const auto group = static_cast<size_t>(j / columns);
    const int32_t from = map.source.empty() ? static_cast<int32_t>(group) : map.source.at(group);
    ASSERT_EQ(from, index[static_cast<size_t>(order[static_cast<size_t>(j)])]) << "column " << j;
  }
  std::sort(order.begin(), order.end());
  for (size_t j = 0; j < order.size(); ++j) ASSERT_EQ(order[j], static_cast<int32_t>(j));
}

Ints repeated(const std::vector<std::pair<int32_t, int>>& runs) {
  Ints out;
  for (const auto& [group, count] : runs) out.insert(out.end(), static_cast<size_t>(count), group);
  return out;
}

TEST(EqualGroups, OfAFormatStayAsTheyAre) {
  for (const int32_t length : {16, 32, 64, 128}) {
    for (const int64_t k : {5, 16, 200, 256}) {
      const GroupMap map = equal_groups(k, length);
      EXPECT_EQ(map.group, length);
      EXPECT_TRUE(map.source.empty());
      EXPECT_EQ(map.dense_only, "");
    }
  }
}

TEST(EqualGroups, LongerOnesAreDividedWithTheSameScale) {
  for (const int64_t length : {48, 80, 96, 112, 192, 256, 320, 1024}) {
    for (const int64_t k : {2 * length, 3 * length - 7, length + 1}) {
      const GroupMap map = equal_groups(k, length);
      EXPECT_FALSE(map.source.empty());
      expect_same_groups(map, equal_index(k, length));
    }
  }
  EXPECT_EQ(equal_groups(1000, 256).group, 128);
  EXPECT_EQ(equal_groups(1000, 192).group, 64);
  EXPECT_EQ(equal_groups(1000, 48).group, 16);
}

TEST(EqualGroups, OverTheWholeRowNeedNoDivision) {
  for (const int64_t length : {0, 100, 256, 1000}) {
    const GroupMap map = equal_groups(100, length);
    EXPECT_EQ(map.group, 0);
    EXPECT_TRUE(map.source.empty());
    EXPECT_EQ(map.dense_only, "");
  }
}

TEST(EqualGroups, OfOtherLengthsAreDenseAndSayWhy) {
  for (const int64_t length : {1, 8, 24, 100}) {
    EXPECT_NE(equal_groups(200, length).dense_only.find(std::to_string(length)), std::string::npos);
  }
}

TEST(GroupLength, MustGiveTheStoredNumberOfScales) {
  EXPECT_EQ(*group_length(200, 2, 128), 128);
  EXPECT_EQ(*group_length(200, 1, 0), 0);
  EXPECT_EQ(*group_length(200, 1, 1024), 1024);
  EXPECT_EQ(group_length(200, 2, 0).status().code(), Code::kCorruptFile);
  EXPECT_EQ(group_length(200, 3, 128).status().code(), Code::kCorruptFile);
  EXPECT_EQ(group_length(200, 2, -5).status().code(), Code::kCorruptFile);
  EXPECT_EQ(group_length(INT64_MAX / 16, 2, INT64_MAX).status().code(), Code::kCorruptFile);
}

TEST(GroupLength, IsThePowerOfTwoThatFitsWhereNothingSaysIt) {
  EXPECT_EQ(*group_length(4304, 269, std::nullopt), 16);
  EXPECT_EQ(*group_length(4096, 16, std::nullopt), 256);
  EXPECT_EQ(*group_length(200, 2, std::nullopt), 128);
  EXPECT_EQ(*group_length(200, 1, std::nullopt), 0);
  EXPECT_EQ(group_length(200, 5, std::nullopt).status().code(), Code::kCorruptFile);
}

TEST(IndexedGroups, ThatAreSortedNeedNoPermutation) {
  const Ints index = repeated({{0, 32}, {1, 32}, {2, 7}});
  const GroupMap map = indexed_groups("g", index, 3).value();
  EXPECT_EQ(map.group, 32);
  EXPECT_TRUE(map.order.empty());
  EXPECT_TRUE(map.source.empty());
  expect_same_groups(map, index);
}

TEST(IndexedGroups, MixedOverKAreSortedAndStable) {
  Ints index(160);
  for (size_t j = 0; j < index.size(); ++j) index[j] = static_cast<int32_t>(j * 7 % 5);
  const GroupMap map = indexed_groups("g", index, 5).value();
  EXPECT_EQ(map.group, 32);
  ASSERT_EQ(map.order.size(), 160u);
  EXPECT_LT(map.order[0], map.order[1]);
  expect_same_groups(map, index);
}

TEST(IndexedGroups, AShortLastGroupMayLieAnywhere) {
  Ints index = repeated({{2, 5}, {0, 16}, {1, 16}});
  std::swap(index[0], index[20]);
  expect_same_groups(indexed_groups("g", index, 3).value(), index);
}

TEST(IndexedGroups, WholeBlocksInAnotherOrderStayInPlace) {
  const Ints index = repeated({{3, 64}, {0, 64}, {2, 64}, {1, 64}});
  const GroupMap map = indexed_groups("g", index, 4).value();
  EXPECT_TRUE(map.order.empty());
  EXPECT_EQ(map.group, 64);
  EXPECT_EQ(map.source, (Ints{3, 0, 2, 1}));
}

TEST(IndexedGroups, OfUnequalLengthsAreDividedWhereTheyBeginAtMultiples) {
  const Ints index = repeated({{0, 96}, {1, 32}, {2, 200}});
  const GroupMap map = indexed_groups("g", index, 3).value();
  EXPECT_EQ(map.group, 32);
  expect_same_groups(map, index);
  Ints mixed = index;
  std::reverse(mixed.begin(), mixed.end());
  std::rotate(mixed.begin(), mixed.begin() + 3, mixed.end());
  expect_same_groups(indexed_groups("g", mixed, 3).value(), mixed);
}

TEST(IndexedGroups, AllColumnsInOneGroupAreTheWholeRow) {
  for (const int32_t group : {0, 2}) {
    const Ints index(100, group);
    const GroupMap map = indexed_groups("g", index, 3).value();
    EXPECT_EQ(map.group, 0);
    expect_same_groups(map, index);
  }
}

TEST(IndexedGroups, OfOddUnequalLengthsAreDenseAndSayWhy) {
  const GroupMap map = indexed_groups("l.g_idx", repeated({{0, 17}, {1, 15}}), 2).value();
  EXPECT_NE(map.dense_only.find("'l.g_idx' gives group 0 17 columns"), std::string::npos)
      << map.dense_only;
}

TEST(IndexedGroups, OutOfRangeAreRefusedByColumn) {
  for (const int32_t bad : {-1, 2, INT32_MAX, INT32_MIN}) {
    Ints index = repeated({{0, 16}, {1, 16}});
    index[9] = bad;
    const auto map = indexed_groups("l.g_idx", index, 2);
    ASSERT_FALSE(map.ok());
    EXPECT_EQ(map.status().code(), Code::kCorruptFile);
    EXPECT_NE(map.status().message().find("'l.g_idx': column 9 is in group " + std::to_string(bad)),
              std::string::npos)
        << map.status().message();
  }
}

}  // namespace
}  // namespace nibble::checkpoint
