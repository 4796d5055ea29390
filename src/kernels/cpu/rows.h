// The lists that cpu/table.cc strings together: one a family of instruction sets.
#ifndef NIBBLE_KERNELS_CPU_ROWS_H_
#define NIBBLE_KERNELS_CPU_ROWS_H_

#include <span>

#include "kernels/table.h"

namespace nibble {

/// Rows of one family; each list is a constant table that lives as long as the program.
std::span<const KernelInfo> scalar_rows();
std::span<const KernelInfo> avx2_rows();
std::span<const KernelInfo> avx512_rows();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_ROWS_H_
