// WordPiece, the tokenizer of BERT: text in UTF-8 to the ids that the model was trained on.
//
// The steps are those of an uncased BERT tokenizer: control characters go, white space becomes
// blanks, Chinese characters stand alone, accents are stripped, letters are lower-cased, words are
// split at blanks and around punctuation, and each word is cut into the longest pieces that the
// vocabulary has, from left to right.
//
// NOTE: combining marks are not reordered, as canonical decomposition asks. Marks that matter are
// nonspacing and are removed anyway; spacing marks out of order (a few in Indic scripts and musical
// notation) keep the order of the text.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_WORDPIECE_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_WORDPIECE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nibble/core.h"

namespace sentence_embedding {

/// Code points of UTF-8 text; each malformed byte gives U+FFFD.
std::u32string decode_utf8(std::string_view text);

/// Words of one text, normalized: what WordPiece cuts into pieces.
std::vector<std::u32string> split_words(std::u32string_view text);

class WordPiece {
 public:
  /// `vocabulary` is the text of a vocab.txt: one piece a line, the line number is its id. It must
  /// hold [PAD], [UNK], [CLS], [SEP] and [MASK], and no piece twice.
  static nibble::Result<WordPiece> from_vocabulary(std::string_view vocabulary);

  /// Reads `path` and calls from_vocabulary.
  static nibble::Result<WordPiece> load(const std::string& path);

  /// Ids of [CLS] text [SEP], at most `max_tokens` (>= 2) with both: what is too long is cut off at
  /// the end. The names of special tokens in the text, such as "[MASK]", stand for those tokens.
  std::vector<int32_t> encode(std::string_view text, int32_t max_tokens) const;

  int32_t size() const { return size_; }

 private:
  WordPiece() = default;
  void append_pieces(std::u32string_view word, std::vector<int32_t>& ids) const;

  struct SpecialToken {
    std::u32string name;
    int32_t id;
  };

  std::unordered_map<std::u32string, int32_t> first_;     ///< pieces that begin a word
  std::unordered_map<std::u32string, int32_t> continue_;  ///< pieces after ##, without it
  std::vector<SpecialToken> specials_;
  int32_t unknown_ = 0, begin_ = 0, end_ = 0;
  int32_t size_ = 0;
};

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_WORDPIECE_H_
