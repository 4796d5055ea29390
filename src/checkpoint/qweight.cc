#include "checkpoint/qweight.h"

#include <algorithm>
#include <cstring>

#include "checkpoint/transpose.h"

namespace nibble::checkpoint {
namespace {

uint32_t word_at(const PackedZeros& zeros, int64_t index) {
  uint32_t word;
  std::memcpy(&word, zeros.words + 4 * index, sizeof(word));
  return word + zeros.add;
}

/// The zero points of one group, n bytes.
void unpack_group(const PackedZeros& zeros, int64_t group, uint8_t* out) {
  const int64_t fields = 32 / zeros.bits, words = ceil_div(zeros.n, fields);
  const uint32_t mask = (1u << zeros.bits) - 1;
  for (int64_t w = 0; w < words; ++w) {
    const uint32_t word = word_at(zeros, group * words + w);
    uint8_t unpacked[8];
    for (size_t i = 0; i < static_cast<size_t>(fields); ++i) {
      unpacked[zeros.order[i]] =
          static_cast<uint8_t>(word >> (static_cast<size_t>(zeros.bits) * i) & mask);
    }
    std::memcpy(out + w * fields, unpacked,
                static_cast<size_t>(std::min(fields, zeros.n - w * fields)));
  }
}

}  // namespace

Result<const TensorInfo*> matrix_part(const Source& source, const std::string& layer,
                                      const char* suffix) {
  const TensorInfo* tensor = find_part(source, layer, suffix);
  if (tensor == nullptr) {
    return corrupt_file("tensor " + shown(part_name(layer, suffix)) + " is missing");
  }
  if (tensor->shape.size() != 2 || tensor->shape[0] < 1 || tensor->shape[1] < 1 ||
      tensor->shape[0] > INT64_MAX / 64 || tensor->shape[1] > INT64_MAX / 64) {
    return corrupt_file("tensor " + shown(tensor->name) + " is " + tensor->dtype_name + " " +
                        shape_text(tensor->shape) + ", not a matrix");
  }
  return tensor;
}

std::string lower_case(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

Result<Buffer> unpacked_zeros(const PackedZeros& zeros, std::span<const int32_t> picked) {
  const auto bytes = checked_product(zeros.groups, zeros.n);
  if (!bytes) return invalid_argument("the zero points' size overflows 63 bits");
  NIBBLE_ASSIGN_OR_RETURN(Buffer by_group, Buffer::allocate(*bytes));
  for (int64_t g = 0; g < zeros.groups; ++g) {
    unpack_group(zeros, g, by_group.mutable_data() + g * zeros.n);
  }
  return transposed(by_group.data(), zeros.n, 1, picked);
}

Status check_symmetric(const PackedZeros& zeros) {
  const int64_t fields = 32 / zeros.bits, words = ceil_div(zeros.n, fields);
  const uint32_t wanted = zeros.bits == 4 ? 0x88888888u : 0x80808080u;
  const uint32_t mask = (1u << zeros.bits) - 1;
  for (int64_t g = 0; g < zeros.groups; ++g) {
    uint32_t other = 0;  // of all whole words; the last has padding fields
    for (int64_t w = 0; w < zeros.n / fields; ++w) {
      other |= word_at(zeros, g * words + w) ^ wanted;
    }
    if (other == 0 && zeros.n % fields == 0) continue;
    for (int64_t row = 0; row < zeros.n; ++row) {
      const uint32_t word = word_at(zeros, g * words + row / fields);
      const uint32_t zero = word >> (zeros.bits * static_cast<int>(row % fields)) & mask;
      if (zero == (wanted & mask)) continue;
      return corrupt_file("config.json says sym, but the zero point of row " + std::to_string(row) +
                          " in group " + std::to_string(g) + " is " + std::to_string(zero) +
                          ", not " + std::to_string(wanted & mask));
    }
  }
  return {};
}

}  // namespace nibble::checkpoint
