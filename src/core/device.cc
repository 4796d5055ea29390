#include "core/cpu_features.h"
#include "nibble/core.h"

namespace nibble {
namespace {

constexpr const char* kNames[] = {"cpu",         "h200",     "thor",     "orin", "rtx4090",
                                  "avx2-laptop", "orin-cpu", "thor-cpu", "grace"};

Device gpu(const char* name, int32_t sm, int32_t num_sms, int64_t shared_bytes, int64_t l2_bytes,
           double gb_per_s) {
  Device device;
  device.backend = Backend::kCuda;
  device.name = name;
  device.isas = 0;
  device.sm = sm;
  device.num_sms = num_sms;
  device.shared_bytes = shared_bytes;
  device.l2_bytes = l2_bytes;
  device.read_gb_per_s = gb_per_s;
  return device;
}

Device arm_cpu(const char* name, Isa best, int32_t threads, int64_t l2_bytes, int64_t l3_bytes) {
  Device device;
  device.name = name;
  device.isas = isas_up_to(best);
  device.threads = threads;
  device.l1_bytes = 64 << 10;
  device.l2_bytes = l2_bytes;
  device.l3_bytes = l3_bytes;
  return device;
}

}  // namespace

const Device& Device::this_cpu() {
  static const Device device = detect_cpu();
  return device;
}

std::span<const char* const> Device::names() { return kNames; }

Result<Device> Device::named(std::string_view name) {
  if (name == "cpu") return this_cpu();
  if (name == "h200") return gpu("h200", 90, 132, 232448, int64_t{60} << 20, 4670);
  if (name == "thor") return gpu("thor", 110, 20, 232448, int64_t{32} << 20, 273);
  if (name == "orin") return gpu("orin", 87, 16, 166912, int64_t{4} << 20, 204);
  if (name == "rtx4090") return gpu("rtx4090", 89, 128, 101376, int64_t{72} << 20, 1008);
  if (name == "avx2-laptop") {
    Device device;
    device.name = "avx2-laptop";
    device.isas = bits(Isa::kScalar, Isa::kAvx2);
    device.threads = 4;
    device.l2_bytes = 256 << 10;
    device.l3_bytes = 8 << 20;
    return device;
  }
  // Cortex-A78AE, Neoverse V3AE, Neoverse V2.
  if (name == "orin-cpu")
    return arm_cpu("orin-cpu", Isa::kNeonDotprod, 12, int64_t{256} << 10, int64_t{2} << 20);
  if (name == "thor-cpu")
    return arm_cpu("thor-cpu", Isa::kNeonBf16, 14, int64_t{1} << 20, int64_t{16} << 20);
  if (name == "grace")
    return arm_cpu("grace", Isa::kNeonBf16, 72, int64_t{1} << 20, int64_t{114} << 20);
  std::string known;
  for (const char* each : kNames) known += std::string(known.empty() ? "" : ", ") + each;
  return invalid_argument("unknown device '" + std::string(name) + "'; known: " + known);
}

Isa Device::best_isa() const {
  for (int i = kNumIsas - 1; i > 0; --i) {
    if (has(static_cast<Isa>(i))) return static_cast<Isa>(i);
  }
  return Isa::kScalar;
}

Result<Device> Device::with_isa(Isa isa) const {
  if (backend != Backend::kCpu)
    return invalid_argument(name + " is not a CPU; it has no instruction set to limit");
  if (!has(isa)) {
    return unsupported(name + " has no " + isa_name(isa) + "; its best instruction set is " +
                       isa_name(best_isa()));
  }
  Device limited = *this;
  limited.isas &= isas_up_to(isa);
  return limited;
}

}  // namespace nibble
