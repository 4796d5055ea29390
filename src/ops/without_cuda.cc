#ifndef NIBBLE_HAVE_CUDA

#include "ops/cuda_runtime.h"

namespace nibble {

namespace {
Status not_built() { return unsupported("this build has no CUDA; build it where nvcc is found"); }
}  // namespace

CudaDevices cuda_devices() { return {{}, "not built"}; }
Result<Buffer> copy_to_gpu(const void*, int64_t, int32_t) { return not_built(); }
Status use_gpu(int32_t) { return not_built(); }
std::string cuda_error_text(int error) { return "cudaError " + std::to_string(error); }

}  // namespace nibble

#endif  // NIBBLE_HAVE_CUDA
