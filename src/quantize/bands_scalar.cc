// Any CPU: the compiler lowers four floats to SSE2, NEON or scalar code.
#include "quantize/band_loops.h"

namespace nibble {
NIBBLE_DEFINE_BAND_FUNCTIONS(kBandsScalar, Isa::kScalar, 4)
}  // namespace nibble
