// Limits of one core in portable C++, whatever the compiler makes of it for the baseline CPU.
#include <stdint.h>

#include "kernels/args.h"

namespace nibble {
namespace {

constexpr int kLanes = 32;

}  // namespace

uint64_t roof_read_scalar(const void* data, int64_t bytes, int64_t) {
  const uint64_t* words = static_cast<const uint64_t*>(data);
  const int64_t num_words = bytes / 8;
  uint64_t sum[8] = {};
  for (int64_t i = 0; i + 8 <= num_words; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] ^= words[i + j];
  }
  for (int j = 1; j < 8; ++j) sum[0] ^= sum[j];
  return sum[0];
}

// One step: 32 multiply-adds.
uint64_t roof_int8_scalar(const void*, int64_t, int64_t steps) {
  int32_t sum[kLanes];
  int16_t w[kLanes], x[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    sum[i] = i;
    w[i] = static_cast<int16_t>(i & 15);
    x[i] = static_cast<int16_t>(i - 16);
  }
  for (int64_t step = 0; step < steps; ++step) {
    // Else the same products would be taken out of the loop.
    __asm__ volatile("" : : "r"(w), "r"(x) : "memory");
    for (int i = 0; i < kLanes; ++i) sum[i] += int32_t{w[i]} * x[i];
  }
  uint64_t folded = 0;
  for (int32_t v : sum) folded ^= static_cast<uint64_t>(v);
  return folded;
}

// One step: 32 multiply-adds.
uint64_t roof_f32_scalar(const void*, int64_t, int64_t steps) {
  float sum[kLanes], w[kLanes], x[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    sum[i] = static_cast<float>(i);
    w[i] = static_cast<float>(i & 15);
    x[i] = static_cast<float>(i - 16);
  }
  for (int64_t step = 0; step < steps; ++step) {
    __asm__ volatile("" : : "r"(w), "r"(x) : "memory");
    for (int i = 0; i < kLanes; ++i) sum[i] = sum[i] + w[i] * x[i];
  }
  uint64_t folded = 0;
  for (float v : sum) folded ^= static_cast<uint64_t>(static_cast<int64_t>(v));
  return folded;
}

}  // namespace nibble
