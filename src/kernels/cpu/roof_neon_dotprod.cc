// Limit of one core with dot products of int8 (Armv8.2): SDOT on registers.
#include <arm_neon.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kAccumulators = 24;  // latency 4 at four a cycle needs 16

}  // namespace

// One step: 24 x SDOT of 16 multiply-adds.
uint64_t roof_int8_neon_dotprod(const void*, int64_t, int64_t steps) {
  int32x4_t sum[kAccumulators];
#pragma GCC unroll 24
  for (int i = 0; i < kAccumulators; ++i) {
    sum[i] = vdupq_n_s32(i);
    __asm__ volatile("" : "+w"(sum[i]));  // else equal accumulators are merged
  }
  int8x16_t w = vdupq_n_s8(3), x = vdupq_n_s8(5);
  for (int64_t step = 0; step < steps; ++step) {
    __asm__ volatile("" : "+w"(w), "+w"(x));
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) sum[i] = vdotq_s32(sum[i], w, x);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = veorq_s32(sum[0], sum[i]);
  const uint64x2_t both = vreinterpretq_u64_s32(sum[0]);
  return vgetq_lane_u64(both, 0) ^ vgetq_lane_u64(both, 1);
}

}  // namespace nibble
