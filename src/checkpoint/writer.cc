#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/json.h"
#include "checkpoint/output_directory.h"
#include "checkpoint/safetensors.h"
#include "nibble/checkpoint.h"

namespace nibble {

namespace fs = std::filesystem;
using namespace checkpoint;  // NOLINT: this file implements that namespace's front

namespace {

constexpr int64_t kPieceBytes = 8 << 20;

/// Where one output tensor goes.
struct Place {
  TensorInfo info;                      ///< name, dtype, shape, bytes of the output
  const TensorInfo* carried = nullptr;  ///< the source tensor that is copied; null: from a layer
  size_t shard = 0;
  int64_t file_offset = 0;
};

enum class LayerState { kMissing, kWriting, kDone };

struct Layer {
  LayerSpec spec;
  std::vector<size_t> places;  ///< indices into Impl::places, in the order of the spelling
  LayerState state = LayerState::kMissing;
};

int64_t alignment_of(const TensorInfo& tensor) {
  return tensor.dtype ? dtype_bytes(*tensor.dtype) : 1;
}

/// File names as Transformers writes them.
std::vector<std::string> shard_names(const std::string& stem, size_t count) {
  if (count == 1) return {stem + ".safetensors"};
  const auto number = [](size_t value) {
    const std::string digits = std::to_string(value);
    return std::string(5 - std::min<size_t>(5, digits.size()), '0') + digits;
  };
  std::vector<std::string> names;
  for (size_t i = 1; i <= count; ++i) {
    names.push_back(stem + "-" + number(i) + "-of-" + number(count) + ".safetensors");
  }
  return names;
}

bool lies_inside(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

struct CheckpointWriter::Impl {
  std::shared_ptr<const Checkpoint::Impl> source;
  WriteOptions options;
  const WriteSpelling* spelling = nullptr;
  std::string spelling_name;
  std::vector<Layer> layers;
  std::map<std::string, size_t, std::less<>> layer_index;
  std::vector<Place> places;  ///< in the order of shards and offsets
  std::vector<std::string> shards;
  std::unique_ptr<OutputDirectory> directory;
  std::vector<OutputFile> files;
  int64_t total_bytes = 0;
  bool finished = false;

  std::mutex mutex;  ///< guards layer states, done_bytes and the progress callback
  int64_t done_bytes = 0;

  Status add_layer(const PlannedLayer& planned);
  Status check_source() const;
  Status lay_out();
  Status create_files();
  Status append(const Place& place, int64_t position, std::span<const uint8_t> bytes);
  Status copy_tensors();
  Status copy_files();
  Status write_config();
  Status write_index();
  std::vector<std::string> replaced_tensors(const std::string& layer) const;
};

namespace {

/// Hands an encoder's bytes to the right places and checks that each is filled exactly.
template <class Append>
class PlaceSink final : public TensorSink {
 public:
  PlaceSink(std::vector<const Place*> places, Append append)
      : places_(std::move(places)), filled_(places_.size()), append_(append) {}
  Status append(size_t index, std::span<const uint8_t> bytes) override {
    const Place& place = *places_[index];
    const auto count = static_cast<int64_t>(bytes.size());
    if (count > place.info.bytes - filled_[index]) {
      return internal_error("too many bytes for tensor " + shown(place.info.name));
    }
    const int64_t position = filled_[index];
    filled_[index] += count;
    return append_(place, position, bytes);
  }
  Status check_full() const {
    for (size_t i = 0; i < places_.size(); ++i) {
      if (filled_[i] != places_[i]->info.bytes) {
        return internal_error("too few bytes for tensor " + shown(places_[i]->info.name));
      }
    }
    return {};
  }

 private:
  std::vector<const Place*> places_;
  std::vector<int64_t> filled_;
  Append append_;
};

}  // namespace

std::vector<std::string> CheckpointWriter::Impl::replaced_tensors(const std::string& layer) const {
  const auto quantized = source->layer_index.find(layer);
  if (quantized != source->layer_index.end()) return source->layers[quantized->second].tensors;
  return {layer + ".weight"};
}

Status CheckpointWriter::Impl::add_layer(const PlannedLayer& planned) {
  if (layer_index.contains(planned.name)) return invalid_argument("it is planned twice");
  Layer layer;
  layer.spec.name = planned.name;
  layer.spec.format = planned.format;
  if (const auto found = source->layer_index.find(planned.name);
      found != source->layer_index.end()) {
    const LayerInfo& info = source->layers[found->second];
    NIBBLE_RETURN_IF_ERROR(Status(info.status));
    layer.spec.n = info.n;
    layer.spec.k = info.k;
    if (is_activation_dtype(info.format.scale)) layer.spec.source_dtype = info.format.scale;
  } else {
    const TensorInfo* weight = source->tensors.find(planned.name + ".weight");
    if (weight == nullptr) return invalid_argument("the source has no such layer");
    if (!weight->dtype || !is_activation_dtype(*weight->dtype) || weight->shape.size() != 2) {
      return invalid_argument("its weight is " + weight->dtype_name + " " +
                              shape_text(weight->shape) + ", not a matrix of F32, F16 or BF16");
    }
    layer.spec.n = weight->shape[0];
    layer.spec.k = weight->shape[1];
    layer.spec.source_dtype = *weight->dtype;
  }
  NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* own, spelling_for(layer.spec));
  if (spelling != nullptr && own != spelling) {
    return unsupported(planned.format.name() + " is written as " + own->name +
                       ", other layers as " + spelling->name + "; one checkpoint has one spelling");
  }
  spelling = own;
  layer_index.emplace(planned.name, layers.size());
  layers.push_back(std::move(layer));
  return {};
}

/// A source that is quantized already can only be written when all of it is written anew: one
/// config.json cannot describe both.
Status CheckpointWriter::Impl::check_source() const {
  const std::string& path = source->path;
  if (source->reader == nullptr && (!source->spelling.empty() || !source->quantization.is_null())) {
    return unsupported(path + " is quantized already (quant_method " + shown(source->spelling) +
                       ")");
  }
  if (!member(source->config, "compression_config").is_null()) {
    return unsupported(path + ": config.json has a compression_config");
  }
  for (const LayerInfo& layer : source->layers) {
    if (layer_index.contains(layer.name)) continue;
    return unsupported(path + " is quantized already (" + source->spelling + ") and layer " +
                       shown(layer.name) + " is not in the plan");
  }
  if (!source->not_files.empty()) {
    return unsupported(path + "/" + source->not_files.front() +
                       " is neither a file nor a folder and cannot be carried over");
  }
  return {};
}

Status CheckpointWriter::Impl::lay_out() {
  // A unit goes to one shard: a carried tensor, or all tensors of a layer.
  std::vector<std::vector<Place>> units;
  std::map<std::string, size_t> layer_of;  // replaced tensor → layer
  for (size_t i = 0; i < layers.size(); ++i) {
    for (std::string& name : replaced_tensors(layers[i].spec.name)) layer_of[std::move(name)] = i;
  }
  std::vector<bool> placed(layers.size());
  std::map<std::string, std::pair<size_t, size_t>> part_of;  // output tensor → layer, index
  for (const TensorInfo& tensor : source->tensors.tensors()) {
    const auto replaced = layer_of.find(tensor.name);
    if (replaced == layer_of.end()) {
      units.push_back({Place{tensor, &tensor}});
    } else if (!placed[replaced->second]) {
      placed[replaced->second] = true;
      Layer& layer = layers[replaced->second];
      std::vector<Place>& unit = units.emplace_back();
      for (TensorInfo& info : spelling->tensors(layer.spec)) {
        part_of[info.name] = {replaced->second, unit.size()};
        unit.push_back(Place{std::move(info)});
      }
      layer.places.resize(unit.size());
    }
  }

  std::set<std::string_view> names;
  std::vector<std::vector<Place>> by_shard;
  int64_t shard_bytes = 0;
  for (std::vector<Place>& unit : units) {
    int64_t bytes = 0;
    for (const Place& place : unit) bytes += place.info.bytes;
    if (by_shard.empty() || shard_bytes + bytes > options.max_shard_bytes) {
      if (by_shard.empty() || !by_shard.back().empty()) by_shard.emplace_back();
      shard_bytes = 0;
    }
    shard_bytes += bytes;
    total_bytes += bytes;
    for (Place& place : unit) by_shard.back().push_back(std::move(place));
  }
  for (size_t shard = 0; shard < by_shard.size(); ++shard) {
    // Holes are not allowed, so alignment comes from the order: wide types first.
    std::stable_sort(
        by_shard[shard].begin(), by_shard[shard].end(),
        [](const Place& a, const Place& b) { return alignment_of(a.info) > alignment_of(b.info); });
    for (Place& place : by_shard[shard]) {
      place.shard = shard;
      places.push_back(std::move(place));
    }
  }
  for (size_t i = 0; i < places.size(); ++i) {
    if (!names.insert(places[i].info.name).second) {
      return invalid_argument("the source has a tensor " + shown(places[i].info.name) +
                              " of its own where a quantized layer needs that name");
    }
    if (places[i].carried != nullptr) continue;
    const auto& [layer, part] = part_of.at(places[i].info.name);
    layers[layer].places[part] = i;
  }
  const bool plain_stem = std::all_of(source->stem.begin(), source->stem.end(),
                                      [](char c) { return c > ' ' && c < 127; });
  shards = shard_names(plain_stem ? source->stem : "model", std::max<size_t>(1, by_shard.size()));
  for (const std::string& name : source->other_files) {
    const bool index = name == (plain_stem ? source->stem : "model") + ".safetensors.index.json";
    if (std::find(shards.begin(), shards.end(), name) != shards.end() ||
        (index && shards.size() > 1)) {
      return unsupported("the source's file " + shown(name) +
                         " is no part of its checkpoint, but the output needs the name");
    }
  }
  return {};
}

Status CheckpointWriter::Impl::create_files() {
  std::map<std::string, std::string> metadata = source->tensors.metadata();
  metadata.emplace("format", "pt");  // Transformers refuses files without it
  size_t next = 0;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    std::vector<TensorInfo> infos;
    int64_t data_bytes = 0;
    for (size_t i = next; i < places.size() && places[i].shard == shard; ++i) {
      infos.push_back(places[i].info);
      data_bytes += places[i].info.bytes;
    }
    const std::string header = safetensors_header(infos, metadata);
    auto offset = static_cast<int64_t>(header.size());
    NIBBLE_ASSIGN_OR_RETURN(
        OutputFile file, OutputFile::create(directory->file(shards[shard]), offset + data_bytes));
    NIBBLE_RETURN_IF_ERROR(
        file.write_at(0, {reinterpret_cast<const uint8_t*>(header.data()), header.size()}));
    for (; next < places.size() && places[next].shard == shard; ++next) {
      places[next].file_offset = offset;
      offset += places[next].info.bytes;
    }
    files.push_back(std::move(file));
  }
  return {};
}

Status CheckpointWriter::Impl::append(const Place& place, int64_t position,
                                      std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<size_t>(bytes.size(), kPieceBytes));
    NIBBLE_RETURN_IF_ERROR(files[place.shard].write_at(place.file_offset + position, piece));
    position += static_cast<int64_t>(piece.size());
    bytes = bytes.subspan(piece.size());
    const std::lock_guard lock(mutex);
    done_bytes += static_cast<int64_t>(piece.size());
    if (options.progress) options.progress(done_bytes, total_bytes);
  }
  return {};
}

Status CheckpointWriter::Impl::copy_tensors() {
  for (const Place& place : places) {
    if (place.carried == nullptr) continue;
    for (int64_t begin = 0; begin < place.info.bytes; begin += kPieceBytes) {
      const int64_t count = std::min(kPieceBytes, place.info.bytes - begin);
      // The view dies with each piece and takes its pages along.
      const Buffer piece = source->tensors.bytes(*place.carried, begin, count);
      NIBBLE_RETURN_IF_ERROR(append(place, begin, piece.span()));
    }
  }
  return {};
}

Status CheckpointWriter::Impl::copy_files() {
  for (const std::string& name : source->other_files) {
    const fs::path from = fs::path(source->path) / name, to = directory->file(name);
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (!error) fs::copy_file(from, to, error);
    if (error) return io_error(from.string() + ": cannot be copied: " + error.message());
  }
  return {};
}

Status CheckpointWriter::Impl::write_config() {
  std::vector<LayerSpec> specs;
  for (const Layer& layer : layers) specs.push_back(layer.spec);
  // Modules that keep a float matrix: most are Linear, and naming an Embedding does no harm.
  std::vector<std::string> untouched;
  for (const Place& place : places) {
    const auto module = without_suffix(place.info.name, ".weight");
    if (place.carried == nullptr || !module || place.info.shape.size() != 2) continue;
    if (place.info.dtype && is_activation_dtype(*place.info.dtype)) untouched.push_back(*module);
  }
  std::sort(untouched.begin(), untouched.end());
  return write_text(
      directory->file("config.json"),
      with_member(source->config_text, "quantization_config", spelling->config(specs, untouched)));
}

Status CheckpointWriter::Impl::write_index() {
  if (shards.size() == 1) return {};
  Json metadata = source->index_metadata.is_object() ? source->index_metadata : Json::object();
  metadata["total_size"] = total_bytes;
  std::map<std::string, std::string> weight_map;
  for (const Place& place : places) weight_map[place.info.name] = shards[place.shard];
  const Json index = {{"metadata", std::move(metadata)}, {"weight_map", weight_map}};
  const std::string name =
      shards[0].substr(0, shards[0].find("-00001-of-")) + ".safetensors.index.json";
  return write_text(directory->file(name), index.dump(2) + "\n");
}

Result<std::string> output_spelling(const Format& format, int64_t n, int64_t k) {
  NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* spelling, spelling_for({"", format, n, k}));
  return std::string(spelling->name);
}

Result<CheckpointWriter> CheckpointWriter::create(const Checkpoint& source, const std::string& out,
                                                  std::span<const PlannedLayer> plan,
                                                  const WriteOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->source = source.impl_;
  impl->options = options;
  if (plan.empty()) return invalid_argument("no layer is planned to be quantized");
  for (const PlannedLayer& layer : plan) {
    NIBBLE_RETURN_IF_ERROR(
        impl->add_layer(layer).with_context(source.path() + ": layer " + shown(layer.name)));
  }
  impl->spelling_name = impl->spelling->name;
  NIBBLE_RETURN_IF_ERROR(impl->check_source());
  NIBBLE_RETURN_IF_ERROR(impl->lay_out().with_context(source.path()));
  NIBBLE_ASSIGN_OR_RETURN(impl->directory, OutputDirectory::create(out, options.overwrite));
  std::error_code error;
  const fs::path from = fs::canonical(source.path(), error), to = impl->directory->target();
  // Replacing the source itself is fine: everything of it is carried over before the rename.
  if (!error && from != to && (lies_inside(from, to) || lies_inside(to, from))) {
    return invalid_argument(out + " and the source " + source.path() +
                            " lie inside each other; choose another place");
  }
  NIBBLE_RETURN_IF_ERROR(impl->create_files());
  return CheckpointWriter(std::move(impl));
}

CheckpointWriter::CheckpointWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

const std::string& CheckpointWriter::spelling() const { return impl_->spelling_name; }
std::span<const std::string> CheckpointWriter::shards() const { return impl_->shards; }
int64_t CheckpointWriter::total_bytes() const { return impl_->total_bytes; }

Status CheckpointWriter::write_quantized(std::string_view name, const QuantizedTensor& q) {
  const std::string context = "layer " + shown(name);
  const auto found = impl_->layer_index.find(name);
  if (found == impl_->layer_index.end()) return invalid_argument(context + " is not in the plan");
  Layer& layer = impl_->layers[found->second];
  const LayerSpec& spec = layer.spec;
  if (q.format != spec.format || q.n != spec.n || q.k != spec.k) {
    return invalid_argument(context + " is planned as " + spec.format.name() + " [" +
                            std::to_string(spec.n) + ", " + std::to_string(spec.k) + "], not " +
                            q.format.name() + " [" + std::to_string(q.n) + ", " +
                            std::to_string(q.k) + "]");
  }
  NIBBLE_RETURN_IF_ERROR(q.validate().with_context(context));
  if (!q.pre_scale.empty()) {
    return unsupported(context + " has a pre_scale, which " + impl_->spelling_name +
                       " cannot hold; such weights belong in the ModelOpt spelling");
  }
  if (!q.k_perm.empty()) {
    return unsupported(context + " has a k_perm (act-order), which " + impl_->spelling_name +
                       " readers do not decode");
  }
  {
    const std::lock_guard lock(impl_->mutex);
    if (layer.state != LayerState::kMissing) {
      return invalid_argument(context + " was written before");
    }
    layer.state = LayerState::kWriting;
  }
  std::vector<const Place*> places;
  for (const size_t i : layer.places) places.push_back(&impl_->places[i]);
  PlaceSink sink(std::move(places),
                 [this](const Place& place, int64_t position, std::span<const uint8_t> bytes) {
                   return impl_->append(place, position, bytes);
                 });
  Status status = impl_->spelling->encode(spec, q, sink);
  if (status.ok()) status = sink.check_full();
  const std::lock_guard lock(impl_->mutex);
  layer.state = status.ok() ? LayerState::kDone : LayerState::kMissing;
  return std::move(status).with_context(context);
}

Status CheckpointWriter::finish() {
  if (std::exchange(impl_->finished, true)) return invalid_argument("finish was called before");
  for (const Layer& layer : impl_->layers) {
    if (layer.state != LayerState::kDone) {
      return invalid_argument("layer " + shown(layer.spec.name) + " was planned but not written");
    }
  }
  NIBBLE_RETURN_IF_ERROR(impl_->copy_tensors());
  NIBBLE_RETURN_IF_ERROR(impl_->copy_files());
  NIBBLE_RETURN_IF_ERROR(impl_->write_config());
  NIBBLE_RETURN_IF_ERROR(impl_->write_index());
  impl_->files.clear();
  return impl_->directory->publish();
}

}  // namespace nibble
