// bitsandbytes layers made by hand, in shapes the fixtures have not, and damaged ones.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/flat_blocks.h"
#include "checkpoint/test_layer.h"

namespace nibble::checkpoint {
namespace {

const char kConfig[] = R"({"quantization_config": {"quant_method": "bitsandbytes"}})";

/// A weight with one byte after another for codes; tests change one part at a time.
struct Layer {
  int64_t n, k, block;
  std::string type = "nf4", storage = "U8", json;
  std::vector<int64_t> code_shape;
  std::string codes;
  std::vector<float> map = std::vector<float>(16), absmax;
  std::vector<uint8_t> nested_codes;
  std::vector<float> nested_map, nested_absmax;
  int64_t nested_block = 0;
  float offset = 0;

  Layer(int64_t rows, int64_t columns, int64_t length) : n(rows), k(columns), block(length) {
    const int64_t bytes = (n * k + 1) / 2;
    for (int64_t i = 0; i < bytes; ++i) codes.push_back(static_cast<char>(37 * i + i / 251));
    code_shape = {bytes, 1};
    for (size_t i = 0; i < 16; ++i) map[i] = -1.0f + 0.137f * static_cast<float>(i);
    for (int64_t i = 0; i < blocks(); ++i) {
      absmax.push_back(0.3f + 0.017f * static_cast<float>(i % 97));
    }
    describe();
  }
  int64_t blocks() const { return (n * k - 1) / block + 1; }
  /// Replaces absmax by quantized ones.
  void nest(int64_t length, float nested_offset) {
    nested_block = length;
    offset = nested_offset;
    for (int64_t i = 0; i < blocks(); ++i) {
      nested_codes.push_back(static_cast<uint8_t>(91 * i + 7));
    }
    for (int i = 0; i < 256; ++i) nested_map.push_back(static_cast<float>(i - 120) / 131.0f);
    for (int64_t i = 0; i <= (blocks() - 1) / length; ++i) {
      nested_absmax.push_back(0.111f + 0.013f * static_cast<float>(i));
    }
    describe();
  }
  void describe() {
    json = "{\"quant_type\": \"" + type + "\", \"blocksize\": " + std::to_string(block) +
           ", \"dtype\": \"float16\", \"shape\": [" + std::to_string(n) + ", " + std::to_string(k) +
           "]";
    if (nested_block > 0) {
      char text[40];
      std::snprintf(text, sizeof(text), "%.17g", static_cast<double>(offset));
      json += ", \"nested_blocksize\": " + std::to_string(nested_block) +
              ", \"nested_dtype\": \"float32\", \"nested_offset\": " + text;
    }
    json += "}";
  }
  FileBuilder file() const {
    FileBuilder out;
    const auto length = [](const auto& values) { return static_cast<int64_t>(values.size()); };
    out.add("l.weight", storage, code_shape, codes);
    if (nested_block > 0) {
      out.add("l.weight.absmax", "U8", {length(nested_codes)}, bytes_of(nested_codes));
      out.add("l.weight.nested_absmax", "F32", {length(nested_absmax)}, bytes_of(nested_absmax));
      out.add("l.weight.nested_quant_map", "F32", {length(nested_map)}, bytes_of(nested_map));
    } else {
      out.add("l.weight.absmax", "F32", {length(absmax)}, bytes_of(absmax));
    }
    out.add("l.weight.quant_map", "F32", {length(map)}, bytes_of(map));
    out.add("l.weight.quant_state.bitsandbytes__" + type, "U8", {length(json)}, json);
    return out;
  }
  /// By the tool's rule, element by element.
  std::vector<float> decoded() const {
    std::vector<float> out;
    for (int64_t i = 0; i < n * k; ++i) {
      const auto byte = static_cast<uint8_t>(codes[static_cast<size_t>(i / 2)]);
      const int64_t b = i / block;
      float scale;
      if (nested_block > 0) {
        scale = nested_map[nested_codes[static_cast<size_t>(b)]] *
                nested_absmax[static_cast<size_t>(b / nested_block)];
        scale = scale + offset;
      } else {
        scale = absmax[static_cast<size_t>(b)];
      }
      out.push_back(map[i % 2 == 0 ? byte >> 4 : byte & 15] * scale);
    }
    return out;
  }
};

/// Checks every value and returns the Format's name, or "dense".
std::string expect_decoded(const Layer& layer, const std::string& config = kConfig) {
  const Result<Checkpoint> checkpoint = open_made(layer.file(), config);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  if (!checkpoint.ok()) return "";
  EXPECT_EQ(checkpoint->spelling(), "bitsandbytes");
  const LayerInfo& info = checkpoint->layers()[0];
  EXPECT_TRUE(info.status.ok()) << info.status.message();
  EXPECT_EQ(dense_made(*checkpoint), layer.decoded());
  const Result<QuantizedTensor> q = checkpoint->load("l");
  if (!info.dense_only.empty()) {
    EXPECT_EQ(q.status().code(), Code::kUnsupported);
    expect_words(q.status(), {"blocks of " + std::to_string(layer.block)});
    return "dense";
  }
  EXPECT_TRUE(q.ok()) << q.status().message();
  return q.ok() ? q->format.name() : "";
}

TEST(Bitsandbytes, TheFirstElementIsTheHighNibble) {
  Layer layer(2, 64, 64);
  layer.codes[0] = '\x4B';
  const QuantizedTensor q = load_made(layer.file(), kConfig).value();
  EXPECT_EQ(q.code(0, 0), 4);
  EXPECT_EQ(q.code(0, 1), 11);
  EXPECT_EQ(expect_decoded(layer), "nf4-g64");
}

TEST(Bitsandbytes, BlocksThatCrossRowsAreGroupsWhereEveryBorderFits) {
  EXPECT_EQ(expect_decoded(Layer(6, 144, 64)), "nf4-g16");
  EXPECT_EQ(expect_decoded(Layer(6, 160, 64)), "nf4-g32");
  EXPECT_EQ(expect_decoded(Layer(4, 192, 128)), "nf4-g64");
  EXPECT_EQ(expect_decoded(Layer(6, 136, 64)), "dense");
  EXPECT_EQ(expect_decoded(Layer(3, 100, 64)), "dense");
  // One row: borders at 64 and 128, whatever k is.
  EXPECT_EQ(expect_decoded(Layer(1, 136, 64)), "nf4-g64");
}

TEST(Bitsandbytes, LongBlocksAreDividedOrWholeRows) {
  EXPECT_EQ(expect_decoded(Layer(4, 1024, 256)), "nf4-g128");
  EXPECT_EQ(expect_decoded(Layer(32, 128, 4096)), "nf4-channel");
  EXPECT_EQ(expect_decoded(Layer(9, 1024, 4096)), "nf4-channel");  // the last block is short
  EXPECT_EQ(expect_decoded(Layer(7, 40, 4096)), "nf4-channel");    // one block for all
  EXPECT_EQ(expect_decoded(Layer(8, 96, 4096)), "nf4-channel");
  EXPECT_EQ(expect_decoded(Layer(128, 96, 4096)), "nf4-g32");
}

TEST(Bitsandbytes, ALastBlockMayBeShort) {
  const Layer layer(3, 96, 64);  // 288 elements, five blocks
  ASSERT_EQ(layer.absmax.size(), 5u);
  EXPECT_EQ(expect_decoded(layer), "nf4-g32");
}

TEST(Bitsandbytes, RowsOfOddLengthBeginInTheMiddleOfAByte) {
  EXPECT_EQ(expect_decoded(Layer(5, 33, 32)), "dense");
  EXPECT_EQ(expect_decoded(Layer(5, 33, 4096)), "nf4-channel");
  EXPECT_EQ(expect_decoded(Layer(1, 77, 32)), "nf4-g32");
}

TEST(Bitsandbytes, NestedScalesRoundTheProductBeforeTheOffset) {
  for (const int64_t block : {64, 256}) {
    Layer layer(24, 192, block);
    layer.nest(16, 0.2716f);
    EXPECT_EQ(expect_decoded(layer), "nf4-g64");
    EXPECT_EQ(open_made(layer.file(), kConfig)->layers()[0].remark, "nested scales");
    // The order counts: one rounding of product and offset gives other bits somewhere.
    bool differs = false;
    for (int64_t b = 0; b < layer.blocks(); ++b) {
      const float code = layer.nested_map[layer.nested_codes[static_cast<size_t>(b)]];
      const float factor = layer.nested_absmax[static_cast<size_t>(b / 16)];
      const float product = code * factor;
      differs |= std::fma(code, factor, layer.offset) != product + layer.offset;
    }
    EXPECT_TRUE(differs);
  }
  Layer crossing(5, 136, 64);
  crossing.nest(256, 0.5f);
  EXPECT_EQ(expect_decoded(crossing), "dense");
}

TEST(Bitsandbytes, Fp4DecodesByItsOwnTable) {
  const float table[] = {0, 1.0f / 192, 2.0f / 3, 1, 1.0f / 3, 0.5f, 1.0f / 6, 0.25f};
  Layer layer(4, 64, 64);
  layer.type = "fp4";
  for (size_t i = 0; i < 16; ++i) layer.map[i] = i < 8 ? table[i] : -table[i - 8];
  layer.describe();
  layer.codes[0] = '\x3A';
  EXPECT_EQ(expect_decoded(layer), "nf4-g64");
  const Checkpoint checkpoint = open_made(layer.file(), kConfig).value();
  EXPECT_EQ(checkpoint.layers()[0].remark, "FP4 codebook");
  const QuantizedTensor q = checkpoint.load("l").value();
  EXPECT_EQ(q.decode(0, 0), layer.absmax[0]);  // code 3 is 1, not E2M1's 1.5
  EXPECT_EQ(q.decode(0, 1), -(2.0f / 3) * layer.absmax[0]);
}

TEST(Bitsandbytes, CodesMayBeStoredInAnotherDtype) {
  for (const auto& [storage, bytes] :
       {std::pair{"BF16", 2}, std::pair{"F16", 2}, std::pair{"F32", 4}}) {
    Layer layer(4, 64, 64);
    layer.storage = storage;
    layer.code_shape = {128 / bytes, 1};
    EXPECT_EQ(expect_decoded(layer), "nf4-g64");
  }
}

TEST(Bitsandbytes, AFileAloneIsRecognisedByItsTensors) {
  EXPECT_EQ(expect_decoded(Layer(4, 64, 64), ""), "nf4-g64");
  Layer layer(4, 64, 64);
  layer.type = "fp4";
  layer.describe();
  EXPECT_EQ(expect_decoded(layer, ""), "nf4-g64");
}

TEST(Bitsandbytes, EightBitLayersAreListedAndRefused) {
  FileBuilder file;
  file.add("l.weight", "I8", {1, 4}, "abcd");
  file.add("l.SCB", "F32", {1}, "0123");
  file.add("l.weight_format", "U8", {}, "0");
  expect_refused(file, kConfig, {"LLM.int8()"}, Code::kUnsupported);
}

TEST(Bitsandbytes, DamagedLayersAreRefusedByTheRuleTheyBreak) {
  const auto broken = [](auto change, const std::vector<std::string>& words) {
    Layer layer(4, 64, 64);
    change(layer);
    expect_refused(layer.file(), kConfig, words);
  };
  broken([](Layer& l) { l.codes.pop_back(), l.code_shape = {127, 1}; }, {"[127, 1]", "128 bytes"});
  broken([](Layer& l) { l.code_shape = {1, 128}; }, {"[1, 128]", "one column"});
  broken([](Layer& l) { l.absmax.pop_back(); }, {"'l.weight.absmax'", "[3]", "[4]"});
  broken([](Layer& l) { l.map.pop_back(); }, {"'l.weight.quant_map'", "[15]"});
  broken([](Layer& l) { l.map[3] = NAN; }, {"quant_map"});
  broken([](Layer& l) { l.absmax[1] = INFINITY; }, {"row 1, group 0"});
  broken([](Layer& l) { l.json = "{\"quant_type\": \"nf4\""; }, {"bitsandbytes__nf4"});
  broken([](Layer& l) { l.json = "[1, 2]"; }, {"quant_type is 'null'"});
  broken([](Layer& l) { l.block = 0, l.json = R"({"quant_type": "nf4", "shape": [4, 64]})"; },
         {"blocksize is 'null'"});
  const auto with_shape = [&](const std::string& shape, const std::string& word) {
    broken(
        [&](Layer& l) {
          l.json = R"({"quant_type": "nf4", "blocksize": 64, "shape": )" + shape + "}";
        },
        {word});
  };
  with_shape("[4, 64, 1]", "[4,64,1]");
  with_shape("[-4, 64]", "[-4, 64]");
  with_shape("[4611686018427387904, 4]", "[4611686018427387904, 4]");
  with_shape("null", "null");
  with_shape("[4.5, 64]", "[0, 64]");
  broken(
      [](Layer& l) {
        l.json = R"({"quant_type": "nf4", "blocksize": 9223372036854775807, "shape": [4, 64]})";
      },
      {"blocksize is '9223372036854775807'"});
  const auto broken_nested = [](auto change, const std::vector<std::string>& words) {
    Layer layer(4, 64, 64);
    layer.nest(2, 0.25f);
    change(layer);
    expect_refused(layer.file(), kConfig, words);
  };
  broken_nested([](Layer& l) { l.nested_absmax.pop_back(); }, {"nested_absmax", "[1]", "[2]"});
  broken_nested([](Layer& l) { l.nested_map.pop_back(); }, {"nested_quant_map", "[255]"});
  broken_nested([](Layer& l) { l.nested_codes.pop_back(); }, {"'l.weight.absmax'", "[3]"});
  broken_nested([](Layer& l) { l.nested_absmax[1] = NAN; }, {"row 2, group 0"});
  broken_nested([](Layer& l) { l.offset = INFINITY, l.describe(); }, {"bitsandbytes__nf4"});
  broken_nested(
      [](Layer& l) {
        l.json = R"({"quant_type": "nf4", "blocksize": 64, "shape": [4, 64], )"
                 R"("nested_blocksize": 0, "nested_dtype": "float32", "nested_offset": 0})";
      },
      {"nested_blocksize is '0'"});
}

TEST(Bitsandbytes, DenseRowsWithScalesThatAreNotFiniteAreRefused) {
  Layer layer(6, 136, 64);
  layer.absmax[5] = std::numeric_limits<float>::quiet_NaN();
  const Result<DenseRows> rows = open_made(layer.file(), kConfig)->dense_rows("l");
  ASSERT_FALSE(rows.ok());
  EXPECT_EQ(rows.status().code(), Code::kCorruptFile);
  expect_words(rows.status(), {"block 5", "'l'"});
}

/// Every shape, block and group against the definition.
TEST(FlatBlocks, HaveTheGroupThatEveryBorderAllows) {
  for (int64_t n = 1; n <= 5; ++n) {
    for (int64_t k = 1; k <= 200; ++k) {
      for (const int64_t block : {1, 16, 24, 32, 48, 64, 128, 200, 256, 4096}) {
        const FlatBlocks blocks = {n, k, block};
        const std::optional<int32_t> group = blocks.group();
        const auto fits = [&](int64_t columns) {
          for (int64_t i = block; i < n * k; i += block) {
            if (i % k % columns != 0) return false;
          }
          return true;
        };
        const auto what = [&] {
          return std::to_string(n) + " x " + std::to_string(k) + ", block " + std::to_string(block);
        };
        if (!group) {
          ASSERT_FALSE(fits(16) || fits(k)) << what();
          continue;
        }
        ASSERT_TRUE(fits(*group == 0 ? k : *group)) << what();
        std::vector<uint8_t> index;
        for (int64_t b = 0; b < blocks.count(); ++b) index.push_back(static_cast<uint8_t>(b % 251));
        const Buffer values = Buffer::view(index.data(), static_cast<int64_t>(index.size()));
        const Buffer spread = blocks.per_group(values, 1, *group).value();
        const int64_t columns = *group == 0 ? k : *group, groups = (k - 1) / columns + 1;
        ASSERT_EQ(spread.bytes(), n * groups) << what();
        for (int64_t i = 0; i < n * k; ++i) {
          ASSERT_EQ(spread.data()[i / k * groups + i % k / columns], i / block % 251) << what();
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::checkpoint
