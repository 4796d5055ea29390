#include "kernels/cuda/wide.cuh"

namespace nibble {

WideKernel wide_e2m1_bf16_g16(int32_t tokens, bool) {
  return wide_of_tokens<Expand::kE2M1, 16, WideScale::kBf16, false>(tokens);
}

WideKernel wide_e2m1_f32_g16(int32_t tokens, bool) {
  return wide_of_tokens<Expand::kE2M1, 16, WideScale::kF32, false>(tokens);
}

}  // namespace nibble
