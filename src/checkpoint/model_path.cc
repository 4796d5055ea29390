#include "checkpoint/model_path.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/json.h"

namespace nibble::checkpoint {

namespace fs = std::filesystem;

namespace {

bool lies_in(const fs::path& file, const fs::path& directory) {
  return std::mismatch(directory.begin(), directory.end(), file.begin(), file.end()).first ==
         directory.end();
}

}  // namespace

Result<std::string> path_inside(const std::string& directory, const std::string& name) {
  const fs::path relative(name);
  bool named_inside =
      !name.empty() && relative.is_relative() && name.find('\0') == std::string::npos;
  for (const fs::path& part : relative) named_inside &= part != "..";
  if (!named_inside) return corrupt_file("the file " + shown(name) + " is not in this directory");
  const fs::path path = fs::path(directory) / relative;
  std::error_code error;
  const fs::path file = fs::canonical(path, error);
  if (error) return io_error(path.string() + ": " + error.message());
  const fs::path root = fs::canonical(directory, error);
  if (error) return io_error(directory + ": " + error.message());
  bool inside = lies_in(file, root);
  if (root.parent_path().filename() == "snapshots") {
    inside |= lies_in(file, root.parent_path().parent_path() / "blobs");
  }
  if (!inside) {
    return corrupt_file("the file " + shown(name) + " is a link out of this directory, to " +
                        shown(file.string()));
  }
  return path.string();
}

}  // namespace nibble::checkpoint
