#include "comparison.h"

#include <gtest/gtest.h>

#include <vector>

namespace sentence_embedding {
namespace {

using Values = std::vector<double>;

TEST(Cosine, IgnoresLengthAndIsZeroForAZeroVector) {
  const std::vector<float> a = {1, 2, 3}, twice = {2, 4, 6}, across = {3, 0, -1}, zero = {0, 0, 0};
  EXPECT_DOUBLE_EQ(cosine(a, twice), 1);
  EXPECT_DOUBLE_EQ(cosine(a, across), 0);
  EXPECT_DOUBLE_EQ(cosine(a, zero), 0);
}

TEST(RankCorrelation, SeesOrderAlone) {
  EXPECT_DOUBLE_EQ(rank_correlation(Values{1, 2, 3}, Values{10, 20, 1000}), 1);
  EXPECT_DOUBLE_EQ(rank_correlation(Values{1, 2, 3}, Values{3, 2, 1}), -1);
  EXPECT_DOUBLE_EQ(rank_correlation(Values{1, 2, 3}, Values{5, 5, 5}), 0);
}

TEST(RankCorrelation, EqualValuesShareTheirMeanRank) {
  // Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
  EXPECT_NEAR(rank_correlation(Values{1, 2, 2, 3}, Values{1, 2, 3, 4}), 0.9486832980505138, 1e-12);
}

TEST(OrderChange, CountsSwappedComparisonsAndTheirWidestGap) {
  const OrderChange same = order_change(Values{0.1, 0.2, 0.9}, Values{1, 2, 3});
  EXPECT_EQ(same.comparisons, 3);
  EXPECT_EQ(same.swapped, 0);
  const OrderChange swapped = order_change(Values{0.1, 0.2, 0.9}, Values{2, 1, 0});
  EXPECT_EQ(swapped.swapped, 3);
  EXPECT_DOUBLE_EQ(swapped.widest_gap, 0.8);
}

TEST(OrderChange, AnOrderThatBecomesATieIsLostAndATieHasNoOrder) {
  const OrderChange change = order_change(Values{1, 1, 2}, Values{5, 6, 6});
  EXPECT_EQ(change.comparisons, 2);
  EXPECT_EQ(change.swapped, 1);
}

TEST(Median, OfOddAndEvenCounts) {
  EXPECT_DOUBLE_EQ(median(Values{3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median(Values{4, 1, 2, 3}), 2.5);
}

}  // namespace
}  // namespace sentence_embedding
