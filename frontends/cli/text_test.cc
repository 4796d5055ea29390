#include "text.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bench_case.h"
#include "cli.h"
#include "progress.h"

namespace nibble::cli {
namespace {

TEST(HumanBytes, KeepsThreeDigits) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(999), "999 B");
  EXPECT_EQ(human_bytes(1000), "1.00 kB");
  EXPECT_EQ(human_bytes(12345), "12.3 kB");
  EXPECT_EQ(human_bytes(999499), "999 kB");
  EXPECT_EQ(human_bytes(999500), "1.00 MB");
  EXPECT_EQ(human_bytes(2'200'000'000), "2.20 GB");
  EXPECT_EQ(human_bytes(5'000'000'000'000'000), "5000 TB");
}

TEST(HumanSeconds, NamesTheTwoLargestUnits) {
  EXPECT_EQ(human_seconds(0.4), "0 s");
  EXPECT_EQ(human_seconds(59.4), "59 s");
  EXPECT_EQ(human_seconds(200), "3 min 20 s");
  EXPECT_EQ(human_seconds(7500), "2 h 5 min");
  EXPECT_EQ(human_seconds(-1), "0 s");
}

TEST(Printable, ReplacesWhatCouldDriveATerminal) {
  EXPECT_EQ(printable("a\x1b[2J\nb\x7f"), "a?[2J?b?");
  EXPECT_EQ(printable("größe"), "größe");
}

TEST(Quantile, TakesAnElementAndNothingFromNothing) {
  EXPECT_EQ(quantile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(quantile({3, 1, 2}, 0), 1);
  EXPECT_EQ(quantile({3, 1, 2}, 1), 3);
  EXPECT_TRUE(std::isnan(quantile({}, 0.5)));
}

TEST(ExitCodes, EveryStatusHasOneAndOnlyOkIsZero) {
  for (int i = 0; i <= static_cast<int>(Code::kInternal); ++i) {
    const Exit code = exit_of(static_cast<Code>(i));
    EXPECT_EQ(code == Exit::kOk, i == 0) << i;
  }
  EXPECT_EQ(static_cast<int>(exit_of(Code::kCorruptFile)), 4);
}

}  // namespace
}  // namespace nibble::cli
