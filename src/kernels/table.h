// The kernel table: every row the library has, in one list that planning, tests, benches and
// documents walk. Rows are declared beside their kernels and listed in cpu/table.cc, cuda/table.cc.
#ifndef NIBBLE_KERNELS_TABLE_H_
#define NIBBLE_KERNELS_TABLE_H_

#include <span>

#include "kernels/args.h"

namespace nibble {

/// A row and its entry points. Exactly the pointer that fits `row.kind` and `row.backend` is set,
/// none where the row is not compiled.
struct KernelInfo {
  KernelRow row;
  CpuMatmulFn cpu_matmul = nullptr;
  CpuPrepareFn cpu_prepare = nullptr;
  CudaMatmulFn cuda_matmul = nullptr;
  CudaPrepareFn cuda_load = nullptr;
};

/// A limit of the hardware that `nibble bench` compares with.
struct RoofInfo {
  const char* name;
  RoofKind kind;
  Isa isa;
  double ops_per_step;  ///< operations one step makes (2 per multiply-add); kRead: 0
  RoofFn run;
};

/// CPU rows of all architectures, preferred instruction set last in each family.
std::span<const KernelInfo> cpu_kernels();
/// CUDA rows this build contains; empty without CUDA.
std::span<const KernelInfo> cuda_kernels();
/// All rows, CPU first. The index into this list names a kernel in a Plan.
std::span<const KernelInfo> all_kernels();

std::span<const RoofInfo> cpu_roofs();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_TABLE_H_
