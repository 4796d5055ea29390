#include "layer_choice.h"

#include <gtest/gtest.h>

namespace nibble::cli {
namespace {

TensorInfo tensor(std::string name, std::vector<int64_t> shape, DType dtype = DType::kBF16) {
  TensorInfo info;
  info.name = std::move(name);
  info.dtype = dtype;
  info.dtype_name = dtype_name(dtype);
  info.shape = std::move(shape);
  info.bytes = dtype_bytes(dtype);
  for (const int64_t extent : info.shape) info.bytes *= extent;
  return info;
}

ChoiceOptions options_for(const char* format) {
  ChoiceOptions options;
  options.format = *Format::parse(format);
  return options;
}

LayerChoice choose(const std::vector<TensorInfo>& tensors, const ChoiceOptions& options) {
  auto choice = choose_layers(tensors, options);
  EXPECT_TRUE(choice.ok()) << choice.status().message();
  return choice.ok() ? *choice : LayerChoice{};
}

std::vector<std::string> chosen_names(const LayerChoice& choice) {
  std::vector<std::string> names;
  for (const ChosenLayer& each : choice.chosen) names.push_back(each.layer.name);
  return names;
}

std::string reason_of(const LayerChoice& choice, const std::string& name) {
  for (const SkippedTensor& each : choice.skipped) {
    if (each.tensor == name) return each.reason;
  }
  return "not skipped";
}

TEST(DefaultSkipReason, KeepsLinearLayersOfKnownModels) {
  for (const char* module :
       {"model.layers.0.self_attn.q_proj", "model.layers.31.mlp.gate_proj",
        "encoder.layer.5.attention.output.dense", "encoder.layer.0.intermediate.dense",
        "transformer.h.0.mlp.c_fc", "vision_tower.encoder.layers.3.mlp.fc1",
        "decoder.block.1.layer.0.SelfAttention.q", "action_out_proj", "model.blocks.0.w_gate"}) {
    EXPECT_EQ(default_skip_reason(module), "") << module;
  }
}

TEST(DefaultSkipReason, LeavesEmbeddingsNormsHeadsAndRouters) {
  for (const char* module :
       {"model.embed_tokens", "embeddings.word_embeddings", "transformer.wte", "shared", "rwkv.emb",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "vision.embeddings.patch_embedding", "model.pos_emb"}) {
    EXPECT_EQ(default_skip_reason(module), "embedding") << module;
  }
  for (const char* module : {"model.norm", "encoder.layer.0.output.LayerNorm", "h.0.ln_1", "ln_f",
                             "layers.0.input_layernorm", "ln"}) {
    EXPECT_EQ(default_skip_reason(module), "norm") << module;
  }
  for (const char* module : {"lm_head", "pooler.dense", "classifier", "cls.predictions.decoder",
                             "score", "embed_out", "classifier.out_proj"}) {
    EXPECT_EQ(default_skip_reason(module), "output head") << module;
  }
  for (const char* module :
       {"model.layers.0.mlp.gate", "layers.1.block_sparse_moe.gate", "layers.1.router"}) {
    EXPECT_EQ(default_skip_reason(module), "router") << module;
  }
}

TEST(ChooseLayers, TakesMatricesAndSaysWhyTheRestStays) {
  const LayerChoice choice =
      choose({tensor("a.q_proj.weight", {256, 128}), tensor("a.q_proj.bias", {256}),
              tensor("embed_tokens.weight", {1000, 128}), tensor("conv.weight", {8, 3, 16, 16}),
              tensor("a.codes.weight", {256, 128}, DType::kU8), tensor("a.table", {256, 128}),
              tensor("a.k_proj.weight", {256, 128}, DType::kF32)},
             options_for("int4-g128"));
  EXPECT_EQ(chosen_names(choice), (std::vector<std::string>{"a.q_proj", "a.k_proj"}));
  EXPECT_EQ(reason_of(choice, "a.q_proj.bias"), "no matrix");
  EXPECT_EQ(reason_of(choice, "embed_tokens.weight"), "embedding");
  EXPECT_EQ(reason_of(choice, "conv.weight"), "no matrix");
  EXPECT_NE(reason_of(choice, "a.codes.weight").find("u8"), std::string::npos);
  EXPECT_NE(reason_of(choice, "a.table").find(".weight"), std::string::npos);
}

TEST(ChooseLayers, IncludeTakesExactlyItsMatchesAndExcludeWins) {
  const std::vector<TensorInfo> tensors = {
      tensor("layers.0.q_proj.weight", {256, 128}), tensor("layers.1.q_proj.weight", {256, 128}),
      tensor("lm_head.weight", {1000, 128}), tensor("norm.weight", {128})};
  ChoiceOptions options = options_for("int4-g128");
  options.include = {"lm_head", "layers\\.1"};
  EXPECT_EQ(chosen_names(choose(tensors, options)),
            (std::vector<std::string>{"layers.1.q_proj", "lm_head"}));
  options.exclude = {"layers"};
  const LayerChoice choice = choose(tensors, options);
  EXPECT_EQ(chosen_names(choice), (std::vector<std::string>{"lm_head"}));
  EXPECT_EQ(reason_of(choice, "layers.1.q_proj.weight"), "--exclude");
  EXPECT_EQ(reason_of(choice, "norm.weight"), "not matched by --include");
  options.include = {};
  EXPECT_TRUE(choose(tensors, options).chosen.empty());
}

TEST(ChooseLayers, RaggedKGetsTheLargestGroupThatDividesIt) {
  const struct {
    const char* format;
    int64_t k;
    int32_t group;
  } cases[] = {{"int4-g128", 4304, 16}, {"int4-g128", 4416, 64}, {"int4-g128", 4384, 32},
               {"uint4-g64", 4304, 16}, {"int4-g32", 4304, 16},  {"int4-channel", 4304, 0},
               {"int4-g128", 4096, 128}};
  for (const auto& c : cases) {
    const LayerChoice choice = choose({tensor("x.weight", {64, c.k})}, options_for(c.format));
    ASSERT_EQ(choice.chosen.size(), 1u) << c.format << " " << c.k;
    EXPECT_EQ(choice.chosen[0].layer.format.group, c.group) << c.format << " " << c.k;
    const Format asked = *Format::parse(c.format);
    EXPECT_EQ(choice.chosen[0].smaller_group, c.group != asked.group);
    EXPECT_FALSE(choice.chosen[0].short_group);
  }
}

TEST(ChooseLayers, KThatNoGroupDividesStaysUnlessShortGroupsAreAllowed) {
  const std::vector<TensorInfo> tensors = {tensor("x.weight", {64, 4100})};
  ChoiceOptions options = options_for("int4-g128");
  LayerChoice choice = choose(tensors, options);
  EXPECT_TRUE(choice.chosen.empty());
  EXPECT_NE(reason_of(choice, "x.weight").find("4100"), std::string::npos);
  options.allow_short_group = true;
  choice = choose(tensors, options);
  ASSERT_EQ(choice.chosen.size(), 1u);
  EXPECT_TRUE(choice.chosen[0].short_group);
  EXPECT_EQ(choice.chosen[0].layer.format.group, 128);
}

TEST(ChooseLayers, FixedGroupsNeverShrinkAndTheLayerIsMarkedAsLeftInFloat) {
  for (const char* format : {"mxfp4", "nf4-g64"}) {
    const LayerChoice choice = choose({tensor("x.weight", {64, 4304})}, options_for(format));
    EXPECT_TRUE(choice.chosen.empty()) << format;
    ASSERT_EQ(choice.skipped.size(), 1u) << format;
    EXPECT_TRUE(choice.skipped[0].linear_layer) << format;
    EXPECT_NE(choice.skipped[0].reason.find("4304"), std::string::npos) << format;
  }
  EXPECT_FALSE(
      choose({tensor("lm_head.weight", {64, 4304})}, options_for("mxfp4")).skipped[0].linear_layer);
}

TEST(ChooseLayers, RefusesABrokenPatternAndAnImpossibleLayerThatIsAskedFor) {
  ChoiceOptions options = options_for("mxfp4");
  options.include = {"("};
  EXPECT_EQ(choose_layers({}, options).status().code(), Code::kInvalidArgument);
  options.include = {"^x"};
  const std::vector<TensorInfo> tensors = {tensor("x.weight", {64, 4304})};
  const auto choice = choose_layers(tensors, options);
  ASSERT_FALSE(choice.ok());
  EXPECT_EQ(choice.status().code(), Code::kUnsupported);
  EXPECT_NE(choice.status().message().find("x.weight"), std::string::npos);
}

}  // namespace
}  // namespace nibble::cli
