#include "nibble/pack.h"

#include <algorithm>
#include <cstring>

#include "pack/frag16.h"
#include "pack/panel16.h"

namespace nibble {
namespace {

constexpr int64_t kSectionAlign = 256;
constexpr int64_t kMostBlockColumns = kFragmentColumns;

/// How a panel layout moves one block of 16 rows between canonical and packed order.
struct BlockMover {
  int64_t columns;
  void (*pack)(const uint8_t* const rows[kPanelRows], uint8_t code_xor, uint8_t* out);
  void (*unpack)(const uint8_t* in, uint8_t code_xor, uint8_t* const rows[kPanelRows]);
};
BlockMover mover_of(const PackedWeightInfo& info) {
  const bool four = info.format.bits() == 4;
  if (info.layout.id == LayoutId::kCudaFrag16) {
    if (info.format.element == Element::kNF4)
      return {kFragmentColumns, pack_fragment_table, unpack_fragment_table};
    return {kFragmentColumns, four ? pack_fragment_4bit : pack_fragment_8bit,
            four ? unpack_fragment_4bit : unpack_fragment_8bit};
  }
  return {kBlockColumns, four ? pack_block_4bit : pack_block_8bit,
          four ? unpack_block_4bit : unpack_block_8bit};
}

/// The code that decodes to 0 whatever the scale; uint codes use their group's zero instead.
uint8_t padding_code(Element element) {
  switch (element) {
    case Element::kInt4:
    case Element::kUint4:
    case Element::kE2M1:
    case Element::kInt8:
    case Element::kUint8:
      return 0;
    case Element::kNF4:
      return 7;
  }
  return 0;
}

/// Rows of the tensor in the order of packed panel `panel`; -1 where the panel is padding.
void panel_rows(const PackedWeightInfo& info, int64_t panel, int64_t rows[kPanelRows]) {
  for (int r = 0; r < kPanelRows; ++r) {
    if (!info.paired()) {
      const int64_t row = panel * kPanelRows + r;
      rows[r] = row < info.n ? row : -1;
    } else {
      const int64_t within = panel * (kPanelRows / 2) + r % (kPanelRows / 2);
      rows[r] = within < info.n / 2 ? within + (r >= kPanelRows / 2 ? info.n / 2 : 0) : -1;
    }
  }
}

/// A short last group keeps its scale, so the columns past K get the group's zero as their code.
uint8_t tail_code(const QuantizedTensor& q, int64_t row) {
  if (q.format.zero != ZeroKind::kInteger) return padding_code(q.format.element);
  const int64_t groups = q.format.groups(q.k);
  const uint8_t zero = q.zeros.data()[row * groups + groups - 1];
  return q.format.bits() == 4 ? std::min<uint8_t>(zero, 15) : zero;
}

void pack_panel_codes(const QuantizedTensor& q, const PackedWeightInfo& info, int64_t panel,
                      uint8_t* out) {
  const int bits = info.format.bits();
  const BlockMover mover = mover_of(info);
  const int64_t block_bytes = kPanelRows * mover.columns * bits / 8,
                row_block_bytes = mover.columns * bits / 8;
  const int64_t row_bytes = q.format.code_row_bytes(q.k);
  const int64_t blocks = info.k_padded / mover.columns, whole_blocks = q.k / mover.columns;
  const uint8_t code_xor = layout_code_xor(info.layout.id, info.format.element);
  out += panel * blocks * block_bytes;

  const auto fill = [bits](uint8_t code) {
    return static_cast<uint8_t>(bits == 4 ? code * 0x11 : code);
  };
  alignas(16) uint8_t padding[kMostBlockColumns];
  std::memset(padding, fill(padding_code(info.format.element)), sizeof(padding));
  int64_t rows[kPanelRows];
  panel_rows(info, panel, rows);
  const uint8_t* sources[kPanelRows];
  for (int64_t b = 0; b < whole_blocks; ++b) {
    for (int r = 0; r < kPanelRows; ++r) {
      sources[r] =
          rows[r] < 0 ? padding : q.codes.data() + rows[r] * row_bytes + b * row_block_bytes;
    }
    mover.pack(sources, code_xor, out + b * block_bytes);
  }
  if (whole_blocks == blocks) return;
  // The last block reaches past K: complete each row in scratch.
  alignas(16) uint8_t tail[kPanelRows][kMostBlockColumns];
  const int64_t columns = q.k - whole_blocks * mover.columns, left = ceil_div(columns * bits, 8);
  for (int r = 0; r < kPanelRows; ++r) {
    sources[r] = padding;
    if (rows[r] < 0) continue;
    const uint8_t code = tail_code(q, rows[r]);
    // Columns of groups wholly past K have scale 0; any code decodes to 0 there.
    std::memset(tail[r], fill(code), sizeof(tail[r]));
    std::memcpy(tail[r], q.codes.data() + rows[r] * row_bytes + whole_blocks * row_block_bytes,
                static_cast<size_t>(left));
    if (bits == 4 && columns % 2 != 0) {
      tail[r][left - 1] = static_cast<uint8_t>((tail[r][left - 1] & 15) | (code << 4));
    }
    sources[r] = tail[r];
  }
  mover.pack(sources, code_xor, out + whole_blocks * block_bytes);
}

/// Places of the values of one panel: those of row r and group g lie at row[r] + group(g).
struct PanelOrder {
  int64_t per_block, block_stride, group_stride;
  int64_t row[kPanelRows];
  int64_t group(int64_t g) const {
    return g / per_block * block_stride + g % per_block * group_stride;
  }
};
PanelOrder panel_order(const PackedWeightInfo& info) {
  PanelOrder order{1, kPanelRows, 0, {}};
  if (info.layout.id == LayoutId::kCudaFrag16) {
    const int64_t per_block = groups_per_fragment_block(info.format);
    order = {per_block, kPanelRows * per_block, 1, {}};
  }
  for (int r = 0; r < kPanelRows; ++r) {
    order.row[r] =
        info.layout.id == LayoutId::kCudaFrag16 ? (2 * (r % 8) + r / 8) * order.per_block : r;
  }
  return order;
}

/// [n][groups] values → one panel; padding becomes zero bytes.
template <class Value>
void pack_panel_values(const PackedWeightInfo& info, int64_t panel, const uint8_t* source,
                       uint8_t* out) {
  const int64_t groups = info.format.groups(info.k);
  auto* to = reinterpret_cast<Value*>(out) + panel * info.num_groups * kPanelRows;
  int64_t rows[kPanelRows];
  panel_rows(info, panel, rows);
  const PanelOrder order = panel_order(info);
  if (info.layout.id == LayoutId::kCpuPanel16 &&
      std::all_of(rows, rows + kPanelRows, [](int64_t row) { return row >= 0; })) {
    // The 16 values of a group lie together: one store instead of 16 that are 16 values apart.
    const uint8_t* from[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) {
      from[r] = source + rows[r] * groups * static_cast<int64_t>(sizeof(Value));
    }
    for (int64_t g = 0; g < groups; ++g) {
      Value values[kPanelRows];
      for (int r = 0; r < kPanelRows; ++r) {
        std::memcpy(values + r, from[r] + g * static_cast<int64_t>(sizeof(Value)), sizeof(Value));
      }
      std::memcpy(to + g * kPanelRows, values, sizeof(values));
    }
    std::fill(to + groups * kPanelRows, to + info.num_groups * kPanelRows, Value{});
    return;
  }
  for (int r = 0; r < kPanelRows; ++r) {
    const uint8_t* from = source + rows[r] * groups * static_cast<int64_t>(sizeof(Value));
    for (int64_t g = 0; g < info.num_groups; ++g) {
      Value value{};
      if (rows[r] >= 0 && g < groups)
        std::memcpy(&value, from + g * static_cast<int64_t>(sizeof(Value)), sizeof(Value));
      to[order.row[r] + order.group(g)] = value;
    }
  }
}

template <class Value>
void unpack_panel_values(const PackedWeightInfo& info, int64_t panel, const uint8_t* in,
                         uint8_t* destination) {
  const int64_t groups = info.format.groups(info.k);
  const auto* from = reinterpret_cast<const Value*>(in) + panel * info.num_groups * kPanelRows;
  int64_t rows[kPanelRows];
  panel_rows(info, panel, rows);
  const PanelOrder order = panel_order(info);
  for (int r = 0; r < kPanelRows; ++r) {
    if (rows[r] < 0) continue;
    for (int64_t g = 0; g < groups; ++g) {
      std::memcpy(destination + (rows[r] * groups + g) * static_cast<int64_t>(sizeof(Value)),
                  from + order.row[r] + order.group(g), sizeof(Value));
    }
  }
}

using PanelValuesFn = void (*)(const PackedWeightInfo&, int64_t, const uint8_t*, uint8_t*);
PanelValuesFn packer_of(DType dtype) {
  const int64_t bytes = dtype_bytes(dtype);
  return bytes == 1   ? pack_panel_values<uint8_t>
         : bytes == 2 ? pack_panel_values<uint16_t>
                      : pack_panel_values<uint32_t>;
}
PanelValuesFn unpacker_of(DType dtype) {
  const int64_t bytes = dtype_bytes(dtype);
  return bytes == 1   ? unpack_panel_values<uint8_t>
         : bytes == 2 ? unpack_panel_values<uint16_t>
                      : unpack_panel_values<uint32_t>;
}

/// f32 [n_padded] in packed row order. A padding row's factor leaves its zeros at zero.
void fill_row_scale(const PackedWeightInfo& info, float* out) {
  std::fill(out, out + info.n_padded, 1.0f);
  for (int32_t i = 0; i < info.num_tensor_scales; ++i) {
    const auto& segment = info.tensor_scales[static_cast<size_t>(i)];
    const int64_t end = i + 1 < info.num_tensor_scales
                            ? info.tensor_scales[static_cast<size_t>(i) + 1].row_begin
                            : info.n;
    for (int64_t row = segment.row_begin; row < end; ++row)
      out[info.layout.packed_row(row, info.n)] = segment.value;
  }
}

void run(ThreadPool* pool, int64_t count, const auto& body) {
  if (pool == nullptr) {
    for (int64_t i = 0; i < count; ++i) body(i);
  } else {
    pool->for_each(count, body);
  }
}

PackedWeight with_parts(const PackedWeightInfo& info, Buffer buffer) {
  PackedWeight packed;
  packed.info = info;
  for (size_t i = 0; i < kNumSections; ++i) {
    if (info.sections[i].bytes > 0)
      packed.parts[i] = buffer.slice(info.sections[i].offset, info.sections[i].bytes);
  }
  packed.buffer = std::move(buffer);
  return packed;
}

}  // namespace

Result<PackedWeightInfo> packed_info(const QuantizedTensor& q, const Layout& layout) {
  PackedWeightInfo info;
  info.format = q.format;
  info.layout = layout;
  info.n = q.n;
  info.k = q.k;
  info.tensor_scale_op = q.tensor_scale_op;
  info.codebook = q.codebook;
  if (q.tensor_scales.size() > kMaxTensorScales) {
    return unsupported(std::to_string(q.tensor_scales.size()) + " tensor scales, at most " +
                       std::to_string(kMaxTensorScales));
  }
  info.num_tensor_scales = static_cast<int32_t>(q.tensor_scales.size());
  std::copy(q.tensor_scales.begin(), q.tensor_scales.end(), info.tensor_scales.begin());
  NIBBLE_RETURN_IF_ERROR(lay_out(info, !q.k_perm.empty(), !q.pre_scale.empty()));
  return info;
}

int64_t packed_bytes(const PackedWeightInfo& info) { return info.bytes; }

Status pack_into(const QuantizedTensor& q, const PackedWeightInfo& info,
                 std::span<uint8_t> destination, ThreadPool* pool) {
  NIBBLE_RETURN_IF_ERROR(q.validate());
  if (q.n != info.n || q.k != info.k || q.format != info.format) {
    return invalid_argument("the tensor is " + q.format.name() + " [" + std::to_string(q.n) + ", " +
                            std::to_string(q.k) + "], the info is of " + info.format.name() + " [" +
                            std::to_string(info.n) + ", " + std::to_string(info.k) + "]");
  }
  if (static_cast<int64_t>(destination.size()) < info.bytes) {
    return invalid_argument("the destination has " + std::to_string(destination.size()) +
                            " bytes, " + std::to_string(info.bytes) + " are needed");
  }
  if (reinterpret_cast<uintptr_t>(destination.data()) % kSectionAlign != 0) {
    return invalid_argument("the destination is not aligned to " + std::to_string(kSectionAlign) +
                            " bytes");
  }
  const auto at = [&](SectionId id) { return destination.data() + info.section(id).offset; };
  if (info.layout.id == LayoutId::kRowMajor) {
    std::memcpy(at(SectionId::kCodes), q.codes.data(), static_cast<size_t>(q.codes.bytes()));
    std::memcpy(at(SectionId::kScales), q.scales.data(), static_cast<size_t>(q.scales.bytes()));
    if (!q.zeros.empty())
      std::memcpy(at(SectionId::kZeros), q.zeros.data(), static_cast<size_t>(q.zeros.bytes()));
  } else {
    const PanelValuesFn pack_scales = packer_of(q.format.scale),
                        pack_zeros = packer_of(q.format.zero_dtype());
    run(pool, info.n_padded / kPanelRows, [&](int64_t panel) {
      pack_panel_codes(q, info, panel, at(SectionId::kCodes));
      pack_scales(info, panel, q.scales.data(), at(SectionId::kScales));
      if (!q.zeros.empty()) pack_zeros(info, panel, q.zeros.data(), at(SectionId::kZeros));
    });
  }
  if (info.has(SectionId::kRowScale))
    fill_row_scale(info, reinterpret_cast<float*>(at(SectionId::kRowScale)));
  if (!q.k_perm.empty())
    std::memcpy(at(SectionId::kKPerm), q.k_perm.data(), q.k_perm.size() * sizeof(int32_t));
  if (!q.pre_scale.empty())
    std::memcpy(at(SectionId::kPreScale), q.pre_scale.data(), q.pre_scale.size() * sizeof(float));
  return {};
}

Result<PackedWeight> pack(const QuantizedTensor& q, const Layout& layout, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const PackedWeightInfo info, packed_info(q, layout));
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, Buffer::allocate(info.bytes));
  NIBBLE_RETURN_IF_ERROR(
      pack_into(q, info, {buffer.mutable_data(), static_cast<size_t>(buffer.bytes())}, pool));
  return with_parts(info, std::move(buffer));
}

Result<QuantizedTensor> unpack(const PackedWeight& packed, ThreadPool* pool) {
  const PackedWeightInfo& info = packed.info;
  NIBBLE_ASSIGN_OR_RETURN(QuantizedTensor q, make_quantized_tensor(info.format, info.n, info.k));
  q.codebook = info.codebook;
  q.tensor_scale_op = info.tensor_scale_op;
  q.tensor_scales.assign(info.tensor_scales.begin(),
                         info.tensor_scales.begin() + info.num_tensor_scales);
  const auto copy = [&packed]<class T>(SectionId id, std::vector<T>& to) {
    if (!packed.info.has(id)) return;
    to.resize(static_cast<size_t>(packed.info.section(id).bytes) / sizeof(T));
    std::memcpy(to.data(), packed.section(id), to.size() * sizeof(T));
  };
  copy(SectionId::kKPerm, q.k_perm);
  copy(SectionId::kPreScale, q.pre_scale);
  if (info.layout.id == LayoutId::kRowMajor) {
    std::memcpy(q.codes.mutable_data(), packed.section(SectionId::kCodes),
                static_cast<size_t>(q.codes.bytes()));
    std::memcpy(q.scales.mutable_data(), packed.section(SectionId::kScales),
                static_cast<size_t>(q.scales.bytes()));
    if (!q.zeros.empty()) {
      std::memcpy(q.zeros.mutable_data(), packed.section(SectionId::kZeros),
                  static_cast<size_t>(q.zeros.bytes()));
    }
    return q;
  }
  const int bits = info.format.bits();
  const BlockMover mover = mover_of(info);
  const int64_t block_bytes = kPanelRows * mover.columns * bits / 8,
                row_block_bytes = mover.columns * bits / 8;
  const int64_t blocks = info.k_padded / mover.columns, row_bytes = q.format.code_row_bytes(q.k);
  const uint8_t code_xor = layout_code_xor(info.layout.id, info.format.element);
  run(pool, info.n_padded / kPanelRows, [&](int64_t panel) {
    int64_t rows[kPanelRows];
    panel_rows(info, panel, rows);
    uint8_t scratch[kPanelRows][kMostBlockColumns];
    uint8_t* destinations[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) destinations[r] = scratch[r];
    const uint8_t* in = packed.section(SectionId::kCodes) + panel * blocks * block_bytes;
    for (int64_t b = 0; b < blocks; ++b) {
      mover.unpack(in + b * block_bytes, code_xor, destinations);
      const int64_t columns = std::min<int64_t>(mover.columns, q.k - b * mover.columns);
      const int64_t bytes = ceil_div(columns * bits, 8);
      for (int r = 0; r < kPanelRows; ++r) {
        if (rows[r] < 0) continue;
        if (bits == 4 && columns % 2 != 0) scratch[r][bytes - 1] &= 15;
        std::memcpy(q.codes.mutable_data() + rows[r] * row_bytes + b * row_block_bytes, scratch[r],
                    static_cast<size_t>(bytes));
      }
    }
    unpacker_of(q.format.scale)(info, panel, packed.section(SectionId::kScales),
                                q.scales.mutable_data());
    if (!q.zeros.empty()) {
      unpacker_of(q.format.zero_dtype())(info, panel, packed.section(SectionId::kZeros),
                                         q.zeros.mutable_data());
    }
  });
  return q;
}

Result<PackedWeight> view(const PackedWeightInfo& info, Buffer buffer) {
  NIBBLE_RETURN_IF_ERROR(info.format.validate());
  PackedWeightInfo expected = info;
  NIBBLE_RETURN_IF_ERROR(
      lay_out(expected, info.has(SectionId::kKPerm), info.has(SectionId::kPreScale)));
  bool same = info.layout_version == kLayoutVersion && expected.bytes == info.bytes &&
              expected.n_padded == info.n_padded && expected.k_padded == info.k_padded &&
              expected.num_groups == info.num_groups;
  for (size_t i = 0; i < kNumSections; ++i) {
    same &= expected.sections[i].offset == info.sections[i].offset &&
            expected.sections[i].bytes == info.sections[i].bytes;
  }
  if (!same)
    return invalid_argument("the info is not what " + info.layout.name() + " version " +
                            std::to_string(kLayoutVersion) + " gives for its sizes");
  if (buffer.bytes() < info.bytes ||
      reinterpret_cast<uintptr_t>(buffer.data()) % kSectionAlign != 0) {
    return invalid_argument("the buffer has " + std::to_string(buffer.bytes()) + " bytes; " +
                            std::to_string(info.bytes) + " aligned to " +
                            std::to_string(kSectionAlign) + " are needed");
  }
  return with_parts(info, std::move(buffer));
}

Result<PackedWeight> view_row_major(const Format& format, int64_t n, int64_t k,
                                    const RowMajorArrays& arrays) {
  NIBBLE_RETURN_IF_ERROR(format.validate());
  if (n < 1 || k < 1) {
    return invalid_argument("n = " + std::to_string(n) + ", k = " + std::to_string(k) +
                            ": both must be at least 1");
  }
  if (arrays.codes == nullptr || arrays.scales == nullptr)
    return invalid_argument("codes and scales must not be null");
  if ((format.zero != ZeroKind::kNone) != (arrays.zeros != nullptr)) {
    return invalid_argument(format.name() +
                            (arrays.zeros == nullptr ? " needs zeros" : " takes no zeros"));
  }
  if (format.zero == ZeroKind::kAdditive && arrays.tensor_scale != 1) {
    return unsupported("an additive zero cannot meet a tensor scale");
  }
  PackedWeightInfo info;
  info.format = format;
  info.layout = {LayoutId::kRowMajor, false};
  info.n = n;
  info.k = k;
  if (format.element == Element::kNF4) info.codebook = kNf4Codebook;
  if (arrays.tensor_scale != 1) {
    info.num_tensor_scales = 1;
    info.tensor_scales[0] = {0, arrays.tensor_scale};
  }
  NIBBLE_RETURN_IF_ERROR(lay_out(info, false, false));
  PackedWeight packed;
  packed.info = info;
  const auto part = [&packed](SectionId id) -> Buffer& {
    return packed.parts[static_cast<size_t>(id)];
  };
  part(SectionId::kCodes) = Buffer::view(arrays.codes, info.section(SectionId::kCodes).bytes);
  part(SectionId::kScales) = Buffer::view(arrays.scales, info.section(SectionId::kScales).bytes);
  if (arrays.zeros != nullptr)
    part(SectionId::kZeros) = Buffer::view(arrays.zeros, info.section(SectionId::kZeros).bytes);
  if (info.has(SectionId::kRowScale)) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer rows,
                            Buffer::allocate(info.section(SectionId::kRowScale).bytes));
    fill_row_scale(info, reinterpret_cast<float*>(rows.mutable_data()));
    part(SectionId::kRowScale) = std::move(rows);
  }
  return packed;
}

}  // namespace nibble
