// Which columns share a scale, and how that becomes the groups of a Format. A file may have groups
// of any length, or an index of each column's group (act-order); a Format has groups of 16, 32, 64
// or 128 columns or the whole row.
#ifndef NIBBLE_CHECKPOINT_GROUP_INDEX_H_
#define NIBBLE_CHECKPOINT_GROUP_INDEX_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {

struct GroupMap {
  int32_t group = 0;  ///< Format::group
  /// Group j of the Format has scale and zero of the file's group source[j]; empty: group j.
  std::vector<int32_t> source;
  /// QuantizedTensor::k_perm: column j of the tensor is the file's column order[j]; empty: the
  /// same.
  std::vector<int32_t> order;
  /// Why no Format has these groups; then the rest means nothing. Empty: one has.
  std::string dense_only;
};

/// Groups of `length` columns one after the other, the last may be short; 0: the whole row. Longer
/// groups than a Format's are divided, each part with the same scale.
GroupMap equal_groups(int64_t k, int64_t length);

/// The length of such groups where `k` columns have `groups` of them: `declared` if it gives as
/// many, else an error; without it the power of two from 16 to 4096 that does.
/// Errors: kCorruptFile.
Result<int64_t> group_length(int64_t k, int64_t groups, std::optional<int64_t> declared);

/// Groups from the index [k] of each column's group, each in [0, groups). Columns keep their order
/// where groups lie together, else they are sorted by group, stable.
/// Errors: kCorruptFile (an index out of range; `name` is the tensor's).
Result<GroupMap> indexed_groups(const std::string& name, std::span<const int32_t> index,
                                int64_t groups);
/// The file's group of each of the Format's groups, of which the file has `groups`.
std::vector<int32_t> picked_groups(const GroupMap& map, int64_t groups);
/// The i32 tensor's values.
std::vector<int32_t> index_values(const Source& source, const TensorInfo& tensor);

/// Values [n, groups] of one row-major matrix → [n, map.source.size()]; the same buffer where
/// source is empty.
Result<Buffer> with_source_groups(Buffer values, int64_t n, int64_t groups, int64_t value_bytes,
                                  const GroupMap& map);

/// A weight of integer codes whose groups are no Format's: `parts` has codes [n, k] in the file's
/// order, scales and zeros [n, groups]; its format's group means nothing. Column j is in group
/// index[j]. Errors: kCorruptFile (a scale that is not finite).
Result<DenseRows> rows_by_index(QuantizedTensor parts, int64_t groups, std::vector<int32_t> index);
/// The index of equal_groups.
std::vector<int32_t> equal_index(int64_t k, int64_t length);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_GROUP_INDEX_H_
