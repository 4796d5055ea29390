// GPTQ layers made by hand: what the tools write, what they only could, and what is damaged.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "checkpoint/test_layer.h"
#include "checkpoint/test_qweight.h"

namespace nibble::checkpoint {
namespace {

std::string config(const std::string& keys) {
  return R"({"quantization_config": {"quant_method": "gptq", )" + keys + "}}";
}
std::string config(int bits, int group, bool symmetric, bool act_order = false,
                   const std::string& more = "") {
  return config("\"bits\": " + std::to_string(bits) + ", \"group_size\": " + std::to_string(group) +
                ", \"sym\": " + (symmetric ? "true" : "false") +
                ", \"desc_act\": " + (act_order ? "true" : "false") + more);
}
const char kVersion2[] = R"(, "checkpoint_format": "gptq_v2")";

/// The tensors of a weight; tests change one part at a time.
struct Layer {
  IntegerWeight w;
  uint32_t subtract = 0x11111111u;
  bool with_index = true;
  std::string scale_dtype = "F16", word_dtype = "I32", index_dtype = "I32";
  std::vector<int64_t> weight_shape, zero_shape, scale_shape;

  explicit Layer(IntegerWeight weight) : w(std::move(weight)) {
    if (w.bits == 8) subtract = 0x01010101u;
    weight_shape = shape_of(w.words(w.k), w.n);
    zero_shape = shape_of(w.groups, w.words(w.n));
    scale_shape = shape_of(w.groups, w.n);
  }
  FileBuilder file() const {
    const DType dtype = scale_dtype == "F32"    ? DType::kF32
                        : scale_dtype == "BF16" ? DType::kBF16
                                                : DType::kF16;
    FileBuilder out;
    out.add("l.qweight", word_dtype, weight_shape, bytes_of(w.gptq_codes()));
    out.add("l.qzeros", "I32", zero_shape, bytes_of(w.gptq_zeros(subtract)));
    out.add("l.scales", scale_dtype, scale_shape, values_of(dtype, w.scales));
    if (with_index) {
      out.add("l.g_idx", index_dtype, {static_cast<int64_t>(w.index.size())}, bytes_of(w.index));
    }
    return out;
  }
};

/// Opens, checks that the layer decodes to the weight, and returns its Format.
std::string expect_decoded(const Layer& layer, const std::string& text) {
  const Result<Checkpoint> checkpoint = open_made(layer.file(), text);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  if (!checkpoint.ok() || checkpoint->layers().size() != 1) return "";
  EXPECT_EQ(checkpoint->spelling(), "gptq");
  const LayerInfo& info = checkpoint->layers()[0];
  EXPECT_TRUE(info.status.ok()) << info.status.message();
  EXPECT_EQ(info.n, static_cast<int64_t>(layer.w.n));
  EXPECT_EQ(info.k, static_cast<int64_t>(layer.w.k));
  EXPECT_EQ(dense_made(*checkpoint), layer.w.dense());
  const Result<QuantizedTensor> q = checkpoint->load("l");
  if (!info.dense_only.empty()) {
    EXPECT_EQ(q.status().code(), Code::kUnsupported);
    return "dense";
  }
  EXPECT_TRUE(q.ok()) << q.status().message();
  if (!q.ok()) return "";
  EXPECT_EQ(q->format, info.format);
  return q->format.name();
}

/// Equal groups, but which columns they hold is drawn.
IntegerWeight act_ordered(int bits, size_t n, size_t k, size_t length, int zero) {
  IntegerWeight w = IntegerWeight::random(bits, n, k, length, zero);
  std::shuffle(w.index.begin(), w.index.end(), std::mt19937(5));
  return w;
}

TEST(Gptq, Version1ZerosAreStoredMinusOneWithBorrowsBetweenThem) {
  Layer layer(IntegerWeight::random(4, 8, 32, 32, 5));
  layer.w.zeros[3] = 0;
  // 5 5 5 0 5 5 5 5, low first, minus 1 a field: the 0 borrows from its neighbour.
  ASSERT_EQ(layer.w.gptq_zeros(0x11111111u)[0], 0x4443F444u);
  EXPECT_EQ(expect_decoded(layer, config(4, 32, false)), "uint4-channel:f16");
  Layer random(IntegerWeight::random(4, 40, 96, 32, -1));
  EXPECT_EQ(expect_decoded(random, config(4, 32, false)), "uint4-g32:f16");
}

TEST(Gptq, Version1ZerosOfEightBitsWrapByWordToo) {
  Layer layer(IntegerWeight::random(8, 12, 64, 32, -1));
  layer.w.zeros[1] = 0;
  layer.w.zeros[11] = 0;
  EXPECT_EQ(expect_decoded(layer, config(8, 32, false)), "uint8-g32:f16");
}

TEST(Gptq, Version2ZerosStandAsTheyAre) {
  for (const int bits : {4, 8}) {
    Layer layer(IntegerWeight::random(bits, 24, 64, 16, -1));
    layer.subtract = 0;
    EXPECT_NE(expect_decoded(layer, config(bits, 16, false, false, kVersion2)), "");
    EXPECT_NE(expect_decoded(layer, config(bits, 16, false, false, R"(, "format": "GPTQ_V2")")),
              "");
  }
}

TEST(Gptq, FilesWithoutCheckpointFormatAreVersion1) {
  const Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
  EXPECT_EQ(expect_decoded(layer, config(4, 32, false)), "uint4-g32:f16");
  EXPECT_EQ(open_made(layer.file(), config(4, 32, false))->layers()[0].remark, "");
}

TEST(Gptq, SymmetricWeightsHaveNoZeros) {
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, 20, 64, 32, 8)), config(4, 32, true)),
            "int4-g32:f16");
  EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(8, 20, 64, 32, 128)), config(8, 32, true)),
            "int8-g32:f16");
  Layer version_2(IntegerWeight::random(4, 20, 64, 32, 8));
  version_2.subtract = 0;
  EXPECT_EQ(expect_decoded(version_2, config(4, 32, true, false, kVersion2)), "int4-g32:f16");
}

TEST(Gptq, AZeroPointThatContradictsSymIsNamed) {
  Layer layer(IntegerWeight::random(4, 19, 64, 32, 8));
  layer.w.zeros[19 + 17] = 9;
  expect_refused(layer.file(), config(4, 32, true), {"sym", "row 17 in group 1 is 9, not 8"});
  EXPECT_EQ(expect_decoded(layer, config(4, 32, false)), "uint4-g32:f16");
  // A symmetric version 2 file read as version 1 shows here too.
  layer.w.zeros[19 + 17] = 8;
  layer.subtract = 0;
  expect_refused(layer.file(), config(4, 32, true), {"row 0 in group 0 is 9, not 8"});
}

TEST(Gptq, GIdxCountsWhateverDescActSays) {
  for (const bool desc_act : {false, true}) {
    const Layer mixed(act_ordered(4, 24, 160, 32, -1));
    EXPECT_EQ(expect_decoded(mixed, config(4, 32, false, desc_act)), "uint4-g32:f16");
    const Checkpoint opened = open_made(mixed.file(), config(4, 32, false, desc_act)).value();
    EXPECT_EQ(opened.layers()[0].remark, "act-order");
    EXPECT_EQ(opened.load("l")->k_perm.size(), 160u);
    // Static groups: sorted although desc_act is true.
    const Layer sorted(IntegerWeight::random(4, 24, 160, 32, -1));
    EXPECT_EQ(expect_decoded(sorted, config(4, 32, false, desc_act)), "uint4-g32:f16");
    EXPECT_TRUE(load_made(sorted.file(), config(4, 32, false, desc_act))->k_perm.empty());
    EXPECT_EQ(open_made(sorted.file(), config(4, 32, false, desc_act))->layers()[0].remark, "");
  }
}

TEST(Gptq, ActOrderWorksInEveryWidthAndAtOddSizes) {
  for (const size_t n : {1, 7, 129}) {
    for (const size_t k : {17, 48, 333}) {
      EXPECT_EQ(expect_decoded(Layer(act_ordered(4, n, k, 16, 8)), config(4, 16, true)),
                "int4-g16:f16");
      EXPECT_EQ(expect_decoded(Layer(act_ordered(8, n, k, 16, -1)), config(8, 16, false)),
                "uint8-g16:f16");
    }
  }
}

TEST(Gptq, SizesThatFillNoWordAreRead) {
  for (const size_t n : {1, 3, 9, 52}) {
    for (const size_t k : {1, 5, 31, 100}) {
      EXPECT_EQ(expect_decoded(Layer(IntegerWeight::random(4, n, k, 32, -1)), config(4, 32, false)),
                k <= 32 ? "uint4-channel:f16" : "uint4-g32:f16");
    }
  }
}

TEST(Gptq, LongGroupsAreDividedAndMinusOneIsTheWholeRow) {
  EXPECT_EQ(
      expect_decoded(Layer(IntegerWeight::random(4, 16, 600, 256, -1)), config(4, 256, false)),
      "uint4-g128:f16");
  EXPECT_EQ(expect_decoded(Layer(act_ordered(4, 16, 600, 256, 8)), config(4, 256, true)),
            "int4-g128:f16");
  Layer without(IntegerWeight::random(4, 16, 2048, 1024, -1));
  without.with_index = false;
  EXPECT_EQ(expect_decoded(without, config(4, 1024, false)), "uint4-g128:f16");
  Layer whole(IntegerWeight::random(4, 16, 144, 144, -1));
  EXPECT_EQ(expect_decoded(whole, config(4, -1, false)), "uint4-channel:f16");
  whole.with_index = false;
  EXPECT_EQ(expect_decoded(whole, config(4, -1, false)), "uint4-channel:f16");
}

TEST(Gptq, GroupsOfUnequalLengthAreReadDense) {
  Layer layer(IntegerWeight::random(4, 10, 64, 32, -1));
  layer.w.index[0] = 1;
  EXPECT_EQ(expect_decoded(layer, config(4, 32, false)), "dense");
  EXPECT_NE(
      open_made(layer.file(), config(4, 32, false))->layers()[0].dense_only.find("31 columns"),
      std::string::npos);
  Layer odd(IntegerWeight::random(4, 10, 64, 24, 8));
  odd.with_index = false;
  EXPECT_EQ(expect_decoded(odd, config(4, 24, true)), "dense");
  odd.w.scales[4] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(open_made(odd.file(), config(4, 24, true))->dense_rows("l").status().code(),
            Code::kCorruptFile);
}

TEST(Gptq, ScalesMayHaveEveryFloatType) {
  for (const char* dtype : {"F16", "BF16", "F32"}) {
    Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
    layer.scale_dtype = dtype;
    for (float& scale : layer.w.scales) scale = bf16_to_f32(f32_to_bf16(scale));
    EXPECT_EQ(expect_decoded(layer, config(4, 32, false)).substr(0, 9), "uint4-g32");
  }
}

TEST(Gptq, LayersMayDifferFromTheConfigurationWhereItSaysSo) {
  Layer layer(IntegerWeight::random(8, 16, 64, 16, -1));
  const std::string dynamic = R"(, "dynamic": {"+:.*l": {"bits": 8, "group_size": 16}})";
  EXPECT_EQ(expect_decoded(layer, config(4, 32, true, false, dynamic)), "uint8-g16:f16");
  expect_refused(layer.file(), config(4, 32, true), {"do not fit together with 4 bits"});
  // A pattern that only leaves layers out changes nothing.
  expect_refused(layer.file(), config(4, 32, true, false, R"(, "dynamic": {"-:.*m": {}})"),
                 {"do not fit together with 4 bits"});
}

TEST(Gptq, IsRecognisedWithoutConfiguration) {
  const Layer layer(act_ordered(4, 16, 64, 32, -1));
  EXPECT_EQ(expect_decoded(layer, ""), "uint4-g32:f16");
  EXPECT_EQ(open_made(layer.file(), "")->layers()[0].remark, "act-order, version 1 assumed");
  Layer eight(IntegerWeight::random(8, 16, 64, 32, -1));
  eight.with_index = false;
  EXPECT_EQ(expect_decoded(eight, ""), "uint8-g32:f16");
  Layer narrow(IntegerWeight::random(4, 3, 64, 32, -1));
  narrow.with_index = false;
  expect_refused(narrow.file(), "", {"fit 4 and 8 bits alike"}, Code::kUnsupported);
}

TEST(Gptq, BiasStaysATensorOfItsOwn) {
  FileBuilder file = Layer(IntegerWeight::random(4, 16, 64, 32, -1)).file();
  file.add("l.bias", "F16", {16}, std::string(32, '\0'));
  const Checkpoint checkpoint = open_made(file, config(4, 32, false)).value();
  EXPECT_EQ(checkpoint.layers()[0].tensors,
            (std::vector<std::string>{"l.qweight", "l.qzeros", "l.scales", "l.g_idx"}));
  EXPECT_TRUE(checkpoint.tensor("l.bias").ok());
}

TEST(Gptq, OtherWidthsAndOrdersAreRefusedByName) {
  const FileBuilder file = Layer(IntegerWeight::random(4, 32, 64, 32, 8)).file();
  for (const int bits : {2, 3, 5, 16, -4}) {
    expect_refused(file, config(bits, 32, true), {std::to_string(bits) + " bits", "4 and 8"},
                   Code::kUnsupported);
  }
  for (const char* form : {"marlin", "bitblas", "gptq_p"}) {
    expect_refused(
        file, config(4, 32, true, false, R"(, "checkpoint_format": ")" + std::string(form) + "\""),
        {form}, Code::kUnsupported);
  }
  expect_refused(file, config(4, 32, true, false, R"(, "is_marlin_format": true)"), {"Marlin"},
                 Code::kUnsupported);
  expect_refused(file, config(4, 32, true, false, R"(, "pack_dtype": "int64")"), {"'int64'"},
                 Code::kUnsupported);
  // Three bits without a configuration: 96 columns in 9 words, 32 rows in 3.
  FileBuilder three;
  three.add("l.qweight", "I32", {9, 32}, std::string(9 * 32 * 4, 'x'));
  three.add("l.qzeros", "I32", {3, 3}, std::string(36, 'x'));
  three.add("l.scales", "F16", {3, 32}, std::string(192, '\x11'));
  expect_refused(three, "", {"not of 4 or 8 bits"}, Code::kUnsupported);
}

TEST(Gptq, ActOrderWithoutItsIndexIsRefused) {
  Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
  layer.with_index = false;
  expect_refused(layer.file(), config(4, 32, false, true), {"no g_idx", "desc_act"});
}

TEST(Gptq, MissingPartsAreNamed) {
  FileBuilder file;
  file.add("l.qweight", "I32", {8, 16}, std::string(512, 'x'));
  expect_refused(file, config(4, 32, false), {"'l.qzeros' is missing"});
  file.add("l.qzeros", "I32", {2, 2}, std::string(16, 'x'));
  expect_refused(file, config(4, 32, false), {"'l.scales' is missing"});
}

TEST(Gptq, WrongShapesAndTypesAreRefused) {
  const Layer good(IntegerWeight::random(4, 16, 64, 32, -1));
  const std::string text = config(4, 32, false);
  Layer layer = good;
  layer.weight_shape = {16, 8};
  expect_refused(layer.file(), text, {"[16, 8]"});
  layer = good;
  layer.weight_shape = {128};
  expect_refused(layer.file(), text, {"'l.qweight'", "[128]"});
  layer = good;
  layer.zero_shape = {4, 1};
  expect_refused(layer.file(), text, {"[4, 1]"});
  layer = good;
  layer.zero_shape = {1, 4};
  expect_refused(layer.file(), text, {"[1, 4]"});
  layer = good;
  layer.scale_shape = {4, 8};
  expect_refused(layer.file(), text, {"[4, 8]"});
  layer = good;
  layer.w.index.resize(50);
  expect_refused(layer.file(), text, {"g_idx [50]", "do not fit together with 4 bits"});
}

TEST(Gptq, WrongTypesAreRefused) {
  const Layer good(IntegerWeight::random(4, 16, 64, 32, -1));
  Layer layer = good;
  layer.word_dtype = "F32";
  expect_refused(layer.file(), config(4, 32, false), {"'l.qweight' is F32"});
  layer = good;
  layer.index_dtype = "F32";
  expect_refused(layer.file(), config(4, 32, false), {"'l.g_idx' is F32"});
  layer = good;
  FileBuilder no_matrix;
  no_matrix.add("l.qweight", "I32", {0, 16}, "");
  no_matrix.add("l.qzeros", "I32", {2, 2}, std::string(16, 'x'));
  no_matrix.add("l.scales", "F16", {2, 16}, std::string(64, '\x11'));
  expect_refused(no_matrix, config(4, 32, false), {"'l.qweight'", "[0, 16]"});
}

TEST(Gptq, GroupsThatDoNotFitTheScalesAreRefused) {
  Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
  layer.with_index = false;
  expect_refused(layer.file(), config(4, 16, false), {"2 scales a row", "k = 64", "16"});
  expect_refused(layer.file(), config(4, -1, false), {"2 scales a row"});
}

TEST(Gptq, IndicesOutOfRangeAreNamed) {
  for (const int32_t bad : {-1, 2, INT32_MIN}) {
    Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
    layer.w.index[7] = bad;
    expect_refused(layer.file(), config(4, 32, false),
                   {"'l.g_idx'", "column 7 is in group " + std::to_string(bad) + " of 2"});
  }
}

TEST(Gptq, ScalesThatAreNotFiniteAreNamed) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Layer layer(IntegerWeight::random(4, 16, 64, 32, -1));
    layer.w.scales[16 + 3] = bad;
    expect_refused(layer.file(), config(4, 32, false), {"row 3, group 1"});
  }
}

}  // namespace
}  // namespace nibble::checkpoint
