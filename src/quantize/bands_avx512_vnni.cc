#include "quantize/band_loops.h"

namespace nibble {
NIBBLE_DEFINE_BAND_FUNCTIONS(kBandsAvx512, Isa::kAvx512Vnni, 16)
}  // namespace nibble
