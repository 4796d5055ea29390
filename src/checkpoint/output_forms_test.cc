// Dense, ModelOpt and GGUF output of CheckpointWriter.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint/json.h"
#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

namespace fs = std::filesystem;

#define EXPECT_SAYS(status, text) \
  EXPECT_NE((status).message().find(text), std::string::npos) << (status).message()

std::string fixture(const std::string& name) {
  return std::string(NIBBLE_TEST_DATA_DIR) + "/fixtures/" + name;
}

std::vector<PlannedLayer> all_dense(const Checkpoint& source, DType dtype) {
  std::vector<PlannedLayer> plan;
  for (const LayerInfo& layer : source.layers()) plan.push_back({layer.name, {}, false, dtype});
  return plan;
}

Status write_all_dense(const Checkpoint& source, const std::string& out, DType dtype,
                       const WriteOptions& options = {}) {
  NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
                          CheckpointWriter::create(source, out, all_dense(source, dtype), options));
  EXPECT_EQ(writer.spelling(), "dense");
  for (const LayerInfo& layer : source.layers()) {
    NIBBLE_ASSIGN_OR_RETURN(const DenseRows rows, source.dense_rows(layer.name));
    NIBBLE_RETURN_IF_ERROR(writer.write_dense(layer.name, rows));
  }
  return writer.finish();
}

TEST(DenseOutput, HoldsTheDequantizedTruthUnderPlainNames) {
  const TempDirectory temp;
  const Checkpoint source =
      Checkpoint::open(fixture("compressed-tensors/int4-asym-g32-bf16-multi")).value();
  const Status status = write_all_dense(source, temp.path("out"), DType::kF32);
  ASSERT_TRUE(status.ok()) << status.message();
  const Checkpoint out = Checkpoint::open(temp.path("out")).value();
  EXPECT_EQ(out.spelling(), "");
  EXPECT_TRUE(out.layers().empty());
  EXPECT_EQ(out.config_json().find("quantization_config"), std::string::npos);
  for (const LayerInfo& layer : source.layers()) {
    const Tensor dense = out.tensor(layer.name + ".weight").value();
    EXPECT_EQ(dense.view.dtype, DType::kF32);
    ASSERT_EQ(dense.view.shape, (std::vector<int64_t>{layer.n, layer.k}));
    std::vector<float> truth(static_cast<size_t>(layer.n * layer.k));
    source.load(layer.name)->dequantize(0, layer.n, truth.data());
    EXPECT_EQ(std::memcmp(dense.view.data, truth.data(), truth.size() * sizeof(float)), 0);
  }
  // Nothing of the quantized layers is left, everything else is.
  for (const TensorInfo& tensor : source.tensors()) {
    const bool of_layer =
        std::any_of(source.layers().begin(), source.layers().end(), [&](const LayerInfo& layer) {
          return std::find(layer.tensors.begin(), layer.tensors.end(), tensor.name) !=
                 layer.tensors.end();
        });
    EXPECT_EQ(out.find(tensor.name) != nullptr, !of_layer) << tensor.name;
  }
}

TEST(DenseOutput, PreScaleIsFoldedAndBf16IsRoundedOnce) {
  const TempDirectory temp;
  const Checkpoint source =
      Checkpoint::open(fixture("compressed-tensors/int4-sym-g128-bf16")).value();
  const LayerInfo& layer = source.layers()[0];
  DenseRows rows = source.dense_rows(layer.name).value();
  for (int64_t j = 0; j < layer.k; ++j) {
    rows.pre_scale.push_back(1.0f + 0.37f * static_cast<float>(j));
  }
  auto writer =
      CheckpointWriter::create(source, temp.path("out"), all_dense(source, DType::kBF16)).value();
  ASSERT_TRUE(writer.write_dense(layer.name, rows).ok());
  ASSERT_TRUE(writer.finish().ok());
  const Tensor out = Checkpoint::open(temp.path("out"))->tensor(layer.name + ".weight").value();
  std::vector<float> truth(static_cast<size_t>(layer.n * layer.k));
  ASSERT_TRUE(rows.read(0, layer.n, truth.data()).ok());
  for (int64_t i = 0; i < layer.n * layer.k; ++i) {
    const float value =
        truth[static_cast<size_t>(i)] * rows.pre_scale[static_cast<size_t>(i % layer.k)];
    ASSERT_EQ(load_as_f32(out.view.data, DType::kBF16, i), bf16_to_f32(f32_to_bf16(value))) << i;
  }
}

TEST(DenseOutput, QuantizationFilesOfTheSourceAreDropped) {
  const TempDirectory temp;
  fs::copy(fixture("compressed-tensors/int4-sym-g128-bf16"), temp.path("in"),
           fs::copy_options::recursive);
  for (const char* name : {"hf_quant_config.json", "quantize_config.json", "tokenizer.json"}) {
    write_bytes(temp.path("in/") + name, "{}");
  }
  fs::remove(temp.path("in/golden.safetensors"));
  const Checkpoint source = Checkpoint::open(temp.path("in")).value();
  ASSERT_TRUE(write_all_dense(source, temp.path("out"), DType::kF32).ok());
  EXPECT_FALSE(fs::exists(temp.path("out/hf_quant_config.json")));
  EXPECT_FALSE(fs::exists(temp.path("out/quantize_config.json")));
  EXPECT_TRUE(fs::exists(temp.path("out/tokenizer.json")));
}

TEST(DenseOutput, WrongCallsAreErrors) {
  const TempDirectory temp;
  const Checkpoint source =
      Checkpoint::open(fixture("compressed-tensors/int4-sym-g128-bf16")).value();
  const LayerInfo& layer = source.layers()[0];
  const auto create = [&](const std::vector<PlannedLayer>& plan, const std::string& spelling) {
    WriteOptions options;
    options.spelling = spelling;
    return CheckpointWriter::create(source, temp.path("out"), plan, options);
  };
  EXPECT_SAYS(create({{layer.name, {}, false, DType::kI32}}, "").status(), "not i32");
  EXPECT_SAYS(create({{"lm_head", {}, false, DType::kF32}}, "").status(), "dense already");
  EXPECT_SAYS(create({{layer.name, layer.format}}, "dense").status(), "not planned dense");
  EXPECT_SAYS(create({{layer.name, layer.format}}, "gptq").status(), "does not write");
  EXPECT_SAYS(create({{layer.name, layer.format, true}}, "").status(), "pre_scale");
  auto writer = create(all_dense(source, DType::kF32), "dense").value();
  EXPECT_SAYS(writer.write_quantized(layer.name, source.load(layer.name).value()),
              "it is planned dense");
  DenseRows rows = source.dense_rows(layer.name).value();
  rows.pre_scale = {1.0f};
  EXPECT_SAYS(writer.write_dense(layer.name, rows), "pre_scale has 1 entries");
  rows.pre_scale.clear();
  --rows.n;
  EXPECT_SAYS(writer.write_dense(layer.name, rows), "planned as [");
  EXPECT_TRUE(writer.write_dense(layer.name, source.dense_rows(layer.name).value()).ok());
}

// ------------------------------------------------------------------------------------ ModelOpt

/// A float model with layers "a" and "b" and a head.
std::string float_model(const TempDirectory& temp) {
  FileBuilder file;
  for (const auto& [name, n, k] : {std::tuple("a", 6, 64), std::tuple("b", 4, 96)}) {
    file.add(std::string(name) + ".weight", "BF16", {n, k},
             values_of(DType::kBF16, random_floats(static_cast<size_t>(n * k), 1)));
  }
  file.add("lm_head.weight", "BF16", {2, 4}, std::string(16, 'h'));
  write_bytes(temp.path("in/model.safetensors"), file.build());
  write_bytes(temp.path("in/config.json"), "{\"model_type\": \"llama\"}");
  return temp.path("in");
}

struct Written {
  Checkpoint checkpoint;
  Json config, hf;
};

Written write_modelopt(const TempDirectory& temp, std::vector<QuantizedTensor> weights,
                       int64_t max_shard_bytes = 5'000'000'000) {
  const Checkpoint source = Checkpoint::open(float_model(temp)).value();
  WriteOptions options;
  options.spelling = "modelopt";
  options.max_shard_bytes = max_shard_bytes;
  std::vector<PlannedLayer> plan;
  const std::string names[] = {"a", "b"};
  for (size_t i = 0; i < weights.size(); ++i) {
    plan.push_back({names[i], weights[i].format, !weights[i].pre_scale.empty()});
  }
  auto writer = CheckpointWriter::create(source, temp.path("out"), plan, options).value();
  EXPECT_EQ(writer.spelling(), "modelopt");
  for (size_t i = 0; i < weights.size(); ++i) {
    const Status status = writer.write_quantized(names[i], weights[i]);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  EXPECT_TRUE(writer.finish().ok());
  const Checkpoint out = Checkpoint::open(temp.path("out")).value();
  const Json config = parse_json(out.config_json(), "").value();
  return {out, config["quantization_config"],
          parse_json(read_bytes(temp.path("out/hf_quant_config.json")), "").value()};
}

QuantizedTensor multiplying(QuantizedTensor q) {
  if (!q.tensor_scales.empty()) {
    q.tensor_scales = {{0, 0.0037f}};
    q.tensor_scale_op = TensorScaleOp::kMultiply;
  }
  return q;
}

QuantizedTensor weight(const std::string& format, int64_t n, int64_t k) {
  return multiplying(random_weight(Format::parse(format).value(), n, k, 3));
}

TEST(ModelOptOutput, Nvfp4HasTheToolsTensorsAndConfiguration) {
  const TempDirectory temp;
  const QuantizedTensor a = weight("nvfp4", 6, 64), b = weight("nvfp4", 4, 96);
  const auto [out, config, hf] = write_modelopt(temp, {a, b});
  EXPECT_EQ(out.find("a.weight")->dtype_name, "U8");
  EXPECT_EQ(out.find("a.weight")->shape, (std::vector<int64_t>{6, 32}));
  EXPECT_EQ(out.find("a.weight_scale")->dtype_name, "F8_E4M3");
  EXPECT_EQ(out.find("a.weight_scale")->shape, (std::vector<int64_t>{6, 4}));
  EXPECT_TRUE(out.find("a.weight_scale_2")->shape.empty());
  EXPECT_EQ(config["quant_algo"], "W4A16_NVFP4");
  EXPECT_EQ(config["quant_method"], "modelopt");
  EXPECT_EQ(config["producer"]["name"], "modelopt");
  EXPECT_EQ(config["ignore"], Json::array({"lm_head"}));
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["group_size"], 16);
  EXPECT_EQ(hf["quantization"]["quant_algo"], "W4A16_NVFP4");
  EXPECT_EQ(hf["quantization"]["group_size"], 16);
  EXPECT_EQ(hf["quantization"]["exclude_modules"], Json::array({"lm_head"}));
  EXPECT_TRUE(hf["quantization"]["kv_cache_quant_algo"].is_null());
  const Buffer codes = out.tensor_bytes("a.weight").value();
  EXPECT_EQ(std::memcmp(codes.data(), a.codes.data(), static_cast<size_t>(codes.bytes())), 0);
}

TEST(ModelOptOutput, PreScaleIsStoredExactlyAndNamesTheAlgorithm) {
  const TempDirectory temp;
  QuantizedTensor a = weight("nvfp4", 6, 64);
  for (int j = 0; j < 64; ++j) a.pre_scale.push_back(0.1f * static_cast<float>(j + 1));
  const auto [out, config, hf] = write_modelopt(temp, {a, weight("nvfp4", 4, 96)});
  const Tensor stored = out.tensor("a.pre_quant_scale").value();
  EXPECT_EQ(stored.view.dtype, DType::kF32);
  EXPECT_EQ(std::memcmp(stored.view.data, a.pre_scale.data(), 64 * sizeof(float)), 0);
  EXPECT_EQ(out.find("b.pre_quant_scale"), nullptr);
  EXPECT_EQ(config["quant_algo"], "NVFP4_AWQ");
  EXPECT_EQ(hf["quantization"]["pre_quant_scale"], true);
  EXPECT_EQ(hf["quantization"]["has_zero_point"], false);
}

TEST(ModelOptOutput, Int4IsPackedAlongRows) {
  const TempDirectory temp;
  const QuantizedTensor a = weight("int4-g32:f32", 6, 64), b = weight("int4-g32:f32", 4, 96);
  const auto [out, config, hf] = write_modelopt(temp, {a, b});
  const Buffer packed = out.tensor_bytes("a.weight").value();
  ASSERT_EQ(out.find("a.weight")->shape, (std::vector<int64_t>{3, 64}));
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t k = 0; k < 64; ++k) {
      const uint8_t byte = packed.data()[row / 2 * 64 + k];
      ASSERT_EQ(row % 2 == 0 ? byte & 15 : byte >> 4, a.code(row, k)) << row << ", " << k;
    }
  }
  EXPECT_EQ(config["quant_algo"], "W4A16_AWQ");
  EXPECT_EQ(hf["quantization"]["group_size"], 32);
}

TEST(ModelOptOutput, SeveralFormatsAreMixedPrecision) {
  const TempDirectory temp;
  const auto [out, config, hf] =
      write_modelopt(temp, {weight("int4-g64:f32", 6, 64), weight("mxfp4", 4, 96)});
  EXPECT_EQ(hf["quantization"]["quant_algo"], "MIXED_PRECISION");
  const Json& layers = hf["quantization"]["quantized_layers"];
  EXPECT_EQ(layers["a"]["quant_algo"], "W4A16_AWQ");
  EXPECT_EQ(layers["a"]["group_size"], 64);
  EXPECT_EQ(layers["b"]["quant_algo"], "MXFP4");
}

TEST(ModelOptOutput, ShardsLikeAnyOther) {
  const TempDirectory temp;
  const auto [out, config, hf] =
      write_modelopt(temp, {weight("nvfp4", 6, 64), weight("nvfp4", 4, 96)}, 220);
  EXPECT_EQ(out.shards().size(), 3u);
  EXPECT_EQ(out.find("b.weight")->shard, out.find("b.weight_scale_2")->shard);
}

TEST(ModelOptOutput, ReadsBackBitForBit) {
  for (const char* format : {"nvfp4", "mxfp4", "int4-g32:f32"}) {
    const TempDirectory temp;
    std::vector<QuantizedTensor> weights = {weight(format, 6, 64), weight(format, 4, 96)};
    if (std::string(format) != "mxfp4") weights[1].pre_scale = random_floats(96, 5);
    const Checkpoint out = write_modelopt(temp, weights).checkpoint;
    EXPECT_EQ(out.spelling(), "modelopt");
    const Result<QuantizedTensor> a = out.load("a"), b = out.load("b");
    ASSERT_TRUE(a.ok()) << a.status().message();
    ASSERT_TRUE(b.ok()) << b.status().message();
    EXPECT_TRUE(identical(*a, weights[0])) << format;
    EXPECT_TRUE(identical(*b, weights[1])) << format;
  }
}

// ---------------------------------------------------------------------------------------- GGUF

Status write_gguf(const Checkpoint& source, const std::string& out,
                  const std::vector<QuantizedTensor>& weights, bool overwrite = false) {
  WriteOptions options;
  options.spelling = "gguf";
  options.overwrite = overwrite;
  const std::vector<PlannedLayer> plan = {{"a", weights[0].format}, {"b", weights[1].format}};
  NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
                          CheckpointWriter::create(source, out, plan, options));
  NIBBLE_RETURN_IF_ERROR(writer.write_quantized("a", weights[0]));
  NIBBLE_RETURN_IF_ERROR(writer.write_quantized("b", weights[1]));
  return writer.finish();
}

TEST(GgufOutput, AFileOrADirectoryWithModelGguf) {
  const TempDirectory temp;
  const Checkpoint source = Checkpoint::open(float_model(temp)).value();
  write_bytes(temp.path("in/tokenizer.json"), "{}");
  const std::vector<QuantizedTensor> weights = {weight("int4-g32:f16", 6, 64),
                                                weight("mxfp4", 4, 96)};
  const Status status = write_gguf(source, temp.path("a.gguf"), weights);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(fs::is_regular_file(temp.path("a.gguf")));
  EXPECT_TRUE(
      write_gguf(Checkpoint::open(temp.path("in")).value(), temp.path("dir"), weights).ok());
  EXPECT_TRUE(fs::exists(temp.path("dir/model.gguf")));
  EXPECT_TRUE(fs::exists(temp.path("dir/tokenizer.json")));
  for (const char* path : {"a.gguf", "dir"}) {
    const Checkpoint out = Checkpoint::open(temp.path(path)).value();
    EXPECT_EQ(out.spelling(), "gguf");
    EXPECT_EQ(out.find("a.weight")->dtype_name, "Q4_0");
    EXPECT_EQ(out.find("b.weight")->dtype_name, "MXFP4");
    EXPECT_EQ(out.find("lm_head.weight")->dtype_name, "BF16");
    EXPECT_EQ(out.metadata().at("general.architecture"), "llama");
    EXPECT_TRUE(identical(out.load("a").value(), weights[0]));
    EXPECT_TRUE(identical(out.load("b").value(), weights[1]));
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(temp.path()), fs::directory_iterator()), 3);
}

TEST(GgufOutput, AFileIsReplacedOnlyWhenAskedAndInOneStep) {
  const TempDirectory temp;
  const Checkpoint source = Checkpoint::open(float_model(temp)).value();
  const std::vector<QuantizedTensor> weights = {weight("int8-g32:f16", 6, 64),
                                                weight("int4-g32:f16", 4, 96)};
  write_bytes(temp.path("a.gguf"), "mine");
  EXPECT_SAYS(write_gguf(source, temp.path("a.gguf"), weights), "overwriting was not asked for");
  EXPECT_EQ(read_bytes(temp.path("a.gguf")), "mine");
  {
    WriteOptions options;
    options.spelling = "gguf";
    options.overwrite = true;
    auto writer = CheckpointWriter::create(source, temp.path("a.gguf"),
                                           {{{"a", weights[0].format}}}, options);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->write_quantized("a", weights[0]).ok());
  }  // abandoned
  EXPECT_EQ(read_bytes(temp.path("a.gguf")), "mine");
  EXPECT_TRUE(write_gguf(source, temp.path("a.gguf"), weights, true).ok());
  EXPECT_TRUE(identical(Checkpoint::open(temp.path("a.gguf"))->load("a").value(), weights[0]));
  EXPECT_EQ(std::distance(fs::directory_iterator(temp.path()), fs::directory_iterator()), 2);
}

TEST(GgufOutput, ATypeThatItHasNotIsRefusedByName) {
  const TempDirectory temp;
  write_bytes(temp.path("in/model.safetensors"),
              FileBuilder().add("mask", "BOOL", {4}, "1234").build());
  WriteOptions options;
  options.spelling = "gguf";
  const Status status = CheckpointWriter::create(Checkpoint::open(temp.path("in")).value(),
                                                 temp.path("x.gguf"), {}, options)
                            .status();
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_SAYS(status, "'mask' is BOOL, a type that gguf files have not");
}

TEST(GgufOutput, PairsOfAGgufSourceAreCarriedOver) {
  const TempDirectory temp;
  const Checkpoint source = Checkpoint::open(fixture("gguf/q4_0/model.gguf")).value();
  WriteOptions options;
  options.spelling = "gguf";
  std::vector<PlannedLayer> plan;
  for (const LayerInfo& layer : source.layers()) plan.push_back({layer.name, layer.format});
  auto writer = CheckpointWriter::create(source, temp.path("x.gguf"), plan, options).value();
  for (const LayerInfo& layer : source.layers()) {
    ASSERT_TRUE(writer.write_quantized(layer.name, source.load(layer.name).value()).ok());
  }
  ASSERT_TRUE(writer.finish().ok());
  const Checkpoint out = Checkpoint::open(temp.path("x.gguf")).value();
  for (const auto& [key, value] : source.metadata()) {
    if (key == "general.file_type" || key == "general.quantization_version") continue;
    ASSERT_TRUE(out.metadata().contains(key)) << key;
    EXPECT_EQ(out.metadata().at(key), value) << key;
  }
  for (const TensorInfo& tensor : source.tensors()) {
    const Buffer a = source.tensor_bytes(tensor.name).value(),
                 b = out.tensor_bytes(tensor.name).value();
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())), 0) << tensor.name;
  }
}

TEST(OtherContainers, GgufBecomesSafetensors) {
  const TempDirectory temp;
  const Checkpoint source = Checkpoint::open(fixture("gguf/q4_k/model.gguf")).value();
  ASSERT_TRUE(write_all_dense(source, temp.path("out"), DType::kF32).ok());
  const Checkpoint out = Checkpoint::open(temp.path("out")).value();
  EXPECT_EQ(out.config_json(), "{}\n");
  EXPECT_EQ(out.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(out.tensors().size(), source.tensors().size());
  for (const TensorInfo& tensor : source.tensors()) {
    ASSERT_NE(out.find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(out.find(tensor.name)->shape, tensor.shape) << tensor.name;
  }
}

}  // namespace
}  // namespace nibble::checkpoint
