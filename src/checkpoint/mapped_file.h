// A file's bytes: mapped read-only, or somebody's memory.
#ifndef NIBBLE_CHECKPOINT_MAPPED_FILE_H_
#define NIBBLE_CHECKPOINT_MAPPED_FILE_H_

#include <string>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// Cheap to copy; the mapping lives as long as a copy or a view.
class MappedFile {
 public:
  /// Maps a regular file. Errors: kIo.
  static Result<MappedFile> open(const std::string& path);
  static MappedFile of_memory(Buffer bytes) { return MappedFile(std::move(bytes), false); }

  int64_t bytes() const { return whole_.bytes(); }
  const uint8_t* data() const { return whole_.data(); }
  /// The bytes [offset, offset + count), which the caller has checked. When the last copy of the
  /// view is gone its pages leave the process (the file's pages stay in the system's cache):
  /// walking a large model then costs the memory of one tensor.
  Buffer view(int64_t offset, int64_t count) const;

 private:
  MappedFile(Buffer whole, bool mapped) : whole_(std::move(whole)), mapped_(mapped) {}
  Buffer whole_;
  bool mapped_ = false;
};

/// The whole text of a small file. Errors: kIo, kCorruptFile above `max_bytes`.
Result<std::string> read_text(const std::string& path, int64_t max_bytes);

/// "path: message of errno". Call right after the failure.
Status errno_status(const std::string& path);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_MAPPED_FILE_H_
