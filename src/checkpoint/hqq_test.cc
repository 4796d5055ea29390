// HQQ layers made by hand, in shapes and variations the fixtures have not, and damaged ones.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/test_layer.h"

namespace nibble::checkpoint {
namespace {

const char kConfig[] = R"({"quantization_config": {"quant_method": "hqq"}})";

template <class T>
std::string scalar(T value) {
  return bytes_of(std::vector<T>{value});
}

/// The tensors of a weight; tests change one part at a time.
struct Layer {
  int64_t n, k, group;
  int axis, bits;
  DType dtype = DType::kF16;
  std::string codes, code_dtype = "U8", packing, compute_dtype = "torch.float16";
  std::vector<int64_t> code_shape, scale_shape;
  std::vector<float> scale, zero;
  int32_t nbits;
  uint8_t quant_scale = 0, quant_zero = 0;
  bool one_tensor = false;  ///< zero_scale
  DType zero_dtype = DType::kF16;

  Layer(int64_t rows_n, int64_t columns_k, int64_t length, int along, int width = 4)
      : n(rows_n), k(columns_k), group(length), axis(along), bits(width), nbits(width) {
    const int64_t rows = axis == 1 ? n * k / group : group, columns = n * k / rows;
    packing = bits == 4 ? "4bit_u8" : "8bit_u8";
    code_shape = {bits == 4 ? rows / 2 : rows, columns};
    for (int64_t i = 0; i < code_shape[0] * columns; ++i) {
      codes.push_back(static_cast<char>(29 * i + i / 199));
    }
    const int64_t scales = axis == 1 ? rows : columns;
    scale_shape = axis == 1 ? std::vector<int64_t>{rows, 1} : std::vector<int64_t>{1, columns};
    for (int64_t i = 0; i < scales; ++i) {
      scale.push_back(0.0123f + 0.0007f * static_cast<float>(i % 61));
      zero.push_back(7.3f - 0.11f * static_cast<float>(i % 43));
    }
  }
  FileBuilder file(const std::vector<std::string>& without = {}) const {
    FileBuilder out;
    const auto add = [&](const std::string& name, const std::string& type,
                         const std::vector<int64_t>& shape, const std::string& bytes) {
      if (std::find(without.begin(), without.end(), name) != without.end()) return;
      out.add("l." + name, type, shape, bytes);
    };
    const auto text = [&](const std::string& name, const std::string& value) {
      add(name, "U8", {static_cast<int64_t>(value.size())}, value);
    };
    const auto name_of = [](DType type) {
      return type == DType::kF32 ? "F32" : type == DType::kF16 ? "F16" : "BF16";
    };
    add("W_q", code_dtype, code_shape, codes);
    if (one_tensor) {
      std::vector<int64_t> shape = {2};
      shape.insert(shape.end(), scale_shape.begin(), scale_shape.end());
      add("zero_scale", name_of(dtype), shape, values_of(dtype, zero) + values_of(dtype, scale));
    } else {
      add("scale", name_of(dtype), scale_shape, values_of(dtype, scale));
      add("zero", name_of(zero_dtype), scale_shape, values_of(zero_dtype, zero));
    }
    add("shape", "I64", {2}, bytes_of(std::vector<int64_t>{n, k}));
    add("axis", "I32", {}, scalar<int32_t>(axis));
    add("nbits", "I32", {}, scalar<int32_t>(nbits));
    add("group_size", "I32", {}, scalar<int32_t>(static_cast<int32_t>(group)));
    text("packing", packing);
    text("compute_dtype", compute_dtype);
    add("quant_scale", "U8", {}, scalar<uint8_t>(quant_scale));
    add("quant_zero", "U8", {}, scalar<uint8_t>(quant_zero));
    return out;
  }
  /// By the tool's rule in FP32: unpack, subtract, multiply, reshape.
  std::vector<float> decoded() const {
    const auto stored = [](float value, DType type) {
      uint8_t bytes[4];
      store_from_f32(bytes, type, 0, value);
      return load_as_f32(bytes, type, 0);
    };
    const int64_t rows = axis == 1 ? n * k / group : group, columns = n * k / rows;
    std::vector<float> out;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        uint8_t code;
        if (bits == 8) {
          code = static_cast<uint8_t>(codes[static_cast<size_t>(r * columns + c)]);
        } else {
          const bool first = r < rows / 2;
          const int64_t row = first ? r : r - rows / 2;
          const auto byte = static_cast<uint8_t>(codes[static_cast<size_t>(row * columns + c)]);
          code = first ? byte >> 4 : byte & 15;
        }
        const auto at = static_cast<size_t>(scale.size() == 1 ? 0 : axis == 1 ? r : c);
        const float difference = static_cast<float>(code) - stored(zero[at], zero_dtype);
        out.push_back(difference * stored(scale[at], dtype));
      }
    }
    return out;
  }
};

/// Checks every value and returns the Format's name, or "dense".
std::string expect_decoded(const Layer& layer, const std::string& config = kConfig,
                           const std::vector<std::string>& without = {}) {
  const Result<Checkpoint> checkpoint = open_made(layer.file(without), config);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  if (!checkpoint.ok()) return "";
  EXPECT_EQ(checkpoint->spelling(), "hqq");
  const LayerInfo& info = checkpoint->layers()[0];
  EXPECT_TRUE(info.status.ok()) << info.status.message();
  EXPECT_EQ(dense_made(*checkpoint), layer.decoded());
  const Result<QuantizedTensor> q = checkpoint->load("l");
  if (!info.dense_only.empty()) {
    EXPECT_EQ(q.status().code(), Code::kUnsupported);
    return "dense";
  }
  EXPECT_TRUE(q.ok()) << q.status().message();
  return q.ok() ? q->format.name() : "";
}

TEST(Hqq, HighNibblesAreTheFirstHalfOfTheRows) {
  EXPECT_EQ(expect_decoded(Layer(8, 128, 64, 1)), "uint4-g64:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(8, 128, 16, 1)), "uint4-g16:f16:zfloat");
  // An odd number of bytes: one of them has the last element of one half, the first of the other.
  EXPECT_EQ(expect_decoded(Layer(3, 6, 3, 1)), "dense");
  EXPECT_EQ(expect_decoded(Layer(3, 6, 9, 1)), "dense");
}

TEST(Hqq, RowsOfOddLengthKeepTheirPaddingClear) {
  EXPECT_EQ(expect_decoded(Layer(4, 33, 33, 1)), "uint4-channel:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(2, 7, 7, 1)), "uint4-channel:f16:zfloat");
}

TEST(Hqq, GroupsThatCrossRowsAreGroupsWhereEveryBorderFits) {
  EXPECT_EQ(expect_decoded(Layer(4, 96, 64, 1)), "uint4-g32:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(8, 144, 64, 1)), "uint4-g16:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(16, 72, 64, 1)), "dense");
  EXPECT_EQ(expect_decoded(Layer(4, 1024, 256, 1)), "uint4-g128:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(8, 32, 64, 1)), "uint4-g64:f16:zfloat");
}

TEST(Hqq, AxisZeroScalesColumnsAndIsDense) {
  EXPECT_EQ(expect_decoded(Layer(64, 48, 64, 0)), "dense");
  EXPECT_EQ(expect_decoded(Layer(48, 40, 64, 0)), "dense");
  EXPECT_EQ(expect_decoded(Layer(48, 40, 64, 0, 8)), "dense");
}

TEST(Hqq, EightBitCodesAreViewedWithoutACopy) {
  const Layer layer(4, 96, 32, 1, 8);
  EXPECT_EQ(expect_decoded(layer), "uint8-g32:f16:zfloat");
  const Checkpoint checkpoint = open_made(layer.file(), kConfig).value();
  EXPECT_EQ(checkpoint.load("l")->codes.data(), checkpoint.tensor_bytes("l.W_q")->data());
}

TEST(Hqq, CodesOfFiveAndSixBitsAreStoredAsBytes) {
  Layer layer(4, 96, 32, 1, 8);
  for (char& code : layer.codes) code = static_cast<char>(code & 63);
  layer.nbits = 6;
  EXPECT_EQ(expect_decoded(layer), "uint8-g32:f16:zfloat");
}

TEST(Hqq, ViewAsFloatStoresTheSameBytesAtHalfOrAQuarterTheWidth) {
  for (const auto& [dtype, bytes] :
       {std::pair{"F16", 2}, std::pair{"BF16", 2}, std::pair{"F32", 4}}) {
    Layer layer(4, 128, 64, 1);
    layer.code_dtype = dtype;
    layer.code_shape[1] /= bytes;
    EXPECT_EQ(expect_decoded(layer), "uint4-g64:f16:zfloat") << dtype;
  }
}

TEST(Hqq, ScalesAndZerosMayBeInOneTensorZerosFirst) {
  Layer layer(4, 128, 64, 1);
  layer.one_tensor = true;
  EXPECT_EQ(expect_decoded(layer), "uint4-g64:f16:zfloat");
  Layer columns(48, 40, 64, 0);
  columns.one_tensor = true;
  EXPECT_EQ(expect_decoded(columns), "dense");
}

TEST(Hqq, OneScaleForTheWholeWeightIsThatOfEveryRow) {
  for (const int axis : {0, 1}) {
    Layer layer(6, 40, axis == 1 ? 40 : 6, axis);  // not reshaped
    layer.scale = {0.25f};
    layer.zero = {7.5f};
    layer.scale_shape = {};
    EXPECT_EQ(expect_decoded(layer), "uint4-channel:f16:zfloat");
  }
}

TEST(Hqq, ScalesAndZerosOfDifferentDtypesAreWidened) {
  Layer layer(4, 128, 64, 1);
  layer.dtype = DType::kBF16;
  EXPECT_EQ(expect_decoded(layer), "uint4-g64:f32:zfloat");
  layer.zero_dtype = DType::kBF16;
  EXPECT_EQ(expect_decoded(layer), "uint4-g64:zfloat");
  layer.dtype = layer.zero_dtype = DType::kF32;
  EXPECT_EQ(expect_decoded(layer), "uint4-g64:f32:zfloat");
}

TEST(Hqq, AFileAloneIsRecognisedByItsTensors) {
  EXPECT_EQ(expect_decoded(Layer(4, 128, 64, 1), ""), "uint4-g64:f16:zfloat");
  EXPECT_EQ(expect_decoded(Layer(4, 128, 64, 1), "",
                           {"packing", "compute_dtype", "group_size", "quant_scale", "quant_zero"}),
            "uint4-g64:f16:zfloat");
}

TEST(Hqq, OtherWidthsAreRefusedByTheirPacking) {
  for (const auto& [nbits, packing] :
       {std::pair{3, "3bit_32"}, std::pair{2, "2bit_u8"}, std::pair{1, "1bit_u8"}}) {
    Layer layer(4, 128, 64, 1);
    layer.nbits = nbits;
    layer.packing = packing;
    expect_refused(layer.file(), kConfig, {std::to_string(nbits) + " bits", packing, "4bit_u8"},
                   Code::kUnsupported);
  }
  FileBuilder file = Layer(4, 128, 64, 1).file({"nbits", "packing"});
  file.add("l.nbits", "F32", {}, scalar<float>(1.58f));
  expect_refused(file, kConfig, {"1.58 bits"}, Code::kUnsupported);
}

TEST(Hqq, QuantizedScalesAreRefused) {
  Layer layer(4, 128, 64, 1);
  layer.quant_zero = 1;
  expect_refused(layer.file(), kConfig, {"quant_zero"}, Code::kUnsupported);
  layer.quant_scale = 1;
  expect_refused(layer.file(), kConfig, {"quant_scale"}, Code::kUnsupported);
}

TEST(Hqq, DamagedLayersAreRefusedByTheRuleTheyBreak) {
  const auto broken = [](auto change, const std::vector<std::string>& words) {
    Layer layer(4, 128, 64, 1);
    change(layer);
    expect_refused(layer.file(), kConfig, words);
  };
  broken([](Layer& l) { l.code_shape = {8, 32}; }, {"'l.scale'", "[8, 1]", "[16, 1]"});
  broken([](Layer& l) { l.codes.resize(3 * 64), l.code_shape = {3, 64}; }, {"[3, 64]", "[4, 128]"});
  broken([](Layer& l) { l.code_shape = {256}; }, {"[256]"});
  broken([](Layer& l) { l.code_dtype = "I8"; }, {"I8"});
  broken([](Layer& l) { l.scale.pop_back(), l.zero.pop_back(), l.scale_shape = {7, 1}; },
         {"'l.scale'", "[7, 1]", "[8, 1]"});
  broken([](Layer& l) { l.scale_shape = {1, 8}; }, {"[1, 8]", "[8, 1]"});
  broken([](Layer& l) { l.scale[3] = INFINITY; }, {"scale of row 1, group 1"});
  broken([](Layer& l) { l.zero[2] = NAN; }, {"zero of row 1, group 0"});
  broken([](Layer& l) { l.axis = 2; }, {"axis is 2"});
  broken([](Layer& l) { l.packing = "8bit_u8"; }, {"packing is '8bit_u8' with 4 bits"});
  broken([](Layer& l) { l.packing = std::string(100, 'x'); }, {"packing"});
  broken([](Layer& l) { l.n = -4; }, {"[-4, 128]"});
  broken([](Layer& l) { l.n = int64_t{1} << 62; }, {"4611686018427387904"});
  broken([](Layer& l) { l.n = 3; }, {"[3, 128]"});
  for (const char* part : {"scale", "zero", "shape", "axis", "nbits"}) {
    expect_refused(Layer(4, 128, 64, 1).file({part}), kConfig,
                   {"'l." + std::string(part) + "' is missing"});
  }
  Layer columns(48, 40, 64, 0);
  columns.scale[7] = NAN;
  const Result<DenseRows> rows = open_made(columns.file(), kConfig)->dense_rows("l");
  EXPECT_EQ(rows.status().code(), Code::kCorruptFile);
  expect_words(rows.status(), {"zero 7"});
}

}  // namespace
}  // namespace nibble::checkpoint
