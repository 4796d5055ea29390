#include "checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <system_error>

namespace nibble::checkpoint {
namespace {

struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

/// Opens a regular file and tells its size. O_NONBLOCK: a FIFO must not hang the open.
Result<int64_t> open_regular(const std::string& path, Descriptor& file) {
  file.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.fd < 0) return errno_status(path);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) return errno_status(path);
  if (!S_ISREG(info.st_mode)) return io_error(path + ": not a regular file");
  return static_cast<int64_t>(info.st_size);
}

}  // namespace

Status errno_status(const std::string& path) {
  return io_error(path + ": " + std::generic_category().message(errno));
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  Descriptor file;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size, open_regular(path, file));
  if (size == 0) return MappedFile(Buffer(), false);
  void* data = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (data == MAP_FAILED) return errno_status(path);
  std::shared_ptr<const void> owner(
      data, [size](const void* p) { ::munmap(const_cast<void*>(p), static_cast<size_t>(size)); });
  return MappedFile(Buffer::view(data, size, std::move(owner)), true);
}

Buffer MappedFile::view(int64_t offset, int64_t count) const {
  const Buffer part = whole_.slice(offset, count);
  if (!mapped_ || count == 0) return part;
  // Pages shared with a neighbour may be dropped too: a mapped file's page comes back by itself.
  const auto drop_pages = [part](const void*) {
    static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto begin = reinterpret_cast<uintptr_t>(part.data());
    const uintptr_t aligned = begin / page * page;
    ::madvise(reinterpret_cast<void*>(aligned),
              begin - aligned + static_cast<uintptr_t>(part.bytes()), MADV_DONTNEED);
  };
  return Buffer::view(part.data(), count, std::shared_ptr<const void>(part.data(), drop_pages));
}

Result<std::string> read_text(const std::string& path, int64_t max_bytes) {
  Descriptor file;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t size, open_regular(path, file));
  if (size > max_bytes) {
    return corrupt_file(path + ": " + std::to_string(size) + " bytes, at most " +
                        std::to_string(max_bytes) + " are read");
  }
  std::string text(static_cast<size_t>(size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::read(file.fd, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status(path);
    if (got == 0) return io_error(path + ": shorter than its size says");
    done += static_cast<size_t>(got);
  }
  return text;
}

}  // namespace nibble::checkpoint
