// One layer "l" made by hand, to be decoded or refused: for the tests of spellings.
#ifndef NIBBLE_CHECKPOINT_TEST_LAYER_H_
#define NIBBLE_CHECKPOINT_TEST_LAYER_H_

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/test_files.h"

namespace nibble::checkpoint {

inline Result<Checkpoint> open_made(const FileBuilder& file, const std::string& config_text) {
  const std::string bytes = file.build();
  Buffer buffer = Buffer::allocate(static_cast<int64_t>(bytes.size())).value();
  std::memcpy(buffer.mutable_data(), bytes.data(), bytes.size());
  return Checkpoint::from_memory(buffer, config_text, "made.safetensors");
}

inline Result<QuantizedTensor> load_made(const FileBuilder& file, const std::string& config_text) {
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, open_made(file, config_text));
  EXPECT_EQ(checkpoint.layers().size(), 1u);
  return checkpoint.load("l");
}

inline void expect_words(const Status& status, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(status.message().find(word), std::string::npos)
        << status.message() << "\nlacks: " << word;
  }
}

/// The layer does not load, and the message names file, layer and `words`.
inline void expect_refused(const FileBuilder& file, const std::string& config_text,
                           const std::vector<std::string>& words, Code code = Code::kCorruptFile) {
  const Result<QuantizedTensor> q = load_made(file, config_text);
  ASSERT_FALSE(q.ok()) << (words.empty() ? "" : words.front());
  EXPECT_EQ(q.status().code(), code) << q.status().message();
  expect_words(q.status(), words);
  expect_words(q.status(), {"made.safetensors", "'l'"});
}

/// All rows of layer "l" by dense_rows, in bands of three.
inline std::vector<float> dense_made(const Checkpoint& checkpoint) {
  const Result<DenseRows> rows = checkpoint.dense_rows("l");
  EXPECT_TRUE(rows.ok()) << rows.status().message();
  if (!rows.ok()) return {};
  std::vector<float> out(static_cast<size_t>(rows->n * rows->k));
  for (int64_t row = 0; row < rows->n; row += 3) {
    EXPECT_TRUE(rows->read(row, std::min(row + 3, rows->n), out.data() + row * rows->k).ok());
  }
  return out;
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_TEST_LAYER_H_
