// Traps in checkpoints that the tools themselves wrote. That every one of them decodes as its tool
// decodes it and runs is tested in tests/internal/fixtures_test.cc.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/json.h"
#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

std::string data_path(const std::string& name) {
  return std::string(NIBBLE_TEST_DATA_DIR) + "/fixtures/" + name;
}

TEST(CompressedTensors, FormatsComeFromTensorsAndConfiguration) {
  const auto format_of = [](const std::string& fixture) {
    const Checkpoint checkpoint =
        Checkpoint::open(data_path("compressed-tensors/" + fixture)).value();
    EXPECT_EQ(checkpoint.spelling(), "compressed-tensors");
    return checkpoint.layers()[0].format.name();
  };
  EXPECT_EQ(format_of("int4-sym-g128-bf16"), "int4-g128");
  EXPECT_EQ(format_of("int4-asym-g64-f32"), "uint4-g64:f32");
  EXPECT_EQ(format_of("int4-sym-channel-f16"), "int4-channel:f16");
  EXPECT_EQ(format_of("int8-sym-g32-bf16"), "int8-g32");
  EXPECT_EQ(format_of("int8-asym-g64-f16"), "uint8-g64:f16");
  EXPECT_EQ(format_of("nvfp4a16-bf16"), "nvfp4");
  EXPECT_EQ(format_of("mxfp4a16-bf16"), "mxfp4");
}

TEST(CompressedTensors, ZeroPointsArePackedAlongRows) {
  const std::string root = data_path("compressed-tensors/int4-asym-g32-rows-not-multiple-of-8");
  const Checkpoint checkpoint = Checkpoint::open(root).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  const QuantizedTensor q = checkpoint.load(layer.name).value();
  const Buffer words = checkpoint.tensor_bytes(layer.name + ".weight_zero_point").value();
  ASSERT_EQ(q.n, 52);
  ASSERT_EQ(words.bytes(), 7 * 4 * 4);  // ceil(52 / 8) words of 8 rows for each of 4 groups
  std::vector<uint8_t> distinct;
  for (int64_t row = 0; row < q.n; ++row) {
    for (int64_t g = 0; g < 4; ++g) {
      const uint8_t byte = words.data()[4 * (row / 8 * 4 + g) + row % 8 / 2];
      ASSERT_EQ(q.zeros.data()[row * 4 + g], row % 2 == 0 ? byte & 15 : byte >> 4);
      distinct.push_back(q.zeros.data()[row * 4 + g]);
    }
  }
  std::sort(distinct.begin(), distinct.end());
  EXPECT_GT(std::unique(distinct.begin(), distinct.end()) - distinct.begin(), 4);
}

TEST(CompressedTensors, GlobalScaleDivides) {
  const Checkpoint checkpoint =
      Checkpoint::open(data_path("compressed-tensors/nvfp4a16-bf16")).value();
  for (const LayerInfo& layer : checkpoint.layers()) {
    const QuantizedTensor q = checkpoint.load(layer.name).value();
    EXPECT_EQ(q.tensor_scale_op, TensorScaleOp::kDivide);
    ASSERT_EQ(q.tensor_scales.size(), 1u);
    const Buffer global = checkpoint.tensor_bytes(layer.name + ".weight_global_scale").value();
    EXPECT_EQ(std::memcmp(&q.tensor_scales[0].value, global.data(), 4), 0);
    EXPECT_GT(q.tensor_scales[0].value, 1.0f);
  }
}

TEST(CompressedTensors, GIdxSortsKOnce) {
  const Checkpoint checkpoint =
      Checkpoint::open(data_path("compressed-tensors/int4-sym-g32-g-idx")).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  const QuantizedTensor q = checkpoint.load(layer.name).value();
  const Tensor g_idx = checkpoint.tensor(layer.name + ".weight_g_idx").value();
  const auto* group_of = static_cast<const int32_t*>(g_idx.view.data);
  ASSERT_EQ(q.k_perm.size(), 160u);
  for (size_t j = 0; j < 160; ++j) {
    EXPECT_EQ(group_of[q.k_perm[j]], static_cast<int32_t>(j / 32)) << "stored column " << j;
    // Stable: within a group, columns keep their order.
    if (j % 32 != 0) {
      EXPECT_LT(q.k_perm[j - 1], q.k_perm[j]);
    }
  }
}

TEST(CompressedTensors, StoredOrderIsViewedWithoutACopyWhereItIsCanonical) {
  for (const char* fixture : {"nvfp4a16-bf16", "mxfp4a16-bf16", "int4-asym-g64-f32"}) {
    const Checkpoint checkpoint =
        Checkpoint::open(data_path(std::string("compressed-tensors/") + fixture)).value();
    const std::string layer = checkpoint.layers()[0].name;
    const QuantizedTensor q = checkpoint.load(layer).value();
    EXPECT_EQ(q.codes.data(), checkpoint.tensor_bytes(layer + ".weight_packed")->data()) << fixture;
    EXPECT_EQ(q.scales.data(), checkpoint.tensor_bytes(layer + ".weight_scale")->data()) << fixture;
  }
}

TEST(CompressedTensors, CodesOutliveTheCheckpoint) {
  std::optional<QuantizedTensor> q;
  {
    const Checkpoint checkpoint =
        Checkpoint::open(data_path("compressed-tensors/mxfp4a16-bf16")).value();
    q = checkpoint.load(checkpoint.layers()[0].name).value();
  }
  std::vector<float> row(static_cast<size_t>(q->k));
  q->dequantize(0, 1, row.data());
  EXPECT_TRUE(std::isfinite(row[0]));
}

TEST(CompressedTensors, ShardsAreOneCheckpoint) {
  const Checkpoint checkpoint =
      Checkpoint::open(data_path("compressed-tensors/int4-sym-g32-sharded")).value();
  EXPECT_EQ(checkpoint.shards().size(), 4u);
  EXPECT_EQ(checkpoint.layers().size(), 3u);
  // The middle layer's codes and scales stand in different files.
  const std::string layer = "model.layers.1.mlp.up_proj";
  EXPECT_NE(checkpoint.find(layer + ".weight_packed")->shard,
            checkpoint.find(layer + ".weight_scale")->shard);
}

TEST(CompressedTensors, AFileAloneIsRecognisedByItsTensors) {
  for (const char* fixture : {"int4-asym-g64-f32", "int4-sym-channel-f16", "int8-asym-g64-f16",
                              "mxfp4a16-bf16", "nvfp4a16-bf16"}) {
    const std::string root = data_path(std::string("compressed-tensors/") + fixture);
    const Checkpoint whole = Checkpoint::open(root).value();
    const Checkpoint alone = Checkpoint::open(root + "/model.safetensors").value();
    EXPECT_TRUE(alone.config_json().empty());
    EXPECT_EQ(alone.spelling(), "compressed-tensors");
    ASSERT_EQ(alone.layers().size(), whole.layers().size());
    for (const LayerInfo& layer : whole.layers()) {
      EXPECT_TRUE(identical(alone.load(layer.name).value(), whole.load(layer.name).value()));
    }
  }
}

TEST(Bitsandbytes, WhatNoFormatHoldsSaysWhyAndReadsDense) {
  const Checkpoint checkpoint =
      Checkpoint::open(data_path("bitsandbytes/nf4-blocks-cross-rows")).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  EXPECT_NE(layer.dense_only.find("blocks of 64 over rows of k = 136"), std::string::npos);
  EXPECT_EQ(checkpoint.load(layer.name).status().code(), Code::kUnsupported);
  EXPECT_TRUE(checkpoint.dense_rows(layer.name).ok());
}

TEST(ModelOpt, PreQuantScaleIsOnlyWhereNoNormCouldTakeIt) {
  const Checkpoint checkpoint = Checkpoint::open(data_path("modelopt/int4-awq-g32-llama")).value();
  for (const LayerInfo& layer : checkpoint.layers()) {
    const bool has = layer.name.ends_with("o_proj") || layer.name.ends_with("down_proj");
    EXPECT_EQ(layer.remark, has ? "pre_quant_scale" : "") << layer.name;
    const QuantizedTensor q = checkpoint.load(layer.name).value();
    EXPECT_EQ(static_cast<int64_t>(q.pre_scale.size()), has ? q.k : 0) << layer.name;
    EXPECT_EQ(q.format.name(), "int4-g32:f32") << layer.name;
  }
}

TEST(ModelOpt, AFileAloneIsRecognisedByItsTensors) {
  for (const char* fixture : {"int4-awq-g32-llama", "mxfp4-llama", "nvfp4-llama"}) {
    const std::string root = data_path(std::string("modelopt/") + fixture);
    const Checkpoint whole = Checkpoint::open(root).value();
    const Checkpoint alone = Checkpoint::open(root + "/model.safetensors").value();
    EXPECT_EQ(alone.spelling(), "modelopt");
    ASSERT_EQ(alone.layers().size(), whole.layers().size());
    for (const LayerInfo& layer : whole.layers()) {
      EXPECT_TRUE(identical(alone.load(layer.name).value(), whole.load(layer.name).value()));
    }
  }
}

TEST(ModelOpt, LowerCaseAlgorithmWithoutAGroupIsRead) {
  const Checkpoint checkpoint = Checkpoint::open(data_path("modelopt/mxfp4-llama")).value();
  EXPECT_NE(checkpoint.config_json().find("\"quant_algo\": \"mxfp4\""), std::string::npos);
  EXPECT_EQ(checkpoint.load(checkpoint.layers()[0].name)->format.name(), "mxfp4");
}

TEST(ModelOpt, StoredOrderIsViewedWithoutACopyWhereItIsCanonical) {
  for (const char* fixture : {"nvfp4-llama", "mxfp4-llama"}) {
    const Checkpoint checkpoint =
        Checkpoint::open(data_path(std::string("modelopt/") + fixture)).value();
    const std::string layer = checkpoint.layers()[0].name;
    const QuantizedTensor q = checkpoint.load(layer).value();
    EXPECT_EQ(q.codes.data(), checkpoint.tensor_bytes(layer + ".weight")->data()) << fixture;
    EXPECT_EQ(q.scales.data(), checkpoint.tensor_bytes(layer + ".weight_scale")->data()) << fixture;
  }
}

TEST(Hqq, AxisZeroSaysWhyAndReadsDense) {
  const Checkpoint checkpoint = Checkpoint::open(data_path("hqq/axis0-g64-f16")).value();
  const LayerInfo& layer = checkpoint.layers()[0];
  EXPECT_EQ(layer.remark, "axis 0");
  EXPECT_NE(layer.dense_only.find("axis 0"), std::string::npos);
  EXPECT_TRUE(checkpoint.dense_rows(layer.name).ok());
}

TEST(Hqq, FormatsKeepTheFloatZerosAndTheirDtype) {
  const auto format_of = [](const std::string& fixture) {
    const Checkpoint checkpoint = Checkpoint::open(data_path("hqq/" + fixture)).value();
    return checkpoint.load(checkpoint.layers()[0].name)->format.name();
  };
  EXPECT_EQ(format_of("axis1-g64-f16"), "uint4-g64:f16:zfloat");
  EXPECT_EQ(format_of("axis1-g64-bf16-multi"), "uint4-g64:zfloat");
  EXPECT_EQ(format_of("axis1-g64-crosses-rows"), "uint4-g16:f32:zfloat");
}

}  // namespace
}  // namespace nibble::checkpoint
