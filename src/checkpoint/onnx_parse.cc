// The protobuf messages of ONNX, read field by field. Protozero throws where bytes end early; those
// exceptions, and Malformed of our own, end in parse_onnx and decode_onnx_values.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <limits>
#include <numeric>
#include <protozero/pbf_reader.hpp>
#include <set>
#include <unordered_map>

#include "checkpoint/json.h"
#include "checkpoint/onnx.h"

namespace nibble::checkpoint {
namespace {

using protozero::pbf_reader;
using protozero::pbf_wire_type;

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
enum Graph : uint32_t { kGraphNode = 1, kGraphName = 2, kInitializer = 5, kGraphInput = 11 };
enum Function : uint32_t { kFunctionName = 1, kFunctionInput = 4, kFunctionNode = 7 };
enum Node : uint32_t { kInput = 1, kOutput = 2, kNodeName = 3, kOpType = 4, kAttribute = 5 };
constexpr uint32_t kNodeDomain = 7;
enum Attribute : uint32_t {
  kAttributeName = 1,
  kF = 2,
  kI = 3,
  kS = 4,
  kT = 5,
  kG = 6,
  kFloats = 7,
  kInts = 8,
  kGraphs = 11,
};
enum Tensor : uint32_t {
  kDims = 1,
  kDataType = 2,
  kSegment = 3,
  kFloatData = 4,
  kInt32Data = 5,
  kInt64Data = 7,
  kTensorName = 8,
  kRawData = 9,
  kDoubleData = 10,
  kUint64Data = 11,
  kExternalData = 13,
  kDataLocation = 14,
};
}  // namespace field

constexpr int32_t kFloatType = 1, kInt64Type = 7, kStringType = 8;
constexpr OnnxType kTypes[] = {
    {1, "FLOAT", 32, DType::kF32, field::kFloatData},
    {2, "UINT8", 8, DType::kU8, field::kInt32Data},
    {3, "INT8", 8, DType::kI8, field::kInt32Data},
    {4, "UINT16", 16, DType::kU16, field::kInt32Data},
    {5, "INT16", 16, DType::kI16, field::kInt32Data},
    {6, "INT32", 32, DType::kI32, field::kInt32Data},
    {7, "INT64", 64, DType::kI64, field::kInt64Data},
    {8, "STRING", 0, {}, 0},
    {9, "BOOL", 8, DType::kBool, field::kInt32Data},
    {10, "FLOAT16", 16, DType::kF16, field::kInt32Data},
    {11, "DOUBLE", 64, DType::kF64, field::kDoubleData},
    {12, "UINT32", 32, DType::kU32, field::kUint64Data},
    {13, "UINT64", 64, DType::kU64, field::kUint64Data},
    {14, "COMPLEX64", 64, {}, field::kFloatData},
    {15, "COMPLEX128", 128, {}, field::kDoubleData},
    {16, "BFLOAT16", 16, DType::kBF16, field::kInt32Data},
    {17, "FLOAT8E4M3FN", 8, DType::kE4M3, field::kInt32Data},
    {18, "FLOAT8E4M3FNUZ", 8, {}, field::kInt32Data},
    {19, "FLOAT8E5M2", 8, DType::kE5M2, field::kInt32Data},
    {20, "FLOAT8E5M2FNUZ", 8, {}, field::kInt32Data},
    {21, "UINT4", 4, {}, field::kInt32Data},
    {22, "INT4", 4, {}, field::kInt32Data},
    {23, "FLOAT4E2M1", 4, {}, field::kInt32Data},
    {24, "FLOAT8E8M0", 8, DType::kE8M0, field::kInt32Data},
    {25, "UINT2", 2, {}, field::kInt32Data},
    {26, "INT2", 2, {}, field::kInt32Data},
    {27, "FLOAT6E2M3", 0, {}, 0},
    {28, "FLOAT6E3M2", 0, {}, 0},
};

struct Malformed {
  Code code;
  std::string message;
};
[[noreturn]] void fail(std::string message) {
  throw Malformed{Code::kCorruptFile, std::move(message)};
}

std::string_view bytes_of(pbf_reader& in, const char* what) {
  if (in.wire_type() != pbf_wire_type::length_delimited) {
    fail(std::string(what) + " is not stored as bytes");
  }
  const protozero::data_view view = in.get_view();
  return {view.data(), view.size()};
}
int64_t integer_of(pbf_reader& in, const char* what) {
  if (in.wire_type() != pbf_wire_type::varint) fail(std::string(what) + " is not an integer");
  return in.get_int64();
}
pbf_reader reader_of(std::string_view message) {
  return pbf_reader(message.data(), message.size());
}

/// Appends a repeated integer, packed or one at a time.
void append_integers(pbf_reader& in, const char* what, std::vector<int64_t>& out) {
  if (in.wire_type() != pbf_wire_type::length_delimited) {
    out.push_back(integer_of(in, what));
    return;
  }
  for (const int64_t value : in.get_packed_int64()) out.push_back(value);
}

/// key and value of a StringStringEntryProto.
std::pair<std::string_view, std::string_view> entry_of(std::string_view message) {
  std::pair<std::string_view, std::string_view> out;
  pbf_reader in = reader_of(message);
  while (in.next()) {
    if (in.tag() == 1) {
      out.first = bytes_of(in, "a key");
    } else if (in.tag() == 2) {
      out.second = bytes_of(in, "a value");
    } else {
      in.skip();
    }
  }
  return out;
}

int64_t file_position(std::string_view text, const char* what) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    fail(std::string("the ") + what + " of its external data is " + shown(text) +
         ", not a number of bytes");
  }
  return value;
}

// ------------------------------------------------------------------------------- typed values

/// Values of a field that holds them packed, one at a time, or both ways in turn.
template <class Visit>
void for_each_value(std::string_view message, uint32_t values_field, bool fixed, int width,
                    const Visit& visit) {
  pbf_reader in = reader_of(message);
  while (in.next()) {
    if (in.tag() != values_field) {
      in.skip();
    } else if (in.wire_type() == pbf_wire_type::length_delimited) {
      const std::string_view packed = bytes_of(in, "a list of values");
      if (fixed) {
        if (packed.size() % static_cast<size_t>(width) != 0) {
          fail("its list of values ends inside a value");
        }
        for (size_t i = 0; i < packed.size(); i += static_cast<size_t>(width)) {
          uint64_t value = 0;
          std::memcpy(&value, packed.data() + i, static_cast<size_t>(width));
          visit(value);
        }
      } else {
        const char* position = packed.data();
        const char* const end = position + packed.size();
        while (position != end) visit(protozero::decode_varint(&position, end));
      }
    } else if (!fixed && in.wire_type() == pbf_wire_type::varint) {
      visit(in.get_uint64());
    } else if (fixed && width == 4 && in.wire_type() == pbf_wire_type::fixed32) {
      visit(uint64_t{in.get_fixed32()});
    } else if (fixed && width == 8 && in.wire_type() == pbf_wire_type::fixed64) {
      visit(in.get_fixed64());
    } else {
      fail("a value has the wrong wire type");
    }
  }
}

struct ValueCoding {
  bool fixed = false;
  int stored_bytes = 0;  ///< that one value of the list gives: two elements of 4 bits, …
};

ValueCoding coding_of(const OnnxType& type, uint32_t values_field, bool in_attribute) {
  const bool is_float = in_attribute ? values_field == field::kF || values_field == field::kFloats
                                     : values_field == field::kFloatData;
  if (is_float) return {true, 4};
  if (!in_attribute && values_field == field::kDoubleData) return {true, 8};
  return {false, std::max(1, type.bits / 8)};
}

/// A Constant's attribute lies in an AttributeProto, whose fields have other numbers.
bool lies_in_attribute(const OnnxTensor& tensor) {
  const OnnxType* type = tensor.type();
  return type != nullptr && tensor.values_field != type->values_field;
}

// ----------------------------------------------------------------------------------- messages

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
          const std::string_view name = add_tensor(parse_tensor(tensor, scope));
          if (name.empty()) fail("an initializer has no name");
          define(scope, name, -1, static_cast<int32_t>(graph_.tensors.size()) - 1);
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
    OnnxTensor constant;
    bool has_constant = false;
    for (OnnxAttribute& attribute : node.attributes) {
      parse_attribute(attribute, node, scope, depth);
      if (!is_constant) continue;
      const auto label = [&] { return "constant " + shown(names.outputs[0]) + ": "; };
      try {
        has_constant |= constant_value(attribute, constant);
      } catch (Malformed& malformed) {
        malformed.message = label() + malformed.message;
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
      if (has_constant && constant.data_type != kStringType) {
        constant.name = graph_.scopes[static_cast<size_t>(scope)].prefix + std::string(output);
        tensor = static_cast<int32_t>(graph_.tensors.size());
        add_tensor(std::move(constant));
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
        case field::kAttributeName:
          attribute.name = bytes_of(in, "an attribute's name");
          break;
        case field::kI:
          attribute.i = integer_of(in, "an attribute");
          break;
        case field::kS:
          attribute.s = bytes_of(in, "an attribute");
          break;
        case field::kInts:
          append_integers(in, "an attribute", attribute.ints);
          break;
        case field::kG:
        case field::kGraphs:
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

  /// Whether the attribute is a Constant's value; then `tensor` is it, without a name.
  bool constant_value(const OnnxAttribute& attribute, OnnxTensor& tensor) {
    const std::string_view key = attribute.name;
    if (key == "value") {
      pbf_reader in = reader_of(attribute.message);
      while (in.next()) {
        if (in.tag() != field::kT) {
          in.skip();
          continue;
        }
        tensor = parse_tensor(bytes_of(in, "a constant's value"), -1);
        return true;
      }
      return false;
    }
    const bool is_float = key == "value_float" || key == "value_floats";
    const bool is_list = key == "value_floats" || key == "value_ints";
    if (!is_float && !is_list && key != "value_int") return false;
    tensor = {};
    tensor.data_type = is_float ? kFloatType : kInt64Type;
    tensor.message = attribute.message;
    tensor.values_field = is_float ? (is_list ? uint32_t{field::kFloats} : uint32_t{field::kF})
                                   : (is_list ? uint32_t{field::kInts} : uint32_t{field::kI});
    tensor.storage = OnnxTensor::Storage::kValues;
    int64_t count = 0;
    for_each_value(tensor.message, tensor.values_field, is_float, 4,
                   [&count](uint64_t) { ++count; });
    if (is_list) {
      tensor.dims = {count};
    } else if (count != 1) {
      fail("it has " + std::to_string(count) + " values");
    }
    return true;
  }

  std::string_view add_tensor(OnnxTensor tensor) {
    if (graph_.tensors.size() == kMaxOnnxTensors) {
      throw Malformed{Code::kUnsupported,
                      "more than " + std::to_string(kMaxOnnxTensors) + " tensors"};
    }
    graph_.tensors.push_back(std::move(tensor));
    return tensor_name_;
  }

  /// A TensorProto; `scope` -1 for one whose name does not count. Sets tensor_name_.
  OnnxTensor parse_tensor(std::string_view message, int32_t scope) {
    OnnxTensor tensor;
    tensor.message = message;
    tensor_name_ = {};
    bool has_raw = false, is_external = false;
    std::vector<std::string_view> external;
    uint32_t values_fields = 0;  // a bit for each field that is there
    int value_chunks = 0;
    pbf_reader in = reader_of(message);
    while (in.next()) {
      switch (in.tag()) {
        case field::kDims:
          append_integers(in, "a dimension", tensor.dims);
          break;
        case field::kDataType:
          tensor.data_type =
              static_cast<int32_t>(std::clamp<int64_t>(integer_of(in, "data_type"), -1, INT32_MAX));
          break;
        case field::kSegment:
          fail("a tensor is stored in segments");
        case field::kFloatData:
        case field::kInt32Data:
        case field::kInt64Data:
        case field::kDoubleData:
        case field::kUint64Data:
          values_fields |= 1u << in.tag();
          ++value_chunks;
          if (in.wire_type() == pbf_wire_type::length_delimited) {
            tensor.raw = bytes_of(in, "values");
          } else {
            value_chunks = 2;  // no bytes to view
            in.skip();
          }
          break;
        case field::kTensorName:
          tensor_name_ = bytes_of(in, "a tensor's name");
          break;
        case field::kRawData:
          has_raw = true;
          tensor.raw = bytes_of(in, "raw_data");
          break;
        case field::kExternalData:
          external.push_back(bytes_of(in, "external_data"));
          break;
        case field::kDataLocation:
          is_external = integer_of(in, "data_location") == 1;
          break;
        default:
          in.skip();
      }
    }
    if (scope >= 0) {
      tensor.name = graph_.scopes[static_cast<size_t>(scope)].prefix + std::string(tensor_name_);
    }
    try {
      check_tensor(tensor, has_raw, is_external, values_fields, value_chunks, external);
    } catch (Malformed& malformed) {
      if (scope >= 0) malformed.message = "tensor " + shown(tensor.name) + ": " + malformed.message;
      throw;
    }
    return tensor;
  }

  /// Where the data lies, and that its size is that of the dims.
  static void check_tensor(OnnxTensor& tensor, bool has_raw, bool is_external,
                           uint32_t values_fields, int value_chunks,
                           const std::vector<std::string_view>& external) {
    if (tensor.dims.size() > kMaxOnnxRank) {
      fail(std::to_string(tensor.dims.size()) + " dimensions, at most " +
           std::to_string(kMaxOnnxRank) + " are read");
    }
    std::optional<int64_t> elements = 1;
    for (const int64_t extent : tensor.dims) {
      elements = elements ? checked_product(*elements, extent) : std::nullopt;
    }
    if (!elements || *elements > INT64_MAX / 128) {
      fail("the shape " + shape_text(tensor.dims) + " is negative or overflows 63 bits");
    }
    const OnnxType* type = tensor.type();
    if (is_external) {
      if (has_raw || values_fields != 0) fail("it has data in the file and outside of it");
      tensor.storage = OnnxTensor::Storage::kExternal;
      for (const std::string_view message : external) {
        const auto [key, value] = entry_of(message);
        if (key == "location") tensor.location = value;
        if (key == "offset") tensor.offset = file_position(value, "offset");
        if (key == "length") tensor.length = file_position(value, "length");
      }
      if (tensor.location.empty()) fail("its external data has no location");
      if (tensor.bytes() < 0 && tensor.length < 0) fail("its external data has no length");
      if (tensor.bytes() >= 0 && tensor.length >= 0 && tensor.length != tensor.bytes()) {
        fail(wrong_size(tensor, "the length of its external data is", tensor.length));
      }
      return;
    }
    if (has_raw && values_fields != 0) fail("it has raw_data and another field with values");
    if (!has_raw && values_fields != 0) {
      if (type == nullptr || values_fields != 1u << type->values_field || type->values_field == 0) {
        fail(std::string(type == nullptr ? "an unknown type" : type->name) +
             " values are not stored in this field");
      }
      tensor.values_field = type->values_field;
      const ValueCoding coding = coding_of(*type, tensor.values_field, false);
      if (coding.fixed && value_chunks == 1) {  // as raw_data would be
        has_raw = true;
      } else {
        tensor.storage = OnnxTensor::Storage::kValues;
        tensor.raw = {};
        const int64_t wanted = ceil_div(tensor.bytes(), coding.stored_bytes);
        int64_t count = 0;
        for_each_value(tensor.message, tensor.values_field, coding.fixed, coding.stored_bytes,
                       [&count](uint64_t) { ++count; });
        if (count != wanted) fail(wrong_size(tensor, "its list of values has", count));
        return;
      }
    }
    if (type != nullptr && !type->is_numeric()) return;
    const auto stored = static_cast<int64_t>(tensor.raw.size());
    if (tensor.bytes() >= 0 && stored != tensor.bytes()) {
      fail(wrong_size(tensor, "its data has", stored));
    }
  }

  static std::string wrong_size(const OnnxTensor& tensor, const char* what, int64_t has) {
    return std::string(tensor.type()->name) + " " + shape_text(tensor.dims) + " takes " +
           std::to_string(tensor.bytes()) + " bytes; " + what + " " + std::to_string(has);
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
  std::string_view tensor_name_;  ///< of the last TensorProto
};

/// Runs `parse`, turning what it and protozero throw into a Status.
template <class Parse>
Status caught(const Parse& parse) {
  try {
    parse();
  } catch (const Malformed& malformed) {
    return {malformed.code, malformed.message};
  } catch (const protozero::exception& error) {
    return corrupt_file(std::string("not a valid protobuf message (") + error.what() +
                        "); the file may be truncated");
  }
  return {};
}

}  // namespace

const OnnxType* onnx_type(int32_t code) {
  for (const OnnxType& type : kTypes) {
    if (type.code == code) return &type;
  }
  return nullptr;
}

int64_t OnnxTensor::elements() const {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
}

int64_t OnnxTensor::bytes() const {
  const OnnxType* known = type();
  return known == nullptr || known->bits == 0 ? -1 : ceil_div(elements() * known->bits, 8);
}

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

Status decode_onnx_values(const OnnxTensor& tensor, uint8_t* out) {
  const ValueCoding coding =
      coding_of(*tensor.type(), tensor.values_field, lies_in_attribute(tensor));
  uint8_t* const end = out + tensor.bytes();
  return caught([&] {
    for_each_value(tensor.message, tensor.values_field, coding.fixed, coding.stored_bytes,
                   [&](uint64_t value) {
                     const auto count = std::min<int64_t>(coding.stored_bytes, end - out);
                     std::memcpy(out, &value, static_cast<size_t>(count));
                     out += count;
                   });
  });
}

}  // namespace nibble::checkpoint
