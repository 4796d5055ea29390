// A directory that appears complete or not at all.
#ifndef NIBBLE_CHECKPOINT_OUTPUT_DIRECTORY_H_
#define NIBBLE_CHECKPOINT_OUTPUT_DIRECTORY_H_

#include <memory>
#include <string>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// Files are made in a temporary directory beside the target; `publish` renames it. Until then the
/// target is untouched; without `publish` the temporary directory is removed.
class OutputDirectory {
 public:
  /// Errors: kInvalidArgument when the target is no directory, or is not empty and `overwrite` is
  /// off; kIo.
  static Result<std::unique_ptr<OutputDirectory>> create(const std::string& target, bool overwrite);
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  ~OutputDirectory();

  /// Where to write.
  const std::string& path() const { return temporary_; }
  std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  /// The target with links resolved.
  const std::string& target() const { return target_; }

  /// Syncs all files and folders and renames to the target. A target that is not empty is exchanged
  /// in one step where the file system can, and its old content removed afterwards. Errors: kIo.
  Status publish();

 private:
  OutputDirectory() = default;
  std::string target_, temporary_;
  bool overwrite_ = false, published_ = false;
};

/// Writes a whole file. Errors: kIo.
Status write_text(const std::string& path, std::string_view text);

/// One open output file of known size, written at any position from any thread.
class OutputFile {
 public:
  /// Creates the file and reserves `bytes` on the disk, so that a full one is noticed here.
  static Result<OutputFile> create(std::string path, int64_t bytes);
  OutputFile(OutputFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  Status write_at(int64_t offset, std::span<const uint8_t> bytes);

 private:
  OutputFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_ = -1;
};

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_OUTPUT_DIRECTORY_H_
