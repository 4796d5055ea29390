#include <cuda_runtime.h>

#include "kernels/cuda/naive.cuh"

namespace nibble {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) naive_kernel(const __grid_constant__ NaiveArgs args) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t n = args.matmul.w.n;
  if (index < args.matmul.m * n) naive_output(args, index / n, index % n);
}

}  // namespace

int naive_load_cuda() {
  cudaFuncAttributes attributes;  // asking for them loads the module
  return cudaFuncGetAttributes(&attributes, naive_kernel);
}

int naive_matmul_cuda(const MatmulArgs& matmul, void* stream) {
  NaiveArgs args{matmul, {}};
  for (int i = 0; i < 16; ++i) args.codebook[i] = matmul.w.codebook[i];
  const int64_t blocks = (matmul.m * matmul.w.n + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  naive_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      args);
  return cudaGetLastError();
}

}  // namespace nibble
