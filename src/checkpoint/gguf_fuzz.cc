// libFuzzer target: a GGUF file in memory. Whatever opens must be loadable or refused, and its
// pairs must make a header again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "checkpoint/gguf_write.h"
#include "checkpoint/test_walk.h"

namespace {

/// The pairs of a file that opens, with its tensors, are a file that opens.
void write_header(const std::vector<uint8_t>& file, const nibble::Checkpoint& checkpoint) {
  using namespace nibble::checkpoint;  // NOLINT: this is that namespace's test
  const auto bytes = nibble::Buffer::view(file.data(), static_cast<int64_t>(file.size()));
  const auto pairs = GgufPairs::of_file(MappedFile::of_memory(bytes), "input");
  if (!pairs.ok() || pairs->alignment() > 1 << 16) return;
  std::vector<nibble::TensorInfo> tensors(checkpoint.tensors().begin(), checkpoint.tensors().end());
  const auto header = gguf_header(tensors, *pairs);
  if (!header.ok() || header->file_bytes > 1 << 24) return;
  std::vector<uint8_t> out(static_cast<size_t>(header->file_bytes));
  std::copy(header->bytes.begin(), header->bytes.end(), out.begin());
  const auto view = nibble::Buffer::view(out.data(), static_cast<int64_t>(out.size()));
  const auto again = nibble::Checkpoint::from_memory(view, "", "output.gguf");
  if (!again.ok() || again->tensors().size() != tensors.size()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Buffer;
  // Exactly as long as the file, so that the address sanitizer sees one byte too many.
  std::vector<uint8_t> file(data, data + size);
  const Buffer bytes = Buffer::view(file.data(), static_cast<int64_t>(size));
  const auto checkpoint = nibble::Checkpoint::from_memory(bytes, "", "input.gguf");
  if (!checkpoint.ok()) return 0;
  nibble::checkpoint::walk(*checkpoint);
  write_header(file, *checkpoint);
  return 0;
}
