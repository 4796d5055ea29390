// The quantized layers of an ONNX graph: stored tensors that MatMulNBits, GatherBlockQuantized
// (com.microsoft) or DequantizeLinear decode.
//
// A layer's name comes from its tensor: "model.layers.0.mlp.up_proj.weight_Q4" is the layer
// "model.layers.0.mlp.up_proj"; what tools append (_Q4, _DQ, _quantized, .weight, .MatMul, …) is
// dropped. Where an exporter numbered its tensors ("onnx::MatMul_1234_Q4"), the name is that of the
// node that multiplies: "/model/layers.0/mlp/up_proj/MatMul_Q4" gives the same. Layers whose names
// would be equal keep their tensor's whole name.
#include <algorithm>
#include <map>
#include <set>

#include "checkpoint/json.h"
#include "checkpoint/onnx_operators.h"

namespace nibble::checkpoint {
namespace {

// ---------------------------------------------------------------------------------- what decodes

/// A node that decodes a stored matrix, and the node that multiplies with it.
struct Decoder {
  const OnnxNode* node = nullptr;
  const OnnxNode* product = nullptr;  ///< may be null
  OnnxOrder order = OnnxOrder::kRowsAreOutputs;
};

bool swaps_matrix(const OnnxNode& transpose) {
  const OnnxAttribute* perm = transpose.attribute("perm");
  return perm == nullptr || (perm->ints.size() == 2 && perm->ints[0] == 1 && perm->ints[1] == 0);
}

/// The first MatMul, Gemm or Gather that a decoded matrix meets, behind Transpose, Cast and
/// Identity, and what that makes of its rows.
Decoder with_product(const OnnxGraph& graph, const OnnxNode& decoder) {
  constexpr int kMaxSteps = 8;  // a graph with a cycle is no graph, but may be in a file
  Decoder out{&decoder, nullptr, OnnxOrder::kRowsAreOutputs};
  bool swapped = false;
  const OnnxNode* at = &decoder;
  for (int step = 0; step < kMaxSteps && !at->outputs.empty() && at->outputs[0] >= 0; ++step) {
    const OnnxNode* next = nullptr;
    for (const OnnxUse& use : graph.values[static_cast<size_t>(at->outputs[0])].uses) {
      const OnnxNode& node = graph.nodes[static_cast<size_t>(use.node)];
      const bool multiplies = node.is("", "MatMul") || (node.is("", "Gemm") && use.input < 2);
      if (multiplies || (node.is("", "Gather") && use.input == 0)) {
        // W · x takes rows as outputs; so does x · Wᵀ, and so do an embedding's rows.
        bool by_rows = !node.is("", "MatMul") || use.input == 0;
        if (node.is("", "Gemm")) {
          by_rows =
              use.input == 0 ? node.integer("transA", 0) == 0 : node.integer("transB", 0) != 0;
        }
        out.product = &node;
        out.order = by_rows != swapped ? OnnxOrder::kRowsAreOutputs : OnnxOrder::kColumnsAreOutputs;
        return out;
      }
      const bool passes =
          node.is("", "Transpose") || node.is("", "Cast") || node.is("", "Identity");
      if (passes && use.input == 0 && next == nullptr) next = &node;
    }
    if (next == nullptr) return out;
    if (next->is("", "Transpose")) swapped ^= swaps_matrix(*next);
    at = next;
  }
  return out;
}

bool is_four_bits(const TensorInfo& tensor) {
  return tensor.dtype_name == "INT4" || tensor.dtype_name == "UINT4" ||
         tensor.dtype_name == "FLOAT4E2M1";
}

/// The decoder of a tensor in this use; its node is null where the use decodes nothing. 8-bit
/// matrices count where a product takes them: elsewhere they may be anything.
Decoder decoder_of(const OnnxGraph& graph, const TensorInfo& tensor, const OnnxUse& use) {
  const OnnxNode& node = graph.nodes[static_cast<size_t>(use.node)];
  if (node.is(kMicrosoft, "MatMulNBits") && use.input == 1) {
    return {&node, &node, OnnxOrder::kRowsAreOutputs};
  }
  if (node.is(kMicrosoft, "GatherBlockQuantized") && use.input == 0) {
    return {&node, &node, OnnxOrder::kRowsAreOutputs};
  }
  const bool is_matrix = tensor.shape.size() == 2;
  if (!node.is("", "DequantizeLinear") || use.input != 0 || !is_matrix) return {};
  if (!node.outputs.empty() && node.outputs[0] >= 0) {
    const auto& uses = graph.values[static_cast<size_t>(node.outputs[0])].uses;
    const bool is_scale = std::any_of(uses.begin(), uses.end(), [&graph](const OnnxUse& next) {
      return next.input == 1 &&
             graph.nodes[static_cast<size_t>(next.node)].is("", "DequantizeLinear");
    });
    if (is_scale) return {};
  }
  const Decoder decoder = with_product(graph, node);
  return decoder.product != nullptr || is_four_bits(tensor) ? decoder : Decoder{};
}

Result<OnnxWeight> weight_of(const Source& source, const Decoder& decoder) {
  if (decoder.node->op_type == "MatMulNBits") return matmul_nbits_weight(source, *decoder.node);
  if (decoder.node->op_type == "GatherBlockQuantized") return gather_weight(source, *decoder.node);
  return dequantize_weight(source, *decoder.node, decoder.order);
}

// ----------------------------------------------------------------------------------------- names

/// Drops "_Q4", "_Q8G128", … from the end.
bool drop_width(std::string& name) {
  size_t end = name.size();
  const auto digits = [&] {
    const size_t begin = end;
    while (end > 0 && name[end - 1] >= '0' && name[end - 1] <= '9') --end;
    return end < begin;
  };
  if (!digits()) return false;
  if (end > 0 && name[end - 1] == 'G') {
    --end;
    if (!digits()) return false;
  }
  if (end < 2 || name.compare(end - 2, 2, "_Q") != 0) return false;
  name.resize(end - 2);
  return true;
}

/// What tools append to the name of a module, its tensor or its node.
std::string module_name(std::string name) {
  constexpr const char* kSuffixes[] = {"_DQ",
                                       "_quantized",
                                       "_quant",
                                       "_matmul",
                                       ".weight",
                                       ".qweight",
                                       "/MatMul",
                                       ".MatMul",
                                       "/Gemm",
                                       "/MatMulNBits",
                                       "_QuantizeLinear_Input"};
  for (bool dropped = true; dropped;) {
    dropped = drop_width(name);
    for (const char* suffix : kSuffixes) {
      if (const auto shorter = without_suffix(name, suffix)) {
        name = *shorter;
        dropped = true;
      }
    }
  }
  return name;
}

/// "onnx::MatMul_1234", "val_12", "1234": names that say nothing.
bool is_numbered(std::string_view name) {
  if (name.starts_with("onnx::")) return true;
  if (name.starts_with("val_")) name.remove_prefix(4);
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string layer_name(const OnnxGraph& graph, const OnnxTensor& codes, const Decoder& decoder) {
  const auto value = static_cast<size_t>(
      graph.value_of_tensor[static_cast<size_t>(&codes - graph.tensors.data())]);
  const OnnxScope& scope = graph.scopes[static_cast<size_t>(graph.values[value].scope)];
  std::string name = module_name(codes.name.substr(scope.prefix.size()));
  if (!is_numbered(name)) return scope.prefix + name;
  const OnnxNode& node = decoder.product != nullptr ? *decoder.product : *decoder.node;
  name = module_name(std::string(node.name));
  std::replace(name.begin(), name.end(), '/', '.');
  name.erase(0, name.find_first_not_of('.'));
  return is_numbered(name) ? codes.name : scope.prefix + name;
}

// ---------------------------------------------------------------------------------------- layers

/// The decoder of a tensor, of all its uses the first, and whether the others agree with it.
struct Found {
  Decoder decoder;
  Result<OnnxWeight> weight;
};
std::optional<Found> find_decoder(const Source& source, const TensorInfo& tensor) {
  const OnnxGraph& graph = *source.graph;
  const int32_t index = graph.find_tensor(tensor.name);
  if (index < 0) return std::nullopt;
  std::optional<Found> found;
  const auto value = static_cast<size_t>(graph.value_of_tensor[static_cast<size_t>(index)]);
  for (const OnnxUse& use : graph.values[value].uses) {
    const Decoder decoder = decoder_of(graph, tensor, use);
    if (decoder.node == nullptr) continue;
    Result<OnnxWeight> weight = weight_of(source, decoder);
    if (!found) {
      found.emplace(Found{decoder, std::move(weight)});
      continue;
    }
    if (!weight.ok() || !found->weight.ok()) continue;
    weight->remark = found->weight->remark;  // several products may have a bias each
    if (*weight == *found->weight) continue;
    found->weight = unsupported("the nodes " + shown(found->decoder.node->name) + " and " +
                                shown(decoder.node->name) + " decode tensor " + shown(tensor.name) +
                                " in two ways");
    break;
  }
  return found;
}

LayerInfo describe(const Source& source, const TensorInfo& codes, const Found& found) {
  LayerInfo layer;
  const auto index = static_cast<size_t>(source.graph->find_tensor(codes.name));
  layer.name = layer_name(*source.graph, source.graph->tensors[index], found.decoder);
  const auto add = [&layer](const TensorInfo* tensor) {
    if (tensor == nullptr) return;
    layer.tensors.push_back(tensor->name);
    layer.stored_bytes += tensor->bytes;
  };
  if (!found.weight.ok()) {
    add(&codes);
    layer.status = found.weight.status();
    return layer;
  }
  const OnnxWeight& weight = *found.weight;
  for (const TensorInfo* tensor : {weight.codes, weight.scales, weight.zeros, weight.index,
                                   weight.tensor_scale, weight.float_zero, weight.scale_zero}) {
    add(tensor);
  }
  layer.n = weight.n;
  layer.k = weight.k;
  layer.remark = weight.remark;
  const Result<GroupMap> map = onnx_groups(source, weight);
  if (!map.ok()) {
    layer.status = map.status();
    return layer;
  }
  if (!map->order.empty()) {
    layer.remark = layer.remark.empty() ? "act-order" : "act-order, " + layer.remark;
  }
  layer.dense_only = map->dense_only;
  layer.format = onnx_format(weight, *map);
  if (layer.dense_only.empty()) layer.status = layer.format.validate();
  return layer;
}

/// Names that stand twice become those of the tensors; what still is not unique gets a number.
void make_unique(std::vector<LayerInfo>& layers) {
  std::map<std::string, int> count;
  for (const LayerInfo& layer : layers) ++count[layer.name];
  std::set<std::string> taken;
  int number = 1;
  for (LayerInfo& layer : layers) {
    if (count[layer.name] > 1 && !layer.tensors.empty()) layer.name = layer.tensors.front();
    const std::string name = layer.name;
    while (!taken.insert(layer.name).second) layer.name = name + "#" + std::to_string(++number);
  }
}

/// MatMulNBits whose weight the graph computes: no tensor leads to them.
void add_computed(const OnnxGraph& graph, std::vector<LayerInfo>& layers) {
  for (const OnnxNode& node : graph.nodes) {
    if (!node.is(kMicrosoft, "MatMulNBits") || graph.tensor_of(node.input(1)) != nullptr) continue;
    LayerInfo layer;
    layer.name = module_name(std::string(node.name));
    const int32_t value = node.input(1);
    layer.status =
        value < 0 ? corrupt_file("it has no B")
                  : unsupported("its B " + shown(graph.values[static_cast<size_t>(value)].name) +
                                " is no stored tensor");
    layers.push_back(std::move(layer));
  }
}

bool claims(const Source& source) {
  if (source.graph == nullptr) return false;
  const auto decodes = [](const OnnxNode& node) {
    return node.is(kMicrosoft, "MatMulNBits") || node.is(kMicrosoft, "GatherBlockQuantized") ||
           node.is("", "DequantizeLinear");
  };
  const std::vector<OnnxNode>& nodes = source.graph->nodes;
  return std::any_of(nodes.begin(), nodes.end(), decodes);
}

std::vector<LayerInfo> layers(const Source& source) {
  std::vector<LayerInfo> out;
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const std::optional<Found> found = find_decoder(source, tensor);
    if (found) out.push_back(describe(source, tensor, *found));
  }
  add_computed(*source.graph, out);
  make_unique(out);
  return out;
}

/// The weight of a layer that was listed without an error.
Result<OnnxWeight> listed_weight(const Source& source, const LayerInfo& layer) {
  std::optional<Found> found = find_decoder(source, *source.tensors.find(layer.tensors.front()));
  if (!found) return internal_error("no node decodes its tensor");
  return std::move(found->weight);
}

Result<QuantizedTensor> load(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const OnnxWeight weight, listed_weight(source, layer));
  NIBBLE_ASSIGN_OR_RETURN(const GroupMap map, onnx_groups(source, weight));
  return load_onnx_weight(source, weight, map);
}

Result<DenseRows> dense(const Source& source, const LayerInfo& layer) {
  NIBBLE_ASSIGN_OR_RETURN(const OnnxWeight weight, listed_weight(source, layer));
  return dense_onnx_weight(source, weight);
}

}  // namespace

extern const ReadSpelling kReadOnnx;
const ReadSpelling kReadOnnx = {"onnx", claims, layers, load, dense};

}  // namespace nibble::checkpoint
