// Weights whose scales belong to blocks of consecutive elements, counted over the whole weight row
// after row: bitsandbytes and HQQ store them so, and a block may cross rows or be longer than one.
#ifndef NIBBLE_CHECKPOINT_FLAT_BLOCKS_H_
#define NIBBLE_CHECKPOINT_FLAT_BLOCKS_H_

#include <optional>
#include <string>

#include "nibble/core.h"

namespace nibble::checkpoint {

/// Blocks of `block` elements over a weight [n, k]; the last may be short. n * k fits in 63 bits.
struct FlatBlocks {
  int64_t n = 0, k = 0, block = 0;

  int64_t count() const { return (n * k - 1) / block + 1; }
  /// The Format group that holds these blocks exactly: every border of a block is one of a group or
  /// of a row. `block` itself where it can be, else the whole row (0) where rows have one scale,
  /// else the longest of 16 to 128. nullopt: some block begins inside every group.
  std::optional<int32_t> group() const;
  /// Why there is no group, for LayerInfo::dense_only.
  std::string why_dense() const;
  /// Values of 1, 2 or 4 bytes each, one a block, as [n, groups] of `group`, which is group()'s.
  /// The values themselves, not a copy, where that is their order already. Errors: kOutOfMemory.
  Result<Buffer> per_group(const Buffer& values, int64_t value_bytes, int32_t group) const;
};

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_FLAT_BLOCKS_H_
