#include "numbered_names.h"

#include <gtest/gtest.h>

namespace nibble::cli {
namespace {

std::string text_of(const std::vector<std::string>& names) {
  NumberedNames all;
  for (const std::string& name : names) all.add(name);
  EXPECT_EQ(all.count(), static_cast<int64_t>(names.size()));
  return all.text();
}

TEST(NumberedNames, OneNameStaysAsItIs) {
  for (const char* name : {"", "lm_head", "7", "blk.007.x", "a#b1",
                           "\xE2\x82\xAC"
                           "2"}) {
    EXPECT_EQ(text_of({name}), name);
  }
}

TEST(NumberedNames, NumbersThatDifferBecomeARange) {
  EXPECT_EQ(text_of({"blk.9.w", "blk.10.w", "blk.2.w"}), "blk.2-10.w");
  EXPECT_EQ(text_of({"l.0.e.7", "l.1.e.0"}), "l.0-1.e.0-7");
  EXPECT_EQ(text_of({"mlp2.l.3", "mlp2.l.4"}), "mlp2.l.3-4");
  EXPECT_EQ(text_of({"x.99999999999999999999", "x.1"}), "x.1-99999999999999999999");
}

TEST(NumberedNames, PatternsTellOtherNamesApart) {
  EXPECT_EQ(number_pattern("blk.10.attn_q"), number_pattern("blk.9.attn_q"));
  EXPECT_NE(number_pattern("blk.1.attn_q"), number_pattern("blk.1.attn_k"));
  EXPECT_NE(number_pattern("blk.1"), number_pattern("blk"));
}

}  // namespace
}  // namespace nibble::cli
