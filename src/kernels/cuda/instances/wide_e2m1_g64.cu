#include "kernels/cuda/wide.cuh"

namespace nibble {

WideKernel wide_e2m1_bf16_g64(int32_t tokens, bool) {
  return wide_of_tokens<Expand::kE2M1, 64, WideScale::kBf16, false>(tokens);
}

WideKernel wide_e2m1_f32_g64(int32_t tokens, bool) {
  return wide_of_tokens<Expand::kE2M1, 64, WideScale::kF32, false>(tokens);
}

}  // namespace nibble
