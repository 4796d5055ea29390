#include "checkpoint/container.h"

#include <algorithm>

namespace nibble::checkpoint {

extern const Container kSafetensors, kGguf, kOnnx;

std::span<const Container> containers() {
  static const Container rows[] = {kSafetensors, kGguf, kOnnx};
  return rows;
}

const Container& container_of(std::string_view name, const MappedFile& file) {
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()),
                               static_cast<size_t>(std::min<int64_t>(16, file.bytes())));
  for (const Container& row : containers()) {
    const std::string_view magic = row.magic;
    if (!magic.empty() && bytes.starts_with(magic)) return row;
  }
  for (const Container& row : containers()) {
    if (name.ends_with(row.extension)) return row;
  }
  return containers().front();
}

}  // namespace nibble::checkpoint
