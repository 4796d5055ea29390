// The whole kernel table: CPU rows, then CUDA rows.
#include "kernels/table.h"

#include <algorithm>
#include <array>

namespace nibble {

#ifndef NIBBLE_HAVE_CUDA
std::span<const KernelInfo> cuda_kernels() { return {}; }
#endif

std::span<const KernelInfo> all_kernels() {
  struct Table {
    std::array<KernelInfo, 512> rows = {};
    size_t count = 0;
  };
  static const Table table = [] {
    Table all;
    for (const std::span<const KernelInfo> list : {cpu_kernels(), cuda_kernels()}) {
      if (list.size() > all.rows.size() - all.count) __builtin_trap();  // grow the array
      std::copy(list.begin(), list.end(),
                all.rows.begin() + static_cast<std::ptrdiff_t>(all.count));
      all.count += list.size();
    }
    return all;
  }();
  return {table.rows.data(), table.count};
}

}  // namespace nibble
