#ifndef NIBBLE_CORE_CPU_FEATURES_H_
#define NIBBLE_CORE_CPU_FEATURES_H_

#include "nibble/core.h"

namespace nibble {

/// Instruction sets of this machine (usable: the operating system saves their registers), caches
/// and the number of cores this process may run on.
Device detect_cpu();

}  // namespace nibble

#endif  // NIBBLE_CORE_CPU_FEATURES_H_
