#include "core/cpu_features.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>

#include <cstring>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
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
#elif defined(__aarch64__)
#if defined(__linux__)
// Names of the main ID register's part numbers, where this library's users meet them.
std::string brand() {
  struct Part {
    uint32_t number;  // implementer << 12 | part
    const char* name;
  };
  constexpr uint32_t kArm = 0x41 << 12, kApple = 0x61 << 12;
  constexpr Part kParts[] = {
      {kArm | 0xD03, "Cortex-A53"},  {kArm | 0xD05, "Cortex-A55"},    {kArm | 0xD08, "Cortex-A72"},
      {kArm | 0xD0B, "Cortex-A76"},  {kArm | 0xD0C, "Neoverse N1"},   {kArm | 0xD40, "Neoverse V1"},
      {kArm | 0xD41, "Cortex-A78"},  {kArm | 0xD42, "Cortex-A78AE"},  {kArm | 0xD49, "Neoverse N2"},
      {kArm | 0xD4F, "Neoverse V2"}, {kArm | 0xD83, "Neoverse V3AE"}, {kArm | 0xD84, "Neoverse V3"},
      {kApple | 0x022, "Apple M1"},  {kApple | 0x032, "Apple M2"},
  };
  if ((getauxval(AT_HWCAP) & HWCAP_CPUID) == 0) return "aarch64";
  uint64_t id = 0;
  __asm__("mrs %0, midr_el1" : "=r"(id));  // the kernel answers for this register
  const auto number = static_cast<uint32_t>((id >> 24 & 0xFF) << 12 | (id >> 4 & 0xFFF));
  for (const Part& part : kParts) {
    if (part.number == number) return part.name;
  }
  return "aarch64";
}

// BF16 rows count on the dot products too: Armv8.6 has both.
uint32_t instruction_sets() {
  const uint64_t sets = getauxval(AT_HWCAP), more = getauxval(AT_HWCAP2);
  uint32_t isas = bit(Isa::kScalar);
  if ((sets & HWCAP_ASIMD) == 0) return isas;
  isas |= bit(Isa::kNeon);
  if ((sets & HWCAP_ASIMDDP) == 0) return isas;
  isas |= bit(Isa::kNeonDotprod);
  if ((more & HWCAP2_I8MM) != 0) isas |= bit(Isa::kNeonI8mm);
  if ((more & HWCAP2_BF16) != 0) isas |= bit(Isa::kNeonBf16);
  return isas;
}
#else
std::string brand() { return "aarch64"; }
uint32_t instruction_sets() { return bits(Isa::kScalar, Isa::kNeon); }
#endif
// NOTE: the sizes of caches are no register that a program may read here; without them a plan
// counts on the 1 MB of L2 that Device assumes.
void detect_caches(Device&) {}
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
