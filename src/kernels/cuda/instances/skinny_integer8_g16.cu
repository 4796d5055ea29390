#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_integer8_g16(int32_t tiles, bool zeros) {
  return zeros ? skinny_of_tiles<Expand::kInteger8, 16, true>(tiles)
               : skinny_of_tiles<Expand::kInteger8, 16, false>(tiles);
}

}  // namespace nibble
