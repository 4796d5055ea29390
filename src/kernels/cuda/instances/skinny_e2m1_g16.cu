#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_e2m1_g16(int32_t tiles, bool) {
  return skinny_of_tiles<Expand::kE2M1, 16, false>(tiles);
}

}  // namespace nibble
