#include "bert.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace sentence_embedding {
namespace {

std::vector<float> normals(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> value;
  std::vector<float> out(count);
  for (float& v : out) v = value(random);
  return out;
}

TEST(LayerNorm, NormalizesEachRowAloneInFp32) {
  for (const size_t n : {1u, 5u, 16u, 35u}) {
    const LayerNorm norm{normals(n, 1), normals(n, 2), 1e-5f};
    std::vector<float> rows = normals(3 * n, 3);
    for (float& v : rows) v += 100;  // a mean far from 0: mean(x^2) - mean^2 would lose digits
    const std::vector<float> before = rows;
    norm.run(rows);
    for (size_t r = 0; r < 3; ++r) {
      double mean = 0, variance = 0;
      for (size_t c = 0; c < n; ++c) mean += static_cast<double>(before[r * n + c]) / double(n);
      for (size_t c = 0; c < n; ++c) {
        const double d = static_cast<double>(before[r * n + c]) - mean;
        variance += d * d / double(n);
      }
      for (size_t c = 0; c < n; ++c) {
        const double want = (static_cast<double>(before[r * n + c]) - mean) /
                                std::sqrt(variance + 1e-5) * static_cast<double>(norm.gain[c]) +
                            static_cast<double>(norm.offset[c]);
        // The mean of values near 100 is off by 100 * 2^-24 at most, which shows in x - mean.
        ASSERT_NEAR(static_cast<double>(rows[r * n + c]), want, n == 1 ? 1e-2 : 2e-4)
            << "n " << n << " row " << r << " column " << c;
      }
    }
  }
}

TEST(Attention, IsSoftmaxOfScaledProductsForEveryHead) {
  const auto pool = nibble::make_thread_pool(2);
  for (const AttentionShape shape :
       {AttentionShape{1, 2, 16}, AttentionShape{7, 3, 32}, AttentionShape{4, 2, 5}}) {
    const int64_t columns = shape.heads * shape.head_columns;
    const auto count = static_cast<size_t>(shape.tokens * columns);
    const auto q = normals(count, 1), k = normals(count, 2), v = normals(count, 3);
    std::vector<float> out(count);
    attend(shape, q.data(), k.data(), v.data(), out.data(), *pool);
    for (int64_t head = 0; head < shape.heads; ++head) {
      for (int64_t row = 0; row < shape.tokens; ++row) {
        std::vector<double> weights;
        double sum = 0;
        for (int64_t other = 0; other < shape.tokens; ++other) {
          double product = 0;
          for (int64_t c = head * shape.head_columns; c < (head + 1) * shape.head_columns; ++c) {
            product += static_cast<double>(q[static_cast<size_t>(row * columns + c)]) *
                       static_cast<double>(k[static_cast<size_t>(other * columns + c)]);
          }
          weights.push_back(std::exp(product / std::sqrt(double(shape.head_columns))));
          sum += weights.back();
        }
        for (int64_t c = head * shape.head_columns; c < (head + 1) * shape.head_columns; ++c) {
          double want = 0;
          for (int64_t other = 0; other < shape.tokens; ++other) {
            want += weights[static_cast<size_t>(other)] / sum *
                    static_cast<double>(v[static_cast<size_t>(other * columns + c)]);
          }
          ASSERT_NEAR(static_cast<double>(out[static_cast<size_t>(row * columns + c)]), want, 2e-6);
        }
      }
    }
  }
}

TEST(Attention, SurvivesLargeScores) {
  const auto pool = nibble::make_thread_pool(1);
  const std::vector<float> q = {100, 100}, k = {100, -100}, v = {1, 2};
  std::vector<float> out(2);
  attend({2, 1, 1}, q.data(), k.data(), v.data(), out.data(), *pool);
  EXPECT_EQ(out, (std::vector<float>{1, 1}));
}

constexpr char kConfig[] = R"({"model_type": "bert", "hidden_act": "gelu", "hidden_size": 48,
  "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 100,
  "max_position_embeddings": 64, "layer_norm_eps": 1e-06})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(BertConfig, ReadsSizesAndTheSentenceLimit) {
  const auto config = BertConfig::parse(kConfig, R"({"max_seq_length": 32})");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->hidden, 48);
  EXPECT_EQ(config->heads, 4);
  EXPECT_EQ(config->layers, 2);
  EXPECT_EQ(config->intermediate, 96);
  EXPECT_EQ(config->max_tokens, 32);
  EXPECT_FLOAT_EQ(config->layer_norm_eps, 1e-6f);
  EXPECT_EQ(BertConfig::parse(kConfig, "")->max_tokens, 64);
}

TEST(BertConfig, RefusesWhatItWouldComputeWrongly) {
  const auto message = [](const std::string& config, const std::string& sentence = "") {
    return BertConfig::parse(config, sentence).status().message();
  };
  EXPECT_NE(message(replaced(kConfig, "\"gelu\"", "\"gelu_new\"")).find("gelu_new"),
            std::string::npos);
  EXPECT_NE(message(replaced(kConfig, "\"bert\"", "\"roberta\"")).find("roberta"),
            std::string::npos);
  EXPECT_NE(message(replaced(kConfig, "\"hidden_size\": 48", "\"hidden_size\": 50")).find("50"),
            std::string::npos);
  EXPECT_NE(message(replaced(kConfig, "\"vocab_size\": 100", "\"vocab_size\": -1")).find("-1"),
            std::string::npos);
  EXPECT_NE(message(replaced(kConfig, "\"vocab_size\"", "\"v\"")).find("vocab_size"),
            std::string::npos);
  EXPECT_NE(message("[").find("not a JSON object"), std::string::npos);
  EXPECT_NE(message(kConfig, R"({"max_seq_length": 65})").find("65"), std::string::npos);
}

}  // namespace
}  // namespace sentence_embedding
