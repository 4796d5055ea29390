#include "checkpoint/flat_blocks.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace nibble::checkpoint {
namespace {

/// Whether every border of a block lies at a multiple of `columns` within its row. The borders'
/// columns repeat after k / gcd(block, k) blocks, so at most k of them are looked at, and the first
/// that does not fit ends it.
bool borders_fit(const FlatBlocks& blocks, int64_t columns) {
  const int64_t common = std::gcd(blocks.block, blocks.k);
  if (common % columns == 0) return true;
  const int64_t step = blocks.block % blocks.k;
  const int64_t borders = std::min(blocks.count() - 1, blocks.k / common);
  int64_t column = 0;
  for (int64_t i = 0; i < borders; ++i) {
    column = column >= blocks.k - step ? column - (blocks.k - step) : column + step;
    if (column % columns != 0) return false;
  }
  return true;
}

/// Values [n, groups] of groups of `columns`, none of which reaches past the end of its block.
template <class Value>
void spread(const FlatBlocks& blocks, const uint8_t* values, int64_t columns, uint8_t* out) {
  const int64_t groups = ceil_div(blocks.k, columns);
  for (int64_t row = 0; row < blocks.n; ++row) {
    const int64_t first = row * blocks.k;
    const uint8_t* value = values + first / blocks.block * static_cast<int64_t>(sizeof(Value));
    int64_t left = blocks.block - first % blocks.block;
    for (int64_t g = 0; g < groups; ++g) {
      std::memcpy(out, value, sizeof(Value));
      out += sizeof(Value);
      left -= columns;
      if (left > 0) continue;
      left += blocks.block;
      value += sizeof(Value);
    }
  }
}

}  // namespace

std::optional<int32_t> FlatBlocks::group() const {
  const bool is_group = block == 16 || block == 32 || block == 64 || block == 128;
  if (is_group && borders_fit(*this, block)) return static_cast<int32_t>(block);
  if (borders_fit(*this, k)) return 0;
  for (const int32_t columns : {128, 64, 32, 16}) {
    if (columns < block && borders_fit(*this, columns)) return columns;
  }
  return std::nullopt;
}

std::string FlatBlocks::why_dense() const {
  return "blocks of " + std::to_string(block) + " over rows of k = " + std::to_string(k) +
         " begin at columns that are no multiples of 16, so no group has one scale";
}

Result<Buffer> FlatBlocks::per_group(const Buffer& values, int64_t value_bytes,
                                     int32_t group) const {
  const int64_t columns = group == 0 ? k : group;
  if (columns == block && k % block == 0) return values;
  const int64_t groups = ceil_div(k, columns);
  const auto total = checked_product(n, groups);
  const auto bytes = total ? checked_product(*total, value_bytes) : std::nullopt;
  if (!bytes) return invalid_argument("the number of groups overflows");
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(*bytes));
  const auto copy = value_bytes == 1   ? spread<uint8_t>
                    : value_bytes == 2 ? spread<uint16_t>
                                       : spread<uint32_t>;
  copy(*this, values.data(), columns, out.mutable_data());
  return out;
}

}  // namespace nibble::checkpoint
