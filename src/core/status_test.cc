#include <gtest/gtest.h>

#include <limits>

#include "nibble/core.h"

namespace nibble {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return invalid_argument("value = " + std::to_string(value) + " is odd");
  return value / 2;
}

Status quarter(int value, int* out) {
  NIBBLE_ASSIGN_OR_RETURN(const int once, half(value));
  NIBBLE_ASSIGN_OR_RETURN(*out, half(once));
  return {};
}

TEST(StatusTest, ErrorsTravelThroughTheMacros) {
  int out = 0;
  EXPECT_TRUE(quarter(12, &out).ok());
  EXPECT_EQ(out, 3);
  const Status status = quarter(6, &out);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_EQ(status.message(), "value = 3 is odd");
}

TEST(StatusTest, ContextStandsBeforeTheMessage) {
  EXPECT_EQ(invalid_argument("k is odd").with_context("layer 3").message(), "layer 3: k is odd");
  EXPECT_TRUE(ok_status().with_context("layer 3").ok());
}

TEST(StatusTest, AResultCannotBeMadeOfAnOkStatus) {
  const Result<int> result{Status{}};
  EXPECT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), Code::kInternal);
}

TEST(BufferTest, AllocationsAreAlignedAndSlicesShareOwnership) {
  Buffer slice;
  {
    Buffer whole = *Buffer::allocate(1000);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(whole.data()) % 256, 0u);
    whole.mutable_data()[500] = 42;
    slice = whole.slice(500, 10);
  }
  EXPECT_EQ(slice.data()[0], 42);
  EXPECT_EQ(slice.bytes(), 10);
}

TEST(BufferTest, ViewsOfConstantMemoryAreReadOnly) {
  const uint8_t bytes[4] = {1, 2, 3, 4};
  Buffer view = Buffer::view(bytes, 4);
  EXPECT_EQ(view.mutable_data(), nullptr);
  EXPECT_EQ(view.data(), bytes);
}

TEST(BufferTest, ImpossibleSizesAreErrors) {
  EXPECT_EQ(Buffer::allocate(-1).status().code(), Code::kInvalidArgument);
  EXPECT_FALSE(Buffer::allocate(std::numeric_limits<int64_t>::max()).ok());
}

TEST(CheckedProductTest, RefusesOverflowAndNegatives) {
  EXPECT_EQ(checked_product(3, 4), 12);
  EXPECT_EQ(checked_product(int64_t{1} << 32, int64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_product(-1, 4), std::nullopt);
}

}  // namespace
}  // namespace nibble
