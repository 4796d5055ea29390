// The lists that cpu/table.cc strings together: one a family of instruction sets.
#ifndef NIBBLE_KERNELS_CPU_ROWS_H_
#define NIBBLE_KERNELS_CPU_ROWS_H_

#include <span>

#include "kernels/table.h"

// A row's entry point, or null where this build is for another architecture: the table lists the
// row all the same (KernelRow::compiled), so that plans and documents are alike everywhere.
#ifdef NIBBLE_HAVE_X86_ISA
#define NIBBLE_X86_CODE(function) function
#else
#define NIBBLE_X86_CODE(function) nullptr
#endif
#ifdef NIBBLE_HAVE_NEON_ISA
#define NIBBLE_NEON_CODE(function) function
#else
#define NIBBLE_NEON_CODE(function) nullptr
#endif

namespace nibble {

/// Rows of one family; each list is a constant table that lives as long as the program.
std::span<const KernelInfo> scalar_rows();
std::span<const KernelInfo> avx2_rows();
std::span<const KernelInfo> avx512_rows();
std::span<const KernelInfo> neon_rows();

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CPU_ROWS_H_
