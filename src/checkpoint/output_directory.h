// A directory, or one file, that appears complete or not at all.
#ifndef NIBBLE_CHECKPOINT_OUTPUT_DIRECTORY_H_
#define NIBBLE_CHECKPOINT_OUTPUT_DIRECTORY_H_

#include <memory>
#include <string>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// Files are made in a temporary directory beside the target; `publish` renames it, or for a target
/// that is one file, that file out of it. Until then the target is untouched; without `publish` the
/// temporary directory is removed.
class OutputDirectory {
 public:
  enum class Kind { kDirectory, kFile };
  /// Errors: kInvalidArgument when the target is not of this kind, or `overwrite` is off and it is
  /// a directory that is not empty, or a file; kIo.
  static Result<std::unique_ptr<OutputDirectory>> create(const std::string& target, bool overwrite,
                                                         Kind kind = Kind::kDirectory);
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;
  ~OutputDirectory();

  /// Where to write.
  const std::string& path() const { return temporary_; }
  std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  /// The target with links resolved.
  const std::string& target() const { return target_; }

  /// Of a target that is a file: its name, under which it is made.
  std::string target_name() const { return target_.substr(target_.rfind('/') + 1); }

  /// Syncs all files and folders and renames to the target. A target that is not empty is exchanged
  /// in one step where the file system can, and its old content removed afterwards. Errors: kIo.
  Status publish();

 private:
  OutputDirectory() = default;
  Status publish_file();
  std::string target_, temporary_;
  Kind kind_ = Kind::kDirectory;
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
