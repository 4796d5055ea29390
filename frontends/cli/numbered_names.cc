#include "numbered_names.h"

#include <utility>

namespace nibble::cli {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// The name as pieces of text and of digits in turn, text first.
std::vector<std::string> pieces_of(std::string_view name) {
  std::vector<std::string> pieces(1);
  bool digits = false;
  for (const char c : name) {
    if (is_digit(c) != digits) {
      pieces.emplace_back();
      digits = !digits;
    }
    pieces.back() += c;
  }
  return pieces;
}

/// As numbers of any length.
bool less(const std::string& a, const std::string& b) {
  return std::pair(a.size(), std::string_view(a)) < std::pair(b.size(), std::string_view(b));
}

}  // namespace

std::string number_pattern(std::string_view name) {
  std::string out;
  const std::vector<std::string> pieces = pieces_of(name);
  for (size_t i = 0; i < pieces.size(); ++i) out += i % 2 == 0 ? pieces[i] : "#";
  return out;
}

void NumberedNames::add(std::string_view name) {
  const std::vector<std::string> pieces = pieces_of(name);
  if (count_++ == 0) {
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (i % 2 == 0) {
        texts_.push_back(pieces[i]);
      } else {
        ranges_.push_back({pieces[i], pieces[i]});
      }
    }
    return;
  }
  for (size_t i = 0; i < ranges_.size() && 2 * i + 1 < pieces.size(); ++i) {
    const std::string& number = pieces[2 * i + 1];
    if (less(number, ranges_[i].first)) ranges_[i].first = number;
    if (less(ranges_[i].last, number)) ranges_[i].last = number;
  }
}

std::string NumberedNames::text() const {
  std::string out;
  for (size_t i = 0; i < texts_.size(); ++i) {
    out += texts_[i];
    if (i >= ranges_.size()) continue;
    out += ranges_[i].first;
    if (ranges_[i].first != ranges_[i].last) out += "-" + ranges_[i].last;
  }
  return out;
}

}  // namespace nibble::cli
