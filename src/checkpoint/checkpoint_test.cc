#include "nibble/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>

#include "checkpoint/json.h"
#include "checkpoint/test_files.h"

namespace nibble::checkpoint {
namespace {

namespace fs = std::filesystem;

template <class T>
std::string message_of(const Result<T>& result) {
  return result.ok() ? "ok" : result.status().message();
}

#define EXPECT_SAYS(result, text) \
  EXPECT_NE(message_of(result).find(text), std::string::npos) << message_of(result)

std::string small_file(const std::string& name = "w") {
  return FileBuilder().add(name, "F32", {2, 2}, std::string(16, '\0')).build();
}

TEST(Checkpoint, OpensAPlainModelWithItsFiles) {
  const TempDirectory directory;
  const std::vector<float> values = random_floats(6, 1);
  write_bytes(directory.path("model.safetensors"),
              FileBuilder()
                  .add("a.weight", "F32", {2, 3}, values_of(DType::kF32, values))
                  .add("a.bias", "BF16", {2}, values_of(DType::kBF16, {1, 2}))
                  .build());
  write_bytes(directory.path("config.json"), R"({"model_type": "test", "limit": [0.0, Infinity]})");
  write_bytes(directory.path("tokenizer.json"), "{}");
  write_bytes(directory.path("sub/vocab.txt"), "a\nb\n");
  const Result<Checkpoint> checkpoint = Checkpoint::open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->spelling(), "");
  EXPECT_TRUE(checkpoint->layers().empty());
  EXPECT_EQ(checkpoint->tensors().size(), 2u);
  EXPECT_NE(checkpoint->config_json().find("Infinity"), std::string::npos);
  EXPECT_EQ(
      std::vector<std::string>(checkpoint->other_files().begin(), checkpoint->other_files().end()),
      (std::vector<std::string>{"sub/vocab.txt", "tokenizer.json"}));
  const Tensor weight = checkpoint->tensor("a.weight").value();
  EXPECT_EQ(weight.view.dtype, DType::kF32);
  EXPECT_EQ(weight.view.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(weight.view.data, values.data(), 24), 0);
  EXPECT_SAYS(checkpoint->tensor("b"), "has no tensor 'b'");
  EXPECT_SAYS(checkpoint->load("a"), "no quantized layer 'a'");
}

TEST(Checkpoint, TensorsAtOddAddressesAreCopiedToAlignedMemory) {
  const std::vector<float> values = random_floats(4, 2);
  const TempDirectory directory;
  for (size_t spaces = 0; spaces < 8; ++spaces) {
    const std::string path = directory.path("m" + std::to_string(spaces) + ".safetensors");
    write_bytes(path,
                FileBuilder().add("w", "F32", {4}, values_of(DType::kF32, values)).build(spaces));
    const Checkpoint checkpoint = Checkpoint::open(path).value();
    const Tensor tensor = checkpoint.tensor("w").value();
    const auto* floats = static_cast<const float*>(tensor.view.data);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(floats) % 4, 0u);
    EXPECT_EQ(std::vector<float>(floats, floats + 4), values);
  }
}

TEST(Checkpoint, UnknownDtypesCanBeCarriedButNotRead) {
  const TempDirectory directory;
  write_bytes(directory.path("model.safetensors"),
              FileBuilder().add("t", "F4", {6}, "abc").build());
  const Checkpoint checkpoint = Checkpoint::open(directory.path()).value();
  EXPECT_EQ(checkpoint.tensor("t").status().code(), Code::kUnsupported);
  EXPECT_SAYS(checkpoint.tensor("t"), "'F4'");
  const Buffer bytes = checkpoint.tensor_bytes("t").value();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), 3), "abc");
}

/// Kilobytes of mapped files that are in this process's memory.
int64_t resident_file_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoll(line.substr(8));
  }
  return -1;
}

TEST(Checkpoint, PagesOfATensorLeaveWithItsLastView) {
  const TempDirectory directory;
  constexpr int64_t kBytes = 64 << 20;
  write_bytes(directory.path("model.safetensors"),
              FileBuilder().add("w", "U8", {kBytes}, std::string(kBytes, 'w')).build());
  const Checkpoint checkpoint = Checkpoint::open(directory.path()).value();
  const int64_t before = resident_file_kb();
  ASSERT_GE(before, 0);
  {
    const Tensor tensor = checkpoint.tensor("w").value();
    int64_t sum = 0;
    for (int64_t i = 0; i < kBytes; i += 4096) sum += tensor.bytes.data()[i];
    EXPECT_EQ(sum, kBytes / 4096 * 'w');
    EXPECT_GT(resident_file_kb(), before + (48 << 10));
  }
  EXPECT_LT(resident_file_kb(), before + (8 << 10));
}

class Index : public testing::Test {
 protected:
  void SetUp() override {
    write_bytes(directory_.path("model-00001-of-00002.safetensors"), small_file("a"));
    write_bytes(directory_.path("model-00002-of-00002.safetensors"), small_file("b"));
  }
  Result<Checkpoint> open(const std::string& index) const {
    write_bytes(directory_.path("model.safetensors.index.json"), index);
    return Checkpoint::open(directory_.path());
  }
  static std::string map(const std::string& a, const std::string& b) {
    return R"({"metadata": {"total_size": 32}, "weight_map": {"a": ")" + a + R"(", "b": ")" + b +
           "\"}}";
  }
  const std::string first_ = "model-00001-of-00002.safetensors";
  const std::string second_ = "model-00002-of-00002.safetensors";
  TempDirectory directory_;
};

TEST_F(Index, JoinsTheShards) {
  const auto checkpoint = open(map(first_, second_));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  EXPECT_EQ(checkpoint->find("a")->shard, 0);
  EXPECT_EQ(checkpoint->find("b")->shard, 1);
  EXPECT_TRUE(checkpoint->other_files().empty());
}

TEST_F(Index, FilesOutsideTheDirectoryAreRefused) {
  write_bytes(directory_.path("secret.safetensors"), small_file("b"));
  for (const std::string& name :
       {std::string("../secret.safetensors"), std::string("sub/../../secret.safetensors"),
        std::string("/etc/passwd.safetensors"), directory_.path("secret.safetensors"),
        std::string("..\\u0000.safetensors"), std::string(), std::string("..")}) {
    const auto checkpoint = open(map(first_, name));
    ASSERT_FALSE(checkpoint.ok()) << name;
    EXPECT_EQ(checkpoint.status().code(), Code::kCorruptFile);
    EXPECT_SAYS(checkpoint, "model.safetensors.index.json");
    EXPECT_SAYS(checkpoint, "not in this directory");
  }
}

TEST_F(Index, LinksOutOfTheDirectoryAreRefused) {
  const TempDirectory elsewhere;
  fs::rename(directory_.path(second_), elsewhere.path("blob"));
  fs::create_symlink(elsewhere.path("blob"), directory_.path(second_));
  EXPECT_EQ(open(map(first_, second_)).status().code(), Code::kCorruptFile);
  EXPECT_SAYS(open(map(first_, second_)), "a link out of this directory");
}

TEST_F(Index, LinksIntoTheBlobsOfAHuggingFaceCacheAreFine) {
  const TempDirectory cache;
  const std::string snapshot = cache.path("models--a--b/snapshots/0f1e");
  write_bytes(cache.path("models--a--b/blobs/5d"), small_file("a"));
  fs::create_directories(snapshot);
  fs::create_symlink("../../blobs/5d", snapshot + "/" + first_);
  write_bytes(snapshot + "/model.safetensors.index.json",
              R"({"weight_map": {"a": ")" + first_ + "\"}}");
  const auto checkpoint = Checkpoint::open(snapshot);
  EXPECT_TRUE(checkpoint.ok()) << message_of(checkpoint);
}

TEST_F(Index, MistakesAreNamed) {
  EXPECT_SAYS(open(map(first_, first_)), "'b'");
  EXPECT_SAYS(open(map(second_, first_)), "'a'");
  EXPECT_SAYS(open(map(first_, "model-00003-of-00002.safetensors")), "model-00003-of-00002");
  EXPECT_SAYS(open("{"), "not valid JSON");
  EXPECT_SAYS(open("[]"), "no weight_map");
  EXPECT_SAYS(open(R"({"weight_map": {"a": 1}})"), "'a' names no file");
  EXPECT_SAYS(open(R"({"weight_map": {"a": "x", "a": "y"}})"), "'a' stands twice");
  EXPECT_SAYS(open(std::string(100'000, '[')), "64 levels");
  write_bytes(directory_.path(second_), small_file("a"));
  EXPECT_SAYS(open(map(first_, first_).replace(0, 0, "")), "'b'");
  EXPECT_SAYS(open(R"({"weight_map": {"a": ")" + first_ + R"(", "c": ")" + second_ + "\"}}"),
              "'a' stands in");
}

TEST_F(Index, ShardsWithoutAnIndexAreRefused) {
  EXPECT_EQ(Checkpoint::open(directory_.path()).status().code(), Code::kUnsupported);
  EXPECT_SAYS(Checkpoint::open(directory_.path()), "2 .safetensors files");
}

TEST(Checkpoint, ConfigurationsAreChecked) {
  const TempDirectory directory;
  write_bytes(directory.path("model.safetensors"), small_file());
  const auto open = [&directory](const std::string& config) {
    write_bytes(directory.path("config.json"), config);
    return Checkpoint::open(directory.path());
  };
  EXPECT_SAYS(open("{"), "config.json");
  EXPECT_SAYS(open("[1]"), "not a JSON object");
  EXPECT_SAYS(open(R"({"a": 1, "a": 2})"), "'a' stands twice");
  EXPECT_SAYS(open("{\"a\": " + std::string(1'000'000, '[')), "64 levels");
  EXPECT_TRUE(open(R"({"quantization_config": [1, 2]})").ok());
  EXPECT_TRUE(open(R"({"quantization_config": {"quant_method": 4}})").ok());
}

TEST(Checkpoint, UnknownQuantizationMethodsAreNamed) {
  const TempDirectory directory;
  write_bytes(directory.path("model.safetensors"), small_file("a.weight"));
  write_bytes(directory.path("config.json"),
              R"({"quantization_config": {"quant_method": "someday"}})");
  const Checkpoint checkpoint = Checkpoint::open(directory.path()).value();
  EXPECT_EQ(checkpoint.spelling(), "someday");
  EXPECT_TRUE(checkpoint.layers().empty());
  EXPECT_SAYS(checkpoint.load("a"), "quant_method 'someday'");
}

TEST(Checkpoint, DirectoriesWithoutTensorsAndMissingPathsAreRefused) {
  const TempDirectory directory;
  EXPECT_EQ(Checkpoint::open(directory.path()).status().code(), Code::kUnsupported);
  EXPECT_EQ(Checkpoint::open(directory.path("missing")).status().code(), Code::kIo);
  EXPECT_EQ(Checkpoint::open("").status().code(), Code::kIo);
}

TEST(Json, EditsKeepEveryOtherByte) {
  const Json value = {{"a", 1}};
  const std::string entry = "\"q\": {\n    \"a\": 1\n  }";
  EXPECT_EQ(with_member("", "q", value), "{\n  " + entry + "\n}\n");
  EXPECT_EQ(with_member("{}", "q", value), "{\n  " + entry + "\n}");
  EXPECT_EQ(with_member("{ \"x\": NaN }\n", "q", value), "{ \"x\": NaN,\n  " + entry + "\n}\n");
  EXPECT_EQ(with_member(R"({"q": [1, {"q": 2}], "z": "}\",{"})", "q", value),
            "{" + entry + R"(, "z": "}\",{"})");
  EXPECT_EQ(with_member(R"({"y": {"q": 1}, "q" : null})", "q", value),
            R"({"y": {"q": 1}, )" + entry + "}");
  EXPECT_EQ(with_member(R"({"\u0071": 5,"b":1e400})", "q", value), "{" + entry + R"(,"b":1e400})");
}

}  // namespace
}  // namespace nibble::checkpoint
