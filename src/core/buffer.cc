#include <cstdlib>
#include <limits>
#include <string>

#include "nibble/core.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace nibble {
namespace {
constexpr int64_t kAlignment = 256;
constexpr int64_t kReadablePastEnd = 64;  // kernels load whole vectors at the end of a section
constexpr int64_t kHugePage = 2 << 20;

// Asks for huge pages for every whole one inside: reading a large weight once through 4 KB pages
// reaches two thirds of the memory's speed on a virtual machine. Nothing grows, the tail is small.
void advise_huge_pages(void* data, int64_t bytes) {
#ifdef __linux__
  if (bytes >= kHugePage) {
    (void)madvise(data, static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
  }
#else
  (void)data, (void)bytes;
#endif
}
}  // namespace

Result<Buffer> Buffer::allocate(int64_t bytes) {
  if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() - 2 * kAlignment) {
    return invalid_argument("cannot allocate " + std::to_string(bytes) + " bytes");
  }
  const int64_t rounded = round_up(bytes + kReadablePastEnd, kAlignment);
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  void* data = nullptr;
  if (posix_memalign(&data, static_cast<size_t>(alignment), static_cast<size_t>(rounded)) != 0) {
    return out_of_memory("no memory for " + std::to_string(bytes) + " bytes");
  }
  advise_huge_pages(data, bytes);
  Buffer buffer;
  buffer.data_ = static_cast<const uint8_t*>(data);
  buffer.bytes_ = bytes;
  buffer.writable_ = true;
  buffer.owner_ =
      std::shared_ptr<const void>(data, [](const void* p) { std::free(const_cast<void*>(p)); });
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

Buffer Buffer::device_view(const void* data, int64_t bytes, std::shared_ptr<const void> owner) {
  Buffer buffer = view(data, bytes, std::move(owner));
  buffer.memory_ = Backend::kCuda;
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
