// Limits of one core with Advanced SIMD: loops that only read, only multiply FP32. See
// roof_avx512_vnni.cc for why there are several read loops.
#include <arm_neon.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kLineBytes = 64;
constexpr int kMaxStreams = 4;
constexpr int kAccumulators = 24;  // latency 4 at four a cycle needs 16

inline __attribute__((always_inline)) uint64_t fold(uint64x2_t v) {
  return vgetq_lane_u64(v, 0) ^ vgetq_lane_u64(v, 1);
}

// Reads `streams` equal parts of the buffer side by side, four lines of each in turn; the argument
// is a constant at every call.
inline __attribute__((always_inline)) uint64_t read_parts(const void* data, int64_t bytes,
                                                          const int streams) {
  constexpr int64_t kRoundBytes = 4 * kLineBytes;
  const int64_t part_bytes = bytes / streams;
  const uint8_t* part[kMaxStreams];
  uint64x2_t sum[16];
#pragma GCC unroll 4
  for (int s = 0; s < streams; ++s) part[s] = static_cast<const uint8_t*>(data) + s * part_bytes;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) sum[i] = vdupq_n_u64(0);
  for (int64_t offset = 0; offset + kRoundBytes <= part_bytes; offset += kRoundBytes) {
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const uint8x16_t line = vld1q_u8(part[s] + offset + 16 * i);
        sum[i] = veorq_u64(sum[i], vreinterpretq_u64_u8(line));
      }
    }
  }
  for (int i = 1; i < 16; ++i) sum[0] = veorq_u64(sum[0], sum[i]);
  return fold(sum[0]);
}

}  // namespace

uint64_t roof_read_neon(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1);
}
uint64_t roof_read_neon_4_streams(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 4);
}

// One step: 24 x FMLA of 4 multiply-adds.
uint64_t roof_f32_neon(const void*, int64_t, int64_t steps) {
  float32x4_t sum[kAccumulators];
#pragma GCC unroll 24
  for (int i = 0; i < kAccumulators; ++i) {
    sum[i] = vdupq_n_f32(static_cast<float>(i));
    __asm__ volatile("" : "+w"(sum[i]));  // else equal accumulators are merged
  }
  float32x4_t w = vdupq_n_f32(3), x = vdupq_n_f32(5);
  for (int64_t step = 0; step < steps; ++step) {
    __asm__ volatile("" : "+w"(w), "+w"(x));
#pragma GCC unroll 24
    for (int i = 0; i < kAccumulators; ++i) sum[i] = vfmaq_f32(sum[i], w, x);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = vaddq_f32(sum[0], sum[i]);
  return fold(vreinterpretq_u64_f32(sum[0]));
}

}  // namespace nibble
