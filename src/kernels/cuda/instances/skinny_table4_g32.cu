#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_table4_g32(int32_t tiles, bool) {
  return skinny_of_tiles<Expand::kTable4, 32, false>(tiles);
}

}  // namespace nibble
