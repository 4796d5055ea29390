#ifndef NIBBLE_QUANTIZE_RULES_H_
#define NIBBLE_QUANTIZE_RULES_H_

#include "nibble/quantize.h"
#include "quantize/bands.h"

namespace nibble {

inline bool has_tensor_scale(const Format& format) { return format.scale == DType::kE4M3; }

/// The plain numbers that the group search reads. `range` matters to formats with a tensor scale.
TensorRules make_tensor_rules(const Format& format, const QuantizeOptions& options,
                              const TensorRange& range);

CodeKind code_kind(Element element);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_RULES_H_
