// Checkpoints on disk: opening safetensors, GGUF and ONNX files and Hugging Face directories,
// loading their quantized layers as QuantizedTensors, and writing checkpoints that other tools
// load.
//
//   NIBBLE_ASSIGN_OR_RETURN(Checkpoint source, Checkpoint::open("model/"));
//   std::vector<PlannedLayer> plan = {{"model.layers.0.mlp.up_proj", *Format::parse("int4-g128")}};
//   NIBBLE_ASSIGN_OR_RETURN(CheckpointWriter writer,
//                           CheckpointWriter::create(source, "out/", plan));
//   for (const PlannedLayer& layer : plan) {
//     NIBBLE_ASSIGN_OR_RETURN(Tensor w, source.tensor(layer.name + ".weight"));
//     NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, quantize(w.view, layer.format));
//     NIBBLE_RETURN_IF_ERROR(writer.write_quantized(layer.name, q));
//   }
//   NIBBLE_RETURN_IF_ERROR(writer.finish());
#ifndef NIBBLE_CHECKPOINT_H_
#define NIBBLE_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core.h"

namespace nibble {

/// One stored tensor as its file's header describes it.
struct TensorInfo {
  std::string name;
  std::string dtype_name;  ///< as stored: "BF16", "F8_E4M3", "Q4_K", "UINT4", …
  std::optional<DType>
      dtype;  ///< absent for types Nibble cannot compute with; they are carried over
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  int64_t file_offset = 0;  ///< first byte, counted from the start of its file
  int32_t shard = 0;        ///< index into Checkpoint::shards()
};

/// A tensor's values together with what keeps them alive. The bytes are the mapped file's, or an
/// aligned copy where the file stores them at an address the dtype does not allow. When the last
/// copy of `bytes` is gone its pages leave this process's memory, so that a walk over a large model
/// holds one tensor at a time.
struct Tensor {
  TensorView view;
  Buffer bytes;
};

/// One quantized linear layer of a checkpoint.
struct LayerInfo {
  std::string name;  ///< of the module: "model.layers.0.mlp.up_proj"
  Format format;
  int64_t n = 0, k = 0;  ///< n outputs, k inputs
  /// Why no Format holds the stored weight exactly: then `load` refuses with these words, `format`
  /// means nothing, and only `dense_rows` reads the layer. Empty: `load` works.
  std::string dense_only;
  /// What a listing should say beside the Format: "act-order", "nested scales"; may be empty.
  std::string remark;
  std::vector<std::string> tensors;  ///< stored tensors that hold the weight
  int64_t stored_bytes = 0;          ///< of those tensors
  /// Ok, or why `load` refuses the layer; format, n and k mean nothing then.
  Status status;
};

/// A layer's weight [n, k] as f32, any rows at a time; keeps alive what it reads.
struct DenseRows {
  int64_t n = 0, k = 0;
  /// Writes rows [begin, end) in original column order to `out`, (end - begin) * k floats. From any
  /// thread.
  std::function<Status(int64_t begin, int64_t end, float* out)> read;
  /// [k]: y = W (x * pre_scale), not part of the rows that `read` gives. Empty: none.
  std::vector<float> pre_scale = {};
};

/// An opened checkpoint: one .safetensors, .gguf or .onnx file, or a directory with
/// `model.safetensors`, or with shards and their `model.safetensors.index.json`, or with one GGUF
/// or ONNX model, and an optional `config.json`. Cheap to copy; copies share the mapped files.
/// Files must not be changed or truncated while they are mapped.
class Checkpoint {
 public:
  /// Maps the files and checks every header; of tensors it reads only what says how layers are
  /// stored (the order of groups, a scale's few bytes, ONNX values in typed fields), no weights. A
  /// path to a file takes that file alone, without the config.json beside it.
  /// Errors: kIo (missing, unreadable), kCorruptFile (file and tensor named), kUnsupported (a
  /// directory without a model, or with several safetensors files and no index).
  static Result<Checkpoint> open(const std::string& path);
  /// The same for the bytes of one file in memory and the text of its config.json (empty: none).
  /// `name` stands for the path: in messages, and where its end tells the container (.onnx). Data
  /// outside the file is refused.
  static Result<Checkpoint> from_memory(Buffer file, std::string config_json, std::string name);

  const std::string& path() const;
  /// Paths of the files with tensors, relative to the directory; the name for a single file.
  std::span<const std::string> shards() const;
  /// All stored tensors in the order of shards and offsets.
  std::span<const TensorInfo> tensors() const;
  const TensorInfo* find(std::string_view name) const;  ///< null when there is none
  /// The values of one tensor, without a copy where alignment allows.
  /// Errors: kInvalidArgument (no such tensor), kUnsupported (a dtype Nibble does not know).
  Result<Tensor> tensor(std::string_view name) const;
  /// The stored bytes of any tensor, whatever its dtype.
  Result<Buffer> tensor_bytes(std::string_view name) const;

  /// What the files say of themselves, in the order of keys: `__metadata__` of safetensors, the
  /// key-value pairs of GGUF, properties of ONNX. Long arrays are shortened.
  const std::map<std::string, std::string>& metadata() const;
  /// Text of config.json; empty when there is none.
  const std::string& config_json() const;
  /// Every other file of the directory, relative to it (tokenizer, generation config, …).
  std::span<const std::string> other_files() const;

  /// How quantized layers are stored: "compressed-tensors", "gptq", "gguf", … (docs/formats.md);
  /// the `quant_method` of config.json when no reader knows it (`layers()` is empty then); "" for a
  /// plain float checkpoint.
  const std::string& spelling() const;
  /// Quantized layers in the order of `tensors()`; those that cannot be read say why in `status`.
  std::span<const LayerInfo> layers() const;
  const LayerInfo* find_layer(std::string_view name) const;  ///< null when there is none
  /// The weight of one quantized layer, lossless. Codes and scales are views of the mapped file
  /// where their stored order is the canonical one.
  /// Errors: kInvalidArgument (not a quantized layer), the layer's own status, kUnsupported
  /// (`dense_only`), kCorruptFile (NaN scales, zero points or group indices out of range).
  Result<QuantizedTensor> load(std::string_view layer) const;
  /// The dequantized weight of any readable layer, by the spelling's own rule in FP32, without
  /// pre_scale. Errors: those of `load` but for `dense_only`.
  Result<DenseRows> dense_rows(std::string_view layer) const;

 private:
  struct Impl;
  friend class CheckpointWriter;
  explicit Checkpoint(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

/// A layer that a CheckpointWriter is going to store: the module's name ("a.b.up_proj", without
/// ".weight") and the Format it will have.
struct PlannedLayer {
  std::string name;
  Format format = {};
  /// The weight comes with a pre_scale; "modelopt" alone stores one.
  bool pre_scale = false;
  /// F32, F16 or BF16: the layer becomes a plain matrix `name`.weight, and `format` means nothing.
  /// For layers that the source holds quantized, in any spelling.
  std::optional<DType> dense = std::nullopt;
};

/// The spelling in which an [n, k] weight of `format` is written. Of itself: "compressed-tensors"
/// for integers with integer or no zeros, nvfp4 and mxfp4; "bitsandbytes" for nf4; "nibble" for
/// every other fp4 (only Nibble reads it). When `spelling` names one: that one. "modelopt" holds
/// nvfp4, mxfp4 and int4 with f32 scales; "gguf" int4-g32:f16 (Q4_0), int8-g32:f16 (Q8_0), mxfp4.
/// Errors: kUnsupported with the rule that the weight breaks (nf4 whose block does not divide k, an
/// odd k of an fp4 format, zeros that are not integers, …), kInvalidArgument (no such spelling).
Result<std::string> output_spelling(const Format& format, int64_t n, int64_t k,
                                    std::string_view spelling = "");

/// The same weight in parts that `spelling` stores: it dequantizes to the same bits and has the
/// same pre_scale, which is not taken on trust but compared value by value. Zero points that are
/// all the middle one are dropped, tensor scales multiplied into the scales or expressed by the
/// other operation, groups split, columns put back into their original order, where that is exact.
/// Errors: kUnsupported with the reason why no exact form was found, kInvalidArgument (no such
/// spelling, a weight that is not valid), kOutOfMemory.
Result<QuantizedTensor> convert_exactly(const QuantizedTensor& q, std::string_view spelling,
                                        ThreadPool* pool = nullptr);

struct WriteOptions {
  /// "compressed-tensors", "modelopt", "gguf", "bitsandbytes" or "nibble"; "dense": no layer is
  /// quantized; empty: the one that output_spelling names.
  std::string spelling;
  bool overwrite = false;  ///< replace a directory that exists and is not empty, or a file
  /// Largest safetensors file; a single larger tensor gets a file of its own.
  int64_t max_shard_bytes = 5'000'000'000;
  /// Called after each written piece with the bytes done and the bytes in total. Optional.
  std::function<void(int64_t done, int64_t total)> progress;
};

/// Writes a checkpoint in which some layers are quantized, or made dense, and everything else of
/// the source — other tensors, files, keys of config.json — is the same bit for bit. Only what
/// describes the source's own quantization goes: `quantization_config`, hf_quant_config.json,
/// quantize_config.json and quant_config.json. Tensors of a GGUF or ONNX source keep name, shape
/// and values. Everything goes to a temporary directory beside the target, which `finish` renames;
/// until then, and after any error, the target is as it was. All files have their final size from
/// the start, so a full disk shows up early.
class CheckpointWriter {
 public:
  /// Checks the plan, lays out all files and reserves their space. A layer's stored tensors in the
  /// source (`name`.weight, or those of its LayerInfo) are replaced; n and k are the source's.
  /// `out` is a directory; for "gguf" one that gets model.gguf, or, where it ends in ".gguf", that
  /// file alone.
  /// Errors: kInvalidArgument (no such layer, not a float matrix, named twice, `out` exists and is
  /// not empty, `out` lies inside the source or the reverse), kUnsupported (layers of different
  /// spellings, a source with quantized layers outside the plan, a Format with no spelling, a
  /// tensor whose type the output's files have not), kIo.
  static Result<CheckpointWriter> create(const Checkpoint& source, const std::string& out,
                                         std::span<const PlannedLayer> plan,
                                         const WriteOptions& options = {});
  CheckpointWriter(CheckpointWriter&&) noexcept;
  CheckpointWriter& operator=(CheckpointWriter&&) noexcept;
  ~CheckpointWriter();  ///< removes the temporary directory unless `finish` succeeded

  /// Stores the weight of one planned layer. Once per layer, in any order, from any thread; holds
  /// at most a few MB beside `q`.
  /// Errors: kInvalidArgument (not planned, written before, other format or shape than planned, a
  /// pre_scale that was not planned or the reverse), kUnsupported (k_perm, several tensor scales, a
  /// tensor scale of the other operation than the spelling's: compressed-tensors divides, modelopt
  /// multiplies; see convert_exactly).
  Status write_quantized(std::string_view name, const QuantizedTensor& q);

  /// Stores one layer that is planned dense: its rows times its pre_scale in FP32, rounded to the
  /// planned dtype. Otherwise as write_quantized; a few MB of rows are in memory at a time.
  Status write_dense(std::string_view name, const DenseRows& rows);

  /// Copies every other tensor and file, writes config.json and the index, syncs, and renames.
  /// Errors: kInvalidArgument when a planned layer was not written, kIo.
  Status finish();

  const std::string& spelling() const;          ///< "dense" when no layer is quantized
  std::span<const std::string> shards() const;  ///< file names of the output
  int64_t total_bytes() const;                  ///< of all output tensors
  /// The source's files that describe its own quantization and are not carried over.
  std::span<const std::string> dropped_files() const;

 private:
  struct Impl;
  explicit CheckpointWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_H_
