// Tables, sizes and JSON on standard output.
#ifndef NIBBLE_FRONTENDS_CLI_TEXT_H_
#define NIBBLE_FRONTENDS_CLI_TEXT_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace nibble::cli {

using Json = nlohmann::ordered_json;

/// Collects rows, then prints them in columns as wide as their widest cell.
class Table {
 public:
  struct Column {
    std::string title;
    bool right = false;  ///< numbers stand at the right
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  /// As many cells as columns.
  void add_row(std::vector<std::string> cells);
  /// On stdout, each line after `indent` spaces.
  void print(int indent = 0) const;
  bool empty() const { return rows_.empty(); }

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// "1.50 GB": decimal units, three digits.
std::string human_bytes(int64_t bytes);
/// "[4096, 14336]"
std::string shape_text(std::span<const int64_t> shape);
std::string join(std::span<const std::string> parts, const std::string& separator);
/// Control characters replaced by '?': names come from files.
std::string printable(const std::string& text);

/// Pretty on stdout. Text that is no UTF-8 is replaced character by character, never refused.
void print_json(const Json& json);
/// The same on one line, flushed.
void print_json_line(const Json& json);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_TEXT_H_
