// nibble verify: how far a quantized checkpoint is from the one it was made of.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>

#include "cli.h"
#include "nibble/checkpoint.h"
#include "progress.h"
#include "text.h"
#include "weight_rows.h"

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
  double error = 0;        // NaN where the values cannot be compared as numbers
  bool identical = false;  // the same bits
};

struct Comparison {
  std::vector<LayerError> layers;     // in the checkpoint's order
  std::vector<std::string> problems;  // sentences; each one fails the check
  int64_t identical_tensors = 0;      // those outside the layers
};

// Ok with the layer's error, or the sentence why it cannot be compared. `layer` is quantized in one
// of the two at least.
Result<LayerError> compare_layer(const Checkpoint& checkpoint, const std::string& layer,
                                 const Checkpoint& against, ThreadPool* pool) {
  LayerError result{layer, "", 0, false};
  if (const LayerInfo* info = checkpoint.find_layer(layer); info != nullptr) {
    NIBBLE_RETURN_IF_ERROR(Status(info->status));
    result.format = info->dense_only.empty() ? info->format.name() : "dense only";
  } else if (const TensorInfo* tensor = float_weight(checkpoint, layer); tensor != nullptr) {
    result.format = tensor->dtype_name;
  }
  NIBBLE_ASSIGN_OR_RETURN(const DenseRows weight, weight_of(checkpoint, layer));
  NIBBLE_ASSIGN_OR_RETURN(const DenseRows reference, weight_of(against, layer));
  NIBBLE_ASSIGN_OR_RETURN(const WeightDifference difference,
                          compare_weights(weight, reference, pool));
  result.error = difference.relative_error;
  result.identical = difference.identical;
  return result;
}

// The layers to compare, in the checkpoint's order: its own, then those that only the reference has
// quantized and the checkpoint holds as floats.
std::vector<std::string> layers_to_compare(const Checkpoint& checkpoint,
                                           const Checkpoint& against) {
  std::vector<std::string> names;
  for (const LayerInfo& layer : checkpoint.layers()) names.push_back(layer.name);
  for (const LayerInfo& layer : against.layers()) {
    if (checkpoint.find_layer(layer.name) == nullptr &&
        float_weight(checkpoint, layer.name) != nullptr) {
      names.push_back(layer.name);
    }
  }
  return names;
}

// Containers name types in their own ways, and GGUF has no tensor without dimensions.
bool same_kind(const TensorInfo& a, const TensorInfo& b) {
  const bool same_dtype = a.dtype && b.dtype ? *a.dtype == *b.dtype : a.dtype_name == b.dtype_name;
  const bool one_value =
      a.shape.size() + b.shape.size() == 1 && (a.shape.empty() ? b.shape[0] : a.shape[0]) == 1;
  return same_dtype && (a.shape == b.shape || one_value);
}

// Empty when both hold the same bytes under the same shape and type.
Result<std::string> difference(const Checkpoint& checkpoint, const TensorInfo& tensor,
                               const Checkpoint& against, const TensorInfo& other) {
  if (!same_kind(tensor, other)) {
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
  std::set<std::string> accounted, compared;
  for (const LayerInfo& layer : checkpoint.layers()) {
    accounted.insert(layer.tensors.begin(), layer.tensors.end());
  }
  for (const std::string& layer : layers_to_compare(checkpoint, against)) {
    compared.insert(layer);
    if (checkpoint.find_layer(layer) == nullptr) accounted.insert(layer + ".weight");
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
    if (!compared.contains(layer.name)) {
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
  const std::vector<std::string> names = layers_to_compare(checkpoint, against);
  const auto stored_bytes = [&](const std::string& name) {
    const LayerInfo* layer = checkpoint.find_layer(name);
    return layer != nullptr ? layer->stored_bytes : checkpoint.find(name + ".weight")->bytes;
  };
  for (const std::string& name : names) total += stored_bytes(name);
  Progress progress("comparing", {"MB", 1e6}, total);
  for (const std::string& name : names) {
    auto compared = compare_layer(checkpoint, name, against, pool.get());
    if (compared.ok()) {
      result.layers.push_back(std::move(compared).value());
    } else {
      result.problems.push_back(name + ": " + compared.status().message());
    }
    done += stored_bytes(name);
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

int64_t identical_layers(const Comparison& comparison) {
  return std::count_if(comparison.layers.begin(), comparison.layers.end(),
                       [](const LayerError& each) { return each.identical; });
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
    json.push_back({{"name", each.name},
                    {"format", each.format},
                    {"relative_error", each.error},
                    {"identical", each.identical}});
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
  json["identical_layers"] = identical_layers(comparison);
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
  fmt::print(
      "{} layers, mean relative error {:.5f}, {} identical bit for bit; {} other tensors are "
      "identical\n",
      comparison.layers.size(), mean_error(comparison), identical_layers(comparison),
      comparison.identical_tensors);
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
      "Compare a checkpoint with its original",
      "Prints the relative error |A - B| / |B| (Frobenius) of every layer that A or B holds\n"
      "quantized, in whatever spelling, after dequantizing both (times pre_scale), and compares\n"
      "the bytes of every other tensor. Layers meet by name. Fails (exit 1) when a layer is above "
      "--max-error or "
      "cannot\n"
      "be compared, or another tensor differs or is missing.",
      {"nibble verify model-int4/ --against model/",
       "nibble verify out/ --against model/ --max-error 0.15 --json",
       "nibble verify model-ct/ --against model-gptq/ --max-error 0"}};
  CLI::App* command = add_command(app, "verify", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("A", args->path, "checkpoint in any spelling")->required();
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
