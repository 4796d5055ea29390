// libFuzzer target: an input is an ONNX model in memory. Whatever opens must be loadable or
// refused.
#include <cstdint>
#include <vector>

#include "checkpoint/test_walk.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Buffer;
  // Exactly as long as the file, so that the address sanitizer sees one byte too many.
  std::vector<uint8_t> file(data, data + size);
  const Buffer bytes = Buffer::view(file.data(), static_cast<int64_t>(size));
  const auto checkpoint = nibble::Checkpoint::from_memory(bytes, "", "input.onnx");
  if (!checkpoint.ok()) return 0;
  nibble::checkpoint::walk(*checkpoint);
  return 0;
}
