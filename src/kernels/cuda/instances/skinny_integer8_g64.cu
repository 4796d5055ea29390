#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_integer8_g64(int32_t tiles, bool zeros) {
  return zeros ? skinny_of_tiles<Expand::kInteger8, 64, true>(tiles)
               : skinny_of_tiles<Expand::kInteger8, 64, false>(tiles);
}

}  // namespace nibble
