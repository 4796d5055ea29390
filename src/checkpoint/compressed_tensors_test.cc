// Layers that no tool would write: made by hand, to be decoded or refused.
#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/test_layer.h"

namespace nibble::checkpoint {
namespace {

std::string config(const std::string& weights) {
  return R"({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": )"
         R"({"targets": ["Linear"], "weights": )" +
         weights + "}}}}";
}
std::string int_config(int bits, bool symmetric, int group) {
  return config(R"({"num_bits": )" + std::to_string(bits) + R"(, "type": "int", "symmetric": )" +
                (symmetric ? "true" : "false") +
                (group == 0
                     ? R"(, "strategy": "channel", "group_size": null})"
                     : R"(, "strategy": "group", "group_size": )" + std::to_string(group) + "}"));
}

/// What an int4 layer [n, k] consists of; tests change one part at a time.
struct IntegerLayer {
  int64_t n = 3, k = 32;
  int group = 16;
  std::vector<uint32_t> packed = std::vector<uint32_t>(3 * 4, 0x76543210u);
  std::vector<int64_t> packed_shape = {3, 4};
  std::vector<float> scales = {1, 2, 3, 4, 5, 6};
  std::vector<int64_t> scale_shape = {3, 2};
  std::vector<int64_t> shape = {3, 32};
  std::vector<int32_t> g_idx;

  FileBuilder file() const {
    FileBuilder out;
    out.add("l.weight_packed", "I32", packed_shape, bytes_of(packed));
    out.add("l.weight_scale", "F32", scale_shape, bytes_of(scales));
    out.add("l.weight_shape", "I64", {static_cast<int64_t>(shape.size())}, bytes_of(shape));
    if (!g_idx.empty()) {
      out.add("l.weight_g_idx", "I32", {static_cast<int64_t>(g_idx.size())}, bytes_of(g_idx));
    }
    return out;
  }
};

TEST(CompressedTensorsLayer, FieldsHoldTheValuePlusEight) {
  const QuantizedTensor q = load_made(IntegerLayer().file(), int_config(4, true, 16)).value();
  EXPECT_EQ(q.format.name(), "int4-g16:f32");
  for (int64_t j = 0; j < 32; ++j) {
    EXPECT_EQ(q.decode(1, j), static_cast<float>(j % 8 - 8) * (j < 16 ? 3.0f : 4.0f));
  }
}

TEST(CompressedTensorsLayer, ShapesThatDisagreeAreRefused) {
  const std::string four = int_config(4, true, 16);
  IntegerLayer layer;
  layer.packed_shape = {4, 3};
  expect_refused(layer.file(), four, {"[4, 3]", "[3, 32]"});
  layer = {};
  layer.packed_shape = {12};
  expect_refused(layer.file(), four, {"[12]"}, Code::kUnsupported);
  layer = {};
  layer.shape = {3, 40};
  expect_refused(layer.file(), four, {"[3, 40]"});
  layer.shape = {3, 0};
  expect_refused(layer.file(), four, {"weight_shape says [3, 0]"});
  layer.shape = {-3, 32};
  expect_refused(layer.file(), four, {"[-3, 32]"});
  layer.shape = {3, std::numeric_limits<int64_t>::max()};
  expect_refused(layer.file(), four, {"9223372036854775807"});
  layer.shape = {3, 32, 1};
  expect_refused(layer.file(), four, {"'l.weight_shape'", "[3]", "[2]"});
  layer = {};
  layer.scale_shape = {2, 3};
  expect_refused(layer.file(), four, {"'l.weight_scale'", "[2, 3]", "[3, 3]"});
  layer.scale_shape = {6};
  expect_refused(layer.file(), four, {"'l.weight_scale'", "[6]"});
}

TEST(CompressedTensorsLayer, MissingPartsAreNamed) {
  FileBuilder no_scale;
  no_scale.add("l.weight_packed", "I32", {1, 1}, "0123");
  no_scale.add("l.weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{1, 8}));
  expect_refused(no_scale, int_config(4, true, 0), {"'l.weight_scale' is missing"});
  FileBuilder no_shape;
  no_shape.add("l.weight_packed", "I32", {1, 1}, "0123");
  no_shape.add("l.weight_scale", "F32", {1, 1}, "0123");
  expect_refused(no_shape, int_config(4, true, 0), {"'l.weight_shape' is missing"});
  FileBuilder no_global;
  no_global.add("l.weight_packed", "U8", {1, 8}, "01234567");
  no_global.add("l.weight_scale", "F8_E4M3", {1, 1}, "0");
  expect_refused(no_global, "", {"'l.weight_global_scale' is missing"});
}

TEST(CompressedTensorsLayer, GroupsThatDoNotFitAreRefused) {
  // 2 scales for 32 columns is group 16, whatever config.json says.
  expect_refused(IntegerLayer().file(), int_config(4, true, 32), {"2 scales", "k = 32"});
  expect_refused(IntegerLayer().file(), int_config(4, true, 0), {"2 scales"});
  expect_refused(IntegerLayer().file(), int_config(8, true, 16), {"4-bit"});
  expect_refused(IntegerLayer().file(), int_config(4, false, 16), {"symmetric 4-bit"});
  expect_refused(IntegerLayer().file(), int_config(4, true, -16), {"2 scales"});
  const std::string huge =
      R"({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 9223372036854775807})";
  expect_refused(IntegerLayer().file(), config(huge), {"2 scales"});
  IntegerLayer odd;
  odd.scale_shape = {3, 5};
  odd.scales.resize(15, 1.0f);
  expect_refused(odd.file(), "", {"5 scales a row for k = 32"});
  expect_refused(odd.file(), int_config(4, true, 7), {"groups of 7 columns"}, Code::kUnsupported);
}

TEST(CompressedTensorsLayer, NonFiniteScalesAreRefusedByRowAndGroup) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    IntegerLayer layer;
    layer.scales[3] = bad;
    expect_refused(layer.file(), int_config(4, true, 16), {"row 1, group 1"});
  }
  FileBuilder nvfp4;
  nvfp4.add("l.weight_packed", "U8", {1, 8}, "01234567");
  nvfp4.add("l.weight_scale", "F8_E4M3", {1, 1}, "\x7F");
  nvfp4.add("l.weight_global_scale", "F32", {1}, bytes_of(std::vector<float>{2}));
  expect_refused(nvfp4, "", {"row 0, group 0"});
  FileBuilder mxfp4;
  mxfp4.add("l.weight_packed", "U8", {1, 16}, std::string(16, 'x'));
  mxfp4.add("l.weight_scale", "U8", {1, 1}, "\xFF");
  expect_refused(mxfp4, "", {"row 0, group 0"});
}

TEST(CompressedTensorsLayer, GlobalScalesThatCannotDivideAreRefused) {
  for (const float bad : {0.0f, -0.0f, std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity()}) {
    FileBuilder nvfp4;
    nvfp4.add("l.weight_packed", "U8", {1, 8}, "01234567");
    nvfp4.add("l.weight_scale", "F8_E4M3", {1, 1}, "8");
    nvfp4.add("l.weight_global_scale", "F32", {1}, bytes_of(std::vector<float>{bad}));
    expect_refused(nvfp4, "", {"weight_global_scale is"});
  }
}

TEST(CompressedTensorsLayer, GIdxIsCheckedBeforeItIsUsed) {
  const std::string four = int_config(4, true, 16);
  IntegerLayer layer;
  layer.g_idx.assign(32, 0);
  layer.g_idx[31] = 1;
  expect_refused(layer.file(), four, {"gives group 0 31 columns"}, Code::kUnsupported);
  for (size_t i = 0; i < 32; ++i) layer.g_idx[i] = i % 2 == 0 ? 1 : 0;
  layer.g_idx[7] = 2;
  expect_refused(layer.file(), four, {"'l.weight_g_idx': column 7 is in group 2 of 2"});
  layer.g_idx[7] = -1;
  expect_refused(layer.file(), four, {"column 7 is in group -1"});
  layer.g_idx.resize(31);
  expect_refused(layer.file(), four, {"'l.weight_g_idx'", "[31]"});
}

TEST(CompressedTensorsLayer, GIdxReordersCodesAndRemembersTheColumns) {
  IntegerLayer layer;
  layer.g_idx.resize(32);
  for (size_t i = 0; i < 32; ++i) layer.g_idx[i] = i % 2 == 0 ? 1 : 0;
  const QuantizedTensor q = load_made(layer.file(), int_config(4, true, 16)).value();
  ASSERT_EQ(q.k_perm.size(), 32u);
  EXPECT_EQ(q.k_perm[0], 1);
  EXPECT_EQ(q.k_perm[16], 0);
  std::vector<float> row(32);
  q.dequantize(2, 3, row.data());
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(row[i], static_cast<float>(static_cast<int>(i % 8) - 8) * (i % 2 == 0 ? 6.0f : 5.0f));
  }
}

TEST(CompressedTensorsLayer, GIdxThatSaysNothingIsNoPermutation) {
  IntegerLayer layer;
  layer.g_idx.assign(32, -1);
  EXPECT_TRUE(load_made(layer.file(), int_config(4, true, 16))->k_perm.empty());
  for (size_t i = 0; i < 32; ++i) layer.g_idx[i] = static_cast<int32_t>(i / 16);
  EXPECT_TRUE(load_made(layer.file(), int_config(4, true, 16))->k_perm.empty());
}

TEST(CompressedTensorsLayer, GIdxOfUnequalGroupsIsReadDense) {
  IntegerLayer layer;
  layer.g_idx.assign(32, 0);
  layer.g_idx[3] = 1;
  const Checkpoint checkpoint = open_made(layer.file(), int_config(4, true, 16)).value();
  EXPECT_NE(checkpoint.layers()[0].dense_only, "");
  const std::vector<float> values = dense_made(checkpoint);
  ASSERT_EQ(values.size(), 96u);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(values[64 + i],
              static_cast<float>(static_cast<int>(i % 8) - 8) * (i == 3 ? 6.0f : 5.0f));
  }
  // All columns in one group are a row with one scale.
  layer.g_idx.assign(32, 1);
  const QuantizedTensor q = load_made(layer.file(), int_config(4, true, 16)).value();
  EXPECT_EQ(q.format.name(), "int4-channel:f32");
  EXPECT_EQ(q.decode(2, 1), -42.0f);
}

TEST(CompressedTensorsLayer, GroupsLongerThanAFormatsAreDivided) {
  for (const int64_t k : {512, 600}) {
    for (const bool symmetric : {true, false}) {
      const int64_t n = 3, words = ceil_div(k, 8), groups = ceil_div(k, 256);
      FileBuilder file;
      file.add("l.weight_packed", "I32", {n, words},
               bytes_of(std::vector<uint32_t>(static_cast<size_t>(n * words), 0xFEDCBA98u)));
      std::vector<float> scales(static_cast<size_t>(n * groups));
      for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(i + 1);
      file.add("l.weight_scale", "F32", {n, groups}, bytes_of(scales));
      file.add("l.weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{n, k}));
      if (!symmetric) {  // zero point 8 + row
        file.add("l.weight_zero_point", "I32", {1, groups},
                 bytes_of(std::vector<uint32_t>(static_cast<size_t>(groups), 0xA98u)));
      }
      for (const std::string& text : {int_config(4, symmetric, 256), std::string()}) {
        const QuantizedTensor q = load_made(file, text).value();
        EXPECT_EQ(q.format.name(), symmetric ? "int4-g128:f32" : "uint4-g128:f32");
        std::vector<float> row(static_cast<size_t>(k));
        q.dequantize(2, 3, row.data());
        for (int64_t j = 0; j < k; ++j) {
          const float value = static_cast<float>(j % 8 - (symmetric ? 0 : 2));
          const float scale = scales[static_cast<size_t>(2 * groups + j / 256)];
          EXPECT_EQ(row[static_cast<size_t>(j)], value * scale) << j;
        }
      }
    }
  }
}

TEST(CompressedTensorsLayer, OddColumnsHaveAClearPaddingNibble) {
  FileBuilder file;
  file.add("l.weight_packed", "I32", {1, 1}, "\xFF\xFF\xFF\xFF");
  file.add("l.weight_scale", "F32", {1, 1}, bytes_of(std::vector<float>{1}));
  file.add("l.weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{1, 7}));
  file.add("l.weight_zero_point", "I32", {1, 1}, std::string("\x03\0\0\0", 4));
  const QuantizedTensor q = load_made(file, int_config(4, false, 0)).value();
  EXPECT_EQ(q.codes.bytes(), 4);
  EXPECT_EQ(q.codes.data()[3], 0x0F);
  EXPECT_EQ(q.decode(0, 6), 12.0f);
}

TEST(CompressedTensorsLayer, WidthComesFromConfigurationWhereShapesAllowTwo) {
  FileBuilder file;
  file.add("l.weight_packed", "I32", {1, 1}, "\x12\x34\x56\x78");
  file.add("l.weight_scale", "F32", {1, 1}, bytes_of(std::vector<float>{1}));
  file.add("l.weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{1, 4}));
  EXPECT_EQ(load_made(file, int_config(4, true, 0))->format.name(), "int4-channel:f32");
  EXPECT_EQ(load_made(file, int_config(8, true, 0))->format.name(), "int8-channel:f32");
  expect_refused(file, "", {"4 and 8 bits alike"}, Code::kUnsupported);
}

TEST(CompressedTensorsLayer, SeveralGroupsAreToldApartByTheirTensors) {
  const std::string groups =
      R"({"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["x"], "config_groups": {
        "group_0": {"targets": ["re:.*a$"], "weights": {"num_bits": 8, "type": "int", "symmetric": true,
                    "strategy": "channel"}},
        "group_1": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": true,
                    "strategy": "group", "group_size": 16}},
        "group_2": {"targets": ["m"], "weights": {"num_bits": 4, "type": "float", "symmetric": true,
                    "strategy": "group", "group_size": 32}},
        "group_3": {"targets": ["Linear"], "input_activations": {"num_bits": 8}, "weights": null}}}})";
  FileBuilder file = IntegerLayer().file();
  file.add("m.weight_packed", "U8", {1, 16}, std::string(16, 'x'));
  file.add("m.weight_scale", "U8", {1, 1}, "\x7F");
  file.add("x.weight", "F32", {1, 1}, bytes_of(std::vector<float>{1}));
  const Checkpoint checkpoint = open_made(file, groups).value();
  ASSERT_EQ(checkpoint.layers().size(), 2u);
  EXPECT_EQ(checkpoint.load("l")->format.name(), "int4-g16:f32");
  EXPECT_EQ(checkpoint.load("m")->format.name(), "mxfp4");
  EXPECT_EQ(checkpoint.find_layer("x"), nullptr);
}

TEST(CompressedTensorsLayer, AbsurdlyManyConfigGroupsAreRefused) {
  std::string text =
      R"({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {)";
  for (int i = 0; i < 300; ++i) {
    text += (i == 0 ? "\"" : ",\"") + std::to_string(i) + R"(": {"weights": {"num_bits": 4}})";
  }
  expect_refused(IntegerLayer().file(), text + "}}}", {"300 entries"});
}

TEST(CompressedTensorsLayer, OtherCompressionsAreListedWithTheReason) {
  FileBuilder file;
  file.add("l.weight", "F8_E4M3", {1, 4}, "8888");
  file.add("l.weight_scale", "BF16", {1, 1}, "12");
  expect_refused(file, config(R"({"num_bits": 8, "type": "float", "strategy": "channel"})"),
                 {"weight_packed"}, Code::kUnsupported);
}

TEST(CompressedTensorsLayer, ActivationScalesBelongToTheLayer) {
  FileBuilder file;
  file.add("l.input_global_scale", "F32", {1}, bytes_of(std::vector<float>{3}));
  file.add("l.weight_global_scale", "F32", {}, bytes_of(std::vector<float>{2}));
  file.add("l.weight_packed", "U8", {1, 8}, "01234567");
  file.add("l.weight_scale", "F8_E4M3", {1, 1}, "8");
  const Checkpoint checkpoint = open_made(file, "").value();
  EXPECT_EQ(checkpoint.layers()[0].tensors.size(), 4u);
  EXPECT_EQ(checkpoint.layers()[0].stored_bytes, 17);
  EXPECT_EQ(checkpoint.load("l")->tensor_scales, (std::vector<TensorScale>{{0, 2.0f}}));
}

}  // namespace
}  // namespace nibble::checkpoint
