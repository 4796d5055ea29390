// Limit of one core with matrix products of BF16 (Armv8.6): BFMMLA on registers.
#include <arm_neon.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kAccumulators = 24;  // latency 4 at four a cycle needs 16

}  // namespace

// One step: 24 x BFMMLA of 16 multiply-adds.
uint64_t roof_bf16_neon(const void*, int64_t, int64_t steps) {
  float32x4_t sum[kAccumulators];
#pragma GCC unroll 24
  for (int i = 0; i < kAccumulators; ++i) {
    sum[i] = vdupq_n_f32(static_cast<float>(i));
    __asm__ volatile("" : "+w"(sum[i]));  // else equal accumulators are merged
  }
  uint16x8_t w = vdupq_n_u16(0x4040), x = vdupq_n_u16(0x40A0);  // 3 and 5
  for (int64_t step = 0; step < steps; ++step) {
    __asm__ volatile("" : "+w"(w), "+w"(x));
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i)
      sum[i] = vbfmmlaq_f32(sum[i], vreinterpretq_bf16_u16(w), vreinterpretq_bf16_u16(x));
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = vaddq_f32(sum[0], sum[i]);
  const uint64x2_t both = vreinterpretq_u64_f32(sum[0]);
  return vgetq_lane_u64(both, 0) ^ vgetq_lane_u64(both, 1);
}

}  // namespace nibble
