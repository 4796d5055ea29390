// Limits of one core with AVX2 and FMA: loops that only read, only multiply int8, only multiply
// f32. See roof_avx512_vnni.cc for why there are several read loops.
#include <immintrin.h>
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kLineBytes = 64;
constexpr int kMaxStreams = 4;
constexpr int kAccumulators = 12;  // of 16 registers; latency 4-5 at two a cycle needs 10

// Hides a value from the optimiser, which would otherwise merge equal accumulators.
inline __attribute__((always_inline)) __m256i opaque(int32_t value) {
  __m256i v = _mm256_set1_epi32(value);
  __asm__ volatile("" : "+x"(v));
  return v;
}

inline __attribute__((always_inline)) uint64_t fold(__m256i v) {
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

inline __attribute__((always_inline)) __m256i load(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

// Reads `streams` equal parts of the buffer side by side, four lines of each in turn; the arguments
// are constants at every call.
inline __attribute__((always_inline)) uint64_t read_parts(const void* data, int64_t bytes,
                                                          const int streams,
                                                          const int64_t prefetch_bytes) {
  constexpr int64_t kRoundBytes = 4 * kLineBytes;
  const int64_t part_bytes = bytes / streams;
  const uint8_t* part[kMaxStreams];
  __m256i sum[8];
#pragma GCC unroll 4
  for (int s = 0; s < streams; ++s) part[s] = static_cast<const uint8_t*>(data) + s * part_bytes;
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) sum[i] = _mm256_setzero_si256();
  for (int64_t offset = 0; offset + kRoundBytes <= part_bytes; offset += kRoundBytes) {
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const uint8_t* line = part[s] + offset + i * kLineBytes;
        if (prefetch_bytes > 0) _mm_prefetch(line + prefetch_bytes, _MM_HINT_T0);
        sum[2 * i] = _mm256_xor_si256(sum[2 * i], load(line));
        sum[2 * i + 1] = _mm256_xor_si256(sum[2 * i + 1], load(line + 32));
      }
    }
  }
  for (int i = 1; i < 8; ++i) sum[0] = _mm256_xor_si256(sum[0], sum[i]);
  return fold(sum[0]);
}

}  // namespace

uint64_t roof_read_avx2(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1, 0);
}
uint64_t roof_read_avx2_ahead_4k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 1, 4096);
}
uint64_t roof_read_avx2_2_streams_ahead_2k(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 2, 2048);
}
uint64_t roof_read_avx2_4_streams(const void* data, int64_t bytes, int64_t) {
  return read_parts(data, bytes, 4, 0);
}

// One step: 12 x (vpmaddubsw, vpmaddwd, vpaddd) of 32 multiply-adds: right for any 8-bit codes that
// keep a pair within 16 bits.
uint64_t roof_int8_avx2(const void*, int64_t, int64_t steps) {
  __m256i sum[kAccumulators];
#pragma GCC unroll 12
  for (int i = 0; i < kAccumulators; ++i) sum[i] = opaque(i);
  const __m256i w = opaque(0x01020304), ones = _mm256_set1_epi16(1);
  __m256i x = opaque(0x04030201);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) {
      __asm__ volatile("" : "+x"(x));  // else the product of equal operands is made once
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
    }
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm256_xor_si256(sum[0], sum[i]);
  return fold(sum[0]);
}

// One step: 3 x (4 vpmaddubsw, 3 vpaddw, vpmaddwd, vpaddd) of 128 multiply-adds. With 4-bit codes
// four pairs fit 16 bits (4 * 2 * 15 * 127 < 2^15), so fewer widening steps are needed.
uint64_t roof_int8_avx2_four_pairs(const void*, int64_t, int64_t steps) {
  constexpr int kSums = 3;
  __m256i sum[kSums];
#pragma GCC unroll 3
  for (int i = 0; i < kSums; ++i) sum[i] = opaque(i);
  const __m256i w = opaque(0x01020304), ones = _mm256_set1_epi16(1);
  __m256i x = opaque(0x04030201);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 3
    for (int i = 0; i < kSums; ++i) {
      __m256i pairs[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __asm__ volatile("" : "+x"(x));
        pairs[j] = _mm256_maddubs_epi16(w, x);
      }
      const __m256i four = _mm256_add_epi16(_mm256_add_epi16(pairs[0], pairs[1]),
                                            _mm256_add_epi16(pairs[2], pairs[3]));
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(four, ones));
    }
  }
  for (int i = 1; i < kSums; ++i) sum[0] = _mm256_xor_si256(sum[0], sum[i]);
  return fold(sum[0]);
}

// One step: 12 x vfmadd of 8 multiply-adds.
uint64_t roof_f32_avx2(const void*, int64_t, int64_t steps) {
  __m256 sum[kAccumulators];
#pragma GCC unroll 12
  for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm256_cvtepi32_ps(opaque(i));
  const __m256 w = _mm256_cvtepi32_ps(opaque(3)), x = _mm256_cvtepi32_ps(opaque(5));
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kAccumulators; ++i) sum[i] = _mm256_fmadd_ps(w, x, sum[i]);
  }
  for (int i = 1; i < kAccumulators; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
  return fold(_mm256_castps_si256(sum[0]));
}

}  // namespace nibble
