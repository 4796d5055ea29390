// Tables of names for enumerations: one list serves printing and parsing.
#ifndef NIBBLE_CORE_NAMES_H_
#define NIBBLE_CORE_NAMES_H_

#include "nibble/core.h"

namespace nibble {

template <class E>
struct NamedValue {
  const char* name;
  E value;
};

template <class E, size_t kCount>
const char* name_of(const NamedValue<E> (&table)[kCount], E value) {
  for (const auto& row : table) {
    if (row.value == value) return row.name;
  }
  return "?";
}

/// The value named `name`, or kInvalidArgument listing the names that exist.
template <class E, size_t kCount>
Result<E> value_of(const NamedValue<E> (&table)[kCount], std::string_view name, const char* what) {
  std::string known;
  for (const auto& row : table) {
    if (name == row.name) return row.value;
    known += known.empty() ? "" : ", ";
    known += row.name;
  }
  return invalid_argument("unknown " + std::string(what) + " '" + std::string(name) +
                          "'; known: " + known);
}

}  // namespace nibble

#endif  // NIBBLE_CORE_NAMES_H_
