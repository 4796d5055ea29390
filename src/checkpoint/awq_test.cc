// AWQ layers made by hand.
#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/test_layer.h"
#include "checkpoint/test_qweight.h"

namespace nibble::checkpoint {
namespace {

std::string config(int group, const std::string& version = "gemm", const std::string& more = "") {
  return R"({"quantization_config": {"quant_method": "awq", "bits": 4, "zero_point": true, )"
         R"("group_size": )" +
         std::to_string(group) + R"(, "version": ")" + version + "\"" + more + "}}";
}

struct Layer {
  IntegerWeight w;
  std::vector<int64_t> weight_shape, zero_shape, scale_shape;
  std::string word_dtype = "I32";

  explicit Layer(IntegerWeight weight) : w(std::move(weight)) {
    weight_shape = shape_of(w.k, w.words(w.n));
    zero_shape = shape_of(w.groups, w.words(w.n));
    scale_shape = shape_of(w.groups, w.n);
  }
  FileBuilder file() const {
    FileBuilder out;
    out.add("l.qweight", word_dtype, weight_shape, bytes_of(w.awq_codes()));
    out.add("l.qzeros", "I32", zero_shape, bytes_of(w.awq_zeros()));
    out.add("l.scales", "F16", scale_shape, values_of(DType::kF16, w.scales));
    return out;
  }
};

std::string expect_decoded(const Layer& layer, const std::string& text) {
  const Result<Checkpoint> checkpoint = open_made(layer.file(), text);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  if (!checkpoint.ok() || checkpoint->layers().size() != 1) return "";
  EXPECT_EQ(checkpoint->spelling(), "awq");
  const LayerInfo& info = checkpoint->layers()[0];
  EXPECT_TRUE(info.status.ok()) << info.status.message();
  EXPECT_EQ(dense_made(*checkpoint), layer.w.dense());
  const Result<QuantizedTensor> q = checkpoint->load("l");
  if (!info.dense_only.empty()) {
    EXPECT_EQ(q.status().code(), Code::kUnsupported);
    return "dense";
  }
  EXPECT_TRUE(q.ok()) << q.status().message();
  return q.ok() ? q->format.name() : "";
}

TEST(Awq, FieldsInterleaveTheRowsAndZerosStandAsTheyAre) {
  // One word: row r holds code r + 1, so its fields are rows 0 2 4 6 1 3 5 7.
  IntegerWeight w = IntegerWeight::random(4, 8, 1, 1, 0);
  for (size_t row = 0; row < 8; ++row) w.codes[row] = static_cast<uint32_t>(row + 1);
  ASSERT_EQ(w.awq_codes()[0], 0x86427531u);
  EXPECT_EQ(expect_decoded(Layer(w), config(-1)), "uint4-channel:f16");
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, 64, 96, 32, -1)), config(32)),
            "uint4-g32:f16");
}

TEST(Awq, SizesThatFillNoWordAreRead) {
  for (const size_t n : {1, 5, 9, 60, 130}) {
    for (const size_t k : {17, 64, 333}) {
      EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, n, k, 16, -1)), config(16)),
                "uint4-g16:f16");
    }
  }
}

TEST(Awq, LongGroupsAreDividedAndMinusOneIsTheWholeRow) {
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, 16, 600, 256, -1)), config(256)),
            "uint4-g128:f16");
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, 16, 100, 100, -1)), config(-1)),
            "uint4-channel:f16");
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, 16, 100, 40, -1)), config(40)), "dense");
}

TEST(Awq, VersionsAreTakenInAnyCaseAndOthersRefusedByName) {
  const Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
  EXPECT_EQ(expect_decoded(layer, config(32, "GEMM")), "uint4-g32:f16");
  for (const char* other : {"gemv", "GEMV", "gemv_fast", "marlin", "exllama", "ipex"}) {
    std::string lower = other;
    for (char& c : lower) c = static_cast<char>(std::tolower(c));
    expect_refused(layer.file(), config(32, other), {"'" + lower + "'", "gemm"},
                   Code::kUnsupported);
  }
  const std::string other_key =
      R"({"quantization_config": {"quant_method": "awq", "w_bit": 3, "q_group_size": 32}})";
  expect_refused(layer.file(), other_key, {"3 bits"}, Code::kUnsupported);
}

TEST(Awq, IsToldFromGptqByShapesWithoutConfiguration) {
  const Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
  EXPECT_EQ(expect_decoded(layer, ""), "uint4-g32:f16");
  const Layer one_word(IntegerWeight::random(4, 8, 8, 16, -1));
  EXPECT_EQ(expect_decoded(one_word, ""), "uint4-channel:f16");
}

TEST(Awq, BiasStaysATensorOfItsOwn) {
  FileBuilder file = Layer(IntegerWeight::random(4, 16, 64, 32, -1)).file();
  file.add("l.bias", "F16", {16}, std::string(32, '\0'));
  EXPECT_EQ(open_made(file, config(32))->layers()[0].tensors.size(), 3u);
}

TEST(Awq, DamagedLayersAreRefused) {
  const Layer good(IntegerWeight::random(4, 16, 64, 32, -1));
  Layer layer = good;
  layer.weight_shape = {32, 4};
  expect_refused(layer.file(), config(32), {"'l.qweight'", "[32, 4]", "[32, 2]"});
  layer = good;
  layer.zero_shape = {4, 1};
  expect_refused(layer.file(), config(32), {"'l.qzeros'", "[4, 1]", "[2, 2]"});
  layer = good;
  layer.scale_shape = {32};
  expect_refused(layer.file(), config(32), {"'l.scales'", "[32]"});
  layer = good;
  layer.word_dtype = "F32";
  expect_refused(layer.file(), config(32), {"'l.qweight' is F32"});
  layer = good;
  layer.w.scales[5] = std::numeric_limits<float>::quiet_NaN();
  expect_refused(layer.file(), config(32), {"row 5, group 0"});
  expect_refused(good.file(), config(64), {"2 scales a row", "64"});
  FileBuilder no_zeros;
  no_zeros.add("l.qweight", "I32", {64, 2}, std::string(512, 'x'));
  no_zeros.add("l.scales", "F16", {2, 16}, std::string(64, '\x11'));
  expect_refused(no_zeros, config(32), {"'l.qzeros' is missing"});
}

}  // namespace
}  // namespace nibble::checkpoint
