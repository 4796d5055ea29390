#include <algorithm>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/json.h"
#include "checkpoint/output_directory.h"
#include "checkpoint/output_layout.h"
#include "nibble/checkpoint.h"

namespace nibble {

namespace fs = std::filesystem;
using namespace checkpoint;  // NOLINT: this file implements that namespace's front

namespace {

constexpr int64_t kPieceBytes = 8 << 20;
constexpr char kDense[] = "dense";
constexpr char kGguf[] = ".gguf";
/// What tools write beside config.json about a checkpoint's quantization.
constexpr std::string_view kQuantizationFiles[] = {"hf_quant_config.json", "quantize_config.json",
                                                   "quant_config.json"};

enum class LayerState { kMissing, kWriting, kDone };

bool lies_inside(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

struct CheckpointWriter::Impl {
  std::shared_ptr<const Checkpoint::Impl> source;
  WriteOptions options;
  const WriteSpelling* spelling = nullptr;  ///< null while no layer is quantized
  std::string spelling_name;
  std::vector<OutputLayer> layers;
  std::vector<LayerState> states;  ///< of the layers
  std::map<std::string, size_t, std::less<>> layer_index;
  OutputLayout layout;
  std::vector<std::string> dropped_files;
  std::unique_ptr<OutputDirectory> directory;
  bool single_file = false;  ///< the target is a file, not a directory
  std::vector<OutputFile> files;
  bool finished = false;

  std::mutex mutex;  ///< guards layer states, done_bytes and the progress callback
  int64_t done_bytes = 0;

  Status add_layer(const PlannedLayer& planned);
  Status add_layers(std::span<const PlannedLayer> plan);
  Status check_source() const;
  Status open_target(const std::string& out);
  Status create_files();
  Result<size_t> begin_layer(std::string_view name, bool dense);
  Status end_layer(size_t layer, Status status);
  Status append(const Place& place, int64_t position, std::span<const uint8_t> bytes);
  Status copy_tensors();
  Status copy_files();
  Status write_config();
  Status write_index();
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

Status CheckpointWriter::Impl::add_layer(const PlannedLayer& planned) {
  if (layer_index.contains(planned.name)) return invalid_argument("it is planned twice");
  OutputLayer layer;
  layer.spec.name = planned.name;
  layer.spec.format = planned.format;
  layer.spec.pre_scale = planned.pre_scale;
  layer.dense = planned.dense;
  if (const auto found = source->layer_index.find(planned.name);
      found != source->layer_index.end()) {
    const LayerInfo& info = source->layers[found->second];
    NIBBLE_RETURN_IF_ERROR(Status(info.status));
    layer.replaced = info.tensors;
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
    if (planned.dense) return invalid_argument("it is dense already");
    layer.replaced = {weight->name};
    layer.spec.n = weight->shape[0];
    layer.spec.k = weight->shape[1];
    layer.spec.source_dtype = *weight->dtype;
  }
  if (layer.dense) {
    if (!is_activation_dtype(*layer.dense)) {
      return invalid_argument(std::string("a dense matrix is f32, f16 or bf16, not ") +
                              dtype_name(*layer.dense));
    }
  } else {
    if (options.spelling == kDense) return invalid_argument("it is not planned dense");
    NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* own, spelling_for(layer.spec, options.spelling));
    if (spelling != nullptr && own != spelling) {
      return unsupported(planned.format.name() + " is written as " + own->name +
                         ", other layers as " + spelling->name +
                         "; one checkpoint has one spelling");
    }
    if (layer.spec.pre_scale && !own->holds_pre_scale) {
      return unsupported(std::string("it has a pre_scale, which ") + own->name +
                         " cannot hold; such weights belong in the ModelOpt spelling");
    }
    spelling = own;
  }
  layer_index.emplace(planned.name, layers.size());
  layers.push_back(std::move(layer));
  return {};
}

Status CheckpointWriter::Impl::add_layers(std::span<const PlannedLayer> plan) {
  if (!options.spelling.empty() && options.spelling != kDense) {
    NIBBLE_ASSIGN_OR_RETURN(spelling, find_write_spelling(options.spelling));
  }
  // Without a layer there is something to do only where the container changes.
  const bool other_container = options.spelling == kDense || options.spelling == "gguf";
  if (plan.empty() && !other_container) return invalid_argument("no layer is planned");
  for (const PlannedLayer& layer : plan) {
    NIBBLE_RETURN_IF_ERROR(
        add_layer(layer).with_context(source->path + ": layer " + shown(layer.name)));
  }
  states.resize(layers.size(), LayerState::kMissing);
  const bool any_quantized = std::any_of(layers.begin(), layers.end(),
                                         [](const OutputLayer& layer) { return !layer.dense; });
  if (spelling != nullptr && spelling->config != nullptr && !any_quantized) spelling = nullptr;
  spelling_name = spelling == nullptr ? kDense : spelling->name;
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

Status CheckpointWriter::Impl::open_target(const std::string& out) {
  single_file = spelling != nullptr && spelling->container == std::string_view("gguf") &&
                out.ends_with(kGguf) && !fs::is_directory(out);
  NIBBLE_ASSIGN_OR_RETURN(directory,
                          OutputDirectory::create(out, options.overwrite,
                                                  single_file ? OutputDirectory::Kind::kFile
                                                              : OutputDirectory::Kind::kDirectory));
  if (single_file) {
    layout.shards = {directory->target_name()};
    return {};
  }
  std::error_code error;
  const fs::path from = fs::canonical(source->path, error), to = directory->target();
  // Replacing the source itself is fine: everything of it is carried over before the rename.
  if (!error && from != to && (lies_inside(from, to) || lies_inside(to, from))) {
    return invalid_argument(out + " and the source " + source->path +
                            " lie inside each other; choose another place");
  }
  return {};
}

Status CheckpointWriter::Impl::create_files() {
  for (size_t shard = 0; shard < layout.shards.size(); ++shard) {
    const FileHead& head = layout.heads[shard];
    NIBBLE_ASSIGN_OR_RETURN(
        OutputFile file,
        OutputFile::create(directory->file(layout.shards[shard]), head.file_bytes));
    NIBBLE_RETURN_IF_ERROR(
        file.write_at(0, {reinterpret_cast<const uint8_t*>(head.bytes.data()), head.bytes.size()}));
    files.push_back(std::move(file));
  }
  return {};
}

Status CheckpointWriter::Impl::append(const Place& place, int64_t position,
                                      std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min<size_t>(bytes.size(), kPieceBytes));
    NIBBLE_RETURN_IF_ERROR(files[place.shard].write_at(place.info.file_offset + position, piece));
    position += static_cast<int64_t>(piece.size());
    bytes = bytes.subspan(piece.size());
    const std::lock_guard lock(mutex);
    done_bytes += static_cast<int64_t>(piece.size());
    if (options.progress) options.progress(done_bytes, layout.total_bytes);
  }
  return {};
}

Status CheckpointWriter::Impl::copy_tensors() {
  for (const Place& place : layout.places) {
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
    if (std::find(dropped_files.begin(), dropped_files.end(), name) != dropped_files.end()) {
      continue;
    }
    const fs::path from = fs::path(source->path) / name, to = directory->file(name);
    std::error_code error;
    fs::create_directories(to.parent_path(), error);
    if (!error) fs::copy_file(from, to, error);
    if (error) return io_error(from.string() + ": cannot be copied: " + error.message());
  }
  return {};
}

Status CheckpointWriter::Impl::write_config() {
  constexpr char kName[] = "config.json", kKey[] = "quantization_config";
  if (spelling == nullptr || spelling->config == nullptr) {
    // Readers of safetensors directories want a config.json; one of a GGUF file is optional.
    const bool needed = spelling == nullptr;
    if (source->config_text.empty() && !needed) return {};
    const std::string text = source->config_text.empty() ? "{}\n" : source->config_text;
    return write_text(directory->file(kName), without_member(text, kKey));
  }
  std::vector<LayerSpec> specs;
  // Modules that keep a float matrix: most are Linear, and naming an Embedding does no harm.
  std::vector<std::string> untouched;
  for (const OutputLayer& layer : layers) {
    if (!layer.dense) specs.push_back(layer.spec);
  }
  for (const Place& place : layout.places) {
    const auto module = without_suffix(place.info.name, ".weight");
    if (!module || place.info.shape.size() != 2) continue;
    const auto own = layer_index.find(*module);
    if (place.carried == nullptr && (own == layer_index.end() || !layers[own->second].dense)) {
      continue;
    }
    if (place.info.dtype && is_activation_dtype(*place.info.dtype)) untouched.push_back(*module);
  }
  std::sort(untouched.begin(), untouched.end());
  if (spelling->files != nullptr) {
    for (const TextFile& file : spelling->files(specs, untouched)) {
      NIBBLE_RETURN_IF_ERROR(write_text(directory->file(file.name), file.text));
    }
  }
  return write_text(directory->file(kName),
                    with_member(source->config_text, kKey, spelling->config(specs, untouched)));
}

Status CheckpointWriter::Impl::write_index() {
  if (layout.shards.size() == 1) return {};
  Json metadata = source->index_metadata.is_object() ? source->index_metadata : Json::object();
  metadata["total_size"] = layout.total_bytes;
  std::map<std::string, std::string> weight_map;
  for (const Place& place : layout.places) {
    weight_map[place.info.name] = layout.shards[place.shard];
  }
  const Json index = {{"metadata", std::move(metadata)}, {"weight_map", weight_map}};
  return write_text(directory->file(index_name(layout.shards)), index.dump(2) + "\n");
}

Result<std::string> output_spelling(const Format& format, int64_t n, int64_t k,
                                    std::string_view spelling) {
  NIBBLE_ASSIGN_OR_RETURN(const WriteSpelling* row, spelling_for({"", format, n, k}, spelling));
  return std::string(row->name);
}

Result<CheckpointWriter> CheckpointWriter::create(const Checkpoint& source, const std::string& out,
                                                  std::span<const PlannedLayer> plan,
                                                  const WriteOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->source = source.impl_;
  impl->options = options;
  NIBBLE_RETURN_IF_ERROR(impl->add_layers(plan));
  NIBBLE_RETURN_IF_ERROR(impl->check_source());
  for (const std::string& name : impl->source->other_files) {
    const auto& all = kQuantizationFiles;
    const bool describes = std::find(std::begin(all), std::end(all), name) != std::end(all);
    const bool rewritten = impl->spelling != nullptr && impl->spelling->files != nullptr;
    if (describes && (rewritten || !impl->source->layers.empty())) {
      impl->dropped_files.push_back(name);
    }
  }
  const OutputContainer& container =
      output_container(impl->spelling == nullptr ? "safetensors" : impl->spelling->container);
  const Checkpoint::Impl& from = *impl->source;
  Result<OutputLayout> layout =
      lay_out({from.path, from.is_directory, from.container->name, from.stem, from.tensors,
               from.config, from.other_files},
              impl->layers, impl->spelling, container, options.max_shard_bytes);
  if (!layout.ok()) return std::move(layout).status().with_context(source.path());
  impl->layout = std::move(layout).value();
  NIBBLE_RETURN_IF_ERROR(impl->open_target(out));
  NIBBLE_RETURN_IF_ERROR(impl->create_files());
  return CheckpointWriter(std::move(impl));
}

CheckpointWriter::CheckpointWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

const std::string& CheckpointWriter::spelling() const { return impl_->spelling_name; }
std::span<const std::string> CheckpointWriter::shards() const { return impl_->layout.shards; }
int64_t CheckpointWriter::total_bytes() const { return impl_->layout.total_bytes; }
std::span<const std::string> CheckpointWriter::dropped_files() const {
  return impl_->dropped_files;
}

Result<size_t> CheckpointWriter::Impl::begin_layer(std::string_view name, bool dense) {
  const auto found = layer_index.find(name);
  if (found == layer_index.end()) return invalid_argument("it is not in the plan");
  const OutputLayer& layer = layers[found->second];
  if (layer.dense.has_value() != dense) {
    return invalid_argument(dense ? "it is planned as " + layer.spec.format.name() + ", not dense"
                                  : std::string("it is planned dense"));
  }
  const std::lock_guard lock(mutex);
  if (states[found->second] != LayerState::kMissing)
    return invalid_argument("it was written before");
  states[found->second] = LayerState::kWriting;
  return found->second;
}

Status CheckpointWriter::Impl::end_layer(size_t layer, Status status) {
  const std::lock_guard lock(mutex);
  states[layer] = status.ok() ? LayerState::kDone : LayerState::kMissing;
  return status;
}

namespace {

/// Whether the weight is what was planned, in parts that the spelling has.
Status check_weight(const LayerSpec& spec, const WriteSpelling& spelling,
                    const QuantizedTensor& q) {
  if (q.format != spec.format || q.n != spec.n || q.k != spec.k) {
    return invalid_argument("it is planned as " + spec.format.name() + " [" +
                            std::to_string(spec.n) + ", " + std::to_string(spec.k) + "], not " +
                            q.format.name() + " [" + std::to_string(q.n) + ", " +
                            std::to_string(q.k) + "]");
  }
  NIBBLE_RETURN_IF_ERROR(q.validate());
  if (!q.pre_scale.empty() && !spelling.holds_pre_scale) {
    return unsupported(std::string("it has a pre_scale, which ") + spelling.name +
                       " cannot hold; such weights belong in the ModelOpt spelling");
  }
  if (q.pre_scale.empty() == spec.pre_scale) {
    return invalid_argument(spec.pre_scale ? "it is planned with a pre_scale and has none"
                                           : "it has a pre_scale that was not planned");
  }
  if (!q.k_perm.empty()) {
    return unsupported(std::string("it has a k_perm (act-order), which ") + spelling.name +
                       " readers do not decode");
  }
  if (q.tensor_scales.size() > 1) {
    return unsupported(std::to_string(q.tensor_scales.size()) + " tensor scales; " + spelling.name +
                       " holds at most one a layer");
  }
  const bool other_operation = spelling.tensor_scale_op && !q.tensor_scales.empty() &&
                               q.tensor_scales[0].value != 1.0f &&
                               q.tensor_scale_op != *spelling.tensor_scale_op;
  if (!other_operation) return {};
  const bool divides = q.tensor_scale_op == TensorScaleOp::kDivide;
  return unsupported(std::string("its tensor scale ") + (divides ? "divides" : "multiplies") +
                     ", that of " + spelling.name + (divides ? " multiplies" : " divides") +
                     ", and a rounded reciprocal would change the weight");
}

}  // namespace

Status CheckpointWriter::write_quantized(std::string_view name, const QuantizedTensor& q) {
  const std::string context = "layer " + shown(name);
  const Result<size_t> begun = impl_->begin_layer(name, /*dense=*/false);
  if (!begun.ok()) return Status(begun.status()).with_context(context);
  const LayerSpec& spec = impl_->layers[*begun].spec;
  std::vector<const Place*> places;
  for (const size_t i : impl_->layout.layer_places[*begun]) {
    places.push_back(&impl_->layout.places[i]);
  }
  PlaceSink sink(std::move(places),
                 [this](const Place& place, int64_t position, std::span<const uint8_t> bytes) {
                   return impl_->append(place, position, bytes);
                 });
  Status status = check_weight(spec, *impl_->spelling, q);
  if (status.ok()) status = impl_->spelling->encode(spec, q, sink);
  if (status.ok()) status = sink.check_full();
  return impl_->end_layer(*begun, std::move(status)).with_context(context);
}

namespace {

/// Hands bands of rows, times the pre_scale and rounded to `dtype`, to `append`.
template <class Append>
Status for_each_band(const DenseRows& rows, DType dtype, Append append) {
  constexpr int64_t kBandBytes = 4 << 20;
  const int64_t row_bytes = rows.k * dtype_bytes(dtype);
  const int64_t band = std::clamp<int64_t>(kBandBytes / (rows.k * 4), 1, rows.n);
  std::vector<float> values(static_cast<size_t>(band * rows.k));
  std::vector<uint8_t> rounded(dtype == DType::kF32 ? 0 : static_cast<size_t>(band * row_bytes));
  for (int64_t begin = 0; begin < rows.n; begin += band) {
    const int64_t end = std::min(rows.n, begin + band), count = (end - begin) * rows.k;
    NIBBLE_RETURN_IF_ERROR(rows.read(begin, end, values.data()));
    for (int64_t i = 0; !rows.pre_scale.empty() && i < count; ++i) {
      values[static_cast<size_t>(i)] *= rows.pre_scale[static_cast<size_t>(i % rows.k)];
    }
    const auto bytes = static_cast<size_t>((end - begin) * row_bytes);
    const uint8_t* data = reinterpret_cast<const uint8_t*>(values.data());
    if (dtype != DType::kF32) {
      for (int64_t i = 0; i < count; ++i) {
        store_from_f32(rounded.data(), dtype, i, values[static_cast<size_t>(i)]);
      }
      data = rounded.data();
    }
    NIBBLE_RETURN_IF_ERROR(append(begin * row_bytes, std::span(data, bytes)));
  }
  return {};
}

}  // namespace

Status CheckpointWriter::write_dense(std::string_view name, const DenseRows& rows) {
  const std::string context = "layer " + shown(name);
  const Result<size_t> begun = impl_->begin_layer(name, /*dense=*/true);
  if (!begun.ok()) return Status(begun.status()).with_context(context);
  const OutputLayer& layer = impl_->layers[*begun];
  const Place& place = impl_->layout.places[impl_->layout.layer_places[*begun][0]];
  Status status;
  if (rows.n != layer.spec.n || rows.k != layer.spec.k) {
    status = invalid_argument("it is planned as [" + std::to_string(layer.spec.n) + ", " +
                              std::to_string(layer.spec.k) + "], not [" + std::to_string(rows.n) +
                              ", " + std::to_string(rows.k) + "]");
  } else if (!rows.pre_scale.empty() && static_cast<int64_t>(rows.pre_scale.size()) != rows.k) {
    status = invalid_argument("its pre_scale has " + std::to_string(rows.pre_scale.size()) +
                              " entries, not k = " + std::to_string(rows.k));
  } else {
    status =
        for_each_band(rows, *layer.dense, [&](int64_t position, std::span<const uint8_t> bytes) {
          return impl_->append(place, position, bytes);
        });
  }
  return impl_->end_layer(*begun, std::move(status)).with_context(context);
}

Status CheckpointWriter::finish() {
  if (std::exchange(impl_->finished, true)) return invalid_argument("finish was called before");
  for (size_t i = 0; i < impl_->layers.size(); ++i) {
    if (impl_->states[i] != LayerState::kDone) {
      return invalid_argument("layer " + shown(impl_->layers[i].spec.name) +
                              " was planned but not written");
    }
  }
  NIBBLE_RETURN_IF_ERROR(impl_->copy_tensors());
  if (!impl_->single_file) {
    NIBBLE_RETURN_IF_ERROR(impl_->copy_files());
    NIBBLE_RETURN_IF_ERROR(impl_->write_config());
    NIBBLE_RETURN_IF_ERROR(impl_->write_index());
  }
  impl_->files.clear();
  return impl_->directory->publish();
}

}  // namespace nibble
