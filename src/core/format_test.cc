#include <gtest/gtest.h>

#include "nibble/core.h"

namespace nibble {
namespace {

TEST(FormatTest, EveryNamedFormatParsesBackToItsName) {
  for (const char* name : named_formats()) {
    const auto format = Format::parse(name);
    ASSERT_TRUE(format.ok()) << name << ": " << format.status().message();
    EXPECT_EQ(format->name(), name);
  }
}

TEST(FormatTest, EveryCombinationOfTheGrammarRoundTrips) {
  int legal = 0;
  for (const char* element : {"int4", "uint4", "int8", "uint8", "fp4", "nf4"}) {
    for (const char* group : {"g16", "g32", "g64", "g128", "channel"}) {
      for (const char* scale : {"f32", "f16", "bf16", "e4m3", "e8m0"}) {
        for (const char* zero : {"", ":zint", ":zfloat", ":zadd"}) {
          const auto format =
              Format::parse(std::string(element) + "-" + group + ":" + scale + zero);
          if (!format.ok()) continue;
          ++legal;
          const auto again = Format::parse(format->name());
          ASSERT_TRUE(again.ok()) << format->name();
          EXPECT_EQ(*again, *format) << format->name();
        }
      }
    }
  }
  // 4 elements without zero x 5 groups x 5 scales; 2 unsigned ones: no suffix or zint with every
  // scale (the same Format), zfloat and zadd with the three wide scales.
  EXPECT_EQ(legal, 4 * 25 + 2 * 5 * (2 * 5 + 2 * 3));
}

TEST(FormatTest, NamesOfNvfp4AndMxfp4AreTheShortOnes) {
  EXPECT_EQ(Format::parse("fp4-g16:e4m3")->name(), "nvfp4");
  EXPECT_EQ(Format::parse("fp4-g32:e8m0")->name(), "mxfp4");
  EXPECT_EQ(Format::parse("int4-g128:bf16")->name(), "int4-g128");
  EXPECT_EQ(Format::parse("uint4-g64:f16:zfloat")->name(), "uint4-g64:f16:zfloat");
}

TEST(FormatTest, WrongNamesSayWhatIsWrong) {
  const auto message = [](const char* name) {
    const auto format = Format::parse(name);
    EXPECT_FALSE(format.ok()) << name;
    EXPECT_EQ(format.status().code(), Code::kInvalidArgument) << name;
    return format.status().message();
  };
  EXPECT_NE(message("int4").find("no group"), std::string::npos);
  EXPECT_NE(message("int5-g32").find("unknown element 'int5'"), std::string::npos);
  EXPECT_NE(message("int4-g48").find("group 48 is not 16, 32, 64, 128"), std::string::npos);
  EXPECT_NE(message("int4-g0").find("group 'g0'"), std::string::npos);
  EXPECT_NE(message("int4-g99999999999").find("group 'g99999999999'"), std::string::npos);
  EXPECT_NE(message("int4-g32:bf17").find("'bf17'"), std::string::npos);
  EXPECT_NE(message("int4-g32:bf16:bf16").find("stands twice"), std::string::npos);
  EXPECT_NE(message("int4-g32:zint").find("takes no zero point"), std::string::npos);
  EXPECT_NE(message("uint4-g32:e4m3:zadd").find("cannot be stored as e4m3"), std::string::npos);
  message("");
  message("-");
  message("int4-g32:");
}

TEST(FormatTest, CountsGroupsBytesAndBits) {
  const Format int4 = *Format::parse("int4-g128");
  EXPECT_EQ(int4.groups(4304), 34);  // 33 whole ones and 80 columns
  EXPECT_EQ(int4.code_row_bytes(4303), 2152);
  EXPECT_DOUBLE_EQ(int4.bits_per_weight(4096), 4.125);
  EXPECT_DOUBLE_EQ(Format::parse("nvfp4")->bits_per_weight(4096), 4.5);
  EXPECT_DOUBLE_EQ(Format::parse("mxfp4")->bits_per_weight(4096), 4.25);
  EXPECT_DOUBLE_EQ(Format::parse("uint4-g32")->bits_per_weight(4096), 4.75);
  EXPECT_EQ(Format::parse("int8-channel")->groups(4096), 1);
  EXPECT_EQ(Format::parse("uint4-g32:f16:zfloat")->zero_dtype(), DType::kF16);
  EXPECT_EQ(Format::parse("uint4-g32")->zero_dtype(), DType::kU8);
}

TEST(FormatTest, ElementsDecodeAsSpecified) {
  for (int code = 0; code < 16; ++code) {
    const auto c = static_cast<uint8_t>(code);
    EXPECT_EQ(decode_element(Element::kInt4, c, nullptr), code < 8 ? code : code - 16);
    EXPECT_EQ(decode_element(Element::kUint4, c, nullptr), code);
    EXPECT_EQ(decode_element(Element::kNF4, c, kNf4Codebook.data()), kNf4Codebook[c]);
  }
  const float magnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int code = 0; code < 16; ++code) {
    const float expected = (code & 8) != 0 ? -magnitudes[code & 7] : magnitudes[code & 7];
    EXPECT_EQ(decode_element(Element::kE2M1, static_cast<uint8_t>(code), nullptr), expected);
  }
  EXPECT_EQ(decode_element(Element::kInt8, 0x80, nullptr), -128);
  EXPECT_EQ(decode_element(Element::kUint8, 0x80, nullptr), 128);
}

}  // namespace
}  // namespace nibble
