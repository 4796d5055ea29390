#include "quantize/band_loops.h"

namespace nibble {
NIBBLE_DEFINE_BAND_FUNCTIONS(kBandsAvx2, Isa::kAvx2, 8)
}  // namespace nibble
