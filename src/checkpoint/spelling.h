// How quantized layers are spelled as tensors and configuration. A new spelling is one .cc file
// with a ReadSpelling, a WriteSpelling or both, and a line in spelling.cc.
#ifndef NIBBLE_CHECKPOINT_SPELLING_H_
#define NIBBLE_CHECKPOINT_SPELLING_H_

#include <span>
#include <string>
#include <vector>

#include "checkpoint/container.h"
#include "checkpoint/json.h"
#include "checkpoint/tensor_store.h"
#include "nibble/checkpoint.h"

namespace nibble::checkpoint {

// ------------------------------------------------------------------------------------- reading

/// What a reader looks at.
struct Source {
  const TensorStore& tensors;
  std::string_view container;  ///< "safetensors", "gguf" or "onnx"
  const OnnxGraph* graph;      ///< of an ONNX model; null elsewhere
  const Json& config;          ///< config.json; null when there is none
  const Json& quantization;    ///< its `quantization_config`; null when there is none
  const Json& hf_quant;        ///< hf_quant_config.json (ModelOpt); null when there is none
  std::string method;          ///< `quant_method` of `quantization`; "" when there is none
};

struct ReadSpelling {
  const char* name;
  /// Whether this reader understands the checkpoint: by `method` where it is given, else by the
  /// names of tensors.
  bool (*claims)(const Source& source);
  /// The quantized layers. One that cannot be read carries the reason in its status.
  std::vector<LayerInfo> (*layers)(const Source& source);
  /// One of those layers whose status is ok and whose dense_only is empty. The result need not be
  /// validated.
  Result<QuantizedTensor> (*load)(const Source& source, const LayerInfo& layer);
  /// One of those layers whose dense_only says why. Null where the spelling has none.
  Result<DenseRows> (*dense)(const Source& source, const LayerInfo& layer) = nullptr;
};

std::span<const ReadSpelling> read_spellings();

/// `layer.suffix` for error messages and look-ups.
inline std::string part_name(std::string_view layer, std::string_view suffix) {
  return std::string(layer) + "." + std::string(suffix);
}
/// The tensor `layer.suffix`, or null.
inline const TensorInfo* find_part(const Source& source, std::string_view layer,
                                   std::string_view suffix) {
  return source.tensors.find(part_name(layer, suffix));
}
/// The part, checked: it exists and has one of `dtypes` (bits(DType...)) and this shape.
/// Errors: kCorruptFile.
Result<const TensorInfo*> require_part(const Source& source, std::string_view layer,
                                       std::string_view suffix, uint32_t dtypes,
                                       std::span<const int64_t> shape);
/// Adds `layer.suffix` to the layer's tensors when the checkpoint has it.
void add_part(const Source& source, LayerInfo& layer, std::string_view suffix);

// ------------------------------------------------------------------------------------- writing

/// One layer that will be written.
struct LayerSpec {
  std::string name;
  Format format;
  int64_t n = 0, k = 0;
  DType source_dtype = DType::kBF16;  ///< of the float weight; what readers may compute in
  bool pre_scale = false;             ///< it comes with one; only where the spelling holds it
};

/// Takes the bytes of one layer's tensors; each tensor's from its first to its last.
class TensorSink {
 public:
  virtual ~TensorSink() = default;
  /// The next bytes of tensor `index` of WriteSpelling::tensors.
  virtual Status append(size_t index, std::span<const uint8_t> bytes) = 0;
};

struct TextFile {
  std::string name, text;
};

struct WriteSpelling {
  const char* name;
  /// Whether weights of this Format are written in this spelling.
  bool (*takes)(const Format& format);
  /// Ok, or the rule that this shape or Format breaks (kUnsupported).
  Status (*check)(const LayerSpec& layer);
  /// The stored tensors: name, dtype_name, shape and bytes.
  std::vector<TensorInfo> (*tensors)(const LayerSpec& layer);
  /// Writes a validated weight that has the spec's Format, shape and pre_scale, no k_perm, and at
  /// most one tensor scale, of `tensor_scale_op`.
  Status (*encode)(const LayerSpec& layer, const QuantizedTensor& q, TensorSink& sink);
  /// `quantization_config` for these layers, beside which the linear-looking modules `untouched`
  /// stay float. Null where the container has no config.json of its own.
  OrderedJson (*config)(std::span<const LayerSpec> layers, std::span<const std::string> untouched);
  const char* container = "safetensors";
  /// How the tensor scale of nvfp4 enters; absent where none is stored.
  std::optional<TensorScaleOp> tensor_scale_op = std::nullopt;
  bool holds_pre_scale = false;
  /// Further files that describe the quantization, beside config.json.
  std::vector<TextFile> (*files)(std::span<const LayerSpec> layers,
                                 std::span<const std::string> untouched) = nullptr;
};

/// Those that are chosen by Format, in that order; then those that are written on request.
std::span<const WriteSpelling* const> write_spellings();
/// By name. Errors: kInvalidArgument.
Result<const WriteSpelling*> find_write_spelling(std::string_view name);
/// The spelling `name`, or with an empty one that which takes the layer's Format, its rules
/// checked. Errors: kUnsupported, kInvalidArgument (no such spelling).
Result<const WriteSpelling*> spelling_for(const LayerSpec& layer, std::string_view name = "");

/// A TensorInfo for WriteSpelling::tensors. The caller has checked that sizes do not overflow.
TensorInfo output_tensor(std::string_view layer, std::string_view suffix, DType dtype,
                         std::vector<int64_t> shape);

/// Rows that encoders convert at a time: about a megabyte.
inline int64_t rows_per_piece(int64_t row_bytes) {
  return std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, row_bytes));
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_SPELLING_H_
