// ModelProto and what it holds but for tensors, read field by field, and names turned into values.
#include <algorithm>
#include <numeric>
#include <set>
#include <unordered_map>

#include "checkpoint/json.h"
#include "checkpoint/onnx_message.h"

namespace nibble::checkpoint {

using namespace onnx_message;  // NOLINT: this file implements a part of it

namespace {

// Field numbers of onnx.proto.
namespace field {
enum Model : uint32_t {
  kIrVersion = 1,
  kProducerName = 2,
  kProducerVersion = 3,
  kModelDomain = 4,
  kModelVersion = 5,
  kGraph = 7,
  kOpsetImport = 8,
  kModelProperties = 14,
  kFunctions = 25,
};
enum Graph : uint32_t { kGraphNode = 1, kGraphName = 2, kInitializer = 5 };
enum Function : uint32_t { kFunctionName = 1, kFunctionNode = 7 };
enum Node : uint32_t {
  kInput = 1,
  kOutput = 2,
  kNodeName = 3,
  kOpType = 4,
  kAttribute = 5,
  kNodeDomain = 7,
};
}  // namespace field

class Parser {
 public:
  explicit Parser(OnnxGraph& graph) : graph_(graph) {}

  void parse_model(std::string_view message) {
    std::string_view graph;
    std::vector<std::string_view> functions;
    std::map<std::string, std::string> properties;
    bool has_graph = false;
    const auto note = [this](const std::string& key, std::string value) {
      if (!value.empty()) graph_.metadata[key] = std::move(value);
    };
    pbf_reader in = reader_of(message);
    while (in.next()) {
      switch (in.tag()) {
        case field::kIrVersion:
          note("ir_version", std::to_string(integer_of(in, "ir_version")));
          break;
        case field::kProducerName:
          note("producer_name", std::string(bytes_of(in, "producer_name")));
          break;
        case field::kProducerVersion:
          note("producer_version", std::string(bytes_of(in, "producer_version")));
          break;
        case field::kModelDomain:
          note("domain", std::string(bytes_of(in, "domain")));
          break;
        case field::kModelVersion:
          note("model_version", std::to_string(integer_of(in, "model_version")));
          break;
        case field::kGraph:
          if (has_graph) fail("the model has two graphs");
          has_graph = true;
          graph = bytes_of(in, "graph");
          break;
        case field::kOpsetImport:
          note_opset(bytes_of(in, "opset_import"));
          break;
        case field::kModelProperties: {
          const auto [key, value] = entry_of(bytes_of(in, "metadata_props"));
          properties.emplace(key, value);
          break;
        }
        case field::kFunctions:
          functions.push_back(bytes_of(in, "functions"));
          break;
        default:
          in.skip();
      }
    }
    if (!has_graph) fail("the model has no graph; is it an ONNX file?");
    parse_graph(graph, add_scope(-1, ""), 0);
    for (const std::string_view function : functions) parse_function(function);
    // The model's own words win over properties of the same name.
    graph_.metadata.insert(properties.begin(), properties.end());
    connect();
  }

 private:
  struct NodeNames {
    std::vector<std::string_view> inputs, outputs;
  };
  struct Definition {
    int32_t scope;
    std::string_view name;
    bool operator==(const Definition&) const = default;
  };
  struct Hash {
    size_t operator()(const Definition& d) const {
      return std::hash<std::string_view>()(d.name) * 31 + static_cast<size_t>(d.scope);
    }
  };

  void note_opset(std::string_view message) {
    std::string_view domain = "ai.onnx";
    int64_t version = 0;
    pbf_reader in = reader_of(message);
    while (in.next()) {
      if (in.tag() == 1) {
        const std::string_view stored = bytes_of(in, "an opset's domain");
        if (!stored.empty()) domain = stored;
      } else if (in.tag() == 2) {
        version = integer_of(in, "an opset's version");
      } else {
        in.skip();
      }
    }
    graph_.metadata["opset." + std::string(domain)] = std::to_string(version);
  }

  /// Prefixes are what keeps names of subgraphs apart; long or repeated ones become numbers.
  int32_t add_scope(int32_t parent, const std::string& label) {
    const auto index = static_cast<int32_t>(graph_.scopes.size());
    std::string prefix;
    if (!label.empty()) {
      if (parent >= 0) prefix = graph_.scopes[static_cast<size_t>(parent)].prefix;
      prefix += label + "/";
      if (prefix.size() > 200 || !prefixes_.insert(prefix).second) {
        prefix = "subgraph" + std::to_string(index) + "/";
      }
    }
    graph_.scopes.push_back({parent, std::move(prefix)});
    return index;
  }

  void parse_graph(std::string_view message, int32_t scope, int depth) {
    if (depth > kMaxOnnxDepth) {
      fail("subgraphs lie more than " + std::to_string(kMaxOnnxDepth) + " deep in one another");
    }
    pbf_reader in = reader_of(message);
    while (in.next()) {
      switch (in.tag()) {
        case field::kGraphNode:
          parse_node(bytes_of(in, "node"), scope, depth);
          break;
        case field::kGraphName: {
          const std::string_view name = bytes_of(in, "a graph's name");
          if (scope == 0 && !name.empty()) graph_.metadata["graph_name"] = std::string(name);
          break;
        }
        case field::kInitializer: {
          const std::string_view tensor = bytes_of(in, "initializer");
          OnnxTensor parsed = parse_tensor(tensor);
          const std::string_view name = parsed.stored_name;
          if (name.empty()) fail("an initializer has no name");
          define(scope, name, -1, add_tensor(std::move(parsed), scope, name));
          break;
        }
        default:
          in.skip();
      }
    }
  }

  void parse_function(std::string_view message) {
    std::string_view name;
    pbf_reader in = reader_of(message);
    while (in.next()) {
      if (in.tag() == field::kFunctionName) {
        name = bytes_of(in, "a function's name");
      } else {
        in.skip();
      }
    }
    const int32_t scope = add_scope(-1, name.empty() ? "function" : std::string(name));
    in = reader_of(message);
    while (in.next()) {
      if (in.tag() == field::kFunctionNode) {
        parse_node(bytes_of(in, "node"), scope, 0);
      } else {
        in.skip();
      }
    }
  }

  void parse_node(std::string_view message, int32_t scope, int depth) {
    OnnxNode node;
    NodeNames names;
    node.scope = scope;
    node.message = message;
    pbf_reader in = reader_of(message);
    while (in.next()) {
      switch (in.tag()) {
        case field::kInput:
          count_part();
          names.inputs.push_back(bytes_of(in, "a node's input"));
          break;
        case field::kOutput:
          count_part();
          names.outputs.push_back(bytes_of(in, "a node's output"));
          break;
        case field::kNodeName:
          node.name = bytes_of(in, "a node's name");
          break;
        case field::kOpType:
          node.op_type = bytes_of(in, "op_type");
          break;
        case field::kNodeDomain:
          node.domain = bytes_of(in, "a node's domain");
          break;
        case field::kAttribute:
          count_part();
          node.attributes.emplace_back().message = bytes_of(in, "a node's attribute");
          break;
        default:
          in.skip();
      }
    }
    if (node.domain == "ai.onnx") node.domain = "";
    if (node.op_type.empty()) fail("node " + shown(node.name) + " has no op_type");
    const bool is_constant = node.is("", "Constant") && names.outputs.size() == 1;
    std::optional<OnnxTensor> constant;
    for (OnnxAttribute& attribute : node.attributes) {
      parse_attribute(attribute, node, scope, depth);
      if (!is_constant) continue;
      try {
        std::optional<OnnxTensor> value = parse_constant(attribute);
        if (value) constant = std::move(value);
      } catch (Malformed& malformed) {
        malformed.message = "constant " + shown(names.outputs[0]) + ": " + malformed.message;
        throw;
      }
    }
    if (graph_.nodes.size() == kMaxOnnxNodes) {
      throw Malformed{Code::kUnsupported, "more than " + std::to_string(kMaxOnnxNodes) + " nodes"};
    }
    const auto index = static_cast<int32_t>(graph_.nodes.size());
    graph_.nodes.push_back(std::move(node));
    for (const std::string_view output : names.outputs) {
      if (output.empty()) continue;
      int32_t tensor = -1;
      if (constant && (constant->type() == nullptr || constant->type()->is_numeric())) {
        tensor = add_tensor(std::move(*constant), scope, output);
      }
      define(scope, output, index, tensor);
    }
    names_.push_back(std::move(names));
  }

  void count_part() {
    if (++parts_ <= kMaxOnnxParts) return;
    throw Malformed{Code::kUnsupported, "more than " + std::to_string(kMaxOnnxParts) +
                                            " inputs, outputs and attributes of nodes"};
  }

  void parse_attribute(OnnxAttribute& attribute, const OnnxNode& node, int32_t scope, int depth) {
    std::vector<std::string_view> subgraphs;
    pbf_reader in = reader_of(attribute.message);
    while (in.next()) {
      switch (in.tag()) {
        case attribute_field::kName:
          attribute.name = bytes_of(in, "an attribute's name");
          break;
        case attribute_field::kI:
          attribute.i = integer_of(in, "an attribute");
          break;
        case attribute_field::kS:
          attribute.s = bytes_of(in, "an attribute");
          break;
        case attribute_field::kInts:
          append_integers(in, "an attribute", attribute.ints);
          break;
        case attribute_field::kG:
        case attribute_field::kGraphs:
          subgraphs.push_back(bytes_of(in, "a subgraph"));
          break;
        default:
          in.skip();
      }
    }
    for (size_t i = 0; i < subgraphs.size(); ++i) {
      std::string label(node.name.empty() ? node.op_type : node.name);
      label += "." + std::string(attribute.name);
      if (i > 0) label += std::to_string(i);
      parse_graph(subgraphs[i], add_scope(scope, label), depth + 1);
    }
  }

  /// Its index in graph_.tensors.
  int32_t add_tensor(OnnxTensor tensor, int32_t scope, std::string_view name) {
    if (graph_.tensors.size() == kMaxOnnxTensors) {
      throw Malformed{Code::kUnsupported,
                      "more than " + std::to_string(kMaxOnnxTensors) + " tensors"};
    }
    tensor.name = graph_.scopes[static_cast<size_t>(scope)].prefix + std::string(name);
    graph_.tensors.push_back(std::move(tensor));
    return static_cast<int32_t>(graph_.tensors.size()) - 1;
  }

  // --- values

  void define(int32_t scope, std::string_view name, int32_t producer, int32_t tensor) {
    const auto index = static_cast<int32_t>(graph_.values.size());
    if (!values_.emplace(Definition{scope, name}, index).second) {
      fail((tensor >= 0 && producer < 0 ? "initializer " : "the value ") + shown(name) +
           " stands twice");
    }
    graph_.values.push_back({name, scope, producer, tensor, {}});
    if (tensor >= 0) {
      graph_.value_of_tensor.resize(static_cast<size_t>(tensor) + 1, -1);
      graph_.value_of_tensor[static_cast<size_t>(tensor)] = index;
    }
  }

  /// The value that a name means inside a scope; made where nothing defines it: a graph's input.
  int32_t resolve(int32_t scope, std::string_view name) {
    for (int32_t at = scope; at >= 0; at = graph_.scopes[static_cast<size_t>(at)].parent) {
      const auto found = values_.find(Definition{at, name});
      if (found != values_.end()) return found->second;
    }
    define(scope, name, -1, -1);
    return static_cast<int32_t>(graph_.values.size()) - 1;
  }

  /// Turns names into values once all of them are known.
  void connect() {
    for (size_t i = 0; i < graph_.nodes.size(); ++i) {
      OnnxNode& node = graph_.nodes[i];
      for (const std::string_view name : names_[i].inputs) {
        const int32_t value = name.empty() ? -1 : resolve(node.scope, name);
        if (value >= 0) {
          graph_.values[static_cast<size_t>(value)].uses.push_back(
              {static_cast<int32_t>(i), static_cast<int32_t>(node.inputs.size())});
        }
        node.inputs.push_back(value);
      }
      for (const std::string_view name : names_[i].outputs) {
        node.outputs.push_back(name.empty() ? -1 : resolve(node.scope, name));
      }
      names_[i] = {};
    }
    graph_.by_name.resize(graph_.tensors.size());
    std::iota(graph_.by_name.begin(), graph_.by_name.end(), 0);
    const auto name_of = [this](int32_t i) -> const std::string& {
      return graph_.tensors[static_cast<size_t>(i)].name;
    };
    std::sort(graph_.by_name.begin(), graph_.by_name.end(),
              [&](int32_t a, int32_t b) { return name_of(a) < name_of(b); });
    const auto twice =
        std::adjacent_find(graph_.by_name.begin(), graph_.by_name.end(),
                           [&](int32_t a, int32_t b) { return name_of(a) == name_of(b); });
    if (twice != graph_.by_name.end()) fail("tensor " + shown(name_of(*twice)) + " stands twice");
  }

  OnnxGraph& graph_;
  std::vector<NodeNames> names_;  ///< parallel to graph_.nodes
  std::unordered_map<Definition, int32_t, Hash> values_;
  std::set<std::string> prefixes_;
  size_t parts_ = 0;
};

}  // namespace

const OnnxAttribute* OnnxNode::attribute(std::string_view key) const {
  for (const OnnxAttribute& attribute : attributes) {
    if (attribute.name == key) return &attribute;
  }
  return nullptr;
}

int64_t OnnxNode::integer(std::string_view key, int64_t otherwise) const {
  const OnnxAttribute* found = attribute(key);
  return found == nullptr ? otherwise : found->i;
}

int32_t OnnxGraph::find_tensor(std::string_view name) const {
  const auto found = std::lower_bound(
      by_name.begin(), by_name.end(), name,
      [this](int32_t i, std::string_view n) { return tensors[static_cast<size_t>(i)].name < n; });
  if (found == by_name.end() || tensors[static_cast<size_t>(*found)].name != name) return -1;
  return *found;
}

const OnnxTensor* OnnxGraph::tensor_of(int32_t value) const {
  if (value < 0) return nullptr;
  const int32_t tensor = values[static_cast<size_t>(value)].tensor;
  return tensor < 0 ? nullptr : &tensors[static_cast<size_t>(tensor)];
}

const OnnxNode* OnnxGraph::producer_of(int32_t value) const {
  if (value < 0) return nullptr;
  const int32_t producer = values[static_cast<size_t>(value)].producer;
  return producer < 0 ? nullptr : &nodes[static_cast<size_t>(producer)];
}

Result<OnnxGraph> parse_onnx(MappedFile file, const std::string& name) {
  OnnxGraph graph;
  const std::string_view message(reinterpret_cast<const char*>(file.data()),
                                 static_cast<size_t>(file.bytes()));
  graph.file = std::move(file);
  NIBBLE_RETURN_IF_ERROR(caught([&] { Parser(graph).parse_model(message); }).with_context(name));
  return graph;
}

}  // namespace nibble::checkpoint
