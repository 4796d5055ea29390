// What the tokenizer must know of Unicode; the data is written by make_unicode_tables.py.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_UNICODE_TABLES_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_UNICODE_TABLES_H_

#include <cstdint>
#include <span>

namespace sentence_embedding {

/// Code points first..last, both included. Tables of ranges are sorted and do not overlap.
struct CodeRange {
  uint32_t first, last;
};

/// Every `stride`-th code point from first to last folds to itself + delta.
struct FoldRun {
  uint32_t first, last, stride;
  int32_t delta;
};

/// `from` folds to the one code point `to`.
struct FoldPair {
  uint32_t from, to;
};

/// `from` folds to two or three code points; an absent third is 0.
struct FoldSequence {
  uint32_t from, to[3];
};

/// Control characters, accents standing alone and the like: removed.
std::span<const CodeRange> dropped_table();
/// White space, each read as U+0020.
std::span<const CodeRange> space_table();
/// Chinese characters: each is a word of its own, as if blanks stood around it.
std::span<const CodeRange> spaced_out_table();
/// Punctuation: each is a word of its own.
std::span<const CodeRange> punctuation_table();

/// Folding is canonical decomposition, removal of nonspacing marks and lower-casing in one. Hangul
/// syllables are in none of the three tables: their decomposition is arithmetic.
std::span<const FoldRun> fold_runs_table();
std::span<const FoldPair> fold_pairs_table();
std::span<const FoldSequence> fold_sequences_table();

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_UNICODE_TABLES_H_
