// Limit of one core with AVX-512 BF16: vdpbf16ps on registers.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kAccumulators = 16;

// Hides a value from the optimiser, which would otherwise merge equal accumulators.
inline __attribute__((always_inline)) __m512i opaque(int32_t value) {
  __m512i v = _mm512_set1_epi32(value);
  __asm__ volatile("" : "+v"(v));
  return v;
}

}  // namespace

// One step: 16 x vdpbf16ps of 32 multiply-adds.
uint64_t roof_bf16_avx512(const void*, int64_t, int64_t steps) {
  constexpr int32_t kOnes = 0x3F803F80;  // two BF16 1.0
  __m512 sum[kAccumulators];
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_castsi512_ps(opaque(0x3F800000));
  const __m512bh w = reinterpret_cast<__m512bh>(opaque(kOnes));
  const __m512bh x = reinterpret_cast<__m512bh>(opaque(kOnes));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], w, x);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_castps_si512(sum[0]));
  uint64_t folded = 0;
  for (uint64_t lane : lanes) folded ^= lane;
  return folded;
}

}  // namespace nibble
