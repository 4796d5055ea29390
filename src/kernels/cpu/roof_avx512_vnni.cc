// Limits of one core with AVX-512 VNNI: loops that only read, only multiply int8, only multiply
// f32.
//
// The read loops differ in streams (parts of the buffer read side by side, as a matmul does with
// several panels) and in prefetch distance, because the best combination differs between CPUs; the
// caller takes the fastest. The compute loops keep everything in registers: a real kernel also
// loads, so its ceiling lies below.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kLineBytes = 64;
constexpr int kMaxStreams = 4;
constexpr int kAccumulators = 16;  // latency x throughput of any AVX-512 CPU is below this

// Hides a value from the optimiser, which would otherwise merge equal accumulators.
inline __attribute__((always_inline)) __m512i opaque(int32_t value) {
  __m512i v = _mm512_set1_epi32(value);
  __asm__ volatile("" : "+v"(v));
  return v;
}

inline __attribute__((always_inline)) __m512 opaque_f32(float value) {
  __m512 v = _mm512_set1_ps(value);
  __asm__ volatile("" : "+v"(v));
  return v;
}

inline __attribute__((always_inline)) uint64_t fold(__m512i v) {
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, v);
  uint64_t sum = 0;
  for (uint64_t lane : lanes) sum ^= lane;
  return sum;
}

// Reads `streams` equal parts of the buffer side by side, eight lines of each in turn. The
// arguments are constants at every call, so that each caller becomes its own straight loop.
inline __attribute__((always_inline)) uint64_t read_parts(const void* data, int64_t bytes,
                                                          const int streams,
                                                          const int64_t prefetch_bytes) {
  constexpr int64_t kRoundBytes = 8 * kLineBytes;
  const int64_t part_bytes = bytes / streams;
  const uint8_t* part[kMaxStreams];
  __m512i sum[8];
#pragma GCC unroll 4
  for (int s = 0; s < streams; ++s) part[s] = static_cast<const uint8_t*>(data) + s * part_bytes;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sum[i] = _mm512_setzero_si512();
  for (int64_t offset = 0; offset + kRoundBytes <= part_bytes; offset += kRoundBytes) {
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const uint8_t* line = part[s] + offset + i * kLineBytes;
        if (prefetch_bytes > 0) _mm_prefetch(line + prefetch_bytes, _MM_HINT_T0);
        sum[i] = _mm512_xor_si512(sum[i], _mm512_loadu_si512(line));
      }
    }
  }
  for (int i = 1; i < 8; ++i) sum[0] = _mm512_xor_si512(sum[0], sum[i]);
  return fold(sum[0]);
}

}  // namespace

uint64_t roof_read_avx512(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1, 0);
}
uint64_t roof_read_avx512_ahead_4k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1, 4096);
}
uint64_t roof_read_avx512_ahead_8k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1, 8192);
}
uint64_t roof_read_avx512_2_streams(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 2, 0);
}
uint64_t roof_read_avx512_2_streams_ahead_2k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 2, 2048);
}
uint64_t roof_read_avx512_4_streams(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 4, 0);
}
uint64_t roof_read_avx512_4_streams_ahead_2k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 4, 2048);
}

// One step: 16 x vpdpbusd of 64 multiply-adds.
uint64_t roof_int8_avx512_vnni(const void*, int64_t, int64_t steps) {
  __m512i sum[kAccumulators];
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; ++i) sum[i] = opaque(i);
  const __m512i w = opaque(0x01020304), x = opaque(0x04030201);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], w, x);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm512_xor_si512(sum[0], sum[i]);
  return fold(sum[0]);
}

// One step: 16 x vfmadd of 16 multiply-adds.
uint64_t roof_f32_avx512(const void*, int64_t, int64_t steps) {
  __m512 sum[kAccumulators];
#pragma GCC unroll 16
  for (int i = 0; i < kAccumulators; ++i) sum[i] = opaque_f32(1);
  const __m512 w = opaque_f32(3), x = opaque_f32(5);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 16
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm512_fmadd_ps(w, x, sum[i]);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return fold(_mm512_castps_si512(sum[0]));
}

}  // namespace nibble
