// Which tensors of a checkpoint `nibble quantize` turns into 4-bit layers, and why the others stay.
#ifndef NIBBLE_FRONTENDS_CLI_LAYER_CHOICE_H_
#define NIBBLE_FRONTENDS_CLI_LAYER_CHOICE_H_

#include <regex>
#include <span>
#include <string>
#include <vector>

#include "nibble/checkpoint.h"

namespace nibble::cli {

struct ChoiceOptions {
  Format format;
  /// Regular expressions (ECMAScript, found anywhere in the tensor's name). With `include`, what
  /// matches is taken, whatever the default rules say, and nothing else. `exclude` wins over all.
  std::vector<std::string> include;
  std::vector<std::string> exclude;
  /// Keep the Format's group even where it does not divide K.
  bool allow_short_group = false;
  std::string spelling;  ///< as WriteOptions::spelling
};

struct ChosenLayer {
  PlannedLayer layer;
  std::string tensor;  ///< `layer.name` + ".weight"
  int64_t n = 0, k = 0;
  int64_t stored_bytes = 0;
  bool smaller_group = false;  ///< the group had to shrink to divide K
  bool short_group = false;    ///< the last group of a row has fewer columns
};

struct SkippedTensor {
  std::string tensor;
  std::vector<int64_t> shape;
  std::string dtype_name;
  std::string reason;
  bool linear_layer = false;  ///< it would have been quantized if the Format could hold it
};

struct LayerChoice {
  std::vector<ChosenLayer> chosen;
  std::vector<SkippedTensor> skipped;
};

/// Regular expressions (ECMAScript), found anywhere in a name.
class Patterns {
 public:
  /// `option` names them in messages. Errors: kInvalidArgument.
  static Result<Patterns> compile(const std::vector<std::string>& expressions, const char* option);
  bool match(const std::string& name) const;
  bool empty() const { return list_.empty(); }

 private:
  std::vector<std::regex> list_;
};

/// `format` itself, or where `spelling` does not hold it, the same with the scale dtype that it
/// holds: int4-g32 is int4-g32:f16 in "gguf" and int4-g32:f32 in "modelopt".
Format as_stored(const Format& format, const std::string& spelling);

/// Errors: kInvalidArgument (a regular expression that does not parse), and for a tensor that
/// `include` asks for by name the reason why it cannot be quantized.
Result<LayerChoice> choose_layers(std::span<const TensorInfo> tensors,
                                  const ChoiceOptions& options);

/// Why the default rules leave a module in float; empty for a layer to quantize. They judge the
/// last part of the module's path ("model.layers.0.mlp.up_proj" -> "up_proj"):
///   embeddings  a lookup, not a product: "embed" in the name, wte, wpe, shared, …
///   norms       "norm" in the name, ln, ln_1, …
///   heads       lm_head, embed_out, classifier, score, pooler and their parts: small, and their
///               error reaches the answer directly
///   routers     gate, router: small, and a wrong choice of expert costs more than it saves
std::string default_skip_reason(const std::string& module);

}  // namespace nibble::cli

#endif  // NIBBLE_FRONTENDS_CLI_LAYER_CHOICE_H_
