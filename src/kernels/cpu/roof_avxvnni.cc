// Limit of one core with AVX-VNNI (256 bits, no AVX-512): vpdpbusd on registers.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kAccumulators = 12;

// Hides a value from the optimiser, which would otherwise merge equal accumulators.
inline __attribute__((always_inline)) __m256i opaque(int32_t value) {
  __m256i v = _mm256_set1_epi32(value);
  __asm__ volatile("" : "+x"(v));
  return v;
}

}  // namespace

// One step: 12 x vpdpbusd of 32 multiply-adds.
uint64_t roof_int8_avxvnni(const void*, int64_t, int64_t steps) {
  __m256i sum[kAccumulators];
#pragma GCC unroll 12
  for (int i = 0; i < kAccumulators; ++i) sum[i] = opaque(i);
  const __m256i w = opaque(0x01020304), x = opaque(0x04030201);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm256_dpbusd_avx_epi32(sum[i], w, x);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm256_xor_si256(sum[0], sum[i]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum[0]);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

}  // namespace nibble
