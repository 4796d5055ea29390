// What GPTQ and AWQ have in common: layers of qweight, qzeros and scales [groups, n], with zero
// points packed along N, several to a 32-bit word.
#ifndef NIBBLE_CHECKPOINT_QWEIGHT_H_
#define NIBBLE_CHECKPOINT_QWEIGHT_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "checkpoint/spelling.h"

namespace nibble::checkpoint {

inline constexpr char kQWeight[] = "qweight", kQZeros[] = "qzeros", kQScales[] = "scales";

/// The part, if it is a matrix with at least one value. Errors: kCorruptFile.
Result<const TensorInfo*> matrix_part(const Source& source, const std::string& layer,
                                      const char* suffix);
/// Whether a layer has all three parts, qweight of i32, and the shapes pass `fits(layer, qweight,
/// scales)`: how a checkpoint without config.json is recognised.
template <class Fits>
bool has_qweight_layer(const Source& source, Fits fits) {
  for (const TensorInfo& tensor : source.tensors.tensors()) {
    const auto layer = without_suffix(tensor.name, std::string(".") + kQWeight);
    if (!layer || tensor.dtype != DType::kI32 || tensor.shape.size() != 2) continue;
    const TensorInfo* scales = find_part(source, *layer, kQScales);
    if (scales == nullptr || scales->shape.size() != 2 || scales->shape[1] < 1) continue;
    if (find_part(source, *layer, kQZeros) != nullptr && fits(*layer, tensor, *scales)) return true;
  }
  return false;
}

/// ASCII letters in lower case: tools do not agree on the case of their own names.
std::string lower_case(std::string text);

/// Words [groups, ceil(n*bits/32)], little-endian at any address.
struct PackedZeros {
  const uint8_t* words = nullptr;
  int64_t groups = 0, n = 0;
  int bits = 4;
  uint32_t add = 0;  ///< to each word, modulo 2^32, before it is split into fields
  /// Field i of a word belongs to its row order[i]; fields past n are padding.
  std::array<uint8_t, 8> order = {0, 1, 2, 3, 4, 5, 6, 7};
};

/// One byte a zero point, [n, picked.size()], of the groups `picked`, each in [0, groups).
Result<Buffer> unpacked_zeros(const PackedZeros& zeros, std::span<const int32_t> picked);

/// Ok when every zero point is half the range (8 or 128), else kCorruptFile naming the first other.
Status check_symmetric(const PackedZeros& zeros);

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_QWEIGHT_H_
