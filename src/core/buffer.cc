#include <cstdlib>
#include <limits>
#include <string>

#include "nibble/core.h"

namespace nibble {
namespace {
constexpr int64_t kAlignment = 256;
constexpr int64_t kReadablePastEnd = 64;  // kernels load whole vectors at the end of a section
}  // namespace

Result<Buffer> Buffer::allocate(int64_t bytes) {
  if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() - 2 * kAlignment) {
    return invalid_argument("cannot allocate " + std::to_string(bytes) + " bytes");
  }
  const int64_t rounded = round_up(bytes + kReadablePastEnd, kAlignment);
  void* data = std::aligned_alloc(kAlignment, static_cast<size_t>(rounded));
  if (data == nullptr) return out_of_memory("no memory for " + std::to_string(bytes) + " bytes");
  Buffer buffer;
  buffer.data_ = static_cast<const uint8_t*>(data);
  buffer.bytes_ = bytes;
  buffer.writable_ = true;
  buffer.owner_ = std::shared_ptr<const void>(data, [](const void* p) { std::free(const_cast<void*>(p)); });
  return buffer;
}

Buffer Buffer::view(const void* data, int64_t bytes, std::shared_ptr<const void> owner) {
  Buffer buffer;
  buffer.data_ = static_cast<const uint8_t*>(data);
  buffer.bytes_ = bytes;
  buffer.owner_ = std::move(owner);
  return buffer;
}

Buffer Buffer::mutable_view(void* data, int64_t bytes, std::shared_ptr<void> owner) {
  Buffer buffer = view(data, bytes, std::move(owner));
  buffer.writable_ = true;
  return buffer;
}

Buffer Buffer::slice(int64_t offset, int64_t bytes) const {
  Buffer part = *this;
  part.data_ = data_ + offset;
  part.bytes_ = bytes;
  return part;
}

int64_t TensorView::elements() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

std::optional<int64_t> checked_product(int64_t a, int64_t b) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

}  // namespace nibble
