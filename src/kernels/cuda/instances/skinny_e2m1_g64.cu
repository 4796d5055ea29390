#include "kernels/cuda/skinny.cuh"

namespace nibble {

const void* skinny_e2m1_g64(int32_t tiles, bool) {
  return skinny_of_tiles<Expand::kE2M1, 64, false>(tiles);
}

}  // namespace nibble
