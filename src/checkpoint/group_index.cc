#include "checkpoint/group_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

namespace nibble::checkpoint {
namespace {

constexpr int32_t kFormatGroups[] = {128, 64, 32, 16};

/// One group's columns [begin, the next run's begin).
struct Run {
  int64_t begin = 0;
  int32_t group = 0;
};

/// The largest Format group at whose multiples all runs begin; 0 (the whole row) for a single run,
/// -1 where there is none.
int32_t common_group(std::span<const Run> runs) {
  if (runs.size() <= 1) return 0;
  for (const int32_t group : kFormatGroups) {
    if (std::all_of(runs.begin(), runs.end(),
                    [group](const Run& run) { return run.begin % group == 0; })) {
      return group;
    }
  }
  return -1;
}

/// GroupMap::source for runs that begin at multiples of `group`.
std::vector<int32_t> sources(std::span<const Run> runs, int32_t group, int64_t k, int64_t groups) {
  if (group == 0) return groups == 1 ? std::vector<int32_t>{} : std::vector{runs[0].group};
  std::vector<int32_t> out(static_cast<size_t>(ceil_div(k, group)));
  size_t run = 0;
  bool same = static_cast<int64_t>(out.size()) == groups;
  for (size_t j = 0; j < out.size(); ++j) {
    const int64_t column = static_cast<int64_t>(j) * group;
    while (run + 1 < runs.size() && runs[run + 1].begin <= column) ++run;
    out[j] = runs[run].group;
    same &= out[j] == static_cast<int32_t>(j);
  }
  if (same) out.clear();
  return out;
}

/// At most one run a group is followed: more mean that the columns have to be sorted anyway.
std::vector<Run> runs_of(std::span<const int32_t> index, int64_t groups) {
  std::vector<Run> runs;
  for (size_t j = 0; j < index.size(); ++j) {
    if (j > 0 && index[j] == index[j - 1]) continue;
    if (static_cast<int64_t>(runs.size()) == groups) return {};
    runs.push_back({static_cast<int64_t>(j), index[j]});
  }
  return runs;
}

}  // namespace

GroupMap equal_groups(int64_t k, int64_t length) {
  GroupMap map;
  const auto* known = std::find(std::begin(kFormatGroups), std::end(kFormatGroups), length);
  if (known != std::end(kFormatGroups)) {
    map.group = *known;
    return map;
  }
  if (length == 0 || length >= k) return map;  // the whole row
  for (const int32_t group : kFormatGroups) {
    if (length % group != 0) continue;
    map.group = group;
    map.source.resize(static_cast<size_t>(ceil_div(k, group)));
    for (size_t j = 0; j < map.source.size(); ++j) {
      map.source[j] = static_cast<int32_t>(static_cast<int64_t>(j) * group / length);
    }
    return map;
  }
  map.dense_only = "groups of " + std::to_string(length) + " columns for k = " + std::to_string(k) +
                   " are no multiples of 16, nor the whole row";
  return map;
}

Result<int64_t> group_length(int64_t k, int64_t groups, std::optional<int64_t> declared) {
  const std::string facts =
      std::to_string(groups) + " scales a row for k = " + std::to_string(k) + " columns";
  if (declared) {
    const int64_t expected = *declared < 0                      ? -1
                             : *declared == 0 || *declared >= k ? 1
                                                                : ceil_div(k, *declared);
    if (expected != groups) {
      return corrupt_file(facts + " are not what group_size " + std::to_string(*declared) +
                          " gives");
    }
    return *declared;
  }
  if (groups == 1) return 0;
  for (int64_t length = 16; length <= 4096; length *= 2) {
    if (ceil_div(k, length) == groups) return length;
  }
  return corrupt_file(facts + " fit no group of 16, 32, 64 and so on to 4096 columns");
}

Result<GroupMap> indexed_groups(const std::string& name, std::span<const int32_t> index,
                                int64_t groups) {
  const auto k = static_cast<int64_t>(index.size());
  for (size_t j = 0; j < index.size(); ++j) {
    if (index[j] < 0 || index[j] >= groups) {
      return corrupt_file(shown(name) + ": column " + std::to_string(j) + " is in group " +
                          std::to_string(index[j]) + " of " + std::to_string(groups));
    }
  }
  GroupMap map;
  const std::vector<Run> in_place = runs_of(index, groups);
  const int32_t group_in_place = in_place.empty() ? -1 : common_group(in_place);
  if (group_in_place >= 0 && std::is_sorted(index.begin(), index.end())) {
    map.group = group_in_place;
    map.source = sources(in_place, group_in_place, k, groups);
    return map;
  }
  // Sorted by counting: begins[g] is where group g begins.
  std::vector<int64_t> begins(static_cast<size_t>(groups) + 1);
  for (const int32_t group : index) ++begins[static_cast<size_t>(group) + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<Run> runs;
  for (size_t g = 0; g + 1 < begins.size(); ++g) {
    if (begins[g + 1] > begins[g]) runs.push_back({begins[g], static_cast<int32_t>(g)});
  }
  const int32_t group = common_group(runs);
  if (group < 0) {
    const auto odd =
        std::find_if(runs.begin(), runs.end(), [](const Run& run) { return run.begin % 16 != 0; });
    map.dense_only = shown(name) + " gives group " + std::to_string((odd - 1)->group) + " " +
                     std::to_string(odd->begin - (odd - 1)->begin) +
                     " columns, no multiple of 16, and more groups follow";
    return map;
  }
  // Whole groups in another order need no permutation, unless that would make groups shorter.
  if (group_in_place == group) {
    map.group = group;
    map.source = sources(in_place, group, k, groups);
    return map;
  }
  map.group = group;
  map.source = sources(runs, group, k, groups);
  map.order.resize(index.size());
  for (size_t j = 0; j < index.size(); ++j) {
    map.order[static_cast<size_t>(begins[static_cast<size_t>(index[j])]++)] =
        static_cast<int32_t>(j);
  }
  return map;
}

std::vector<int32_t> picked_groups(const GroupMap& map, int64_t groups) {
  if (!map.source.empty()) return map.source;
  std::vector<int32_t> out(static_cast<size_t>(groups));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

std::vector<int32_t> index_values(const Source& source, const TensorInfo& tensor) {
  const Buffer stored = source.tensors.bytes(tensor);
  std::vector<int32_t> out(static_cast<size_t>(stored.bytes()) / sizeof(int32_t));
  std::memcpy(out.data(), stored.data(), out.size() * sizeof(int32_t));
  return out;
}

Result<Buffer> with_source_groups(Buffer values, int64_t n, int64_t groups, int64_t value_bytes,
                                  const GroupMap& map) {
  if (map.source.empty()) return values;
  const auto columns = static_cast<int64_t>(map.source.size());
  const auto count = checked_product(n, columns);
  const auto bytes = count ? checked_product(*count, value_bytes) : std::nullopt;
  if (!bytes) return invalid_argument("the scales' size overflows 63 bits");
  NIBBLE_ASSIGN_OR_RETURN(Buffer out, Buffer::allocate(*bytes));
  uint8_t* to = out.mutable_data();
  for (int64_t row = 0; row < n; ++row) {
    const uint8_t* from = values.data() + row * groups * value_bytes;
    for (const int32_t group : map.source) {
      std::memcpy(to, from + group * value_bytes, static_cast<size_t>(value_bytes));
      to += value_bytes;
    }
  }
  return out;
}

Result<DenseRows> rows_by_index(QuantizedTensor parts, int64_t groups, std::vector<int32_t> index) {
  for (int64_t i = 0; i < parts.n * groups; ++i) {
    const float scale = load_as_f32(parts.scales.data(), parts.format.scale, i);
    if (std::isfinite(scale)) continue;
    return corrupt_file("scale of row " + std::to_string(i / groups) + ", group " +
                        std::to_string(i % groups) + " is " + std::to_string(scale));
  }
  struct State {
    QuantizedTensor parts;
    int64_t groups;
    std::vector<int32_t> index;
  };
  const int64_t n = parts.n, k = parts.k;
  auto state = std::make_shared<const State>(State{std::move(parts), groups, std::move(index)});
  const auto read = [state](int64_t begin, int64_t end, float* out) {
    const QuantizedTensor& q = state->parts;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t j = 0; j < q.k; ++j) {
        const int64_t at = row * state->groups + state->index[static_cast<size_t>(j)];
        float value = decode_element(q.format.element, q.code(row, j), nullptr);
        if (!q.zeros.empty()) value -= static_cast<float>(q.zeros.data()[at]);
        *out++ = value * load_as_f32(q.scales.data(), q.format.scale, at);
      }
    }
    return ok_status();
  };
  return DenseRows{n, k, read};
}

std::vector<int32_t> equal_index(int64_t k, int64_t length) {
  std::vector<int32_t> index(static_cast<size_t>(k));
  for (size_t j = 0; j < index.size(); ++j) {
    index[j] = length == 0 ? 0 : static_cast<int32_t>(static_cast<int64_t>(j) / length);
  }
  return index;
}

}  // namespace nibble::checkpoint
