#ifndef NIBBLE_QUANTIZE_QUANTIZE_WITH_H_
#define NIBBLE_QUANTIZE_QUANTIZE_WITH_H_

#include "nibble/quantize.h"
#include "quantize/bands.h"

namespace nibble {

/// The functions of every instruction set that this build and this CPU have, the best last.
std::span<const BandFunctions* const> usable_band_functions();

/// `quantize` with the functions of one instruction set; tests compare their bits.
Result<QuantizedTensor> quantize_with(const BandFunctions& functions, const TensorView& w,
                                      const Format& format, const QuantizeOptions& options);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_QUANTIZE_WITH_H_
