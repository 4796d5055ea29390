#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_integer4_g32(int32_t tiles, bool zeros) {
  return zeros ? skinny_of_tiles<Expand::kInteger4, 32, true>(tiles)
               : skinny_of_tiles<Expand::kInteger4, 32, false>(tiles);
}

}  // namespace nibble
