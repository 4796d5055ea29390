// libFuzzer target: a checkpoint in memory. An input is two bytes of length (little-endian), that
// many bytes of config.json, and a safetensors file. Whatever opens must be loadable or refused.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/test_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Buffer;
  if (size < 2) return 0;
  const size_t config_size = std::min<size_t>(data[0] + 256u * data[1], size - 2);
  const std::string config(reinterpret_cast<const char*>(data) + 2, config_size);
  const size_t file_size = size - 2 - config_size;
  // Exactly as long as the file, so that the address sanitizer sees one byte too many.
  std::vector<uint8_t> file(data + 2 + config_size, data + size);
  const Buffer bytes = Buffer::view(file.data(), static_cast<int64_t>(file_size));

  const auto checkpoint = nibble::Checkpoint::from_memory(bytes, config, "input");
  if (!checkpoint.ok()) return 0;
  nibble::checkpoint::walk(*checkpoint);
  return 0;
}
