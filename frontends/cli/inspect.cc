// nibble inspect: what a checkpoint holds.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "cli.h"
#include "nibble/checkpoint.h"
#include "numbered_names.h"
#include "text.h"

namespace nibble::cli {
namespace {

struct Arguments {
  std::string path;
  bool json = false;
  bool all = false;
};

/// Longer lists are shown with names that differ in numbers alone as one row.
constexpr size_t kRowsOneByOne = 40;
constexpr size_t kMetadataRows = 60;
constexpr size_t kMetadataColumns = 90;
constexpr size_t kReasons = 10;  // sentences on layers that cannot be read

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

// "6.74 G", "70.2 M", "5120"
std::string count_text(int64_t count) {
  const auto value = static_cast<double>(count);
  if (count >= 1'000'000'000) return fmt::format("{:.2f} G", value / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.1f} M", value / 1e6);
  return std::to_string(count);
}

std::string format_text(const LayerInfo& layer) {
  if (!layer.status.ok()) return "unreadable";
  return layer.dense_only.empty() ? layer.format.name() : "dense only";
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

// Rows of equal keys as one, in the order of their first. `Row` has names and add(item).
template <class Row>
class Rows {
 public:
  template <class Item>
  void add(const std::string& key, const std::string& name, const Item& item) {
    const auto [found, is_first] = index_.emplace(key, rows_.size());
    if (is_first) rows_.emplace_back();
    Row& row = rows_[found->second];
    row.names.add(name);
    row.add(item);
  }
  const std::vector<Row>& rows() const { return rows_; }

 private:
  std::map<std::string, size_t> index_;
  std::vector<Row> rows_;
};

struct LayerRow {
  NumberedNames names;
  const LayerInfo* first = nullptr;
  int64_t bytes = 0, weights = 0;

  void add(const LayerInfo& layer) {
    if (first == nullptr) first = &layer;
    bytes += layer.stored_bytes;
    if (layer.status.ok()) weights += layer.n * layer.k;
  }
  std::string bits() const {
    return weights == 0 ? "-"
                        : fmt::format("{:.2f}", static_cast<double>(bytes) * 8 /
                                                    static_cast<double>(weights));
  }
};

struct TensorRow {
  NumberedNames names;
  const TensorInfo* first = nullptr;
  int64_t bytes = 0;

  void add(const TensorInfo& tensor) {
    if (first == nullptr) first = &tensor;
    bytes += tensor.bytes;
  }
};

Json layer_json(const LayerInfo& layer) {
  Json json = {{"name", layer.name}};
  if (layer.status.ok()) {
    if (layer.dense_only.empty()) {
      json["format"] = layer.format.name();
    } else {
      json["dense_only"] = layer.dense_only;
    }
    json["n"] = layer.n;
    json["k"] = layer.k;
    json["bits_per_weight"] = bits_per_weight(layer);
  } else {
    json["error"] = layer.status.message();
  }
  if (!layer.remark.empty()) json["remark"] = layer.remark;
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
  json["metadata"] = checkpoint.metadata();
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

// One line of a text that may have many, cut between characters.
std::string one_line(const std::string& text, size_t columns) {
  std::string line = text.substr(0, columns);
  if (line.size() < text.size()) {
    while (!line.empty() && (static_cast<unsigned char>(text[line.size()]) & 0xC0) == 0x80) {
      line.pop_back();
    }
    line += "…";
  }
  for (char& c : line) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return printable(line);
}

void print_metadata(const Checkpoint& checkpoint) {
  const auto& metadata = checkpoint.metadata();
  if (metadata.empty()) return;
  Table table({{"metadata"}, {"value"}});
  size_t shown = 0;
  for (const auto& [key, value] : metadata) {
    if (shown++ == kMetadataRows) break;
    table.add_row({one_line(key, kMetadataColumns), one_line(value, kMetadataColumns)});
  }
  fmt::print("\n");
  table.print();
  if (metadata.size() > kMetadataRows) {
    fmt::print("{} more keys: --json shows them\n", metadata.size() - kMetadataRows);
  }
}

// What the weights are stored as: a line for each Format and remark.
void print_mix(const Checkpoint& checkpoint, bool has_remarks) {
  Rows<LayerRow> mix;
  for (const LayerInfo& layer : checkpoint.layers()) {
    mix.add(format_text(layer) + "\n" + layer.remark, "", layer);
  }
  if (mix.rows().size() == 1 && checkpoint.layers().size() <= kRowsOneByOne) return;
  std::vector<Table::Column> columns = {
      {"format"}, {"layers", true}, {"weights", true}, {"bytes", true}, {"bits", true}};
  if (has_remarks) columns.push_back({"remark"});
  Table table(columns);
  for (const LayerRow& row : mix.rows()) {
    std::vector<std::string> cells = {format_text(*row.first), std::to_string(row.names.count()),
                                      row.weights == 0 ? "-" : count_text(row.weights),
                                      human_bytes(row.bytes), row.bits()};
    if (has_remarks) cells.push_back(printable(row.first->remark));
    table.add_row(std::move(cells));
  }
  fmt::print("\n");
  table.print();
}

// "name: reason" once for all layers with that reason.
void print_reasons(const Checkpoint& checkpoint) {
  std::map<std::string, std::pair<std::string, int64_t>> reasons;  // the first layer, how many
  std::vector<std::string> order;
  for (const LayerInfo& layer : checkpoint.layers()) {
    std::string reason;
    if (!layer.status.ok()) {
      // The status names its layer, which would tell equal reasons apart.
      const std::string& message = layer.status.message();
      const size_t name_end = message.find("': ");
      reason = "unreadable: " + (message.starts_with("layer '") && name_end != std::string::npos
                                     ? message.substr(name_end + 3)
                                     : message);
    } else if (!layer.dense_only.empty()) {
      reason = "dense only: " + layer.dense_only;
    } else {
      continue;
    }
    auto [found, is_first] = reasons.try_emplace(reason, layer.name, 0);
    if (is_first) order.push_back(reason);
    ++found->second.second;
  }
  for (size_t i = 0; i < std::min(order.size(), kReasons); ++i) {
    const auto& [name, count] = reasons.at(order[i]);
    const size_t colon = order[i].find(": ");
    const std::string which =
        count == 1 ? printable(name) : fmt::format("{} and {} more", printable(name), count - 1);
    fmt::print("{}: {}{}\n", order[i].substr(0, colon), which, printable(order[i].substr(colon)));
  }
  if (order.size() > kReasons) {
    fmt::print("{} more reasons: --json shows them\n", order.size() - kReasons);
  }
}

void print_layers(const Checkpoint& checkpoint, bool one_by_one) {
  bool has_remarks = false;
  for (const LayerInfo& layer : checkpoint.layers()) has_remarks |= !layer.remark.empty();
  print_mix(checkpoint, has_remarks);
  Rows<LayerRow> rows;
  for (const LayerInfo& layer : checkpoint.layers()) {
    const std::string name = one_by_one ? layer.name : number_pattern(layer.name);
    rows.add(
        fmt::format("{}\n{}\n{}\n{}\n{}", name, format_text(layer), layer.n, layer.k, layer.remark),
        layer.name, layer);
  }
  std::vector<Table::Column> columns = {{"layer"},   {"format"},      {"n", true},
                                        {"k", true}, {"bytes", true}, {"bits", true}};
  if (!one_by_one) columns.insert(columns.begin() + 1, {"layers", true});
  if (has_remarks) columns.push_back({"remark"});
  Table table(columns);
  for (const LayerRow& row : rows.rows()) {
    const LayerInfo& layer = *row.first;
    std::vector<std::string> cells = {printable(row.names.text())};
    if (!one_by_one) cells.push_back(std::to_string(row.names.count()));
    cells.push_back(format_text(layer));
    for (const int64_t extent : {layer.n, layer.k}) {
      cells.push_back(layer.status.ok() ? std::to_string(extent) : "-");
    }
    cells.push_back(human_bytes(row.bytes));
    cells.push_back(row.bits());
    if (has_remarks) cells.push_back(printable(layer.remark));
    table.add_row(std::move(cells));
  }
  fmt::print("\n");
  table.print();
  const Totals totals = totals_of(checkpoint);
  const size_t count = checkpoint.layers().size();
  fmt::print("{} {}, {} weights in {}: {:.2f} bits per weight\n", count,
             count == 1 ? "layer" : "layers", count_text(totals.layer_weights),
             human_bytes(totals.layer_bytes), totals.bits_per_weight());
  print_reasons(checkpoint);
}

void print_other_tensors(const Checkpoint& checkpoint, bool one_by_one) {
  const auto owners = layer_of_tensor(checkpoint);
  Rows<TensorRow> rows;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (owners.contains(tensor.name)) continue;
    const std::string name = one_by_one ? tensor.name : number_pattern(tensor.name);
    rows.add(name + "\n" + tensor.dtype_name + "\n" + shape_text(tensor.shape), tensor.name,
             tensor);
  }
  if (rows.rows().empty()) return;
  std::vector<Table::Column> columns = {{"tensor"}, {"dtype"}, {"shape"}, {"bytes", true}};
  if (!one_by_one) columns.insert(columns.begin() + 1, {"tensors", true});
  Table table(columns);
  for (const TensorRow& row : rows.rows()) {
    std::vector<std::string> cells = {printable(row.names.text())};
    if (!one_by_one) cells.push_back(std::to_string(row.names.count()));
    cells.push_back(printable(row.first->dtype_name));
    cells.push_back(shape_text(row.first->shape));
    cells.push_back(human_bytes(row.bytes));
    table.add_row(std::move(cells));
  }
  fmt::print("\n");
  table.print();
}

void print_as_text(const Checkpoint& checkpoint, bool all) {
  const Totals totals = totals_of(checkpoint);
  const std::string spelling =
      checkpoint.spelling().empty() ? "float" : printable(checkpoint.spelling());
  const size_t files = checkpoint.shards().size();
  fmt::print("{}: {}, {} tensors in {} {}, {}\n", printable(checkpoint.path()), spelling,
             checkpoint.tensors().size(), files, files == 1 ? "file" : "files",
             human_bytes(totals.tensor_bytes));
  print_metadata(checkpoint);
  // A layer of several tensors is one row, so tensors are no measure of what is printed.
  size_t owned = 0;
  for (const LayerInfo& layer : checkpoint.layers()) owned += layer.tensors.size();
  const size_t others = checkpoint.tensors().size() - std::min(owned, checkpoint.tensors().size());
  const bool one_by_one = all || checkpoint.layers().size() + others <= kRowsOneByOne;
  if (!checkpoint.layers().empty()) print_layers(checkpoint, one_by_one);
  print_other_tensors(checkpoint, one_by_one);
  if (!one_by_one)
    fmt::print("\nNames that differ only in numbers share a row; --all lists each.\n");
}

Exit run_inspect(const Arguments& args) {
  auto checkpoint = Checkpoint::open(args.path);
  if (!checkpoint.ok()) return fail(checkpoint.status());
  if (args.json) {
    print_as_json(*checkpoint);
  } else {
    print_as_text(*checkpoint, args.all);
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
  command->add_option("PATH", args->path, "a .safetensors, .gguf or .onnx file, or a directory")
      ->required();
  command->add_flag("--all", args->all, "a row for every layer and tensor, however many");
  command->add_flag("--json", args->json, "print one JSON object");
  command->callback([args, &action] { action = [args] { return run_inspect(*args); }; });
}

}  // namespace nibble::cli
