// JSON as checkpoints hold it: parsed with limits, edited as text.
#ifndef NIBBLE_CHECKPOINT_JSON_H_
#define NIBBLE_CHECKPOINT_JSON_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "nibble/core.h"

namespace nibble::checkpoint {

using Json = nlohmann::json;
/// Objects keep the order of their keys; finding one takes time in proportion to their number, so
/// this is for small documents that are written.
using OrderedJson = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;
inline constexpr int64_t kMaxJsonBytes = 64 << 20;  ///< of a config or an index

/// Parses a whole document. `what` names it in messages. Python writes NaN, Infinity and -Infinity
/// although JSON has none; outside strings they are read as null or 0.
/// Errors: kCorruptFile for anything malformed, a key that stands twice, or a limit exceeded.
Result<Json> parse_json(std::string_view text, const std::string& what);

/// `object[key]` when `object` is an object that has it, else null. Never throws.
const Json& member(const Json& object, const char* key);

/// The text of a valid JSON object with `key` set to `value` at the top level; every other byte
/// stays. An empty text counts as {}.
std::string with_member(std::string_view text, const std::string& key, const OrderedJson& value);

/// The text of a valid JSON object without `key` at the top level; every other value stays byte for
/// byte. A text without the key is returned as it is.
std::string without_member(std::string_view text, const std::string& key);

/// A name for a message: in single quotes, control characters and bytes past ASCII escaped, at most
/// 200 bytes of it.
std::string shown(std::string_view name);

/// "[64, 12]"
std::string shape_text(std::span<const int64_t> shape);

/// The string that ends in `suffix` without it, or nullopt.
inline std::optional<std::string> without_suffix(std::string_view text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return std::nullopt;
  return std::string(text.substr(0, text.size() - suffix.size()));
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_JSON_H_
