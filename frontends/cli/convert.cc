// nibble convert: a quantized checkpoint of any spelling in, the same weights in another one out.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>

#include "cli.h"
#include "interrupt.h"
#include "layer_choice.h"
#include "nibble/checkpoint.h"
#include "nibble/quantize.h"
#include "progress.h"
#include "text.h"
#include "weight_rows.h"

namespace nibble::cli {
namespace {

constexpr char kToDense[] = "dense";
constexpr char kNearest[] = "nearest";  // --allow-requantize without a Format

struct Arguments {
  std::string in, out, to;
  std::string dtype = "f32";
  std::string requantize;  // "": not allowed; kNearest; a Format
  std::vector<std::string> include, exclude;
  int threads = 0;
  bool overwrite = false;
  bool json = false;
};

enum class Outcome { kIdentical, kRequantized, kDense };

const char* outcome_name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kIdentical:
      return "identical";
    case Outcome::kRequantized:
      return "requantized";
    case Outcome::kDense:
      return "dense";
  }
  return "";
}

// What becomes of one layer, and what was measured while it was written.
struct Conversion {
  const LayerInfo* layer = nullptr;
  Outcome outcome = Outcome::kIdentical;
  PlannedLayer plan;
  std::string reason;   // why it is not identical
  bool folded = false;  // its pre_scale was multiplied into the weight
  double relative_error = 0;
};

struct Choice {
  Patterns include, exclude;
  bool keeps(const std::string& layer) const {
    return (include.empty() || include.match(layer)) && !exclude.match(layer);
  }
};

std::string format_of(const LayerInfo& layer) {
  return layer.dense_only.empty() ? layer.format.name() : "dense only";
}

std::string result_format(const Conversion& conversion) {
  return conversion.plan.dense ? std::string(dtype_name(*conversion.plan.dense))
                               : conversion.plan.format.name();
}

// ---------------------------------------------------------------------------- what is possible

// The group for a layer that is quantized anew: not longer than its own, and a divisor of K.
int32_t group_within(const LayerInfo& layer, int32_t longest) {
  if (layer.dense_only.empty() && layer.format.group != 0) {
    longest = std::min(longest, layer.format.group);
  }
  for (const int32_t group : {128, 64, 32, 16}) {
    if (group <= longest && layer.k % group == 0) return group;
  }
  return 0;
}

// Formats in falling order of nearness to what the layer has; the target's own rules choose.
std::vector<Format> nearest_formats(const LayerInfo& layer, const std::string& to) {
  // Nothing is known of a layer that no Format holds; 32 columns a scale lose little.
  const bool known = layer.dense_only.empty();
  const bool fp4 = known && layer.format.element == Element::kE2M1;
  const bool eight = known && layer.format.bits() == 8;
  const bool zeros = !known || layer.format.zero != ZeroKind::kNone;
  const Format nvfp4{Element::kE2M1, 16, DType::kE4M3, ZeroKind::kNone};
  const Format mxfp4{Element::kE2M1, 32, DType::kE8M0, ZeroKind::kNone};
  const auto integers = [&](Element element, int32_t group, DType scale, ZeroKind zero) {
    return Format{element, group, scale, zero};
  };
  if (to == "gguf") {
    const Element element = eight ? Element::kInt8 : Element::kInt4;
    const Format blocks = integers(element, 32, DType::kF16, ZeroKind::kNone);
    return fp4 ? std::vector<Format>{mxfp4, blocks} : std::vector<Format>{blocks};
  }
  if (to == "modelopt") {
    const int32_t group = group_within(layer, known ? 128 : 32);
    const Format int4 = integers(Element::kInt4, group, DType::kF32, ZeroKind::kNone);
    return fp4 ? std::vector<Format>{nvfp4, int4} : std::vector<Format>{int4, nvfp4};
  }
  const int32_t group = group_within(layer, known ? 128 : 32);
  const Element with_zeros = eight ? Element::kUint8 : Element::kUint4;
  const Element plain = eight ? Element::kInt8 : Element::kInt4;
  const Format last = zeros ? integers(with_zeros, group, DType::kBF16, ZeroKind::kInteger)
                            : integers(plain, group, DType::kBF16, ZeroKind::kNone);
  return fp4 ? std::vector<Format>{nvfp4, last} : std::vector<Format>{last};
}

Result<Format> requantized_format(const Arguments& args, const LayerInfo& layer) {
  std::vector<Format> candidates;
  if (args.requantize == kNearest) {
    candidates = nearest_formats(layer, args.to);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const Format format, Format::parse(args.requantize));
    candidates = {as_stored(format, args.to)};
  }
  Status why;
  for (const Format& format : candidates) {
    if (format.group != 0 && layer.k % format.group != 0) {
      why = unsupported(
          fmt::format("K = {} is no multiple of the group of {}", layer.k, format.name()));
      continue;
    }
    auto spelling = output_spelling(format, layer.n, layer.k, args.to);
    if (spelling.ok()) return format;
    why = std::move(spelling).status();
  }
  return std::move(why).with_context("layer " + printable(layer.name) +
                                     " cannot be quantized anew either (--exclude keeps it in "
                                     "float)");
}

// `dtype` is that of layers that become floats.
Result<Conversion> decide(const Arguments& args, const Checkpoint& source, const LayerInfo& layer,
                          const Choice& choice, DType dtype, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(Status(layer.status));
  Conversion out;
  out.layer = &layer;
  out.plan.name = layer.name;
  const bool excluded = !choice.keeps(layer.name);
  if (args.to == kToDense || excluded) {
    out.outcome = Outcome::kDense;
    out.plan.dense = dtype;
    if (excluded) out.reason = "not chosen";
    return out;
  }
  bool has_pre_scale = false;
  if (layer.dense_only.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q, source.load(layer.name));
    Result<QuantizedTensor> exact = convert_exactly(q, args.to, pool);
    if (exact.ok()) {
      out.plan.format = exact->format;
      out.plan.pre_scale = !exact->pre_scale.empty();
      return out;
    }
    if (exact.status().code() != Code::kUnsupported) return exact.status();
    out.reason = exact.status().message();
    has_pre_scale = !q.pre_scale.empty();
  } else {
    out.reason = layer.dense_only;
  }
  out.outcome = Outcome::kRequantized;
  if (args.requantize.empty()) return out;
  NIBBLE_ASSIGN_OR_RETURN(out.plan.format, requantized_format(args, layer));
  // ModelOpt stores a pre_scale beside nvfp4 and int4; elsewhere it goes into the weight.
  out.plan.pre_scale =
      has_pre_scale && args.to == "modelopt" && out.plan.format.scale != DType::kE8M0;
  return out;
}

Status refuse_lossy(const Arguments& args, const std::vector<Conversion>& conversions) {
  const Conversion* first = nullptr;
  size_t count = 0;
  for (const Conversion& each : conversions) {
    if (each.outcome != Outcome::kRequantized) continue;
    if (first == nullptr) first = &each;
    ++count;
  }
  if (first == nullptr || !args.requantize.empty()) return ok_status();
  const std::string others = count == 1 ? "" : fmt::format(" (and {} more layers)", count - 1);
  return unsupported(fmt::format(
      "layer {}{} cannot become {} without changing its weights: {}; --allow-requantize quantizes "
      "anew and prints the error, --exclude RE leaves layers in float, --to dense keeps every bit",
      printable(first->layer->name), others, args.to, first->reason));
}

// ------------------------------------------------------------------------------------- writing

// Rows for write_dense that measure what rounding them to `dtype` loses.
struct RoundingLoss {
  double difference = 0, reference = 0;
  double relative_error() const {
    if (difference == 0) return 0;
    return reference == 0 ? std::numeric_limits<double>::infinity()
                          : std::sqrt(difference / reference);
  }
};

DenseRows measured(DenseRows rows, DType dtype, const std::shared_ptr<RoundingLoss>& loss) {
  if (dtype == DType::kF32) return rows;
  const int64_t n = rows.n, k = rows.k;
  return {n, k, [source = std::move(rows), dtype, loss](int64_t begin, int64_t end, float* out) {
            NIBBLE_RETURN_IF_ERROR(source.read(begin, end, out));
            for (int64_t i = 0; i < (end - begin) * source.k; ++i) {
              uint16_t bits = 0;
              store_from_f32(&bits, dtype, 0, out[i]);
              const double value = out[i];
              const double lost = static_cast<double>(load_as_f32(&bits, dtype, 0)) - value;
              loss->difference += lost * lost;
              loss->reference += value * value;
            }
            return ok_status();
          }};
}

Status write_dense_layer(const Checkpoint& source, Conversion* conversion,
                         CheckpointWriter* writer) {
  NIBBLE_ASSIGN_OR_RETURN(DenseRows rows, source.dense_rows(conversion->layer->name));
  conversion->folded = !rows.pre_scale.empty();
  const auto loss = std::make_shared<RoundingLoss>();
  NIBBLE_RETURN_IF_ERROR(writer->write_dense(
      conversion->layer->name,
      measured(with_pre_scale(std::move(rows)), *conversion->plan.dense, loss)));
  conversion->relative_error = loss->relative_error();
  return ok_status();
}

Status write_requantized(const Checkpoint& source, const std::string& to, Conversion* conversion,
                         ThreadPool* pool, CheckpointWriter* writer) {
  NIBBLE_ASSIGN_OR_RETURN(DenseRows rows, source.dense_rows(conversion->layer->name));
  const std::vector<float> pre_scale = rows.pre_scale;
  const DenseRows whole = with_pre_scale(rows);
  const DenseRows& target = conversion->plan.pre_scale ? rows : whole;
  conversion->folded = !pre_scale.empty() && !conversion->plan.pre_scale;
  const auto values = checked_product(target.n, target.k);
  const auto bytes = values ? checked_product(*values, dtype_bytes(DType::kF32)) : std::nullopt;
  if (!bytes) return out_of_memory("a weight whose size overflows");
  NIBBLE_ASSIGN_OR_RETURN(Buffer weight, Buffer::allocate(*bytes));
  auto* floats = reinterpret_cast<float*>(weight.mutable_data());
  NIBBLE_RETURN_IF_ERROR(target.read(0, target.n, floats));
  QuantizeOptions options;
  options.pool = pool;
  options.name = conversion->layer->name;
  if (to == "compressed-tensors") options.tensor_scale_op = TensorScaleOp::kDivide;
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, quantize({floats, DType::kF32, {target.n, target.k}},
                                                      conversion->plan.format, options));
  if (conversion->plan.pre_scale) q.pre_scale = pre_scale;
  const auto written = std::make_shared<const QuantizedTensor>(std::move(q));
  const DenseRows result = with_pre_scale({written->n, written->k,
                                           [written](int64_t begin, int64_t end, float* out) {
                                             written->dequantize(begin, end, out);
                                             return ok_status();
                                           },
                                           written->pre_scale});
  NIBBLE_ASSIGN_OR_RETURN(const WeightDifference difference, compare_weights(result, whole, pool));
  conversion->relative_error = difference.relative_error;
  return writer->write_quantized(conversion->layer->name, *written);
}

Status write_layer(const Checkpoint& source, const std::string& to, Conversion* conversion,
                   ThreadPool* pool, CheckpointWriter* writer) {
  switch (conversion->outcome) {
    case Outcome::kIdentical: {
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor q, source.load(conversion->layer->name));
      NIBBLE_ASSIGN_OR_RETURN(const QuantizedTensor exact, convert_exactly(q, to, pool));
      return writer->write_quantized(conversion->layer->name, exact);
    }
    case Outcome::kRequantized:
      return write_requantized(source, to, conversion, pool, writer);
    case Outcome::kDense:
      return write_dense_layer(source, conversion, writer);
  }
  return ok_status();
}

// -------------------------------------------------------------------------------------- report

struct Summary {
  std::string spelling;  // of the output
  std::vector<std::string> dropped_files;
  int64_t bytes_before = 0, bytes_after = 0;  // of all tensors
  size_t files_left = 0;     // of the source, for which one .gguf file has no place
  int64_t input_scales = 0;  // tensors that scale quantized activations, not carried over
  double seconds = 0;
};

int64_t count(const std::vector<Conversion>& conversions, Outcome outcome) {
  return std::count_if(conversions.begin(), conversions.end(),
                       [&](const Conversion& each) { return each.outcome == outcome; });
}

int64_t input_scales(const Checkpoint& source) {
  int64_t found = 0;
  for (const LayerInfo& layer : source.layers()) {
    found += std::count_if(layer.tensors.begin(), layer.tensors.end(), [](const std::string& name) {
      return name.ends_with(".input_scale") || name.ends_with(".input_global_scale") ||
             name.ends_with(".input_zero_point");
    });
  }
  return found;
}

void print_as_json(const Arguments& args, const Checkpoint& source,
                   const std::vector<Conversion>& conversions, const Summary& summary) {
  Json json;
  json["source"] = args.in;
  json["source_spelling"] = source.spelling();
  json["output"] = args.out;
  json["spelling"] = summary.spelling;
  Json layers = Json::array();
  for (const Conversion& each : conversions) {
    Json layer = {{"name", each.layer->name},
                  {"n", each.layer->n},
                  {"k", each.layer->k},
                  {"from", format_of(*each.layer)},
                  {"to", result_format(each)},
                  {"result", outcome_name(each.outcome)},
                  {"relative_error", each.relative_error}};
    if (!each.reason.empty()) layer["reason"] = each.reason;
    if (each.folded) layer["pre_scale_folded"] = true;
    layers.push_back(std::move(layer));
  }
  json["layers"] = std::move(layers);
  json["identical"] = count(conversions, Outcome::kIdentical);
  json["requantized"] = count(conversions, Outcome::kRequantized);
  json["dense"] = count(conversions, Outcome::kDense);
  json["dropped_files"] = summary.dropped_files;
  json["dropped_input_scales"] = summary.input_scales;
  json["files_left"] = summary.files_left;
  json["checkpoint_bytes_before"] = summary.bytes_before;
  json["checkpoint_bytes_after"] = summary.bytes_after;
  json["seconds"] = summary.seconds;
  print_json(json);
}

// What the numbers alone do not say.
void print_notes(const std::vector<Conversion>& conversions, const Summary& summary) {
  const auto folded = std::count_if(conversions.begin(), conversions.end(),
                                    [](const Conversion& each) { return each.folded; });
  if (folded > 0) {
    fmt::print("the pre_scale of {} layers is multiplied into their weights, in FP32\n", folded);
  }
  const auto rounded = std::find_if(conversions.begin(), conversions.end(), [](const auto& each) {
    return each.plan.dense && *each.plan.dense != DType::kF32;
  });
  if (rounded != conversions.end()) {
    double worst = 0;
    for (const Conversion& each : conversions) {
      if (each.plan.dense) worst = std::max(worst, each.relative_error);
    }
    fmt::print(
        "dense weights are rounded to {}: relative error at most {:.2g}; f32 keeps every "
        "bit\n",
        dtype_name(*rounded->plan.dense), worst);
  }
  if (summary.input_scales > 0) {
    fmt::print(
        "{} scales of quantized activations are not carried over: the result quantizes "
        "weights alone\n",
        summary.input_scales);
  }
  if (summary.files_left > 0) {
    fmt::print("{} other files are not carried over into one .gguf file; a directory gets them\n",
               summary.files_left);
  }
  if (!summary.dropped_files.empty()) {
    fmt::print("not carried over, since they describe the quantization of the source: {}\n",
               printable(join(summary.dropped_files, ", ")));
  }
}

void print_as_text(const Arguments& args, const Checkpoint& source,
                   const std::vector<Conversion>& conversions, const Summary& summary) {
  Table lossy({{"quantized anew"}, {"from"}, {"to"}, {"relative error", true}});
  for (const Conversion& each : conversions) {
    if (each.outcome != Outcome::kRequantized) continue;
    lossy.add_row({printable(each.layer->name), format_of(*each.layer), result_format(each),
                   fmt::format("{:.5f}", each.relative_error)});
  }
  if (!lossy.empty()) lossy.print();
  print_notes(conversions, summary);
  const std::string spelling = source.spelling().empty() ? "float" : printable(source.spelling());
  fmt::print(
      "{} ({}) -> {} ({}): {} layers, {} identical bit for bit, {} quantized anew, {} as "
      "floats; {} -> {} in {}\n",
      args.in, spelling, args.out, summary.spelling, conversions.size(),
      count(conversions, Outcome::kIdentical), count(conversions, Outcome::kRequantized),
      count(conversions, Outcome::kDense), human_bytes(summary.bytes_before),
      human_bytes(summary.bytes_after), human_seconds(summary.seconds));
}

// ------------------------------------------------------------------------------------ the whole

Status check_arguments(const Arguments& args) {
  const bool file = args.out.ends_with(".safetensors") || args.out.ends_with(".onnx") ||
                    (args.out.ends_with(".gguf") && args.to != "gguf");
  if (file) return invalid_argument("OUT is a directory; '" + args.out + "' looks like a file");
  if (args.to != kToDense) return ok_status();
  if (!args.requantize.empty()) {
    return invalid_argument("--allow-requantize has no meaning with --to dense");
  }
  if (!args.include.empty() || !args.exclude.empty()) {
    return invalid_argument(
        "--to dense makes every layer dense; --include and --exclude have no "
        "meaning");
  }
  return ok_status();
}

Result<std::vector<Conversion>> decide_all(const Arguments& args, const Checkpoint& source,
                                           ThreadPool* pool) {
  Choice choice;
  NIBBLE_ASSIGN_OR_RETURN(choice.include, Patterns::compile(args.include, "--include"));
  NIBBLE_ASSIGN_OR_RETURN(choice.exclude, Patterns::compile(args.exclude, "--exclude"));
  NIBBLE_ASSIGN_OR_RETURN(const DType dtype, parse_dtype(args.dtype));
  const bool container_only = args.to == kToDense || args.to == "gguf";
  if (source.layers().empty() && !source.spelling().empty() && !container_only) {
    return unsupported(fmt::format("{}: no reader knows its quantization ({})", args.in,
                                   printable(source.spelling())));
  }
  if (source.layers().empty() && !container_only) {
    return invalid_argument(
        fmt::format("{} has no quantized layer to convert; `nibble quantize` makes some", args.in));
  }
  int64_t total = 0, done = 0;
  for (const LayerInfo& layer : source.layers()) total += layer.stored_bytes;
  std::vector<Conversion> conversions;
  Progress progress("checking", {"MB", 1e6}, total);
  for (const LayerInfo& layer : source.layers()) {
    if (interrupted()) return io_error("interrupted");
    NIBBLE_ASSIGN_OR_RETURN(Conversion conversion,
                            decide(args, source, layer, choice, dtype, pool));
    conversions.push_back(std::move(conversion));
    done += layer.stored_bytes;
    progress.update(done);
  }
  return conversions;
}

Status convert_checkpoint(const Arguments& args) {
  NIBBLE_RETURN_IF_ERROR(check_arguments(args));
  const auto start = std::chrono::steady_clock::now();
  NIBBLE_ASSIGN_OR_RETURN(const Checkpoint source, Checkpoint::open(args.in));
  catch_interrupts();
  const std::unique_ptr<ThreadPool> pool = make_thread_pool(args.threads);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Conversion> conversions,
                          decide_all(args, source, pool.get()));
  NIBBLE_RETURN_IF_ERROR(refuse_lossy(args, conversions));

  std::vector<PlannedLayer> plan;
  for (const Conversion& each : conversions) plan.push_back(each.plan);
  CopyProgress copying;
  WriteOptions options;
  options.spelling = args.to;
  options.overwrite = args.overwrite;
  options.progress = [&copying](int64_t done, int64_t total) { copying.update(done, total); };
  NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
                          CheckpointWriter::create(source, args.out, plan, options));
  int64_t total = 0, done = 0;
  for (const Conversion& each : conversions) total += each.layer->n * each.layer->k;
  Progress progress("converting", {"M weights", 1e6}, total);
  for (Conversion& each : conversions) {
    if (interrupted()) return io_error("interrupted");
    NIBBLE_RETURN_IF_ERROR(write_layer(source, args.to, &each, pool.get(), &writer));
    done += each.layer->n * each.layer->k;
    progress.update(done);
  }
  progress.clear();
  if (interrupted()) return io_error("interrupted");
  copying.begin();
  NIBBLE_RETURN_IF_ERROR(writer.finish());
  copying.clear();

  Summary summary;
  summary.spelling = writer.spelling();
  summary.dropped_files.assign(writer.dropped_files().begin(), writer.dropped_files().end());
  for (const TensorInfo& tensor : source.tensors()) summary.bytes_before += tensor.bytes;
  summary.bytes_after = writer.total_bytes();
  summary.input_scales = input_scales(source);
  const bool one_file = writer.spelling() == "gguf" && !std::filesystem::is_directory(args.out);
  if (one_file) summary.files_left = source.other_files().size();
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (args.json) {
    print_as_json(args, source, conversions, summary);
  } else {
    print_as_text(args, source, conversions, summary);
  }
  return ok_status();
}

Exit run_convert(const Arguments& args) {
  const Status status = convert_checkpoint(args);
  if (interrupted() && !status.ok()) {
    fail(status);
    return Exit::kInterrupted;
  }
  return status.ok() ? Exit::kOk : fail(status);
}

}  // namespace

void add_convert(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Write a quantized checkpoint in another spelling",
      "IN is whatever `nibble inspect` lists layers of. A layer is converted only if what will be\n"
      "read back dequantizes to the same bits; otherwise the command names the layer and the\n"
      "reason, and writes nothing, unless --allow-requantize: then such layers are dequantized\n"
      "and quantized anew, and the relative error of each is printed. Layers that --include and\n"
      "--exclude leave out become floats. `--to dense` writes every layer as a float matrix\n"
      "NAME.weight, with its pre_scale multiplied in. Other tensors and files are carried over\n"
      "bit for bit. OUT appears only when it is complete; for gguf it is a file that ends in\n"
      ".gguf, or a directory that gets model.gguf and the other files.",
      {"nibble convert model-gptq/ out/ --to compressed-tensors",
       "nibble convert model-awq/ out/ --to dense --dtype bf16",
       "nibble convert model-gptq/ model.gguf --to gguf --allow-requantize",
       "nibble convert model-nf4/ out/ --to compressed-tensors --allow-requantize int4-g32 "
       "--json"}};
  CLI::App* command = add_command(app, "convert", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("IN", args->in, "a directory, or a .safetensors, .gguf or .onnx file")
      ->required();
  command->add_option("OUT", args->out, "directory to write, or a .gguf file")->required();
  command->add_option("--to", args->to, "the spelling to write")
      ->required()
      ->check(CLI::IsMember({"compressed-tensors", "modelopt", "gguf", kToDense}));
  command
      ->add_option("--dtype", args->dtype,
                   "type of layers that become floats: f32 (default) keeps every bit")
      ->check(CLI::IsMember({"f32", "bf16"}));
  command
      ->add_option("--allow-requantize", args->requantize,
                   "quantize layers anew that have no exact form in the target: to the nearest "
                   "format that it holds, or to FORMAT")
      ->type_name("[FORMAT]")
      ->expected(0, 1)
      ->default_str(kNearest);
  command
      ->add_option("--include", args->include,
                   "convert exactly the layers whose name matches RE (may repeat)")
      ->type_name("RE")
      ->allow_extra_args(false);
  command
      ->add_option("--exclude", args->exclude,
                   "leave layers whose name matches RE in float (may repeat; wins over --include)")
      ->type_name("RE")
      ->allow_extra_args(false);
  command->add_option("--threads", args->threads, "threads (default: all cores)")
      ->check(at_least(0));
  command->add_flag("--overwrite", args->overwrite, "replace OUT if it exists");
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_convert(*args); }; });
}

}  // namespace nibble::cli
