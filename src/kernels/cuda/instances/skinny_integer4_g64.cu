#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_integer4_g64(int32_t tiles, bool zeros) {
  return zeros ? skinny_of_tiles<Expand::kInteger4, 64, true>(tiles)
               : skinny_of_tiles<Expand::kInteger4, 64, false>(tiles);
}

}  // namespace nibble
