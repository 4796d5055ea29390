#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_integer4_g16(int32_t tiles, bool zeros) {
  return zeros ? skinny_of_tiles<Expand::kInteger4, 16, true>(tiles)
               : skinny_of_tiles<Expand::kInteger4, 16, false>(tiles);
}

}  // namespace nibble
