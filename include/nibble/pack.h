// QuantizedTensor → PackedWeight in a Layout, and back.
#ifndef NIBBLE_PACK_H_
#define NIBBLE_PACK_H_

#include "nibble/core.h"

namespace nibble {

/// Sizes and section table of `q` in `layout`. Errors: a paired layout with odd n; a Layout that
/// does not take the Format.
Result<PackedWeightInfo> packed_info(const QuantizedTensor& q, const Layout& layout);
/// Bytes that `pack_into` writes.
int64_t packed_bytes(const PackedWeightInfo& info);

/// Packs into one buffer of its own. Paired layouts take a fused [gate; up] matrix: rows [0, n/2)
/// are gate. Nothing is lost: unpack(pack(q)) has the same bits in every part.
Result<PackedWeight> pack(const QuantizedTensor& q, const Layout& layout,
                          ThreadPool* pool = nullptr);
/// The same into the caller's memory (256-byte aligned, at least packed_bytes(info)), in bands of
/// tile rows, so that a mapped file streams straight to its destination.
Status pack_into(const QuantizedTensor& q, const PackedWeightInfo& info,
                 std::span<uint8_t> destination, ThreadPool* pool = nullptr);
/// Back to canonical order; never needs the original.
Result<QuantizedTensor> unpack(const PackedWeight& packed, ThreadPool* pool = nullptr);

/// A PackedWeight over the bytes of one buffer made by `pack_into`; `buffer` must stay alive.
Result<PackedWeight> view(const PackedWeightInfo& info, Buffer buffer);
/// A row-major PackedWeight over the caller's separate arrays (codes [n, ceil(k*bits/8)], scales
/// and zeros [n, groups]); nothing is copied. `tensor_scale`: one f32 for all rows, 1 for none.
struct RowMajorArrays {
  const void* codes = nullptr;
  const void* scales = nullptr;
  const void* zeros = nullptr;
  float tensor_scale = 1;
};
Result<PackedWeight> view_row_major(const Format& format, int64_t n, int64_t k,
                                    const RowMajorArrays& arrays);

}  // namespace nibble

#endif  // NIBBLE_PACK_H_
