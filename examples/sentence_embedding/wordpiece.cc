#include "wordpiece.h"

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <span>
#include <utility>

#include "unicode_tables.h"

namespace sentence_embedding {
namespace {

using nibble::Result;

constexpr char32_t kReplacement = 0xFFFD;
/// A word of more code points than this is unknown as a whole, as in the reference.
constexpr size_t kMaxWordLength = 100;

bool contains(std::span<const CodeRange> table, char32_t c) {
  const auto after = std::ranges::upper_bound(table, static_cast<uint32_t>(c), {},
                                              [](const CodeRange& r) { return r.first; });
  return after != table.begin() && static_cast<uint32_t>(c) <= std::prev(after)->last;
}

/// Appends what `c` becomes by decomposition, removal of accents and lower-casing.
void append_folded(char32_t c, std::u32string& out) {
  const auto code = static_cast<uint32_t>(c);
  if (code < 0x80) {
    out.push_back(c >= U'A' && c <= U'Z' ? c + (U'a' - U'A') : c);
    return;
  }
  // Hangul syllables decompose by arithmetic (The Unicode Standard, section 3.12).
  constexpr uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
  constexpr uint32_t kNumVowels = 21, kNumTails = 28, kNumSyllables = 11172;
  if (code >= kSyllables && code < kSyllables + kNumSyllables) {
    const uint32_t index = code - kSyllables;
    out.push_back(kLeads + index / (kNumVowels * kNumTails));
    out.push_back(kVowels + index % (kNumVowels * kNumTails) / kNumTails);
    if (index % kNumTails != 0) out.push_back(kTails + index % kNumTails);
    return;
  }
  const auto runs = fold_runs_table();
  const auto run = std::ranges::upper_bound(runs, code, {}, &FoldRun::first);
  if (run != runs.begin()) {
    const FoldRun& r = *std::prev(run);
    if (code <= r.last && (code - r.first) % r.stride == 0) {
      out.push_back(static_cast<char32_t>(static_cast<int32_t>(code) + r.delta));
      return;
    }
  }
  const auto pairs = fold_pairs_table();
  const auto pair = std::ranges::lower_bound(pairs, code, {}, &FoldPair::from);
  if (pair != pairs.end() && pair->from == code) {
    out.push_back(pair->to);
    return;
  }
  const auto sequences = fold_sequences_table();
  const auto sequence = std::ranges::lower_bound(sequences, code, {}, &FoldSequence::from);
  if (sequence != sequences.end() && sequence->from == code) {
    for (const uint32_t to : sequence->to) {
      if (to != 0) out.push_back(to);
    }
    return;
  }
  out.push_back(c);
}

}  // namespace

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      out.push_back(lead);
      ++i;
      continue;
    }
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 0;
    bool valid = length != 0 && lead < 0xF8 && i + length <= text.size();
    char32_t c = valid ? static_cast<char32_t>(lead & (0x7F >> length)) : 0;
    for (size_t j = 1; valid && j < length; ++j) {
      const auto next = static_cast<unsigned char>(text[i + j]);
      valid = (next & 0xC0) == 0x80;
      c = c << 6 | (next & 0x3F);
    }
    // Overlong forms, surrogates and values past the last code point are malformed too.
    constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
    valid = valid && c >= kSmallest[length] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF);
    out.push_back(valid ? c : kReplacement);
    i += valid ? length : 1;
  }
  return out;
}

std::vector<std::u32string> split_words(std::u32string_view text) {
  std::vector<std::u32string> words;
  std::u32string word;
  const auto close = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  std::u32string folded;
  for (const char32_t c : text) {
    if (contains(space_table(), c)) {
      close();
      continue;
    }
    if (contains(dropped_table(), c)) continue;
    const bool alone = contains(spaced_out_table(), c);
    if (alone) close();
    folded.clear();
    append_folded(c, folded);
    // Folding can make punctuation of what is none (U+037E to ';'), so the test comes after it.
    for (const char32_t f : folded) {
      const bool punctuation = contains(punctuation_table(), f);
      if (punctuation) close();
      word.push_back(f);
      if (punctuation) close();
    }
    if (alone) close();
  }
  close();
  return words;
}

Result<WordPiece> WordPiece::from_vocabulary(std::string_view vocabulary) {
  WordPiece out;
  while (!vocabulary.empty()) {
    const size_t end = std::min(vocabulary.find('\n'), vocabulary.size());
    std::string_view line = vocabulary.substr(0, end);
    vocabulary.remove_prefix(std::min(end + 1, vocabulary.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool continues = line.size() > 2 && line.starts_with("##");
    auto& pieces = continues ? out.continue_ : out.first_;
    const auto [where, inserted] =
        pieces.emplace(decode_utf8(continues ? line.substr(2) : line), out.size_);
    if (!inserted) {
      return nibble::invalid_argument("vocabulary: '" + std::string(line) + "' is on line " +
                                      std::to_string(where->second + 1) + " and again on line " +
                                      std::to_string(out.size_ + 1));
    }
    ++out.size_;
  }
  for (const char* name : {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}) {
    const auto token = out.first_.find(decode_utf8(name));
    if (token == out.first_.end()) {
      return nibble::invalid_argument(std::string("vocabulary: ") + name + " is not among its " +
                                      std::to_string(out.size_) + " pieces");
    }
    out.specials_.push_back({token->first, token->second});
  }
  out.unknown_ = out.specials_[1].id;
  out.begin_ = out.specials_[2].id;
  out.end_ = out.specials_[3].id;
  return out;
}

Result<WordPiece> WordPiece::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return nibble::io_error(path + ": cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) return nibble::io_error(path + ": cannot be read");
  return from_vocabulary(text);
}

void WordPiece::append_pieces(std::u32string_view word, std::vector<int32_t>& ids) const {
  if (word.size() > kMaxWordLength) {
    ids.push_back(unknown_);
    return;
  }
  const size_t ids_before = ids.size();
  size_t start = 0;
  while (start < word.size()) {
    const auto& pieces = start == 0 ? first_ : continue_;
    size_t length = word.size() - start;
    for (; length > 0; --length) {
      const auto piece = pieces.find(std::u32string(word.substr(start, length)));
      if (piece == pieces.end()) continue;
      ids.push_back(piece->second);
      break;
    }
    if (length == 0) {  // one unknown piece makes the whole word unknown
      ids.resize(ids_before);
      ids.push_back(unknown_);
      return;
    }
    start += length;
  }
}

std::vector<int32_t> WordPiece::encode(std::string_view text, int32_t max_tokens) const {
  const size_t limit = static_cast<size_t>(std::max(max_tokens, 2)) - 1;  // room for [SEP]
  std::vector<int32_t> ids = {begin_};
  const std::u32string code_points = decode_utf8(text);
  const auto append_plain = [&](std::u32string_view plain) {
    for (const std::u32string& word : split_words(plain)) {
      if (ids.size() >= limit) return;
      append_pieces(word, ids);
    }
  };
  std::u32string_view rest = code_points;
  size_t searched = 0;
  while (ids.size() < limit) {
    const size_t bracket = rest.find(U'[', searched);
    if (bracket == std::u32string_view::npos) break;
    const auto special = std::ranges::find_if(specials_, [&](const SpecialToken& token) {
      return rest.substr(bracket).starts_with(token.name);
    });
    if (special == specials_.end()) {
      searched = bracket + 1;
      continue;
    }
    append_plain(rest.substr(0, bracket));
    ids.push_back(special->id);
    rest.remove_prefix(bracket + special->name.size());
    searched = 0;
  }
  append_plain(rest);
  if (ids.size() > limit) ids.resize(limit);
  ids.push_back(end_);
  return ids;
}

}  // namespace sentence_embedding
