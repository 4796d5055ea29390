// The CPU's part of the kernel table, preferred instruction set last.
#include <array>

#include "kernels/cpu/rows.h"

namespace nibble {
namespace {

struct Table {
  std::array<KernelInfo, 256> rows = {};
  size_t count = 0;

  void append(std::span<const KernelInfo> list) {
    if (list.size() > rows.size() - count) __builtin_trap();  // grow the array
    for (const KernelInfo& info : list) {
      rows[count] = info;
      rows[count++].row.compiled = info.cpu_matmul != nullptr || info.cpu_prepare != nullptr;
    }
  }
};

}  // namespace

std::span<const KernelInfo> cpu_kernels() {
  static const Table table = [] {
    Table all;
    all.append(scalar_rows());
    all.append(avx2_rows());
    all.append(avx512_rows());
    all.append(neon_rows());
    return all;
  }();
  return {table.rows.data(), table.count};
}

}  // namespace nibble
