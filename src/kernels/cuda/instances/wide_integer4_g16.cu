#include "kernels/cuda/wide.cuh"

namespace nibble {

WideKernel wide_integer4_bf16_g16(int32_t tokens, bool zeros) {
  return zeros ? wide_of_tokens<Expand::kInteger4, 16, WideScale::kBf16, true>(tokens)
               : wide_of_tokens<Expand::kInteger4, 16, WideScale::kBf16, false>(tokens);
}

WideKernel wide_integer4_f32_g16(int32_t tokens, bool zeros) {
  return zeros ? wide_of_tokens<Expand::kInteger4, 16, WideScale::kF32, true>(tokens)
               : wide_of_tokens<Expand::kInteger4, 16, WideScale::kF32, false>(tokens);
}

}  // namespace nibble
