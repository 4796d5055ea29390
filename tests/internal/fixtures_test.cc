// Checkpoints that the tools themselves wrote (tests/data/fixtures): every layer decodes to the
// tool's own weights, bit for bit, and runs through Linear to the tool's own output. A directory
// there is a test here; nothing has to be listed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "checkpoint/json.h"
#include "nibble/checkpoint.h"
#include "nibble/ops.h"
#include "nibble/pack.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using checkpoint::Json;

std::string data_path() { return std::string(NIBBLE_TEST_DATA_DIR) + "/fixtures"; }

float rounded(float value, const std::string& type) {
  if (type == "bfloat16") return bf16_to_f32(f32_to_bf16(value));
  if (type == "float16") return f16_to_f32(f32_to_f16(value));
  EXPECT_EQ(type, "float32");
  return value;
}

std::vector<float> floats(const Tensor& tensor) {
  std::vector<float> out(static_cast<size_t>(tensor.view.elements()));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = load_as_f32(tensor.view.data, tensor.view.dtype, static_cast<int64_t>(i));
  }
  return out;
}

/// The tool rounds (q - zero) and then the product to its type: HQQ.
std::vector<float> decoded_with_two_roundings(const QuantizedTensor& q, const std::string& type) {
  std::vector<float> out(static_cast<size_t>(q.n * q.k));
  const int64_t groups = q.format.groups(q.k), columns = q.format.group_columns(q.k);
  for (int64_t row = 0; row < q.n; ++row) {
    for (int64_t j = 0; j < q.k; ++j) {
      const int64_t index = row * groups + j / columns;
      const float zero = load_as_f32(q.zeros.data(), q.format.zero_dtype(), index);
      const float scale = load_as_f32(q.scales.data(), q.format.scale, index);
      const float difference = rounded(static_cast<float>(q.code(row, j)) - zero, type);
      out[static_cast<size_t>(row * q.k + j)] = rounded(difference * scale, type);
    }
  }
  return out;
}

struct Fixture {
  std::string root;
  Json about;
  std::optional<Checkpoint> checkpoint, golden;

  std::string text(const char* key) const {
    const Json& value = checkpoint::member(about, key);
    return value.is_string() ? value.get<std::string>() : "";
  }
  bool flag(const char* key) const { return checkpoint::member(about, key) == true; }
  /// The tool's order of operations is not the format's own there; 2e-6 of the largest weight.
  bool nearly() const {
    return text("quant_algo") == "W4A16_AWQ" || root.ends_with("hqq-b64-float-zero");
  }
};

class ToolFixture : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    fixture_.root = data_path() + "/" + GetParam();
    std::ifstream file(fixture_.root + "/fixture.json");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    fixture_.about = checkpoint::parse_json(text, "fixture.json").value();
    Result<Checkpoint> opened = Checkpoint::open(fixture_.root);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    fixture_.checkpoint = std::move(opened).value();
    fixture_.golden = Checkpoint::open(fixture_.root + "/golden.safetensors").value();
  }
  Fixture fixture_;
};

TEST_P(ToolFixture, DecodesToTheToolsOwnWeights) {
  const Checkpoint& source = *fixture_.checkpoint;
  const std::string type = fixture_.text("golden_rounding");
  int layers = 0;
  for (const TensorInfo& info : fixture_.golden->tensors()) {
    const auto name = checkpoint::without_suffix(info.name, ".weight");
    if (!name) continue;  // x and y
    SCOPED_TRACE(info.name);
    const Tensor want = fixture_.golden->tensor(info.name).value();
    const std::vector<float> expected = floats(want);
    const LayerInfo* layer = source.find_layer(*name);
    if (layer == nullptr) {  // stored as floats
      EXPECT_EQ(floats(source.tensor(info.name).value()), expected);
      continue;
    }
    ++layers;
    ASSERT_TRUE(layer->status.ok()) << layer->status.message();
    ASSERT_EQ(want.view.shape, (std::vector<int64_t>{layer->n, layer->k}));
    std::vector<float> values(expected.size());
    const Result<DenseRows> rows = source.dense_rows(*name);
    ASSERT_TRUE(rows.ok()) << rows.status().message();
    // In two bands, so that a reader's row arithmetic counts.
    const int64_t half = layer->n / 2;
    ASSERT_TRUE(rows->read(0, half, values.data()).ok());
    ASSERT_TRUE(rows->read(half, layer->n, values.data() + half * layer->k).ok());

    bool exact = !fixture_.nearly();
    float tolerance = 0;
    for (const float value : expected) tolerance = std::max(tolerance, 2e-6f * std::abs(value));
    if (layer->dense_only.empty()) {
      const Result<QuantizedTensor> q = source.load(*name);
      ASSERT_TRUE(q.ok()) << q.status().message();
      EXPECT_EQ(q->format, layer->format);
      EXPECT_EQ(q->n, layer->n);
      EXPECT_EQ(q->k, layer->k);
      if (fixture_.flag("rounded_after_each_step")) values = decoded_with_two_roundings(*q, type);
    } else {
      EXPECT_FALSE(source.load(*name).ok());
      // Without the parts of the weight the roundings between the steps cannot be made again.
      if (fixture_.flag("rounded_after_each_step") && type != "float32") {
        exact = false;
        tolerance = std::ldexp(tolerance / 2e-6f, type == "float16" ? -10 : -7);
      }
    }
    int wrong = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      // Bits, not values, but for the sign of zero: the tools' integer rules have no -0.
      const bool same = exact ? rounded(values[i], type) == expected[i]
                              : std::abs(values[i] - expected[i]) <= tolerance;
      if (same) continue;
      if (++wrong <= 3) {
        ADD_FAILURE() << "element " << i << ": expected " << expected[i] << ", got " << values[i];
      }
    }
    EXPECT_EQ(wrong, 0);
  }
  EXPECT_GT(layers, 0);
  EXPECT_EQ(static_cast<size_t>(layers), source.layers().size());
}

TEST_P(ToolFixture, RunsThroughLinearToTheToolsOwnOutput) {
  const Checkpoint& source = *fixture_.checkpoint;
  const std::string type = fixture_.text("y_dtype");
  const int bits = type == "float16" ? 10 : type == "bfloat16" ? 7 : 20;
  for (const LayerInfo& layer : source.layers()) {
    SCOPED_TRACE(layer.name);
    if (!layer.dense_only.empty()) continue;  // no Format, so nothing that Linear could run
    const Result<QuantizedTensor> q = source.load(layer.name);
    ASSERT_TRUE(q.ok()) << q.status().message();
    const auto linear = Linear::create(pack(*q, {LayoutId::kCpuPanel16}).value());
    ASSERT_TRUE(linear.ok()) << linear.status().message();

    // Where the tool has no CPU forward, x is drawn and y is the golden weight's in double.
    const bool with_y = fixture_.golden->find(layer.name + ".y") != nullptr;
    int64_t m = 5;
    std::vector<float> x;
    if (with_y) {
      m = fixture_.golden->find(layer.name + ".x")->shape[0];
      x = floats(fixture_.golden->tensor(layer.name + ".x").value());
    } else {
      for (int64_t i = 0; i < m * layer.k; ++i) {
        x.push_back(static_cast<float>((i * 2654435761 >> 7) % 256 - 128) / 64);
      }
    }
    std::vector<float> bias(static_cast<size_t>(layer.n));
    if (with_y && source.find(layer.name + ".bias") != nullptr) {
      bias = floats(source.tensor(layer.name + ".bias").value());
    }
    Epilogue epilogue;
    epilogue.bias = bias.data();
    std::vector<float> y(static_cast<size_t>(m * layer.n));
    const Status status =
        linear->run(dense_matrix<const void>(x.data(), DType::kF32, m, layer.k),
                    dense_matrix<void>(y.data(), DType::kF32, m, layer.n), epilogue);
    ASSERT_TRUE(status.ok()) << status.message();

    const std::vector<float> w = floats(fixture_.golden->tensor(layer.name + ".weight").value());
    const std::vector<float> golden_y =
        with_y ? floats(fixture_.golden->tensor(layer.name + ".y").value()) : y;
    int wrong = 0;
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t out = 0; out < layer.n; ++out) {
        double sum = bias[static_cast<size_t>(out)], absolute = std::abs(sum);
        for (int64_t k = 0; k < layer.k; ++k) {
          double each = x[static_cast<size_t>(row * layer.k + k)];
          if (!q->pre_scale.empty()) each *= q->pre_scale[static_cast<size_t>(k)];
          each *= w[static_cast<size_t>(out * layer.k + k)];
          sum += each;
          absolute += std::abs(each);
        }
        const auto at = static_cast<size_t>(row * layer.n + out);
        const double expected = with_y ? golden_y[at] : sum;
        // Golden weights are themselves rounded to the tool's type.
        if (std::abs(y[at] - expected) <= std::ldexp(absolute, -bits)) continue;
        if (++wrong <= 3) {
          ADD_FAILURE() << "y[" << row << ", " << out << "]: expected " << expected << ", got "
                        << y[at];
        }
      }
    }
    EXPECT_EQ(wrong, 0);
  }
}

std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  for (const auto& spelling : fs::directory_iterator(data_path())) {
    for (const auto& entry : fs::directory_iterator(spelling.path())) {
      if (entry.is_directory()) names.push_back(entry.path().lexically_relative(data_path()));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}
INSTANTIATE_TEST_SUITE_P(All, ToolFixture, testing::ValuesIn(fixture_names()),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

TEST(ToolFixtures, AreAllThere) { EXPECT_EQ(fixture_names().size(), 49u); }

}  // namespace
}  // namespace nibble
