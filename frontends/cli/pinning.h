// Binding the threads of a pool to cores, for measurements.
#ifndef NIBBLE_FRONTENDS_CLI_PINNING_H_
#define NIBBLE_FRONTENDS_CLI_PINNING_H_

#include "nibble/core.h"

namespace nibble::cli {

/// Binds every thread of this process to a core of its own among those the process may use, the
/// calling thread to the first. Call it when the process has exactly `pool`'s threads.
/// Errors: kInvalidArgument (more threads than cores), kUnsupported (no such call on this system),
/// kIo (the system refused).
Status pin_threads(ThreadPool* pool);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_PINNING_H_
