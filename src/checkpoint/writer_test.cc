#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <fstream>
#include <thread>

#include "checkpoint/json.h"
#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

namespace fs = std::filesystem;

#define EXPECT_SAYS(status, text) \
  EXPECT_NE((status).message().find(text), std::string::npos) << (status).message()

/// A directory with float layers "a", "b", … of the given shapes and things to carry over.
class Model {
 public:
  explicit Model(std::vector<std::array<int64_t, 2>> shapes, DType dtype = DType::kBF16) {
    FileBuilder file;
    file.add("embed.weight", "BF16", {6, 4}, std::string(48, 'e'));
    for (size_t i = 0; i < shapes.size(); ++i) {
      const std::string name(1, static_cast<char>('a' + i));
      const auto [n, k] = shapes[i];
      const std::string values =
          values_of(dtype, random_floats(static_cast<size_t>(n * k), static_cast<uint32_t>(i)));
      file.add(name + ".weight", dtype == DType::kF32 ? "F32" : "BF16", {n, k}, values);
      file.add(name + ".bias", "F16", {3}, "bias" + name + "!");
    }
    file.add("odd", "F6_E2M3", {4}, "odd");
    file.add("norm.weight", "F32", {2}, "12345678");
    write_bytes(path() + "/model.safetensors", file.build());
    write_bytes(path() + "/config.json", kConfig);
    write_bytes(path() + "/tokenizer.json", R"({"a": "b"})");
    write_bytes(path() + "/sub/notes.txt", std::string("\0\xFF text", 7));
  }
  std::string path() const { return directory_.path("in"); }
  std::string out() const { return directory_.path("out"); }
  std::string beside(const std::string& name) const { return directory_.path(name); }
  Checkpoint open() const { return Checkpoint::open(path()).value(); }
  /// Names of what lies beside the input.
  std::vector<std::string> entries() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(directory_.path())) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  static constexpr char kConfig[] =
      "{\n  \"architectures\": [\"X\"],\n  \"limit\": [0.0, Infinity]\n}\n";

 private:
  TempDirectory directory_;
};

std::vector<PlannedLayer> plan_of(const std::vector<std::pair<std::string, std::string>>& layers) {
  std::vector<PlannedLayer> plan;
  for (const auto& [name, format] : layers) plan.push_back({name, Format::parse(format).value()});
  return plan;
}

Status write(const Model& model, const std::vector<PlannedLayer>& plan,
             const std::vector<QuantizedTensor>& weights, const WriteOptions& options = {}) {
  NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
                          CheckpointWriter::create(model.open(), model.out(), plan, options));
  for (size_t i = 0; i < plan.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(writer.write_quantized(plan[i].name, weights[i]));
  }
  return writer.finish();
}

std::vector<std::string> every_format() {
  std::vector<std::string> names(named_formats().begin(), named_formats().end());
  for (const char* more : {"int4-g32:f16", "int4-channel:f32", "uint4-g128:f16", "uint8-g16",
                           "uint8-g64:f16", "uint8-channel:f32", "int8-g64:f16", "nf4-g128",
                           "fp4-g16", "fp4-channel:bf16", "fp4-g64:e4m3"}) {
    names.push_back(more);
  }
  return names;
}

class RoundTrip : public testing::TestWithParam<std::string> {};

TEST_P(RoundTrip, EveryShapeReadsBackBitForBit) {
  const Format format = Format::parse(GetParam()).value();
  constexpr std::array<int64_t, 2> kShapes[] = {{1, 1},   {1, 2},    {2, 7},   {5, 8},
                                                {7, 9},   {8, 64},   {13, 72}, {52, 128},
                                                {9, 200}, {3, 4304}, {300, 31}};
  std::vector<std::array<int64_t, 2>> good;
  for (const auto& [n, k] : kShapes) {
    const bool fp4 = format.element == Element::kE2M1, nf4 = format.element == Element::kNF4;
    if ((!fp4 || k % 2 == 0) && (!nf4 || k % format.group == 0)) {
      good.push_back({n, k});
      continue;
    }
    const Model model({{n, k}});
    const auto writer = CheckpointWriter::create(model.open(), model.out(), {{{"a", format}}});
    EXPECT_EQ(writer.status().code(), Code::kUnsupported);
    EXPECT_SAYS(writer.status(), "k = " + std::to_string(k));
  }
  ASSERT_FALSE(good.empty());
  const Model model(good);
  std::vector<PlannedLayer> plan;
  std::vector<QuantizedTensor> weights;
  for (uint32_t i = 0; i < good.size(); ++i) {
    plan.push_back({std::string(1, static_cast<char>('a' + i)), format});
    weights.push_back(random_weight(format, good[i][0], good[i][1], i));
  }
  const Status status = write(model, plan, weights);
  ASSERT_TRUE(status.ok()) << status.message();
  const Result<Checkpoint> back = Checkpoint::open(model.out());
  ASSERT_TRUE(back.ok()) << back.status().message();
  ASSERT_EQ(back->layers().size(), good.size());
  EXPECT_EQ(back->spelling(), output_spelling(format, good[0][0], good[0][1]).value());
  for (size_t i = 0; i < good.size(); ++i) {
    SCOPED_TRACE(std::to_string(good[i][0]) + " x " + std::to_string(good[i][1]));
    const Result<QuantizedTensor> same = back->load(plan[i].name);
    ASSERT_TRUE(same.ok()) << same.status().message();
    EXPECT_TRUE(identical(*same, weights[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(EveryFormat, RoundTrip, testing::ValuesIn(every_format()),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

TEST(Writer, CarriesOverEveryOtherTensorFileAndKey) {
  const Model model({{16, 32}, {8, 48}});
  const auto plan = plan_of({{"b", "int4-g16"}});
  ASSERT_TRUE(write(model, plan, {random_weight(plan[0].format, 8, 48, 1)}).ok());
  const Checkpoint in = model.open(), out = Checkpoint::open(model.out()).value();
  for (const TensorInfo& tensor : in.tensors()) {
    if (tensor.name == "b.weight") continue;
    ASSERT_NE(out.find(tensor.name), nullptr) << tensor.name;
    EXPECT_EQ(out.find(tensor.name)->dtype_name, tensor.dtype_name);
    EXPECT_EQ(out.find(tensor.name)->shape, tensor.shape);
    const Buffer a = in.tensor_bytes(tensor.name).value(),
                 b = out.tensor_bytes(tensor.name).value();
    ASSERT_EQ(a.bytes(), b.bytes());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())), 0) << tensor.name;
  }
  EXPECT_EQ(out.find("b.weight"), nullptr);
  EXPECT_EQ(out.tensors().size(), in.tensors().size() + 2);
  for (const char* file : {"tokenizer.json", "sub/notes.txt"}) {
    EXPECT_EQ(read_bytes(model.path() + "/" + file), read_bytes(model.out() + "/" + file));
  }
  const std::string config = out.config_json();
  EXPECT_TRUE(
      config.starts_with("{\n  \"architectures\": [\"X\"],\n  \"limit\": [0.0, Infinity],\n"));
  const Json quantization = parse_json(config, "config").value()["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "compressed-tensors");
  EXPECT_EQ(quantization["format"], "pack-quantized");
  EXPECT_EQ(quantization["quantization_status"], "compressed");
  EXPECT_EQ(quantization["ignore"], Json::array({"a", "embed", "lm_head"}));
  const Json& group = quantization["config_groups"]["group_0"];
  EXPECT_EQ(group["targets"], Json::array({"Linear"}));
  EXPECT_EQ(group["weights"]["num_bits"], 4);
  EXPECT_EQ(group["weights"]["group_size"], 16);
  EXPECT_EQ(group["weights"]["symmetric"], true);
  EXPECT_EQ(model.entries(), (std::vector<std::string>{"in", "out"}));
}

TEST(Writer, SeveralFormatsOfOneSpellingTargetTheirLayersByName) {
  const Model model({{16, 32}, {8, 48}, {4, 16}});
  const auto plan = plan_of({{"a", "int4-g16"}, {"b", "nvfp4"}, {"c", "int4-g16:f32"}});
  const std::vector<QuantizedTensor> weights = {random_weight(plan[0].format, 16, 32, 1),
                                                random_weight(plan[1].format, 8, 48, 2),
                                                random_weight(plan[2].format, 4, 16, 3)};
  ASSERT_TRUE(write(model, plan, weights).ok());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  for (size_t i = 0; i < plan.size(); ++i) {
    EXPECT_TRUE(identical(out.load(plan[i].name).value(), weights[i]));
  }
  const Json quantization = parse_json(out.config_json(), "config").value()["quantization_config"];
  EXPECT_EQ(quantization["format"], "mixed-precision");
  EXPECT_EQ(quantization["config_groups"].size(), 2u);
  EXPECT_EQ(quantization["config_groups"]["group_0"]["targets"], Json::array({"a", "c"}));
  EXPECT_EQ(quantization["config_groups"]["group_1"]["format"], "nvfp4-pack-quantized");
}

TEST(Writer, OwnSpellingKeepsSeveralGroups) {
  const Model model({{16, 32}, {8, 48}});
  const auto plan = plan_of({{"a", "fp4-g32"}, {"b", "fp4-g16"}});
  const std::vector<QuantizedTensor> weights = {random_weight(plan[0].format, 16, 32, 1),
                                                random_weight(plan[1].format, 8, 48, 2)};
  ASSERT_TRUE(write(model, plan, weights).ok());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  EXPECT_EQ(out.spelling(), "nibble");
  EXPECT_TRUE(identical(out.load("a").value(), weights[0]));
  EXPECT_TRUE(identical(out.load("b").value(), weights[1]));
}

TEST(Writer, BitsandbytesStateNamesTheShapeAndTheSourcesDtype) {
  const Model model({{16, 128}}, DType::kF32);
  const auto plan = plan_of({{"a", "nf4-g64"}});
  ASSERT_TRUE(write(model, plan, {random_weight(plan[0].format, 16, 128, 1)}).ok());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  const Buffer state = out.tensor_bytes("a.weight.quant_state.bitsandbytes__nf4").value();
  EXPECT_EQ(
      std::string(reinterpret_cast<const char*>(state.data()), static_cast<size_t>(state.bytes())),
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [16, 128]})");
  EXPECT_EQ(out.find("a.weight")->shape, (std::vector<int64_t>{1024, 1}));
}

TEST(Writer, ShardsAtTheLimitWithAnIndex) {
  const Model model({{16, 64}, {16, 64}, {16, 64}, {16, 64}});
  const auto plan = plan_of({{"a", "int4-g16"}, {"b", "int4-g16"}, {"c", "int4-g16"}});
  std::vector<QuantizedTensor> weights;
  for (uint32_t i = 0; i < 3; ++i) weights.push_back(random_weight(plan[0].format, 16, 64, i));
  WriteOptions options;
  options.max_shard_bytes = 700;  // a quantized layer has 656 bytes
  ASSERT_TRUE(write(model, plan, weights, options).ok());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  EXPECT_EQ(out.shards().size(), 6u);
  EXPECT_EQ(out.shards()[0], "model-00001-of-00006.safetensors");
  int64_t total = 0;
  for (const TensorInfo& tensor : out.tensors()) total += tensor.bytes;
  const Json index =
      parse_json(read_bytes(model.out() + "/model.safetensors.index.json"), "").value();
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(index["weight_map"].size(), out.tensors().size());
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(identical(out.load(plan[i].name).value(), weights[i]));
  // d.weight alone is larger than the limit: it has a file of its own.
  EXPECT_EQ(out.find("d.weight")->bytes, 2048);

  // And sharded input is one checkpoint again.
  WriteOptions one_file;
  auto again = CheckpointWriter::create(out, model.beside("again"), plan, one_file);
  ASSERT_TRUE(again.ok()) << again.status().message();
  for (size_t i = 0; i < 3; ++i) ASSERT_TRUE(again->write_quantized(plan[i].name, weights[i]).ok());
  ASSERT_TRUE(again->finish().ok());
  EXPECT_EQ(Checkpoint::open(model.beside("again"))->shards().size(), 1u);
  EXPECT_FALSE(fs::exists(model.beside("again") + "/model.safetensors.index.json"));
}

TEST(Writer, TensorsLieAtMultiplesOfTheirSize) {
  const Model model({{3, 33}, {5, 7}});
  const auto plan = plan_of({{"a", "uint4-g16"}, {"b", "int8-channel:f16"}});
  ASSERT_TRUE(
      write(model, plan,
            {random_weight(plan[0].format, 3, 33, 1), random_weight(plan[1].format, 5, 7, 1)})
          .ok());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  for (const TensorInfo& tensor : out.tensors()) {
    if (tensor.dtype) {
      EXPECT_EQ(tensor.file_offset % dtype_bytes(*tensor.dtype), 0) << tensor.name;
    }
  }
}

TEST(Writer, ATensorScaleOfTheOtherOperationIsRefused) {
  const Model model({{4, 16}});
  const auto plan = plan_of({{"a", "nvfp4"}});
  QuantizedTensor q = random_weight(plan[0].format, 4, 16, 1);
  q.tensor_scales = {{0, 3.0f}};
  q.tensor_scale_op = TensorScaleOp::kMultiply;
  EXPECT_SAYS(write(model, plan, {q}), "multiplies, that of compressed-tensors divides");
  WriteOptions options;
  options.spelling = "modelopt";
  ASSERT_TRUE(write(model, plan, {q}, options).ok());
  const Checkpoint back = Checkpoint::open(model.out()).value();
  float factor = 0;
  std::memcpy(&factor, back.tensor_bytes("a.weight_scale_2")->data(), sizeof(factor));
  EXPECT_EQ(factor, 3.0f);
  EXPECT_TRUE(back.find("a.weight_scale_2")->shape.empty());
  q.tensor_scale_op = TensorScaleOp::kDivide;
  options.overwrite = true;
  EXPECT_SAYS(write(model, plan, {q}, options), "divides, that of modelopt multiplies");
}

TEST(Writer, WhatASpellingCannotHoldIsRefused) {
  const Model model({{4, 16}, {4, 16}});
  const auto plan = plan_of({{"a", "nvfp4"}});
  const QuantizedTensor good = random_weight(plan[0].format, 4, 16, 1);
  const auto refused = [&](const QuantizedTensor& q) { return write(model, plan, {q}); };
  QuantizedTensor q = good;
  q.pre_scale.assign(16, 2.0f);
  EXPECT_SAYS(refused(q), "'a': it has a pre_scale, which compressed-tensors cannot hold");
  q = good;
  for (int32_t i = 15; i >= 0; --i) q.k_perm.push_back(i);
  EXPECT_SAYS(refused(q), "k_perm");
  q = good;
  q.tensor_scales = {{0, 1.0f}, {2, 2.0f}};
  EXPECT_SAYS(refused(q), "2 tensor scales");
  q = good;
  q.tensor_scales = {{0, 0.0f}};
  EXPECT_SAYS(refused(q), "cannot divide");
  q = good;
  q.scales = make_quantized_tensor(q.format, 4, 16)->scales;
  q.scales.mutable_data()[2] = 0x7F;
  EXPECT_SAYS(refused(q), "row 2, group 0");

  const auto uint4 = plan_of({{"a", "uint4-g16"}});
  QuantizedTensor wide = random_weight(uint4[0].format, 4, 16, 1);
  wide.zeros.mutable_data()[3] = 16;
  EXPECT_SAYS(write(model, uint4, {wide}), "row 3, group 0 is 16");
  EXPECT_FALSE(fs::exists(model.out()));
  EXPECT_EQ(model.entries(), std::vector<std::string>{"in"});
}

TEST(Writer, PlansAreCheckedBeforeAnythingIsWritten) {
  const Model model({{4, 16}, {4, 48}});
  const auto create = [&model](const std::vector<PlannedLayer>& plan) {
    return CheckpointWriter::create(model.open(), model.out(), plan).status();
  };
  EXPECT_SAYS(create({}), "no layer is planned");
  EXPECT_SAYS(create(plan_of({{"z", "nvfp4"}})), "'z': the source has no such layer");
  EXPECT_SAYS(create(plan_of({{"norm", "nvfp4"}})), "F32 [2], not a matrix");
  EXPECT_SAYS(create(plan_of({{"a", "nvfp4"}, {"a", "nvfp4"}})), "planned twice");
  EXPECT_SAYS(create(plan_of({{"a", "nvfp4"}, {"b", "fp4-g32"}})),
              "one checkpoint has one spelling");
  EXPECT_SAYS(create(plan_of({{"a", "uint4-g16:zfloat"}})), "uint4-g16:zfloat");
  EXPECT_SAYS(create(plan_of({{"a", "nf4-g64"}})), "k = 16");
  EXPECT_SAYS(create(plan_of({{"a", "nf4-g16"}})), "64 and larger");
  EXPECT_EQ(model.entries(), std::vector<std::string>{"in"});
}

TEST(Writer, CallsOutOfOrderAreErrors) {
  const Model model({{4, 16}, {4, 48}});
  const auto plan = plan_of({{"a", "nvfp4"}, {"b", "nvfp4"}});
  auto writer = CheckpointWriter::create(model.open(), model.out(), plan).value();
  const QuantizedTensor a = random_weight(plan[0].format, 4, 16, 1);
  EXPECT_SAYS(writer.write_quantized("z", a), "'z': it is not in the plan");
  EXPECT_SAYS(writer.write_quantized("b", a), "planned as nvfp4 [4, 48], not nvfp4 [4, 16]");
  EXPECT_TRUE(writer.write_quantized("a", a).ok());
  EXPECT_SAYS(writer.write_quantized("a", a), "written before");
  EXPECT_SAYS(writer.finish(), "'b' was planned but not written");
  EXPECT_FALSE(fs::exists(model.out()));
}

TEST(Writer, QuantizedSourcesAreConvertedWholeOrNotAtAll) {
  const Model model({{4, 16}, {4, 48}});
  const auto plan = plan_of({{"a", "int4-g16"}, {"b", "int4-g16"}});
  const std::vector<QuantizedTensor> weights = {random_weight(plan[0].format, 4, 16, 1),
                                                random_weight(plan[0].format, 4, 48, 2)};
  ASSERT_TRUE(write(model, plan, weights).ok());
  const Checkpoint quantized = Checkpoint::open(model.out()).value();
  EXPECT_SAYS(
      CheckpointWriter::create(quantized, model.beside("more"), plan_of({{"a", "nvfp4"}})).status(),
      "'b' is not in the plan");
  const auto both = plan_of({{"a", "nvfp4"}, {"b", "nvfp4"}});
  auto writer = CheckpointWriter::create(quantized, model.beside("more"), both).value();
  ASSERT_TRUE(writer.write_quantized("b", random_weight(both[0].format, 4, 48, 3)).ok());
  ASSERT_TRUE(writer.write_quantized("a", random_weight(both[0].format, 4, 16, 4)).ok());
  ASSERT_TRUE(writer.finish().ok());
  const Checkpoint more = Checkpoint::open(model.beside("more")).value();
  EXPECT_EQ(more.layers().size(), 2u);
  EXPECT_EQ(more.find("a.weight_shape"), nullptr);
  EXPECT_EQ(more.load("a")->format.name(), "nvfp4");
}

TEST(Writer, ThreadsMayWriteAtOnce) {
  std::vector<std::array<int64_t, 2>> shapes(16, {64, 64});
  const Model model(shapes);
  std::vector<PlannedLayer> plan;
  std::vector<QuantizedTensor> weights;
  for (uint32_t i = 0; i < 16; ++i) {
    plan.push_back(
        {std::string(1, static_cast<char>('a' + i)), Format::parse("uint4-g32").value()});
    weights.push_back(random_weight(plan[i].format, 64, 64, i));
  }
  WriteOptions options;
  int64_t last = 0, total = 0;
  options.progress = [&](int64_t done, int64_t all) {
    EXPECT_GT(done, last);
    last = done;
    total = all;
  };
  auto writer = CheckpointWriter::create(model.open(), model.out(), plan, options).value();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < 16; i += 4) {
        EXPECT_TRUE(writer.write_quantized(plan[i].name, weights[i]).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(writer.finish().ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, writer.total_bytes());
  const Checkpoint out = Checkpoint::open(model.out()).value();
  for (size_t i = 0; i < 16; ++i)
    EXPECT_TRUE(identical(out.load(plan[i].name).value(), weights[i]));
}

// ------------------------------------------------------------------------------------ atomicity

class Target : public testing::Test {
 protected:
  Status write_to_out(bool overwrite) const {
    WriteOptions options;
    options.overwrite = overwrite;
    return write(model_, plan_, {weight_}, options);
  }
  const Model model_{{{64, 256}}};
  const std::vector<PlannedLayer> plan_ = plan_of({{"a", "int4-g16"}});
  const QuantizedTensor weight_ = random_weight(plan_[0].format, 64, 256, 1);
};

TEST_F(Target, AnEmptyDirectoryIsFilled) {
  fs::create_directory(model_.out());
  EXPECT_TRUE(write_to_out(false).ok());
  EXPECT_TRUE(Checkpoint::open(model_.out()).ok());
  EXPECT_TRUE(Checkpoint::open(model_.out() + "/").ok());
}

TEST_F(Target, AFullDirectoryIsReplacedOnlyWhenAsked) {
  write_bytes(model_.out() + "/precious.txt", "mine");
  const Status status = write_to_out(false);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_SAYS(status, "not empty");
  EXPECT_EQ(tree(model_.out()).size(), 1u);
  EXPECT_TRUE(write_to_out(true).ok());
  EXPECT_FALSE(fs::exists(model_.out() + "/precious.txt"));
  EXPECT_TRUE(Checkpoint::open(model_.out()).ok());
  EXPECT_EQ(model_.entries(), (std::vector<std::string>{"in", "out"}));
}

TEST_F(Target, AFileIsNeverReplaced) {
  write_bytes(model_.out(), "mine");
  EXPECT_SAYS(write_to_out(true), "not a directory");
  EXPECT_EQ(read_bytes(model_.out()), "mine");
}

TEST_F(Target, TheSourceItselfCanBeReplaced) {
  WriteOptions options;
  options.overwrite = true;
  const Checkpoint source = model_.open();
  auto writer = CheckpointWriter::create(source, model_.path() + "/", plan_, options).value();
  ASSERT_TRUE(writer.write_quantized("a", weight_).ok());
  ASSERT_TRUE(writer.finish().ok());
  EXPECT_TRUE(identical(Checkpoint::open(model_.path())->load("a").value(), weight_));
  EXPECT_EQ(read_bytes(model_.path() + "/tokenizer.json"), R"({"a": "b"})");
  EXPECT_TRUE(source.tensor("a.weight").ok());  // still mapped
}

TEST_F(Target, SourceAndTargetMustNotLieInsideEachOther) {
  WriteOptions options;
  options.overwrite = true;
  const auto create = [&](const Checkpoint& source, const std::string& out) {
    return CheckpointWriter::create(source, out, plan_, options).status();
  };
  EXPECT_SAYS(create(model_.open(), model_.path() + "/sub/out"), "inside each other");
  EXPECT_SAYS(create(model_.open(), model_.beside("")), "inside each other");
  const Checkpoint file = Checkpoint::open(model_.path() + "/model.safetensors").value();
  EXPECT_SAYS(create(file, model_.path()), "inside each other");
  EXPECT_TRUE(create(model_.open(), model_.beside("input")).ok());  // a name that begins alike
}

TEST_F(Target, AMissingParentIsAnIoError) {
  EXPECT_EQ(CheckpointWriter::create(model_.open(), model_.beside("x/y"), plan_).status().code(),
            Code::kIo);
}

/// Runs `body` in a child and returns how it ended.
template <class Body>
int in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

TEST_F(Target, AKilledRunLeavesTheOldState) {
  write_bytes(model_.out() + "/model.safetensors", "old");
  write_bytes(model_.out() + "/config.json", "older");
  const auto before = tree(model_.out());
  for (const int stage : {0, 1, 2}) {
    const int status = in_child([&] {
      WriteOptions options;
      options.overwrite = true;
      // The second stage dies while the carried tensors are copied, inside finish().
      if (stage == 2)
        options.progress = [](int64_t done, int64_t total) {
          if (done == total) ::raise(SIGKILL);
        };
      auto writer = CheckpointWriter::create(model_.open(), model_.out(), plan_, options).value();
      if (stage >= 1) (void)writer.write_quantized("a", weight_);
      if (stage == 2) (void)writer.finish();
      ::raise(SIGKILL);
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << stage;
    EXPECT_EQ(tree(model_.out()), before) << stage;
  }
  // What dead runs left behind does not stop the next one.
  EXPECT_TRUE(write_to_out(true).ok());
}

TEST_F(Target, AFullDiskIsNoticedFirstAndLeavesNothing) {
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};  // bytes a file may have: the shard has more
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const auto writer = CheckpointWriter::create(model_.open(), model_.out(), plan_);
    ::_exit(!writer.ok() && writer.status().code() == Code::kIo &&
                    writer.status().message().find("model.safetensors") != std::string::npos
                ? 7
                : 1);
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(model_.entries(), std::vector<std::string>{"in"});
}

TEST_F(Target, AnAbandonedWriterLeavesNothing) {
  {
    auto writer = CheckpointWriter::create(model_.open(), model_.out(), plan_).value();
    ASSERT_TRUE(writer.write_quantized("a", weight_).ok());
  }
  EXPECT_EQ(model_.entries(), std::vector<std::string>{"in"});
}

TEST_F(Target, EntriesThatAreNoFilesAreNamed) {
  fs::create_directory_symlink("/", model_.path() + "/root");
  const Status status = write_to_out(false);
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_SAYS(status, "/root");
}

TEST(Writer, MemoryDoesNotGrowWithWhatIsCarriedOver) {
  const TempDirectory directory;
  constexpr int64_t kBytes = 128 << 20;
  write_bytes(directory.path("in/model.safetensors"),
              FileBuilder()
                  .add("a.weight", "F32", {1, 2}, "12345678")
                  .add("huge", "U8", {kBytes}, std::string(kBytes, 'h'))
                  .build());
  const auto status_kb = [](const std::string& key) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with(key)) return std::stoll(line.substr(key.size()));
    }
    return -1ll;
  };
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts again from now
  const int64_t before = status_kb("VmRSS:");
  if (status_kb("VmHWM:") > before + 1024) GTEST_SKIP() << "the peak cannot be reset here";
  const auto plan = plan_of({{"a", "int8-channel"}});
  auto writer = CheckpointWriter::create(Checkpoint::open(directory.path("in")).value(),
                                         directory.path("out"), plan)
                    .value();
  ASSERT_TRUE(writer.write_quantized("a", random_weight(plan[0].format, 1, 2, 1)).ok());
  ASSERT_TRUE(writer.finish().ok());
  EXPECT_LT(status_kb("VmHWM:"), before + (32 << 10));
}

}  // namespace
}  // namespace nibble::checkpoint
