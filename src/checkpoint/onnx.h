// ONNX models: the protobuf message as plain structs, and the container that finds its tensors.
// Nothing here knows what a quantized layer is (onnx_layers.cc does), and no name of the protobuf
// library leaves onnx_message.h. All views are of the model file's bytes, which the graph keeps.
#ifndef NIBBLE_CHECKPOINT_ONNX_H_
#define NIBBLE_CHECKPOINT_ONNX_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/mapped_file.h"
#include "nibble/core.h"

namespace nibble::checkpoint {

/// Limits that no real model comes near; they bound the memory that a small hostile file can ask
/// for. Of each kind in the whole model, subgraphs and functions included.
inline constexpr size_t kMaxOnnxNodes = 1'000'000;
inline constexpr size_t kMaxOnnxTensors = 1'000'000;
inline constexpr size_t kMaxOnnxParts = 8'000'000;  ///< inputs, outputs and attributes of nodes
inline constexpr int kMaxOnnxDepth = 32;            ///< subgraphs in one another
inline constexpr size_t kMaxOnnxRank = 32;

/// One value of TensorProto.DataType.
struct OnnxType {
  int32_t code = 0;
  const char* name = "";       ///< "FLOAT", "UINT4", "FLOAT8E4M3FN"
  int bits = 0;                ///< of an element; 0: not a packed sequence of fixed width
  std::optional<DType> dtype;  ///< absent for types that core does not have
  /// Field number of TensorProto that holds values outside raw_data; 0: none.
  uint32_t values_field = 0;

  bool is_numeric() const { return code != 8; }  ///< all but STRING
};
/// Null for a code that this version does not know.
const OnnxType* onnx_type(int32_t code);

/// A TensorProto, or the value attribute of a Constant node.
struct OnnxTensor {
  enum class Storage : uint8_t {
    kRaw,       ///< `raw`: little-endian values in the file
    kValues,    ///< varints or separate values in `message`; see decode_onnx_values
    kExternal,  ///< `length` bytes from `offset` of the file `location`
  };
  std::string name;              ///< unique in the model: the stored name behind its scope's prefix
  std::string_view stored_name;  ///< empty for a constant
  int32_t data_type = 0;
  std::vector<int64_t> dims;
  Storage storage = Storage::kRaw;
  std::string_view raw;
  std::string_view message;   ///< the TensorProto or AttributeProto
  uint32_t values_field = 0;  ///< in `message`
  std::string_view location;
  int64_t offset = 0;
  int64_t length = -1;  ///< -1: not said

  const OnnxType* type() const { return onnx_type(data_type); }
  /// Number of elements. The dims are checked when the model is parsed.
  int64_t elements() const;
  /// Bytes of the elements, packed; -1 where the type has no fixed width.
  int64_t bytes() const;
};

struct OnnxAttribute {
  std::string_view name;
  int64_t i = 0;
  std::string_view s;
  std::vector<int64_t> ints;
  std::string_view message;  ///< the AttributeProto
};

struct OnnxNode {
  std::string_view op_type, name;
  std::string_view domain;       ///< "" for the standard operators, "ai.onnx" is written as ""
  std::vector<int32_t> inputs;   ///< indices into OnnxGraph::values; -1: left out
  std::vector<int32_t> outputs;  ///< the same
  std::vector<OnnxAttribute> attributes;
  int32_t scope = 0;
  std::string_view message;  ///< the NodeProto

  bool is(std::string_view of_domain, std::string_view op) const {
    return op_type == op && domain == of_domain;
  }
  const OnnxAttribute* attribute(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t otherwise) const;
  /// Index of the value, or -1 when there is no such input.
  int32_t input(size_t index) const { return index < inputs.size() ? inputs[index] : -1; }
};

struct OnnxUse {
  int32_t node = 0;
  int32_t input = 0;
};

/// What a name stands for in its scope: a graph's input, a node's output or a tensor.
struct OnnxValue {
  std::string_view name;
  int32_t scope = 0;
  int32_t producer = -1;      ///< node; -1: none
  int32_t tensor = -1;        ///< initializer or constant; -1: computed
  std::vector<OnnxUse> uses;  ///< in the order of nodes; those in subgraphs too
};

/// The graph, a subgraph of a node's attribute, or a function.
struct OnnxScope {
  int32_t parent = -1;
  std::string prefix;  ///< of its tensors' names; empty for the graph itself
};

struct OnnxGraph {
  MappedFile file = MappedFile::of_memory({});
  std::vector<OnnxScope> scopes;
  std::vector<OnnxNode> nodes;  ///< a subgraph's right before the node that holds it
  std::vector<OnnxTensor> tensors;
  std::vector<OnnxValue> values;
  std::vector<int32_t> value_of_tensor;         ///< parallel to `tensors`
  std::vector<int32_t> by_name;                 ///< indices into `tensors`, in the order of names
  std::map<std::string, std::string> metadata;  ///< producer, versions, opsets, properties

  /// Index into `tensors`, or -1.
  int32_t find_tensor(std::string_view name) const;
  /// The tensor that a value is, or null; `value` may be -1.
  const OnnxTensor* tensor_of(int32_t value) const;
  /// The node that computes a value, or null; `value` may be -1.
  const OnnxNode* producer_of(int32_t value) const;
};

/// Reads a ModelProto. Every tensor has dims whose product fits 63 bits and exactly one place for
/// its data; inline data of a type with fixed width has the size of its dims. `name` stands for the
/// path in messages. Errors: kCorruptFile, kUnsupported (a limit above).
Result<OnnxGraph> parse_onnx(MappedFile file, const std::string& name);

/// Number of bytes that decode_onnx_values writes is tensor.bytes(): the elements of a kValues
/// tensor, packed and little-endian, at `out`. Errors: kCorruptFile.
Status decode_onnx_values(const OnnxTensor& tensor, uint8_t* out);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_ONNX_H_
