// nibble verify: how far a quantized checkpoint is from the one it was made of.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "cli.h"
#include "nibble/checkpoint.h"
#include "nibble/quantize.h"
#include "progress.h"
#include "text.h"

namespace nibble::cli {
namespace {

// No 4-bit format loses a quarter of a real weight's energy: a layer above this is broken.
constexpr double kDefaultMaxError = 0.5;

struct Arguments {
  std::string path, against;
  double max_error = kDefaultMaxError;
  int worst = 5;
  int threads = 0;
  bool json = false;
};

struct LayerError {
  std::string name;
  std::string format;
  double error = 0;  // NaN where the values cannot be compared as numbers
};

struct Comparison {
  std::vector<LayerError> layers;     // in the checkpoint's order
  std::vector<std::string> problems;  // sentences; each one fails the check
  int64_t identical_tensors = 0;      // those outside the layers
};

// A layer's weight in the reference, as a float matrix that `storage` keeps alive.
struct Reference {
  TensorView view;
  Buffer storage;
};

Result<Reference> reference_weight(const Checkpoint& against, const std::string& layer) {
  Reference reference;
  if (against.find_layer(layer) != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q, against.load(layer));
    NIBBLE_ASSIGN_OR_RETURN(reference.storage,
                            Buffer::allocate(q.n * q.k * dtype_bytes(DType::kF32)));
    auto* values = reinterpret_cast<float*>(reference.storage.mutable_data());
    q.dequantize(0, q.n, values);
    reference.view = {values, DType::kF32, {q.n, q.k}};
    return reference;
  }
  NIBBLE_ASSIGN_OR_RETURN(Tensor tensor, against.tensor(layer + ".weight"));
  reference.view = tensor.view;
  reference.storage = tensor.bytes;
  return reference;
}

// Ok with the layer's error, or the sentence why it cannot be compared.
Result<LayerError> compare_layer(const Checkpoint& checkpoint, const LayerInfo& layer,
                                 const Checkpoint& against, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(Status(layer.status));
  NIBBLE_ASSIGN_OR_RETURN(const Reference reference, reference_weight(against, layer.name));
  if (reference.view.shape != std::vector<int64_t>{layer.n, layer.k}) {
    return invalid_argument(fmt::format("its shape [{}, {}] is {} in {}", layer.n, layer.k,
                                        shape_text(reference.view.shape), against.path()));
  }
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q, checkpoint.load(layer.name));
  LayerError result{layer.name, layer.format.name(), 0};
  NIBBLE_ASSIGN_OR_RETURN(result.error, relative_error(q, reference.view, pool));
  return result;
}

// Empty when both hold the same bytes under the same shape and type.
Result<std::string> difference(const Checkpoint& checkpoint, const TensorInfo& tensor,
                               const Checkpoint& against, const TensorInfo& other) {
  if (tensor.dtype_name != other.dtype_name || tensor.shape != other.shape) {
    return fmt::format("{} is {} {} in {}", tensor.name, other.dtype_name, shape_text(other.shape),
                       against.path());
  }
  NIBBLE_ASSIGN_OR_RETURN(const Buffer a, checkpoint.tensor_bytes(tensor.name));
  NIBBLE_ASSIGN_OR_RETURN(const Buffer b, against.tensor_bytes(tensor.name));
  if (a.bytes() == b.bytes() &&
      (a.bytes() == 0 || std::memcmp(a.data(), b.data(), static_cast<size_t>(a.bytes())) == 0)) {
    return std::string();
  }
  return tensor.name + " has other bytes";
}

// Tensors outside the layers must be the same; those of the reference must all have a counterpart.
Status compare_others(const Checkpoint& checkpoint, const Checkpoint& against, Comparison* result) {
  std::set<std::string> accounted;
  for (const LayerInfo& layer : checkpoint.layers()) {
    accounted.insert(layer.tensors.begin(), layer.tensors.end());
  }
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (accounted.contains(tensor.name)) continue;
    const TensorInfo* other = against.find(tensor.name);
    if (other == nullptr) {
      result->problems.push_back(fmt::format("{} is not in {}", tensor.name, against.path()));
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(std::string text, difference(checkpoint, tensor, against, *other));
    if (text.empty()) {
      ++result->identical_tensors;
    } else {
      result->problems.push_back(std::move(text));
    }
  }
  std::set<std::string> reference_layers;
  for (const LayerInfo& layer : against.layers()) {
    reference_layers.insert(layer.tensors.begin(), layer.tensors.end());
    if (checkpoint.find_layer(layer.name) == nullptr) {
      result->problems.push_back(
          fmt::format("layer {} is not in {}", layer.name, checkpoint.path()));
    }
  }
  constexpr std::string_view kWeightSuffix = ".weight";
  for (const TensorInfo& tensor : against.tensors()) {
    std::string module = tensor.name;
    if (module.ends_with(kWeightSuffix)) module.resize(module.size() - kWeightSuffix.size());
    if (reference_layers.contains(tensor.name) || checkpoint.find(tensor.name) != nullptr ||
        checkpoint.find_layer(module) != nullptr) {
      continue;
    }
    result->problems.push_back(fmt::format("{} is not in {}", tensor.name, checkpoint.path()));
  }
  return ok_status();
}

Result<Comparison> compare(const Arguments& args) {
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(args.path));
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint against, Checkpoint::open(args.against));
  const std::unique_ptr<ThreadPool> pool = make_thread_pool(args.threads);
  Comparison result;
  int64_t total = 0, done = 0;
  for (const LayerInfo& layer : checkpoint.layers()) total += layer.stored_bytes;
  Progress progress("comparing", {"MB", 1e6}, total);
  for (const LayerInfo& layer : checkpoint.layers()) {
    auto compared = compare_layer(checkpoint, layer, against, pool.get());
    if (compared.ok()) {
      result.layers.push_back(std::move(compared).value());
    } else {
      result.problems.push_back(layer.name + ": " + compared.status().message());
    }
    done += layer.stored_bytes;
    progress.update(done);
  }
  progress.clear();
  NIBBLE_RETURN_IF_ERROR(compare_others(checkpoint, against, &result));
  for (const LayerError& each : result.layers) {
    if (!(each.error <= args.max_error)) {  // NaN fails too
      result.problems.push_back(fmt::format("{}: relative error {:.4g} is above {:g}", each.name,
                                            each.error, args.max_error));
    }
  }
  return result;
}

double mean_error(const Comparison& comparison) {
  double sum = 0;
  for (const LayerError& each : comparison.layers) sum += each.error;
  return comparison.layers.empty() ? 0 : sum / static_cast<double>(comparison.layers.size());
}

std::vector<LayerError> worst_layers(const Comparison& comparison, int count) {
  std::vector<LayerError> sorted = comparison.layers;
  std::stable_sort(sorted.begin(), sorted.end(), [](const LayerError& a, const LayerError& b) {
    return (std::isnan(a.error) && !std::isnan(b.error)) || a.error > b.error;
  });
  sorted.resize(std::min(sorted.size(), static_cast<size_t>(std::max(count, 0))));
  return sorted;
}

Json errors_json(const std::vector<LayerError>& layers) {
  Json json = Json::array();
  for (const LayerError& each : layers) {
    json.push_back({{"name", each.name}, {"format", each.format}, {"relative_error", each.error}});
  }
  return json;
}

void print_as_json(const Arguments& args, const Comparison& comparison) {
  Json json;
  json["checkpoint"] = args.path;
  json["against"] = args.against;
  json["passed"] = comparison.problems.empty();
  json["max_error"] = args.max_error;
  json["layers"] = errors_json(comparison.layers);
  json["mean_relative_error"] = mean_error(comparison);
  json["worst_layers"] = errors_json(worst_layers(comparison, args.worst));
  json["identical_tensors"] = comparison.identical_tensors;
  json["problems"] = comparison.problems;
  print_json(json);
}

void print_as_text(const Arguments& args, const Comparison& comparison) {
  Table table({{"layer"}, {"format"}, {"relative error", true}});
  for (const LayerError& each : comparison.layers) {
    table.add_row({printable(each.name), each.format, fmt::format("{:.5f}", each.error)});
  }
  if (!table.empty()) table.print();
  fmt::print("{} layers, mean relative error {:.5f}; {} other tensors are identical\n",
             comparison.layers.size(), mean_error(comparison), comparison.identical_tensors);
  const std::vector<LayerError> worst = worst_layers(comparison, args.worst);
  if (!worst.empty()) fmt::print("worst:\n");
  for (const LayerError& each : worst) {
    fmt::print("  {:.5f}  {}\n", each.error, printable(each.name));
  }
}

Exit run_verify(const Arguments& args) {
  auto comparison = compare(args);
  if (!comparison.ok()) return fail(comparison.status());
  if (args.json) {
    print_as_json(args, *comparison);
  } else {
    print_as_text(args, *comparison);
  }
  if (comparison->problems.empty()) return Exit::kOk;
  constexpr size_t kMostProblems = 10;
  const size_t count = comparison->problems.size();
  for (size_t i = 0; i < std::min(count, kMostProblems); ++i) {
    fail(Status(Code::kInvalidArgument, comparison->problems[i]));
  }
  if (count > kMostProblems) {
    fail(Status(Code::kInvalidArgument,
                fmt::format("and {} more (--json lists all)", count - kMostProblems)));
  }
  return Exit::kCheckFailed;
}

}  // namespace

void add_verify(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Compare a quantized checkpoint with its original",
      "Prints the relative error |A - B| / |B| (Frobenius) of every quantized layer and compares\n"
      "the bytes of every other tensor. Fails (exit 1) when a layer is above --max-error or "
      "cannot\n"
      "be compared, or another tensor differs or is missing.",
      {"nibble verify model-int4/ --against model/",
       "nibble verify out/ --against model/ --max-error 0.15 --json"}};
  CLI::App* command = add_command(app, "verify", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("A", args->path, "quantized checkpoint")->required();
  command->add_option("--against", args->against, "original: float, or quantized another way")
      ->required();
  command->add_option("--max-error", args->max_error, "largest allowed relative error of a layer")
      ->capture_default_str()
      ->check(at_least(0));
  command->add_option("--worst", args->worst, "how many of the worst layers to list")
      ->capture_default_str()
      ->check(at_least(0));
  command->add_option("--threads", args->threads, "threads (default: all cores)")
      ->check(at_least(0));
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_verify(*args); }; });
}

}  // namespace nibble::cli
