// What the GGUF writer's pieces make is what the reader reads.
#include "checkpoint/gguf_write.h"

#include <gtest/gtest.h>

#include "checkpoint/gguf_test_files.h"

namespace nibble::checkpoint {
namespace {

class StringSink final : public TensorSink {
 public:
  Status append(size_t index, std::span<const uint8_t> bytes) override {
    EXPECT_EQ(index, 0u);
    text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return {};
  }
  std::string text;
};

MappedFile in_memory(const std::string& bytes) {
  auto owned = std::make_shared<std::string>(bytes);
  const char* data = owned->data();
  return MappedFile::of_memory(
      Buffer::view(data, static_cast<int64_t>(bytes.size()), std::move(owned)));
}

/// A whole file: the header and each tensor's bytes where the header says.
std::string file_of(std::vector<TensorInfo> infos, const std::vector<std::string>& bytes,
                    const GgufPairs& pairs) {
  const GgufHeader header = gguf_header(infos, pairs).value();
  std::string out(static_cast<size_t>(header.file_bytes), '\0');
  std::copy(header.bytes.begin(), header.bytes.end(), out.begin());
  for (size_t i = 0; i < infos.size(); ++i) {
    std::copy(bytes[i].begin(), bytes[i].end(), out.begin() + infos[i].file_offset);
  }
  return out;
}

TensorInfo plain(const std::string& name, const std::string& type, std::vector<int64_t> shape,
                 int64_t bytes) {
  TensorInfo info;
  info.name = name;
  info.dtype_name = type;
  info.shape = std::move(shape);
  info.bytes = bytes;
  return info;
}

TEST(GgufWrite, WeightsReadBackBitForBit) {
  for (const char* name : {"int4-g32:f16", "int8-g32:f16", "mxfp4"}) {
    const Format format = *Format::parse(name);
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 32}, {7, 160}, {300, 8192}}) {
      SCOPED_TRACE(std::string(name) + " n = " + std::to_string(n));
      const QuantizedTensor q = random_weight(format, n, k, 11);
      const LayerSpec layer{"blk.0.ffn_up", format, n, k};
      ASSERT_TRUE(kWriteGguf.takes(format));
      ASSERT_TRUE(kWriteGguf.check(layer).ok());
      const std::vector<TensorInfo> infos = kWriteGguf.tensors(layer);
      ASSERT_EQ(infos.size(), 1u);
      StringSink sink;
      ASSERT_TRUE(kWriteGguf.encode(layer, q, sink).ok());
      ASSERT_EQ(static_cast<int64_t>(sink.text.size()), infos[0].bytes);
      const std::string file = file_of(infos, {sink.text}, GgufPairs::of_config(Json(), "m"));
      const Result<Checkpoint> result = open_gguf_bytes(file);
      ASSERT_TRUE(result.ok()) << result.status().message();
      const Checkpoint& opened = *result;
      const QuantizedTensor back = opened.load("blk.0.ffn_up").value();
      EXPECT_TRUE(identical(q, back));
      EXPECT_EQ(opened.tensors()[0].dtype_name, gguf_type_of(format));
    }
  }
}

TEST(GgufWrite, WhatDoesNotFitIsRefusedWithTheRule) {
  const auto rule = [](const char* format, int64_t k) {
    return kWriteGguf.check({"w", *Format::parse(format), 4, k});
  };
  for (const char* format : {"int4-g32", "int4-g64:f16", "int4-g32:f32", "uint4-g32:f16", "nvfp4",
                             "fp4-g32", "nf4-g32:f16", "int8-g16:f32"}) {
    EXPECT_FALSE(kWriteGguf.takes(*Format::parse(format))) << format;
    const Status status = rule(format, 64);
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_NE(status.message().find(Format::parse(format)->name()), std::string::npos);
  }
  const Status ragged = rule("int4-g32:f16", 80);
  EXPECT_EQ(ragged.code(), Code::kUnsupported);
  EXPECT_NE(ragged.message().find("k = 80 is not a multiple of 32"), std::string::npos);

  QuantizedTensor q = random_weight(*Format::parse("mxfp4"), 2, 64, 1);
  q.tensor_scales = {{0, 2.0f}};
  StringSink sink;
  const Status scaled = kWriteGguf.encode({"w", q.format, 2, 64}, q, sink);
  EXPECT_EQ(scaled.code(), Code::kUnsupported);
  EXPECT_NE(scaled.message().find("tensor scale"), std::string::npos);
}

TEST(GgufWrite, PairsOfAFileAreCarriedBitForBit) {
  GgufBuilder source;
  source.pair("general.architecture", "llama");
  source.pair("tokens", GgufValue::kArray,
              gguf_array(GgufValue::kString, 2, gguf_string("\xFFx") + gguf_string("")));
  source.pair("split.no", GgufValue::kU16, raw<uint16_t>(0));
  source.pair("odd", GgufValue::kBool, raw<uint8_t>(7));
  source.pair("split.count", GgufValue::kU16, raw<uint16_t>(1));
  source.floats("t", 3);
  const GgufPairs pairs = GgufPairs::of_file(in_memory(source.build()), "m").value();
  EXPECT_EQ(pairs.size(), 3u);
  EXPECT_FALSE(pairs.has("split.no"));
  GgufBuilder wanted;
  wanted.pair("general.architecture", "llama");
  wanted.pair("tokens", GgufValue::kArray,
              gguf_array(GgufValue::kString, 2, gguf_string("\xFFx") + gguf_string("")));
  wanted.pair("odd", GgufValue::kBool, raw<uint8_t>(7));
  const std::string whole = wanted.build();
  EXPECT_EQ(pairs.bytes(), whole.substr(24, pairs.bytes().size()));
}

TEST(GgufWrite, TheSourcesAlignmentIsKept) {
  GgufBuilder source;
  source.alignment = 128;
  source.pair("general.alignment", 128).floats("t", 3);
  const GgufPairs pairs = GgufPairs::of_file(in_memory(source.build()), "m").value();
  EXPECT_EQ(pairs.alignment(), 128);
  std::vector<TensorInfo> infos = {plain("a", "F32", {3}, 12), plain("b", "F16", {2, 5}, 20)};
  const GgufHeader header = gguf_header(infos, pairs).value();
  EXPECT_EQ(infos[0].file_offset % 128, 0);
  EXPECT_EQ(infos[1].file_offset, infos[0].file_offset + 128);
  EXPECT_EQ(header.file_bytes, infos[1].file_offset + 128);
  EXPECT_EQ(static_cast<int64_t>(header.bytes.size()), infos[0].file_offset);
}

TEST(GgufWrite, FileTypeIsThatOfMostWeights) {
  GgufPairs pairs = GgufPairs::of_config(Json(), "m");
  pairs.set("general.file_type", 15u);
  const auto written = [&pairs](std::vector<TensorInfo> infos) {
    std::vector<std::string> bytes;
    for (const TensorInfo& info : infos) {
      bytes.emplace_back(static_cast<size_t>(info.bytes), '\0');
    }
    return open_gguf_bytes(file_of(infos, bytes, pairs))->metadata();
  };
  const TensorInfo norm = plain("n", "F32", {100000}, 400000);
  const auto q4_0 = written({norm, plain("w", "Q4_0", {64, 32}, 64 * 18)});
  EXPECT_EQ(q4_0.at("general.file_type"), "2");
  EXPECT_EQ(q4_0.at("general.quantization_version"), "2");
  EXPECT_EQ(written({norm, plain("w", "MXFP4", {64, 32}, 64 * 17)}).at("general.file_type"), "38");
  const auto bf16 = written({norm, plain("w", "BF16", {64, 32}, 4096)});
  EXPECT_EQ(bf16.at("general.file_type"), "32");
  EXPECT_FALSE(bf16.contains("general.quantization_version"));
  // Of types that are only carried over, the source knows best: Q4_K_S or Q4_K_M.
  EXPECT_EQ(written({norm, plain("w", "Q4_K", {4, 256}, 4 * 144)}).at("general.file_type"), "15");
}

TEST(GgufWrite, ConfigsOfHuggingFaceBecomePairs) {
  const Json config = parse_json(R"({"model_type": "llama", "num_hidden_layers": 2,
      "hidden_size": 64, "num_attention_heads": 4, "vocab_size": -1})",
                                 "config")
                          .value();
  const GgufPairs pairs = GgufPairs::of_config(config, "tiny");
  const auto text =
      open_gguf_bytes(file_of({plain("w", "F32", {2}, 8)}, {std::string(8, '\0')}, pairs))
          ->metadata();
  EXPECT_EQ(text.at("general.architecture"), "llama");
  EXPECT_EQ(text.at("general.name"), "tiny");
  EXPECT_EQ(text.at("llama.block_count"), "2");
  EXPECT_EQ(text.at("llama.embedding_length"), "64");
  EXPECT_EQ(text.at("llama.attention.head_count"), "4");
  EXPECT_FALSE(text.contains("llama.vocab_size"));
}

TEST(GgufWrite, TensorsThatGgmlCannotHoldAreRefused) {
  const GgufPairs pairs = GgufPairs::of_config(Json(), "m");
  const auto refused = [&pairs](const TensorInfo& info) {
    std::vector<TensorInfo> infos = {info};
    return gguf_header(infos, pairs).status();
  };
  EXPECT_EQ(refused(plain("w", "F8_E4M3", {4}, 4)).code(), Code::kUnsupported);
  EXPECT_NE(refused(plain("w", "F8_E4M3", {4}, 4)).message().find("F8_E4M3"), std::string::npos);
  EXPECT_EQ(refused(plain("w", "F32", {1, 1, 1, 1, 1}, 4)).code(), Code::kUnsupported);
  EXPECT_EQ(refused(plain("w", "Q4_0", {2, 48}, 54)).code(), Code::kUnsupported);
  EXPECT_EQ(refused(plain("w", "F32", {4}, 4)).code(), Code::kInvalidArgument);
}

TEST(GgufWrite, AScalarBecomesAVectorOfOne) {
  const std::string file =
      file_of({plain("s", "F32", {}, 4)}, {raw(2.5f)}, GgufPairs::of_config(Json(), "m"));
  const Checkpoint opened = open_gguf_bytes(file).value();
  EXPECT_EQ(opened.find("s")->shape, (std::vector<int64_t>{1}));
  EXPECT_EQ(*static_cast<const float*>(opened.tensor("s")->view.data), 2.5f);
}

}  // namespace
}  // namespace nibble::checkpoint
