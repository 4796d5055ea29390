#include "checkpoint/output_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "checkpoint/mapped_file.h"

namespace nibble::checkpoint {

namespace fs = std::filesystem;

namespace {

Status sync_path(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_status(path);
  const Status status = ::fsync(fd) == 0 ? Status() : errno_status(path);
  ::close(fd);
  return status;
}

/// Files first, then the folders that name them.
Status sync_tree(const std::string& root) {
  std::error_code error;
  std::vector<std::string> folders = {root};
  fs::recursive_directory_iterator entry(root, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string path = entry->path().string();
    std::error_code ignored;
    if (entry->is_directory(ignored)) {
      folders.push_back(path);
    } else {
      NIBBLE_RETURN_IF_ERROR(sync_path(path));
    }
  }
  if (error) return io_error(root + ": " + error.message());
  for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
    NIBBLE_RETURN_IF_ERROR(sync_path(*folder));
  }
  return {};
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace

Result<std::unique_ptr<OutputDirectory>> OutputDirectory::create(const std::string& target,
                                                                 bool overwrite, Kind kind) {
  std::unique_ptr<OutputDirectory> out(new OutputDirectory);
  out->overwrite_ = overwrite;
  out->kind_ = kind;
  std::error_code error;
  // The link's target is replaced, not the link; a trailing slash means nothing.
  fs::path resolved = fs::weakly_canonical(fs::absolute(target, error), error);
  if (error || target.empty()) return io_error("'" + target + "': " + error.message());
  if (!resolved.has_filename()) resolved = resolved.parent_path();
  out->target_ = resolved.string();
  if (fs::exists(out->target_, error) && kind == Kind::kFile) {
    if (!fs::is_regular_file(out->target_, error)) {
      return invalid_argument(target + " exists and is not a file");
    }
    if (!overwrite) {
      return invalid_argument(target + " exists; overwriting was not asked for");
    }
  } else if (fs::exists(out->target_, error)) {
    if (!fs::is_directory(out->target_, error)) {
      return invalid_argument(target + " exists and is not a directory");
    }
    if (!overwrite && !fs::is_empty(out->target_, error)) {
      return invalid_argument(target + " exists and is not empty; overwriting was not asked for");
    }
  }
  const std::string prefix = parent_of(out->target_) + "/." + resolved.filename().string() +
                             ".partial-" + std::to_string(::getpid()) + "-";
  for (int i = 0;; ++i) {
    const std::string name = prefix + std::to_string(i);
    if (::mkdir(name.c_str(), 0777) == 0) {
      out->temporary_ = name;
      return out;
    }
    if (errno != EEXIST) return errno_status(name);
  }
}

OutputDirectory::~OutputDirectory() {
  if (published_ || temporary_.empty()) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

Status OutputDirectory::publish_file() {
  // rename(2) replaces a file in one step.
  if (::rename(file(target_name()).c_str(), target_.c_str()) != 0) return errno_status(target_);
  NIBBLE_RETURN_IF_ERROR(sync_path(parent_of(target_)));
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
  published_ = true;
  return {};
}

Status OutputDirectory::publish() {
  NIBBLE_RETURN_IF_ERROR(sync_tree(temporary_));
  if (kind_ == Kind::kFile) return publish_file();
  const std::string parent = parent_of(target_);
  // rename(2) replaces nothing, or an empty directory.
  if (::rename(temporary_.c_str(), target_.c_str()) == 0) {
    published_ = true;
    return sync_path(parent);
  }
  if (!overwrite_ || (errno != ENOTEMPTY && errno != EEXIST)) return errno_status(target_);
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
    published_ = true;
    NIBBLE_RETURN_IF_ERROR(sync_path(parent));
    std::error_code error;
    fs::remove_all(temporary_, error);  // now the old content
    return error ? io_error(temporary_ + ": " + error.message()) : Status();
  }
  if (errno != EINVAL && errno != ENOSYS && errno != EXDEV) return errno_status(target_);
  // NOTE: this file system cannot exchange. Between the two renames the old state stands aside.
  const std::string aside = temporary_ + ".replaced";
  if (::rename(target_.c_str(), aside.c_str()) != 0) return errno_status(target_);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    const Status status = errno_status(target_);
    if (::rename(aside.c_str(), target_.c_str()) == 0) return status;
    return io_error(status.message() + "; the old content stands in " + aside);
  }
  published_ = true;
  NIBBLE_RETURN_IF_ERROR(sync_path(parent));
  std::error_code error;
  fs::remove_all(aside, error);
  return error ? io_error(aside + ": " + error.message()) : Status();
}

Status write_text(const std::string& path, std::string_view text) {
  NIBBLE_ASSIGN_OR_RETURN(OutputFile file,
                          OutputFile::create(path, static_cast<int64_t>(text.size())));
  return file.write_at(0, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Result<OutputFile> OutputFile::create(std::string path, int64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd < 0) return errno_status(path);
  OutputFile file(std::move(path), fd);
  if (bytes == 0) return file;
  int result;
  do {
    result = ::fallocate(fd, 0, 0, bytes);
  } while (result != 0 && errno == EINTR);
  if (result == 0) return file;
  // Some file systems cannot reserve; writing will tell then.
  if (errno != EOPNOTSUPP && errno != ENOSYS) return errno_status(file.path_);
  if (::ftruncate(fd, bytes) != 0) return errno_status(file.path_);
  return file;
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status OutputFile::write_at(int64_t offset, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno_status(path_);
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += done;
  }
  return {};
}

}  // namespace nibble::checkpoint
