#include "checkpoint/json.h"

#include <set>

namespace nibble::checkpoint {
namespace {

/// Walks a document without building it: depth and duplicate keys are checked before any memory is
/// spent on values.
class LimitChecker {
 public:
  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(int64_t) { return true; }
  bool number_unsigned(uint64_t) { return true; }
  bool number_float(double, const std::string&) { return true; }
  bool string(std::string&) { return true; }
  bool binary(Json::binary_t&) { return fail("binary values are not JSON"); }
  bool start_object(size_t) {
    keys_.emplace_back();
    return enter();
  }
  bool key(std::string& name) {
    if (keys_.back().insert(name).second) return true;
    return fail("the key " + shown(name) + " stands twice");
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return true;
  }
  bool start_array(size_t) { return enter(); }
  bool end_array() {
    --depth_;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    return fail("not valid JSON at byte " + std::to_string(position));
  }
  const std::string& error() const { return error_; }

 private:
  bool enter() {
    if (++depth_ <= kMaxJsonDepth) return true;
    return fail("nested more than " + std::to_string(kMaxJsonDepth) + " levels deep");
  }
  bool fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  std::vector<std::set<std::string>> keys_;
  int depth_ = 0;
  std::string error_;
};

/// End of the string literal that begins at text[begin] == '"'; text.size() when it has none.
size_t string_end(std::string_view text, size_t begin) {
  for (size_t i = begin + 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '"') {
      return i + 1;
    }
  }
  return text.size();
}

/// Replaces Python's names of non-finite numbers by null of the same length, so that positions in
/// messages stay true.
std::string without_non_finite(std::string_view text) {
  std::string out(text);
  for (size_t i = 0; i < out.size();) {
    if (out[i] == '"') {
      i = string_end(out, i);
      continue;
    }
    size_t length = 0;
    for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
      if (length == 0 && std::string_view(out).substr(i).starts_with(word)) length = word.size();
    }
    if (length == 3) {
      out.replace(i, 3, "0.0");  // shorter than "null"; the value is never used
    } else if (length > 0) {
      out.replace(i, length, "null" + std::string(length - 4, ' '));
    }
    i += std::max<size_t>(length, 1);
  }
  return out;
}

}  // namespace

Result<Json> parse_json(std::string_view text, const std::string& what) {
  if (static_cast<int64_t>(text.size()) > kMaxJsonBytes) {
    return corrupt_file(what + ": " + std::to_string(text.size()) + " bytes of JSON, at most " +
                        std::to_string(kMaxJsonBytes) + " are read");
  }
  const std::string plain = without_non_finite(text);
  LimitChecker checker;
  if (!Json::sax_parse(plain, &checker)) return corrupt_file(what + ": " + checker.error());
  return Json::parse(plain, nullptr, /*allow_exceptions=*/false);
}

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

namespace {

/// Where the top level of an object's text has a key.
struct MemberText {
  bool found = false;
  size_t key_begin = 0, value_end = 0;   ///< from the key's quote to after the value
  size_t open = std::string_view::npos;  ///< the opening brace
  size_t last = 0;   ///< the last character before the closing brace that is no space
  size_t close = 0;  ///< the closing brace; 0 in what is no object
};

MemberText find_member(std::string_view text, const std::string& key) {
  MemberText out;
  out.open = text.find('{');
  if (out.open == std::string_view::npos) return out;
  size_t entry_begin = out.open + 1, last = out.open;
  bool in_key = true;
  std::string current;
  int depth = 0;
  for (size_t i = out.open; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      const size_t end = string_end(text, i);
      if (depth == 1 && in_key) {
        entry_begin = i;
        const Json name = Json::parse(text.substr(i, end - i), nullptr, false);
        current = name.is_string() ? name.get<std::string>() : "";
      }
      last = i = end - 1;
      continue;
    }
    if (c == '{' || c == '[') ++depth;
    const bool closes = c == '}' || c == ']';
    if (depth == 1 && (c == ',' || closes)) {
      if (!in_key && current == key) {
        out.found = true;
        out.key_begin = entry_begin;
        out.value_end = last + 1;
      }
      if (closes) {
        out.last = last;
        out.close = i;
        return out;
      }
      in_key = true;
    }
    if (closes) --depth;
    if (depth == 1 && c == ':') in_key = false;
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') last = i;
  }
  return out;
}

}  // namespace

std::string with_member(std::string_view text, const std::string& key, const OrderedJson& value) {
  // The value as it stands inside a document indented by two.
  std::string dumped = value.dump(2);
  for (size_t i = 0; (i = dumped.find('\n', i)) != std::string::npos; i += 3) {
    dumped.insert(i + 1, "  ");
  }
  const std::string entry = Json(key).dump() + ": " + dumped;
  const MemberText place = find_member(text, key);
  if (place.open == std::string_view::npos) return "{\n  " + entry + "\n}\n";
  if (place.found) {
    return std::string(text.substr(0, place.key_begin)) + entry +
           std::string(text.substr(place.value_end));
  }
  if (place.close == 0) return std::string(text);  // not an object: callers check that first
  const std::string_view comma = place.last == place.open ? "" : ",";
  return std::string(text.substr(0, place.last + 1)) + std::string(comma) + "\n  " + entry + "\n" +
         std::string(text.substr(place.close));
}

std::string without_member(std::string_view text, const std::string& key) {
  const MemberText place = find_member(text, key);
  if (!place.found) return std::string(text);
  const auto is_space = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  // With the entry goes one comma: the one before it, or for a first entry the one after it.
  size_t begin = place.key_begin, end = place.value_end;
  while (begin > place.open + 1 && is_space(text[begin - 1])) --begin;
  if (text[begin - 1] == ',') {
    --begin;
  } else {
    while (is_space(text[end])) ++end;
    if (text[end] == ',') {
      ++end;
    } else {
      end = place.value_end;
    }
  }
  return std::string(text.substr(0, begin)) + std::string(text.substr(end));
}

std::string shown(std::string_view name) {
  constexpr size_t kMaxShown = 200;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : name.substr(0, kMaxShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out += c;
    } else {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (name.size() > kMaxShown ? "…'" : "'");
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return out + "]";
}

}  // namespace nibble::checkpoint
