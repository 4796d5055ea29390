#include "core/cpu_features.h"

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
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
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    isas |= bit(Isa::kAvx2);
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0) isas |= bit(Isa::kAvxVnni);
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
#else
std::string brand() { return "cpu"; }
uint32_t instruction_sets() { return bit(Isa::kScalar); }
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
  const auto cache = [](int name, int64_t fallback) {
    const int64_t bytes = sysconf(name);
    return bytes > 0 ? bytes : fallback;
  };
  device.l1_bytes = cache(_SC_LEVEL1_DCACHE_SIZE, device.l1_bytes);
  device.l2_bytes = cache(_SC_LEVEL2_CACHE_SIZE, device.l2_bytes);
  device.l3_bytes = cache(_SC_LEVEL3_CACHE_SIZE, device.l3_bytes);
#endif
  return device;
}

}  // namespace nibble
