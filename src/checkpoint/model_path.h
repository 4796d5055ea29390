// Paths that a model's files name: they must stay inside the model's directory.
#ifndef NIBBLE_CHECKPOINT_MODEL_PATH_H_
#define NIBBLE_CHECKPOINT_MODEL_PATH_H_

#include <string>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// The path of `name`, which a file of `directory` refers to. It is relative, has no "..", and with
/// all links resolved lies inside `directory`; the blobs of a Hugging Face cache, to which the
/// links of `<model>/snapshots/<revision>/` lead, count as inside. Errors: kCorruptFile with the
/// rule, kIo when there is no such file.
Result<std::string> path_inside(const std::string& directory, const std::string& name);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_MODEL_PATH_H_
