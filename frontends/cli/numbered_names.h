// Names that differ in numbers alone, shown as one: "blk.0-31.attn_q".
#ifndef NIBBLE_FRONTENDS_CLI_NUMBERED_NAMES_H_
#define NIBBLE_FRONTENDS_CLI_NUMBERED_NAMES_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::cli {

/// The name with every run of digits replaced by '#': equal for names that differ in numbers alone.
std::string number_pattern(std::string_view name);

/// Collects names of one pattern.
class NumberedNames {
 public:
  void add(std::string_view name);
  /// The name with "first-last" where its numbers differ; exactly the name when there is one.
  std::string text() const;
  int64_t count() const { return count_; }

 private:
  struct Range {
    std::string first, last;  ///< digits as they stand in the names
  };
  std::vector<std::string> texts_;  ///< between the numbers
  std::vector<Range> ranges_;       ///< of the numbers
  int64_t count_ = 0;
};

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_NUMBERED_NAMES_H_
