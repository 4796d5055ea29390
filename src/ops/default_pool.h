#ifndef NIBBLE_OPS_DEFAULT_POOL_H_
#define NIBBLE_OPS_DEFAULT_POOL_H_

#include "nibble/core.h"

namespace nibble {

/// One pool of all cores for every op whose caller gives none; it lives as long as the process.
ThreadPool& default_pool();

}  // namespace nibble

#endif  // NIBBLE_OPS_DEFAULT_POOL_H_
