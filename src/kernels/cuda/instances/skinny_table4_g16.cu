#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_table4_g16(int32_t tiles, bool) {
  return skinny_of_tiles<Expand::kTable4, 16, false>(tiles);
}

}  // namespace nibble
