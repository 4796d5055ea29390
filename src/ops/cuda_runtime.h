// What ops needs of the CUDA runtime; implemented in ops/cuda/ where the build has it, and by
// without_cuda.cc elsewhere. No CUDA type appears here.
#ifndef NIBBLE_OPS_CUDA_RUNTIME_H_
#define NIBBLE_OPS_CUDA_RUNTIME_H_

#include "nibble/core.h"

namespace nibble {

struct CudaDevices {
  std::vector<Device> devices;
  std::string state;  ///< one sentence: version, or why there is no device
};
CudaDevices cuda_devices();

/// A copy of `bytes` in the memory of GPU `index`, complete on return.
Result<Buffer> copy_to_gpu(const void* data, int64_t bytes, int32_t index);

/// Makes GPU `index` current on this thread.
Status use_gpu(int32_t index);

/// Loads every row that a call with weights of this layout may take: which one it is depends on the
/// rows and dtype of x, and a call may stand in a graph capture.
Status prepare_rows(LayoutId layout, const Device& device);

/// "cudaErrorInvalidValue: invalid argument"
std::string cuda_error_text(int error);

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_RUNTIME_H_
