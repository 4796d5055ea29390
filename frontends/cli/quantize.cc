// nibble quantize: a float checkpoint in, a 4-bit checkpoint out, one layer in memory at a time.
#include "nibble/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>

#include "cli.h"
#include "interrupt.h"
#include "layer_choice.h"
#include "nibble/checkpoint.h"
#include "progress.h"
#include "text.h"

namespace nibble::cli {
namespace {

constexpr double kSuspiciousError = 0.5;  // far above what any format does to a trained weight

struct Arguments {
  std::string in, out, format, spelling;
  std::vector<std::string> include, exclude;
  std::string scales = "mse", mxfp = "smallest-error";
  int threads = 0;
  bool allow_short_group = false;
  bool overwrite = false;
  bool json = false;
};

struct LayerResult {
  const ChosenLayer* layer = nullptr;
  int64_t bytes_after = 0;
  double relative_error = 0;
};

struct Summary {
  std::vector<LayerResult> layers;
  int64_t weights = 0;
  int64_t bytes_before = 0;       // of the layers
  int64_t bytes_after = 0;        // of the layers
  int64_t checkpoint_before = 0;  // of all tensors
  int64_t checkpoint_after = 0;
  double quantize_seconds = 0;  // in quantize() alone
  double seconds = 0;           // reading, writing and measuring errors included
};

ScaleRule scale_rule(const std::string& name) {
  return name == "absmax" ? ScaleRule::kAbsmax : ScaleRule::kMse;
}

MxfpRule mxfp_rule(const std::string& name) {
  if (name == "ocp") return MxfpRule::kOcp;
  if (name == "modelopt") return MxfpRule::kModelOpt;
  if (name == "compressed-tensors") return MxfpRule::kCompressedTensors;
  return MxfpRule::kSmallestError;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print_choice(const Arguments& args, const LayerChoice& choice) {
  constexpr size_t kMostNames = 4;
  std::map<std::string, std::vector<std::string>> reasons;
  for (const SkippedTensor& each : choice.skipped) {
    reasons[each.reason].push_back(
        fmt::format("{} {}", printable(each.tensor), shape_text(each.shape)));
  }
  fmt::print("{} layers to {}; {} tensors stay as they are:\n", choice.chosen.size(), args.format,
             choice.skipped.size());
  for (const auto& [reason, names] : reasons) {
    fmt::print("  {}: {}\n", reason, names.size());
    for (size_t i = 0; i < std::min(names.size(), kMostNames); ++i) {
      fmt::print("    {}\n", names[i]);
    }
    if (names.size() > kMostNames) {
      fmt::print("    and {} more (--json lists all)\n", names.size() - kMostNames);
    }
  }
  // By K, because a model has few of them and many layers.
  std::map<std::pair<int64_t, std::string>, int64_t> smaller;
  for (const ChosenLayer& each : choice.chosen) {
    if (each.smaller_group) ++smaller[{each.k, each.layer.format.name()}];
  }
  for (const auto& [k_and_format, count] : smaller) {
    const auto& [k, format] = k_and_format;
    fmt::print("  {} layers with K = {} get {}, the largest group that divides it\n", count, k,
               format);
  }
}

void warn_about_choice(const LayerChoice& choice, const std::string& spelling) {
  const auto kept = std::count_if(choice.skipped.begin(), choice.skipped.end(),
                                  [](const SkippedTensor& t) { return t.linear_layer; });
  if (kept > 0) {
    const auto first = std::find_if(choice.skipped.begin(), choice.skipped.end(),
                                    [](const SkippedTensor& t) { return t.linear_layer; });
    warn(fmt::format("{} linear layers stay in float, such as {}: {}", kept,
                     printable(first->tensor), first->reason));
  }
  const auto short_groups = std::count_if(choice.chosen.begin(), choice.chosen.end(),
                                          [](const ChosenLayer& l) { return l.short_group; });
  if (short_groups > 0) {
    warn(
        fmt::format("{} layers end in a short group; other readers may refuse them", short_groups));
  }
  if (spelling == "nibble") warn("no standard spelling holds this format; only Nibble reads it");
}

Status check_arguments(const Arguments& args) {
  if (args.out.ends_with(".safetensors") ||
      (args.out.ends_with(".gguf") && args.spelling != "gguf")) {
    return invalid_argument("OUT is a directory; '" + args.out + "' looks like a file");
  }
  return ok_status();
}

Status check_source(const Checkpoint& source) {
  if (source.layers().empty() && source.spelling().empty()) return ok_status();
  return unsupported(fmt::format("{} is quantized already ({}); quantize its float original",
                                 source.path(), source.spelling()));
}

Result<LayerResult> quantize_layer(const Arguments& args, const Checkpoint& source,
                                   const ChosenLayer& chosen, ThreadPool* pool,
                                   CheckpointWriter* writer, Summary* summary) {
  NIBBLE_ASSIGN_OR_RETURN(const Tensor weight, source.tensor(chosen.tensor));
  const auto start = std::chrono::steady_clock::now();
  QuantizeOptions options;
  options.scales = scale_rule(args.scales);
  options.mxfp = mxfp_rule(args.mxfp);
  // compressed-tensors divides by the tensor scale it stores, modelopt multiplies.
  if (writer->spelling() == "compressed-tensors") options.tensor_scale_op = TensorScaleOp::kDivide;
  options.pool = pool;
  options.name = chosen.tensor;
  NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q,
                          quantize(weight.view, chosen.layer.format, options));
  summary->quantize_seconds += seconds_since(start);
  LayerResult result;
  result.layer = &chosen;
  result.bytes_after = q.stored_bytes();
  NIBBLE_ASSIGN_OR_RETURN(result.relative_error, relative_error(q, weight.view, pool));
  NIBBLE_RETURN_IF_ERROR(writer->write_quantized(chosen.layer.name, q));
  return result;
}

const LayerResult& worst_layer(const Summary& summary) {
  return *std::max_element(summary.layers.begin(), summary.layers.end(),
                           [](const LayerResult& a, const LayerResult& b) {
                             return a.relative_error < b.relative_error;
                           });
}

double million_weights_per_second(const Summary& summary) {
  return static_cast<double>(summary.weights) * 1e-6 / std::max(summary.quantize_seconds, 1e-9);
}

double bits_per_weight(int64_t bytes, int64_t weights) {
  return static_cast<double>(bytes) * 8 / static_cast<double>(weights);
}

Json summary_json(const Arguments& args, const LayerChoice& choice, const Summary& summary,
                  const std::string& spelling) {
  Json json;
  json["source"] = args.in;
  json["output"] = args.out;
  json["format"] = args.format;
  json["spelling"] = spelling;
  Json layers = Json::array();
  for (const LayerResult& each : summary.layers) {
    const ChosenLayer& l = *each.layer;
    layers.push_back({{"name", l.layer.name},
                      {"n", l.n},
                      {"k", l.k},
                      {"format", l.layer.format.name()},
                      {"bytes_before", l.stored_bytes},
                      {"bytes_after", each.bytes_after},
                      {"bits_per_weight", bits_per_weight(each.bytes_after, l.n * l.k)},
                      {"smaller_group", l.smaller_group},
                      {"short_group", l.short_group},
                      {"relative_error", each.relative_error}});
  }
  json["layers"] = std::move(layers);
  Json skipped = Json::array();
  for (const SkippedTensor& each : choice.skipped) {
    skipped.push_back({{"tensor", each.tensor},
                       {"shape", each.shape},
                       {"dtype", each.dtype_name},
                       {"reason", each.reason},
                       {"linear_layer", each.linear_layer}});
  }
  json["skipped"] = std::move(skipped);
  json["weights"] = summary.weights;
  json["layer_bytes_before"] = summary.bytes_before;
  json["layer_bytes_after"] = summary.bytes_after;
  json["checkpoint_bytes_before"] = summary.checkpoint_before;
  json["checkpoint_bytes_after"] = summary.checkpoint_after;
  json["bits_per_weight"] = bits_per_weight(summary.bytes_after, summary.weights);
  json["quantize_seconds"] = summary.quantize_seconds;
  json["million_weights_per_second"] = million_weights_per_second(summary);
  json["seconds"] = summary.seconds;
  const LayerResult& worst = worst_layer(summary);
  json["worst_layer"] = {{"name", worst.layer->layer.name},
                         {"relative_error", worst.relative_error}};
  return json;
}

void print_summary(const Arguments& args, const Summary& summary, const std::string& spelling) {
  const LayerResult& worst = worst_layer(summary);
  fmt::print("{} ({}): {} layers, {} -> {} ({:.2f} bits per weight); checkpoint {} -> {}\n",
             args.out, spelling, summary.layers.size(), human_bytes(summary.bytes_before),
             human_bytes(summary.bytes_after),
             bits_per_weight(summary.bytes_after, summary.weights),
             human_bytes(summary.checkpoint_before), human_bytes(summary.checkpoint_after));
  fmt::print(
      "{:.0f} M weights/s in the quantizer, {} in all; worst layer {} with relative error "
      "{:.4f}\n",
      million_weights_per_second(summary), human_seconds(summary.seconds),
      printable(worst.layer->layer.name), worst.relative_error);
}

Result<Summary> quantize_all(const Arguments& args, const Checkpoint& source,
                             const LayerChoice& choice, CheckpointWriter* writer,
                             CopyProgress* copying) {
  const auto start = std::chrono::steady_clock::now();
  const std::unique_ptr<ThreadPool> pool = make_thread_pool(args.threads);
  Summary summary;
  int64_t total_weights = 0;
  for (const ChosenLayer& each : choice.chosen) total_weights += each.n * each.k;
  Progress progress("quantizing", {"M weights", 1e6}, total_weights);
  for (const ChosenLayer& each : choice.chosen) {
    if (interrupted()) return io_error("interrupted");
    NIBBLE_ASSIGN_OR_RETURN(const LayerResult result,
                            quantize_layer(args, source, each, pool.get(), writer, &summary));
    summary.layers.push_back(result);
    summary.weights += each.n * each.k;
    summary.bytes_before += each.stored_bytes;
    summary.bytes_after += result.bytes_after;
    progress.update(summary.weights);
  }
  progress.clear();
  for (const TensorInfo& each : source.tensors()) summary.checkpoint_before += each.bytes;
  summary.checkpoint_after = writer->total_bytes();
  if (interrupted()) return io_error("interrupted");
  copying->begin();
  NIBBLE_RETURN_IF_ERROR(writer->finish());
  summary.seconds = seconds_since(start);
  return summary;
}

Status quantize_checkpoint(const Arguments& args) {
  NIBBLE_RETURN_IF_ERROR(check_arguments(args));
  ChoiceOptions choice_options;
  NIBBLE_ASSIGN_OR_RETURN(choice_options.format, Format::parse(args.format));
  choice_options.include = args.include;
  choice_options.exclude = args.exclude;
  choice_options.allow_short_group = args.allow_short_group;
  choice_options.spelling = args.spelling;
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::open(args.in));
  NIBBLE_RETURN_IF_ERROR(check_source(source));
  NIBBLE_ASSIGN_OR_RETURN(const LayerChoice choice,
                          choose_layers(source.tensors(), choice_options));
  if (!args.json) print_choice(args, choice);
  if (choice.chosen.empty()) {
    return invalid_argument(fmt::format("no tensor of {} is left to quantize", args.in));
  }

  catch_interrupts();
  std::vector<PlannedLayer> plan;
  for (const ChosenLayer& each : choice.chosen) plan.push_back(each.layer);
  WriteOptions write_options;
  write_options.overwrite = args.overwrite;
  write_options.spelling = args.spelling;
  CopyProgress copying;
  write_options.progress = [&copying](int64_t done, int64_t total) { copying.update(done, total); };
  NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
                          CheckpointWriter::create(source, args.out, plan, write_options));
  warn_about_choice(choice, writer.spelling());
  NIBBLE_ASSIGN_OR_RETURN(const Summary summary,
                          quantize_all(args, source, choice, &writer, &copying));
  copying.clear();
  if (const LayerResult& worst = worst_layer(summary);
      !(worst.relative_error <= kSuspiciousError)) {
    warn(fmt::format("{} has relative error {:.3g}; is it a weight at all?",
                     printable(worst.layer->layer.name), worst.relative_error));
  }
  if (args.json) {
    print_json(summary_json(args, choice, summary, writer.spelling()));
  } else {
    print_summary(args, summary, writer.spelling());
  }
  return ok_status();
}

Exit run_quantize(const Arguments& args) {
  const Status status = quantize_checkpoint(args);
  if (interrupted() && !status.ok()) {
    fail(status);
    return Exit::kInterrupted;
  }
  return status.ok() ? Exit::kOk : fail(status);
}

}  // namespace

void add_quantize(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Quantize a float checkpoint",
      "Linear layers (2-D *.weight) are quantized; embeddings, norms, output heads (lm_head,\n"
      "classifier, pooler, ...) and routers stay as they are unless --include names them. What\n"
      "stays is printed with the reason. Where the group does not divide K, the largest of 64, "
      "32,\n"
      "16 that does is taken and printed. Memory: about the largest tensor. OUT appears only when\n"
      "it is complete.",
      {"nibble quantize model/ model-int4/ --format int4-g128",
       "nibble quantize model/ out/ --format nvfp4 --exclude 'layers\\.0\\.'",
       "nibble quantize model/ out/ --format nvfp4 --to modelopt",
       "nibble quantize model.safetensors out/ --format mxfp4 --mxfp ocp --json"}};
  CLI::App* command = add_command(app, "quantize", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("IN", args->in, "float checkpoint: a .safetensors file or a directory")
      ->required();
  command->add_option("OUT", args->out, "directory to write")->required();
  command
      ->add_option("--format", args->format,
                   "int4-g128, uint4-g128, int8-g128, int8-channel, nvfp4, mxfp4, fp4-g32, nf4-g64 "
                   "and other groups (g16, g32, g64, g128, channel)")
      ->required();
  command
      ->add_option("--to", args->spelling,
                   "how it is written (default: compressed-tensors, or what the format needs)")
      ->check(CLI::IsMember({"compressed-tensors", "modelopt", "gguf", "bitsandbytes", "nibble"}));
  command
      ->add_option("--include", args->include,
                   "quantize exactly the tensors whose name matches RE (may repeat)")
      ->type_name("RE")
      ->allow_extra_args(false);
  command
      ->add_option("--exclude", args->exclude,
                   "leave tensors whose name matches RE (may repeat; wins over --include)")
      ->type_name("RE")
      ->allow_extra_args(false);
  command->add_option("--scales", args->scales, "how a group's scale is found (default mse)")
      ->check(CLI::IsMember({"mse", "absmax"}));
  command->add_option("--mxfp", args->mxfp, "rule of mxfp4 exponents (default smallest-error)")
      ->check(CLI::IsMember({"smallest-error", "ocp", "modelopt", "compressed-tensors"}));
  command
      ->add_option("--threads", args->threads,
                   "threads (default: all cores); the bits are the same")
      ->check(at_least(0));
  command->add_flag(
      "--allow-short-group", args->allow_short_group,
      "keep the group where it does not divide K; other readers may refuse the result");
  command->add_flag("--overwrite", args->overwrite, "replace OUT if it exists");
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_quantize(*args); }; });
}

}  // namespace nibble::cli
