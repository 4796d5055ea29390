#include "core/cpu_features.h"
#include "nibble/core.h"

namespace nibble {
namespace {

constexpr const char* kNames[] = {"cpu", "h200", "thor", "orin", "rtx4090", "avx2-laptop"};

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
  limited.isas &= (bit(isa) << 1) - 1;
  return limited;
}

}  // namespace nibble
