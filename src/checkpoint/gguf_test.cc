// The GGUF container: what it says, and every way in which a file can lie.
#include "checkpoint/gguf.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>

#include "checkpoint/gguf_test_files.h"

namespace nibble::checkpoint {
namespace {

constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kI32 = 26;

/// One block of Q4_0.
std::string q4_0_block(uint16_t scale = 0x3C00) { return raw(scale) + std::string(16, '\x5A'); }

/// Opening fails with this code and a message that has all of these words.
void expect_refused(const Result<Checkpoint>& opened, Code code,
                    const std::vector<std::string>& words) {
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), code) << opened.status().message();
  for (const std::string& word : words) {
    EXPECT_NE(opened.status().message().find(word), std::string::npos)
        << "no '" << word << "' in: " << opened.status().message();
  }
}
void expect_corrupt(const GgufBuilder& builder, const std::vector<std::string>& words) {
  expect_refused(open_gguf_bytes(builder.build()), Code::kCorruptFile, words);
}

GgufBuilder small_file() {
  GgufBuilder builder;
  builder.pair("general.architecture", "llama");
  builder.pair("llama.block_count", 1);
  builder.pair("list", GgufValue::kArray,
               gguf_array(GgufValue::kString, 2, gguf_string("a") + gguf_string("")));
  builder.tensor("blk.0.ffn_up.weight", {32, 2}, kQ4_0, q4_0_block() + q4_0_block());
  builder.floats("norm.weight", 3);
  return builder;
}

// ------------------------------------------------------------------------------ what it says

TEST(Gguf, DimensionsAreReversed) {
  GgufBuilder builder;
  builder.tensor("m", {3, 2}, kF32, std::string(24, '\0'));
  builder.tensor("experts", {2, 3, 5}, kF16, std::string(60, '\0'));
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  EXPECT_EQ(opened.find("m")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(opened.find("experts")->shape, (std::vector<int64_t>{5, 3, 2}));
  EXPECT_EQ(opened.find("experts")->bytes, 60);
  EXPECT_EQ(opened.spelling(), "");  // nothing in it is quantized
  EXPECT_TRUE(opened.layers().empty());
}

TEST(Gguf, VersionTwoIsRead) {
  GgufBuilder builder = small_file();
  builder.version = 2;
  EXPECT_EQ(open_gguf_bytes(builder.build())->layers().size(), 1u);
}

TEST(Gguf, PlainTensorsKeepTheirValues) {
  GgufBuilder builder;
  const std::vector<float> values = {1.5f, -2, 0};
  builder.tensor("a", {3}, kF32, values_of(DType::kF32, values));
  builder.tensor("b", {3}, 30, values_of(DType::kBF16, values));
  builder.tensor("c", {2}, kI32, raw<int32_t>(7) + raw<int32_t>(-1));
  builder.tensor("scalar", {}, kF32, raw(3.0f));
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  const Tensor b = opened.tensor("b").value();
  EXPECT_EQ(b.view.dtype, DType::kBF16);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(load_as_f32(b.view.data, b.view.dtype, static_cast<int64_t>(i)), values[i]);
  }
  EXPECT_EQ(static_cast<const int32_t*>(opened.tensor("c")->view.data)[1], -1);
  EXPECT_TRUE(opened.find("scalar")->shape.empty());
  EXPECT_EQ(opened.find("a")->dtype_name, "F32");
}

TEST(Gguf, PairsBecomeText) {
  GgufBuilder builder;
  builder.pair("u8", GgufValue::kU8, raw<uint8_t>(200));
  builder.pair("i8", GgufValue::kI8, raw<int8_t>(-100));
  builder.pair("u16", GgufValue::kU16, raw<uint16_t>(65535));
  builder.pair("i16", GgufValue::kI16, raw<int16_t>(-5));
  builder.pair("u32", 4000000000u);
  builder.pair("i32", GgufValue::kI32, raw<int32_t>(-6));
  builder.pair("u64", GgufValue::kU64, raw<uint64_t>(UINT64_MAX));
  builder.pair("i64", GgufValue::kI64, raw<int64_t>(INT64_MIN));
  builder.pair("f32", GgufValue::kF32, raw(1e-5f));
  builder.pair("f64", GgufValue::kF64, raw(0.1));
  builder.pair("bool", GgufValue::kBool, raw<uint8_t>(1));
  builder.pair("text", "two\nlines");
  builder.pair("empty", GgufValue::kArray, gguf_array(GgufValue::kU8, 0, ""));
  const std::string inner = gguf_array(GgufValue::kU8, 2, "\x01\x02");
  builder.pair("nested", GgufValue::kArray, gguf_array(GgufValue::kArray, 2, inner + inner));
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  const auto& text = opened.metadata();
  const std::map<std::string, std::string> expected = {
      {"u8", "200"},
      {"i8", "-100"},
      {"u16", "65535"},
      {"i16", "-5"},
      {"i32", "-6"},
      {"u64", "18446744073709551615"},
      {"f32", "1e-05"},
      {"f64", "0.1"},
      {"i64", "-9223372036854775808"},
      {"bool", "true"},
      {"empty", "[]"},
      {"text", "two\nlines"},
      {"u32", "4000000000"},
      {"nested", "[[1, 2], [1, 2]]"},
  };
  EXPECT_EQ(text, expected);
}

TEST(Gguf, LongArraysAreShortened) {
  std::string tokens;
  for (int i = 0; i < 50000; ++i) tokens += gguf_string("token" + std::to_string(i));
  GgufBuilder builder;
  builder.pair("tokens", GgufValue::kArray, gguf_array(GgufValue::kString, 50000, tokens));
  builder.pair("scores", GgufValue::kArray,
               gguf_array(GgufValue::kF32, 50000, std::string(200000, '\0')));
  const std::string wide = "\xE2\x82\xAC";  // three bytes
  std::string text;
  for (int i = 0; i < 30; ++i) text += wide;
  builder.pair("wide", GgufValue::kArray, gguf_array(GgufValue::kString, 1, gguf_string(text)));
  builder.pair("last", 5);
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  EXPECT_EQ(opened.metadata().at("tokens"),
            "[\"token0\", \"token1\", \"token2\", \"token3\", \"token4\", \"token5\", \"token6\", "
            "\"token7\", … 50000 in all]");
  EXPECT_EQ(opened.metadata().at("scores"), "[0, 0, 0, 0, 0, 0, 0, 0, … 50000 in all]");
  EXPECT_EQ(opened.metadata().at("last"), "5");
  // Cut between characters, never within one.
  EXPECT_EQ(opened.metadata().at("wide").size(), 2 + 2 + 3 * 13 + std::string("…").size());
}

TEST(Gguf, DataBeginsAtTheAlignmentOfTheFile) {
  for (const uint32_t alignment : {1u, 8u, 64u, 4096u}) {
    GgufBuilder builder;
    builder.alignment = alignment;
    builder.pair("general.alignment", alignment);
    builder.floats("a", 3).floats("b", 5);
    const Checkpoint opened = open_gguf_bytes(builder.build()).value();
    EXPECT_EQ(opened.find("b")->file_offset % alignment, 0) << alignment;
    const std::vector<float> expected = random_floats(5, 7);
    const Tensor b = opened.tensor("b").value();
    EXPECT_EQ(std::memcmp(b.view.data, expected.data(), 20), 0) << alignment;
  }
}

TEST(Gguf, TensorsComeInTheOrderOfOffsets) {
  GgufBuilder builder;
  builder.tensor_at("late", {8}, kF32, 32, std::string(64, '\1'));
  builder.tensor_at("early", {8}, kF32, 0, "");
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  ASSERT_EQ(opened.tensors().size(), 2u);
  EXPECT_EQ(opened.tensors()[0].name, "early");
}

// ------------------------------------------------------------------------------ damaged files

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string whole = small_file().build();
  ASSERT_TRUE(open_gguf_bytes(whole).ok());
  for (size_t length = 0; length < whole.size(); ++length) {
    // Below four bytes nothing says GGUF but the name.
    const Result<Checkpoint> opened = open_gguf_bytes(whole.substr(0, length));
    ASSERT_FALSE(opened.ok()) << length;
    ASSERT_EQ(opened.status().code(), Code::kCorruptFile) << opened.status().message();
  }
}

TEST(Gguf, NoChangedByteCrashesOrHangs) {
  const std::string whole = small_file().build();
  for (size_t i = 0; i < whole.size(); ++i) {
    for (const int flip : {0x01, 0x10, 0x80, 0xFF}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ flip);
      const Result<Checkpoint> opened = open_gguf_bytes(damaged);
      if (!opened.ok()) {
        EXPECT_FALSE(opened.status().message().empty());
        continue;
      }
      for (const LayerInfo& layer : opened->layers()) {
        const auto q = opened->load(layer.name);
        EXPECT_TRUE(q.ok() || !q.status().message().empty());
      }
    }
  }
}

TEST(Gguf, BigEndianIsRefusedByName) {
  GgufBuilder builder = small_file();
  builder.version = 3u << 24;
  expect_refused(open_gguf_bytes(builder.build()), Code::kUnsupported, {"big-endian"});
}

TEST(Gguf, OtherVersionsAreRefusedByNumber) {
  for (const uint32_t version : {1u, 4u}) {
    GgufBuilder builder = small_file();
    builder.version = version;
    expect_refused(open_gguf_bytes(builder.build()), Code::kUnsupported,
                   {"version " + std::to_string(version)});
  }
}

TEST(Gguf, CountsOutOfProportionAreRefusedAtOnce) {
  for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 60, UINT64_MAX}) {
    GgufBuilder pairs = small_file(), tensors = small_file();
    pairs.num_pairs = count;
    tensors.num_tensors = count;
    expect_corrupt(pairs, {"a number of pairs of " + std::to_string(count)});
    expect_corrupt(tensors, {"a number of tensors of " + std::to_string(count)});
    GgufBuilder text, array, strings, arrays, key;
    text.pair("k", GgufValue::kString, raw(count) + "abc");
    expect_corrupt(text, {"key 'k'", "a string of " + std::to_string(count)});
    array.pair("k", GgufValue::kArray, gguf_array(GgufValue::kF64, count, "abc"));
    expect_corrupt(array, {"key 'k'", "an array of " + std::to_string(count)});
    strings.pair("k", GgufValue::kArray, gguf_array(GgufValue::kString, count, "abc"));
    expect_corrupt(strings, {"an array of " + std::to_string(count)});
    arrays.pair("k", GgufValue::kArray, gguf_array(GgufValue::kArray, count, "abc"));
    expect_corrupt(arrays, {"an array of " + std::to_string(count)});
  }
}

TEST(Gguf, NestingDeeperThan32IsRefused) {
  const auto nested = [](int depth) {
    std::string value = gguf_array(GgufValue::kU8, 1, "\x07");
    for (int i = 1; i < depth; ++i) value = gguf_array(GgufValue::kArray, 1, value);
    GgufBuilder builder;
    builder.pair("deep", GgufValue::kArray, value);
    return builder;
  };
  const Checkpoint opened = open_gguf_bytes(nested(32).build()).value();
  EXPECT_EQ(opened.metadata().at("deep"), std::string(32, '[') + "7" + std::string(32, ']'));
  expect_corrupt(nested(33), {"key 'deep'", "deeper than 32"});
  expect_corrupt(nested(1000), {"deeper than 32"});
}

TEST(Gguf, UnknownValueTypesAreRefused) {
  GgufBuilder value, array;
  value.pair("k", static_cast<GgufValue>(13), "abcdefgh");
  expect_corrupt(value, {"key 'k'", "type 13"});
  array.pair("k", GgufValue::kArray, gguf_array(static_cast<GgufValue>(99), 0, ""));
  expect_corrupt(array, {"type 99"});
}

TEST(Gguf, KeysAndNamesStandOnce) {
  GgufBuilder keys, names;
  keys.pair("a", 1).pair("b", 2).pair("a", 3);
  expect_corrupt(keys, {"key 'a'", "twice"});
  names.floats("t", 3).floats("u", 3).floats("t", 3);
  expect_corrupt(names, {"tensor 't'", "twice"});
}

TEST(Gguf, AlignmentIsAPowerOfTwo) {
  for (const uint32_t alignment : {0u, 48u, 4294967295u}) {
    GgufBuilder builder;
    builder.pair("general.alignment", alignment).floats("t", 3);
    expect_corrupt(builder, {"general.alignment = " + std::to_string(alignment)});
  }
  GgufBuilder text;
  text.pair("general.alignment", "32").floats("t", 3);
  expect_corrupt(text, {"general.alignment"});
}

TEST(Gguf, OffsetsStayInTheData) {
  const auto at = [](uint64_t offset) {
    GgufBuilder builder;
    builder.tensor_at("t", {8}, kF32, offset, std::string(32, '\0'));
    return builder;
  };
  EXPECT_TRUE(open_gguf_bytes(at(0).build()).ok());
  expect_corrupt(at(32), {"tensor 't'", "pass the end", "truncated"});
  expect_corrupt(at(uint64_t{1} << 62), {"tensor 't'"});
  expect_corrupt(at(INT64_MAX), {"tensor 't'"});
  expect_corrupt(at(UINT64_MAX), {"tensor 't'", "63 bits"});
  GgufBuilder crooked, overlap;
  crooked.tensor_at("t", {4}, kF32, 8, std::string(64, '\0'));
  expect_corrupt(crooked, {"tensor 't'", "not aligned to 32"});
  overlap.tensor_at("t", {16}, kF32, 0, std::string(64, '\0')).tensor_at("u", {8}, kF32, 32, "");
  expect_corrupt(overlap, {"tensor 'u'", "overlap"});
}

TEST(Gguf, DimensionsThatOverflowAreRefused) {
  const auto of = [](const std::vector<uint64_t>& extents, uint32_t type) {
    GgufBuilder builder;
    builder.tensor("t", extents, type, std::string(64, '\0'));
    return builder;
  };
  expect_corrupt(of({uint64_t{1} << 32, uint64_t{1} << 32}, kF32), {"tensor 't'", "overflow"});
  expect_corrupt(of({uint64_t{1} << 62}, kF32), {"tensor 't'", "overflow"});
  expect_corrupt(of({UINT64_MAX}, kF32), {"tensor 't'", "63 bits"});
  expect_corrupt(of({uint64_t{1} << 63, 0}, kF32), {"tensor 't'"});
  // More values than 63 bits although their bytes would fit.
  expect_corrupt(of({uint64_t{1} << 40, uint64_t{1} << 23}, kQ4_0), {"tensor 't'", "overflow"});
  expect_corrupt(of({1, 1, 1, 1, 1}, kF32), {"5 dimensions"});
  GgufBuilder rank;
  rank.num_tensors = 1;
  expect_refused(open_gguf_bytes(rank.build() + gguf_string("t") + raw<uint32_t>(UINT32_MAX) +
                                 std::string(64, '\0')),
                 Code::kCorruptFile, {});
}

TEST(Gguf, RowsAreWholeBlocks) {
  GgufBuilder builder;
  builder.tensor("t", {48, 2}, kQ4_0, std::string(54, '\0'));
  expect_corrupt(builder, {"tensor 't'", "rows of 48", "blocks of 32"});
}

TEST(Gguf, TypesThatGgmlHasNotAreRefused) {
  GgufBuilder unknown, removed;
  unknown.tensor("t", {32}, 42, std::string(64, '\0'));
  expect_refused(open_gguf_bytes(unknown.build()), Code::kUnsupported, {"tensor 't'", "type 42"});
  removed.tensor("t", {32}, 31, std::string(64, '\0'));
  expect_refused(open_gguf_bytes(removed.build()), Code::kUnsupported,
                 {"tensor 't'", "removed", "Q4_0_4_4"});
}

TEST(Gguf, ATensorMayBeEmpty) {
  GgufBuilder builder;
  builder.tensor("t", {0, 5}, kF32, "").tensor("q", {0, 5}, kQ4_0, "").floats("u", 3);
  const Checkpoint opened = open_gguf_bytes(builder.build()).value();
  EXPECT_EQ(opened.find("t")->bytes, 0);
  EXPECT_FALSE(opened.find_layer("q")->status.ok());
}

// -------------------------------------------------------------------------------- split files

class GgufParts : public testing::Test {
 protected:
  /// Part `number` (from 0) of `count` with one tensor of its own.
  GgufBuilder part(int number, int count, int total) const {
    GgufBuilder builder;
    builder.pair("split.no", GgufValue::kU16, raw(static_cast<uint16_t>(number)));
    builder.pair("split.count", GgufValue::kU16, raw(static_cast<uint16_t>(count)));
    builder.pair("split.tensors.count", GgufValue::kI32, raw<int32_t>(total));
    if (number == 0) builder.pair("general.architecture", "llama");
    builder.tensor("blk." + std::to_string(number) + ".w.weight", {32, 1}, kQ4_0, q4_0_block());
    return builder;
  }
  std::string name(int number, int count) const {
    return directory_.path("m-0000" + std::to_string(number + 1) + "-of-0000" +
                           std::to_string(count) + ".gguf");
  }
  void write(int number, const GgufBuilder& builder, int count = 3) const {
    write_bytes(name(number, count), builder.build());
  }
  void write_all() const {
    for (int i = 0; i < 3; ++i) write(i, part(i, 3, 3));
  }
  TempDirectory directory_;
};

TEST_F(GgufParts, AreOneCheckpoint) {
  write_all();
  for (const std::string& path : {directory_.path(), name(0, 3)}) {
    const Checkpoint opened = Checkpoint::open(path).value();
    EXPECT_EQ(opened.shards().size(), 3u);
    ASSERT_EQ(opened.layers().size(), 3u);
    EXPECT_EQ(opened.find("blk.2.w.weight")->shard, 2);
    EXPECT_EQ(opened.metadata().at("general.architecture"), "llama");
    for (const LayerInfo& layer : opened.layers()) EXPECT_TRUE(opened.load(layer.name).ok());
  }
}

TEST_F(GgufParts, OpenFromTheFirst) {
  write_all();
  expect_refused(Checkpoint::open(name(1, 3)), Code::kUnsupported,
                 {"part 2 of 3", "open part 1", "-00001-of-00003.gguf"});
}

TEST_F(GgufParts, AreAllThere) {
  write_all();
  std::filesystem::remove(name(2, 3));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kIo, {"m-00003-of-00003.gguf"});
}

TEST_F(GgufParts, SayTheSame) {
  write_all();
  write(2, part(1, 3, 3));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile, {"part 2 of 3"});
  write(2, part(2, 4, 3));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile, {"part 3 of 4"});
  write(2, part(2, 3, 3));
  write(0, part(0, 3, 9));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile,
                 {"split.tensors.count = 9", "3 tensors"});
  write(0, part(3, 3, 3));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile, {"split.no = 3"});
}

TEST_F(GgufParts, HoldEachTensorOnce) {
  write_all();
  GgufBuilder twice = part(1, 3, 4);
  twice.floats("blk.0.w.weight", 3);
  write(1, twice);
  write(0, part(0, 3, 4));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile,
                 {"blk.0.w.weight", "m-00001-of-00003.gguf", "m-00002-of-00003.gguf"});
}

TEST_F(GgufParts, KeepTheirNames) {
  write_all();
  std::filesystem::rename(name(0, 3), directory_.path("renamed.gguf"));
  expect_refused(Checkpoint::open(directory_.path("renamed.gguf")), Code::kCorruptFile,
                 {"part 1 of 3", "-00001-of-00003.gguf"});
}

TEST_F(GgufParts, AreNoLinksOutOfTheDirectory) {
  write_all();
  const TempDirectory elsewhere;
  std::filesystem::rename(name(1, 3), elsewhere.path("part.gguf"));
  std::filesystem::create_symlink(elsewhere.path("part.gguf"), name(1, 3));
  expect_refused(Checkpoint::open(name(0, 3)), Code::kCorruptFile, {"link out of this directory"});
}

TEST_F(GgufParts, InMemoryAreRefused) {
  Result<Checkpoint> opened = open_gguf_bytes(part(0, 3, 3).build());
  EXPECT_FALSE(opened.ok());
}

}  // namespace
}  // namespace nibble::checkpoint
