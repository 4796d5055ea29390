// nibble inspect: what a checkpoint holds.
#include <fmt/format.h>

#include <map>
#include <memory>

#include "cli.h"
#include "nibble/checkpoint.h"
#include "text.h"

namespace nibble::cli {
namespace {

struct Arguments {
  std::string path;
  bool json = false;
};

struct Totals {
  int64_t tensor_bytes = 0;
  int64_t layer_weights = 0;
  int64_t layer_bytes = 0;

  double bits_per_weight() const {
    return layer_weights == 0
               ? 0
               : static_cast<double>(layer_bytes) * 8 / static_cast<double>(layer_weights);
  }
};

double bits_per_weight(const LayerInfo& layer) {
  return static_cast<double>(layer.stored_bytes) * 8 / static_cast<double>(layer.n * layer.k);
}

// The stored tensors that belong to quantized layers, each with its layer.
std::map<std::string, const LayerInfo*> layer_of_tensor(const Checkpoint& checkpoint) {
  std::map<std::string, const LayerInfo*> owners;
  for (const LayerInfo& layer : checkpoint.layers()) {
    for (const std::string& tensor : layer.tensors) owners[tensor] = &layer;
  }
  return owners;
}

Totals totals_of(const Checkpoint& checkpoint) {
  Totals totals;
  for (const TensorInfo& tensor : checkpoint.tensors()) totals.tensor_bytes += tensor.bytes;
  for (const LayerInfo& layer : checkpoint.layers()) {
    if (!layer.status.ok()) continue;
    totals.layer_weights += layer.n * layer.k;
    totals.layer_bytes += layer.stored_bytes;
  }
  return totals;
}

Json layer_json(const LayerInfo& layer) {
  Json json = {{"name", layer.name}};
  if (layer.status.ok()) {
    json["format"] = layer.format.name();
    json["n"] = layer.n;
    json["k"] = layer.k;
    json["bits_per_weight"] = bits_per_weight(layer);
  } else {
    json["error"] = layer.status.message();
  }
  json["bytes"] = layer.stored_bytes;
  json["tensors"] = layer.tensors;
  return json;
}

void print_as_json(const Checkpoint& checkpoint) {
  const Totals totals = totals_of(checkpoint);
  Json json;
  json["path"] = checkpoint.path();
  json["spelling"] = checkpoint.spelling();
  json["shards"] = std::vector<std::string>(checkpoint.shards().begin(), checkpoint.shards().end());
  json["other_files"] =
      std::vector<std::string>(checkpoint.other_files().begin(), checkpoint.other_files().end());
  Json layers = Json::array();
  for (const LayerInfo& layer : checkpoint.layers()) layers.push_back(layer_json(layer));
  json["layers"] = std::move(layers);
  Json tensors = Json::array();
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    tensors.push_back({{"name", tensor.name},
                       {"dtype", tensor.dtype_name},
                       {"shape", tensor.shape},
                       {"bytes", tensor.bytes},
                       {"file", checkpoint.shards()[static_cast<size_t>(tensor.shard)]}});
  }
  json["tensors"] = std::move(tensors);
  json["tensor_bytes"] = totals.tensor_bytes;
  json["layer_weights"] = totals.layer_weights;
  json["layer_bytes"] = totals.layer_bytes;
  json["bits_per_weight"] = totals.bits_per_weight();
  print_json(json);
}

void print_as_text(const Checkpoint& checkpoint) {
  const Totals totals = totals_of(checkpoint);
  const std::string spelling =
      checkpoint.spelling().empty() ? "float" : printable(checkpoint.spelling());
  fmt::print("{}: {}, {} tensors in {} files, {}\n", printable(checkpoint.path()), spelling,
             checkpoint.tensors().size(), checkpoint.shards().size(),
             human_bytes(totals.tensor_bytes));
  if (!checkpoint.layers().empty()) {
    fmt::print("\n");
    Table layers(
        {{"layer"}, {"format"}, {"n", true}, {"k", true}, {"bytes", true}, {"bits", true}});
    for (const LayerInfo& layer : checkpoint.layers()) {
      if (layer.status.ok()) {
        layers.add_row({printable(layer.name), layer.format.name(), std::to_string(layer.n),
                        std::to_string(layer.k), human_bytes(layer.stored_bytes),
                        fmt::format("{:.2f}", bits_per_weight(layer))});
      } else {
        layers.add_row(
            {printable(layer.name), "unreadable", "-", "-", human_bytes(layer.stored_bytes), "-"});
      }
    }
    layers.print();
    fmt::print("{} layers, {} M weights in {}: {:.2f} bits per weight\n",
               checkpoint.layers().size(), totals.layer_weights / 1000000,
               human_bytes(totals.layer_bytes), totals.bits_per_weight());
    for (const LayerInfo& layer : checkpoint.layers()) {
      if (!layer.status.ok()) {
        fmt::print("unreadable: {}: {}\n", printable(layer.name),
                   printable(layer.status.message()));
      }
    }
  }
  const auto owners = layer_of_tensor(checkpoint);
  Table others({{"tensor"}, {"dtype"}, {"shape"}, {"bytes", true}});
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (owners.contains(tensor.name)) continue;
    others.add_row({printable(tensor.name), printable(tensor.dtype_name), shape_text(tensor.shape),
                    human_bytes(tensor.bytes)});
  }
  if (!others.empty()) {
    fmt::print("\n");
    others.print();
  }
}

Exit run_inspect(const Arguments& args) {
  auto checkpoint = Checkpoint::open(args.path);
  if (!checkpoint.ok()) return fail(checkpoint.status());
  if (args.json) {
    print_as_json(*checkpoint);
  } else {
    print_as_text(*checkpoint);
  }
  return Exit::kOk;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  const CommandHelp help = {
      "Show a checkpoint's layers and tensors",
      "Formats, shapes, sizes and bits per weight, from the headers alone: quick on any size.",
      {"nibble inspect model/", "nibble inspect model.safetensors --json"}};
  CLI::App* command = add_command(app, "inspect", help);
  auto args = std::make_shared<Arguments>();
  command->add_option("PATH", args->path, "a .safetensors file or a directory")->required();
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_inspect(*args); }; });
}

}  // namespace nibble::cli
