#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

using ::testing::Test;

Result<TensorFile> parse(const std::string& bytes) {
  Buffer buffer = Buffer::allocate(static_cast<int64_t>(bytes.size())).value();
  if (!bytes.empty()) std::memcpy(buffer.mutable_data(), bytes.data(), bytes.size());
  return parse_safetensors(MappedFile::of_memory(buffer), "hostile.safetensors");
}

/// The file is refused as corrupt, and the message names the file and holds every word.
void expect_refused(const std::string& bytes, const std::vector<std::string>& words) {
  const Result<TensorFile> file = parse(bytes);
  ASSERT_FALSE(file.ok()) << words.front();
  const std::string& message = file.status().message();
  EXPECT_EQ(file.status().code(), Code::kCorruptFile) << message;
  EXPECT_NE(message.find("hostile.safetensors"), std::string::npos) << message;
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << message << "\nlacks: " << word;
  }
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirOffsets) {
  const std::string header = R"({"__metadata__":{"format":"pt","note":"x"},)" +
                             entry("b", "BF16", "[2,3]", "[4,16]") + "," +
                             entry("a", "F32", "[]", "[0,4]") + "," +
                             entry("empty", "F32", "[0,7]", "[16,16]") + "}   ";
  const auto file = parse(raw_safetensors(header, std::string(16, 'x')));
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->tensors.size(), 3u);
  EXPECT_EQ(file->tensors[0].name, "a");
  EXPECT_EQ(file->tensors[0].shape, std::vector<int64_t>{});
  EXPECT_EQ(file->tensors[0].bytes, 4);
  EXPECT_EQ(file->tensors[0].file_offset, 8 + static_cast<int64_t>(header.size()));
  EXPECT_EQ(file->tensors[1].name, "b");
  EXPECT_EQ(file->tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(file->tensors[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file->tensors[2].bytes, 0);
  EXPECT_EQ(file->metadata.at("note"), "x");
}

TEST(Safetensors, UnknownDtypesKeepTheSizeOfTheirOffsets) {
  const auto file =
      parse(raw_safetensors("{" + entry("t", "F6_E3M2", "[4]", "[0,3]") + "}", "abc"));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_FALSE(file->tensors[0].dtype.has_value());
  EXPECT_EQ(file->tensors[0].dtype_name, "F6_E3M2");
  EXPECT_EQ(file->tensors[0].bytes, 3);
}

TEST(Safetensors, EveryCutOfAFileIsRefused) {
  const std::string whole = FileBuilder()
                                .add("layer.weight", "F32", {2, 2}, std::string(16, 'w'))
                                .add("bias", "F16", {3}, std::string(6, 'b'))
                                .build();
  ASSERT_TRUE(parse(whole).ok());
  for (size_t length = 0; length < whole.size(); ++length) {
    const auto file = parse(whole.substr(0, length));
    ASSERT_FALSE(file.ok()) << length;
    EXPECT_EQ(file.status().code(), Code::kCorruptFile) << length;
  }
}

TEST(Safetensors, HeaderLengthIsCheckedAgainstTheFile) {
  expect_refused("", {"0 bytes"});
  expect_refused("1234567", {"7 bytes"});
  expect_refused(std::string(8, '\xFF') + "{}", {"18446744073709551615"});
  std::string longer = raw_safetensors("{}", "");
  longer[0] = 3;
  expect_refused(longer, {"3 bytes", "10"});
  std::string negative = raw_safetensors("{}", "");
  negative[7] = '\x80';
  expect_refused(negative, {"at most"});
  expect_refused(std::string(8, '\0'), {"does not begin with '{'"});
  expect_refused(raw_safetensors(" {}", ""), {"does not begin with '{'"});
}

TEST(Safetensors, HeadersThatAreNoJsonObjectAreRefused) {
  expect_refused(raw_safetensors("{", ""), {"not valid JSON"});
  expect_refused(raw_safetensors("{}x", ""), {"not valid JSON"});
  expect_refused(raw_safetensors("{\"\xFF\":1}", ""), {"not valid JSON"});
  expect_refused(raw_safetensors(R"({"t":1})", ""), {"a number", "'t'"});
  expect_refused(raw_safetensors(R"({"t":[]})", ""), {"an array"});
  expect_refused(raw_safetensors(R"({"t":{}})", ""), {"'t'", "dtype, shape and data_offsets"});
  expect_refused(raw_safetensors(R"({"__metadata__":{"a":1}})", ""), {"a number"});
  expect_refused(raw_safetensors(R"({"__metadata__":{"a":{}}})", ""), {"an object"});
}

TEST(Safetensors, DeepNestingIsRefusedWithoutRecursion) {
  std::string deep = R"({"t":{"dtype":)";
  deep += std::string(1'000'000, '[');
  expect_refused(raw_safetensors(deep, ""), {"'t'", "an array"});
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += R"("a":{)";
  expect_refused(raw_safetensors(objects, ""), {"'a'"});
}

TEST(Safetensors, DuplicateKeysAreRefused) {
  const std::string t = entry("t", "U8", "[1]", "[0,1]");
  expect_refused(raw_safetensors("{" + t + "," + t + "}", "x"), {"'t'", "twice"});
  expect_refused(raw_safetensors("{" + t + "," + entry("t", "U8", "[1]", "[1,2]") + "}", "xy"),
                 {"'t'", "twice"});
  expect_refused(raw_safetensors(R"({"t":{"dtype":"U8","dtype":"I8"}})", ""), {"'dtype'", "twice"});
  expect_refused(raw_safetensors(R"({"__metadata__":{},"__metadata__":{}})", ""), {"__metadata__"});
  expect_refused(raw_safetensors(R"({"__metadata__":{"a":"1","a":"2"}})", ""), {"'a'", "twice"});
}

TEST(Safetensors, UnknownKeysOfATensorAreRefused) {
  expect_refused(raw_safetensors(R"({"t":{"dtype":"U8","stride":[1]}})", ""), {"'t'", "'stride'"});
}

TEST(Safetensors, OffsetsMustTileTheData) {
  const auto refused = [](const std::string& entries, const std::vector<std::string>& words) {
    expect_refused(raw_safetensors("{" + entries + "}", std::string(8, 'x')), words);
  };
  refused(entry("t", "U8", "[9]", "[0,9]"), {"'t'", "pass the end", "truncated"});
  refused(entry("t", "U8", "[4]", "[9,13]"), {"'t'", "pass the end"});
  refused(entry("t", "U8", "[4]", "[4,0]"), {"'t'", "end before they begin"});
  refused(entry("a", "U8", "[5]", "[0,5]") + "," + entry("b", "U8", "[4]", "[4,8]"),
          {"'b'", "overlap"});
  refused(entry("a", "U8", "[8]", "[0,8]") + "," + entry("b", "U8", "[8]", "[0,8]"), {"overlap"});
  refused(entry("a", "U8", "[3]", "[0,3]") + "," + entry("b", "U8", "[4]", "[4,8]"),
          {"'b'", "hole"});
  refused(entry("a", "U8", "[7]", "[1,8]"), {"'a'", "hole"});
  refused(entry("a", "U8", "[7]", "[0,7]"), {"end at byte 7"});
  refused(entry("t", "U8", "[8]", "[0]"), {"'t'", "2 numbers"});
  refused(entry("t", "U8", "[8]", "[0,8,8]"), {"'t'", "a number"});
  refused(entry("t", "U8", "[8]", "[0,18446744073709551615]"), {"'t'", "63-bit"});
  refused(entry("t", "U8", "[8]", "[0,9223372036854775807]"), {"'t'", "pass the end"});
  refused(entry("t", "U8", "[8]", "[-8,0]"), {"'t'", "negative"});
  refused(entry("t", "U8", "[8]", "[0,8.0]"), {"'t'", "integer"});
}

TEST(Safetensors, ShapesMustMatchTheSizeAndMustNotOverflow) {
  const auto refused = [](const std::string& dtype, const std::string& shape,
                          const std::vector<std::string>& words) {
    expect_refused(
        raw_safetensors("{" + entry("t", dtype, shape, "[0,8]") + "}", std::string(8, 'x')), words);
  };
  refused("F32", "[3]", {"'t'", "12 bytes"});
  refused("F32", "[2,0]", {"'t'", "0 bytes"});
  refused("U8", "[4294967296,4294967296]", {"'t'", "overflows"});
  // 2^32 * 2^32 = 0 modulo 2^64, and 2^62 * 4 bytes = 0: both would pass a wrapping check.
  refused("F32", "[4611686018427387904,2]", {"'t'", "overflows"});
  refused("F64", "[2305843009213693952]", {"'t'", "overflows"});
  refused("F99", "[4294967296,4294967296,4]", {"'t'", "overflows"});
  refused("U8", "[-8]", {"'t'", "negative"});
  refused("U8", "[8.5]", {"'t'", "integer"});
  refused("U8", "[[8]]", {"'t'", "an array"});
  refused("U8", "8", {"'t'", "a number"});
  std::string ones = "[8";
  for (int i = 0; i < 40; ++i) ones += ",1";
  refused("U8", ones + "]", {"'t'", "dimensions"});
}

TEST(Safetensors, NamesInMessagesAreEscapedAndCut) {
  const std::string name = "\\u001b[31m" + std::string(500, 'n');
  const auto file = parse(raw_safetensors("{" + entry(name, "U8", "[9]", "[0,9]") + "}", "x"));
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().message().find('\x1b'), std::string::npos);
  EXPECT_NE(file.status().message().find("\\x1b[31m"), std::string::npos);
  EXPECT_LT(file.status().message().size(), 500u);
}

TEST(Safetensors, WrittenHeadersBeginTheDataAtAMultipleOfEight) {
  for (size_t length = 1; length < 12; ++length) {
    TensorInfo tensor;
    tensor.name = std::string(length, 'a') + "\"\\";
    tensor.dtype_name = "I64";
    tensor.shape = {1};
    tensor.bytes = 8;
    const std::string header = safetensors_header({&tensor, 1}, {{"format", "pt"}});
    EXPECT_EQ(header.size() % 8, 0u);
    const auto file = parse(header + std::string(8, 'd'));
    ASSERT_TRUE(file.ok()) << file.status().message();
    EXPECT_EQ(file->tensors[0].name, tensor.name);
    EXPECT_EQ(file->metadata.at("format"), "pt");
  }
}

TEST(Safetensors, FilesThatCannotBeReadAreIoErrors) {
  const TempDirectory directory;
  EXPECT_EQ(Checkpoint::open(directory.path("missing")).status().code(), Code::kIo);
  EXPECT_EQ(MappedFile::open(directory.path()).status().code(), Code::kIo);
  write_bytes(directory.path("empty"), "");
  EXPECT_EQ(Checkpoint::open(directory.path("empty")).status().code(), Code::kCorruptFile);
}

}  // namespace
}  // namespace nibble::checkpoint
