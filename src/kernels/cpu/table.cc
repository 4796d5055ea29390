// The CPU's part of the kernel table, preferred instruction set last.
#include <algorithm>
#include <array>

#include "kernels/cpu/rows.h"

namespace nibble {
namespace {

struct Table {
  std::array<KernelInfo, 256> rows = {};
  size_t count = 0;

  void append(std::span<const KernelInfo> list) {
    if (list.size() > rows.size() - count) __builtin_trap();  // grow the array
    std::copy(list.begin(), list.end(), rows.begin() + static_cast<std::ptrdiff_t>(count));
    count += list.size();
  }
};

}  // namespace

std::span<const KernelInfo> cpu_kernels() {
  static const Table table = [] {
    Table all;
    all.append(scalar_rows());
    all.append(avx2_rows());
    all.append(avx512_rows());
    return all;
  }();
  return {table.rows.data(), table.count};
}

}  // namespace nibble
