#include "kernels/table.h"
#include "nibble/ops.h"
#include "ops/cuda_runtime.h"

namespace nibble {

Result<PackedWeight> upload(const PackedWeight& weight, const Device& device) {
  if (device.backend != Backend::kCuda)
    return unsupported(device.name + " is not a GPU; its weights stay where they are");
  PackedWeight copy;
  copy.info = weight.info;
  for (size_t i = 0; i < kNumSections; ++i) {
    const Buffer& part = weight.parts[i];
    if (part.empty()) continue;
    if (part.memory() != Backend::kCpu)
      return invalid_argument("the packed weight already lies on a GPU");
    NIBBLE_ASSIGN_OR_RETURN(copy.parts[i], copy_to_gpu(part.data(), part.bytes(), device.index));
  }
  return copy;
}

namespace {

Status load(const KernelInfo& kernel) {
  if (const int error = kernel.cuda_load(); error != 0) {
    return {Code::kCuda, std::string(kernel.row.name) + " did not load: " + cuda_error_text(error)};
  }
  return {};
}

}  // namespace

Status prepare(const Plan& plan, const Device& device) {
  if (device.backend == Backend::kCpu) return {};
  NIBBLE_RETURN_IF_ERROR(use_gpu(device.index));
  for (int32_t i = 0; i < plan.num_steps; ++i) {
    NIBBLE_RETURN_IF_ERROR(
        load(all_kernels()[static_cast<size_t>(plan.steps[static_cast<size_t>(i)].kernel)]));
  }
  return {};
}

Status prepare_rows(LayoutId layout, const Device& device) {
  NIBBLE_RETURN_IF_ERROR(use_gpu(device.index));
  for (const KernelInfo& kernel : cuda_kernels()) {
    const KernelRow& row = kernel.row;
    if (row.layout != layout || device.sm < row.min_sm || device.sm > row.max_sm) continue;
    NIBBLE_RETURN_IF_ERROR(load(kernel));
  }
  return {};
}

DoctorReport doctor() {
  CudaDevices cuda = cuda_devices();
  return {Device::this_cpu(), std::move(cuda.devices), std::move(cuda.state)};
}

}  // namespace nibble
