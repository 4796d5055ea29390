#include "checkpoint/output_layout.h"

#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/safetensors.h"

namespace nibble::checkpoint {
namespace {

constexpr char kIndexSuffix[] = ".safetensors.index.json";

int64_t alignment_of(const TensorInfo& tensor) {
  return tensor.dtype ? dtype_bytes(*tensor.dtype) : 1;
}

/// File names as Transformers writes them.
std::vector<std::string> shard_names(const std::string& stem, const OutputContainer& container,
                                     size_t count) {
  if (count == 1) return {stem + container.extension};
  const auto number = [](size_t value) {
    const std::string digits = std::to_string(value);
    return std::string(5 - std::min<size_t>(5, digits.size()), '0') + digits;
  };
  std::vector<std::string> names;
  for (size_t i = 1; i <= count; ++i) {
    names.push_back(stem + "-" + number(i) + "-of-" + number(count) + container.extension);
  }
  return names;
}

/// Experts stand in one tensor of three dimensions where files have it so; as one matrix of all
/// their rows they hold the same bytes.
void keep_rank(TensorInfo& info, const OutputSource& source, const OutputLayer& layer) {
  const TensorInfo* own = source.tensors.find(info.name);
  if (own == nullptr || own->shape.size() < 3 || own->shape.back() != layer.spec.k) return;
  std::optional<int64_t> rows = 1;
  for (size_t i = 0; i + 1 < own->shape.size() && rows; ++i) {
    rows = checked_product(*rows, own->shape[i]);
  }
  if (rows == layer.spec.n) info.shape = own->shape;
}

Result<std::vector<TensorInfo>> tensors_of(const OutputSource& source, const OutputLayer& layer,
                                           const WriteSpelling* spelling,
                                           const OutputContainer& container) {
  if (!layer.dense) {
    std::vector<TensorInfo> out = spelling->tensors(layer.spec);
    if (!container.sharded) keep_rank(out.front(), source, layer);
    return out;
  }
  TensorInfo info =
      output_tensor(layer.spec.name, "weight", *layer.dense, {layer.spec.n, layer.spec.k});
  info.dtype_name = container.dtype_name(*layer.dense);
  keep_rank(info, source, layer);
  return std::vector<TensorInfo>{std::move(info)};
}

/// A unit goes to one shard: a carried tensor, or all tensors of a layer.
struct Unit {
  std::vector<Place> places;
  std::optional<size_t> layer;
};

Result<std::vector<Unit>> units_of(const OutputSource& source, std::span<const OutputLayer> layers,
                                   const WriteSpelling* spelling,
                                   const OutputContainer& container) {
  std::map<std::string_view, size_t> layer_of;  // replaced tensor → layer
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const std::string& name : layers[i].replaced) layer_of[name] = i;
  }
  std::vector<Unit> units;
  std::vector<bool> placed(layers.size());
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto replaced = layer_of.find(tensor.name);
    if (replaced == layer_of.end()) {
      NIBBLE_ASSIGN_OR_RETURN(TensorInfo info, carried_tensor(tensor, source, container));
      units.push_back({{Place{std::move(info), &tensor}}, std::nullopt});
    } else if (!placed[replaced->second]) {
      placed[replaced->second] = true;
      Unit& unit = units.emplace_back();
      unit.layer = replaced->second;
      NIBBLE_ASSIGN_OR_RETURN(std::vector<TensorInfo> infos,
                              tensors_of(source, layers[*unit.layer], spelling, container));
      for (TensorInfo& info : infos) unit.places.push_back(Place{std::move(info)});
    }
  }
  return units;
}

Status check_names(const std::vector<Place>& places) {
  std::set<std::string_view> names;
  for (const Place& place : places) {
    if (!names.insert(place.info.name).second) {
      return invalid_argument("the source has a tensor " + shown(place.info.name) +
                              " of its own where a written layer needs that name");
    }
  }
  return {};
}

Status check_files(const OutputSource& source, const std::vector<std::string>& shards) {
  for (const std::string& name : source.other_files) {
    if (std::find(shards.begin(), shards.end(), name) == shards.end() &&
        (shards.size() == 1 || name != index_name(shards))) {
      continue;
    }
    return unsupported("the source's file " + shown(name) +
                       " is no part of its checkpoint, but the output needs the name");
  }
  return {};
}

}  // namespace

std::string index_name(const std::vector<std::string>& shards) {
  return shards[0].substr(0, shards[0].find("-00001-of-")) + kIndexSuffix;
}

Result<OutputLayout> lay_out(const OutputSource& source, std::span<const OutputLayer> layers,
                             const WriteSpelling* spelling, const OutputContainer& container,
                             int64_t max_shard_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Unit> units, units_of(source, layers, spelling, container));
  OutputLayout out;
  std::map<std::string, std::pair<size_t, size_t>> part_of;  // output tensor → layer, index
  out.layer_places.resize(layers.size());
  std::vector<std::vector<Place>> by_shard(1);
  int64_t shard_bytes = 0;
  for (Unit& unit : units) {
    int64_t bytes = 0;
    for (const Place& place : unit.places) bytes += place.info.bytes;
    if (container.sharded && shard_bytes + bytes > max_shard_bytes) {
      if (!by_shard.back().empty()) by_shard.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += bytes;
    out.total_bytes += bytes;
    if (unit.layer) out.layer_places[*unit.layer].resize(unit.places.size());
    for (size_t i = 0; i < unit.places.size(); ++i) {
      if (unit.layer) part_of[unit.places[i].info.name] = {*unit.layer, i};
      by_shard.back().push_back(std::move(unit.places[i]));
    }
  }

  const bool plain_stem = std::all_of(source.stem.begin(), source.stem.end(),
                                      [](char c) { return c > ' ' && c < 127; });
  out.shards = shard_names(plain_stem ? source.stem : "model", container, by_shard.size());
  NIBBLE_RETURN_IF_ERROR(check_files(source, out.shards));
  for (size_t shard = 0; shard < by_shard.size(); ++shard) {
    std::vector<Place>& places = by_shard[shard];
    if (container.wide_types_first) {
      std::stable_sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
        return alignment_of(a.info) > alignment_of(b.info);
      });
    }
    std::vector<TensorInfo> infos;
    for (const Place& place : places) infos.push_back(place.info);
    NIBBLE_ASSIGN_OR_RETURN(FileHead head, container.head(infos, source));
    out.heads.push_back(std::move(head));
    for (size_t i = 0; i < places.size(); ++i) {
      places[i].info = std::move(infos[i]);
      places[i].shard = shard;
      out.places.push_back(std::move(places[i]));
    }
  }
  NIBBLE_RETURN_IF_ERROR(check_names(out.places));
  for (size_t i = 0; i < out.places.size(); ++i) {
    if (out.places[i].carried != nullptr) continue;
    const auto& [layer, part] = part_of.at(out.places[i].info.name);
    out.layer_places[layer][part] = i;
  }
  return out;
}

}  // namespace nibble::checkpoint
