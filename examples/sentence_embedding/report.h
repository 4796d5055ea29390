// The figures of a comparison, and the two forms in which they are printed.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_REPORT_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_REPORT_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bert.h"

namespace sentence_embedding {

struct SentencePair {
  double grade = 0;  ///< a person's judgement: 5 same meaning .. 0 unrelated
  std::string sentences[2];
};

/// One encoder under comparison and what was seen of it.
struct Variant {
  std::string format, compute;  ///< "fp32" and "", or "nvfp4" and "int8"
  Bert bert;
  std::vector<std::vector<float>> embeddings;  ///< two a pair
  std::vector<double> similarities;            ///< one a pair
  std::vector<double> round_ms;                ///< milliseconds a sentence, one a round

  std::string name() const { return compute.empty() ? format : format + " " + compute; }
};

struct Comparison {
  std::string model;
  int threads = 1;
  std::span<const SentencePair> pairs;
  std::span<const Variant> variants;  ///< the first is the reference
};

/// On standard output.
void print_table(const Comparison& comparison);
void print_json(const Comparison& comparison);

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_REPORT_H_
