#include "core/cpu_features.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>

#include <cstring>
#endif

#include <thread>

namespace nibble {
namespace {

#if defined(__x86_64__)
std::string brand() {
  unsigned highest = __get_cpuid_max(0x80000000u, nullptr);
  if (highest < 0x80000004u) return "x86-64";
  char text[49] = {};
  for (unsigned i = 0; i < 3; ++i) {
    unsigned registers[4];
    __cpuid(0x80000002u + i, registers[0], registers[1], registers[2], registers[3]);
    std::memcpy(text + 16 * i, registers, 16);
  }
  std::string name(text);
  while (!name.empty() && name.back() == ' ') name.pop_back();
  return name;
}

uint32_t instruction_sets() {
  uint32_t isas = bit(Isa::kScalar);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    isas |= bit(Isa::kAvx2);
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0)
      isas |= bit(Isa::kAvxVnni);
  }
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
  if (avx512) {
    isas |= bit(Isa::kAvx512Vnni);
    if (__builtin_cpu_supports("avx512bf16")) isas |= bit(Isa::kAvx512Bf16);
  }
  return isas;
}

/// Sizes of the data caches that one core sees, by level 1-3. glibc's sysconf adds up the
/// last-level caches of a whole AMD package, of which a core reaches one.
void detect_caches(Device& device) {
  constexpr unsigned kIntelLeaf = 4, kAmdLeaf = 0x8000001Du;
  constexpr unsigned kNone = 0, kInstructions = 2;
  for (const unsigned leaf : {kIntelLeaf, kAmdLeaf}) {
    for (unsigned i = 0; i < 8; ++i) {
      unsigned a = 0, b = 0, c = 0, d = 0;
      if (__get_cpuid_count(leaf, i, &a, &b, &c, &d) == 0 || (a & 31) == kNone) break;
      if ((a & 31) == kInstructions) continue;
      const int64_t ways = (b >> 22) + 1, partitions = ((b >> 12) & 1023) + 1,
                    line = (b & 4095) + 1;
      const int64_t bytes = ways * partitions * line * (int64_t{c} + 1);
      const unsigned level = (a >> 5) & 7;
      if (level == 1) device.l1_bytes = bytes;
      if (level == 2) device.l2_bytes = bytes;
      if (level == 3) device.l3_bytes = bytes;
    }
  }
}
#else
std::string brand() { return "cpu"; }
uint32_t instruction_sets() { return bit(Isa::kScalar); }
void detect_caches(Device&) {}  // the defaults of Device
#endif

}  // namespace

Device detect_cpu() {
  Device device;
  device.backend = Backend::kCpu;
  device.name = brand();
  device.isas = instruction_sets();
  device.threads = static_cast<int32_t>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) device.threads = CPU_COUNT(&allowed);
#endif
  detect_caches(device);
  return device;
}

}  // namespace nibble
