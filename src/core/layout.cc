#include "nibble/core.h"

namespace nibble {
namespace {
constexpr int64_t kPanelRows = 16;        // outputs per panel
constexpr int64_t kBlockColumns = 32;     // columns per block of cpu_panel16
constexpr int64_t kFragmentColumns = 64;  // columns per block of cuda_frag16: four k16 steps
constexpr int64_t kLanes = 32;            // of a warp
constexpr int64_t kSectionAlign = 256;
}  // namespace

Result<Layout> Layout::parse(std::string_view name) {
  for (const LayoutId id : {LayoutId::kRowMajor, LayoutId::kCpuPanel16, LayoutId::kCudaFrag16}) {
    for (const bool paired : {false, true}) {
      const Layout layout{id, paired};
      if (name == layout.name() && !(paired && id == LayoutId::kRowMajor)) return layout;
    }
  }
  return invalid_argument("unknown layout '" + std::string(name) +
                          "'; known: row_major, cpu_panel16, cpu_panel16-paired, cuda_frag16, "
                          "cuda_frag16-paired");
}

std::string Layout::name() const {
  return std::string(layout_name(id)) + (paired ? "-paired" : "");
}

int64_t Layout::tile_n() const {
  switch (id) {
    case LayoutId::kRowMajor:
      return 1;
    case LayoutId::kCpuPanel16:
    case LayoutId::kCudaFrag16:
      return kPanelRows;
  }
  return 1;
}

int64_t Layout::tile_k() const {
  switch (id) {
    case LayoutId::kRowMajor:
      return 1;
    case LayoutId::kCpuPanel16:
      return kBlockColumns;
    case LayoutId::kCudaFrag16:
      return kFragmentColumns;
  }
  return 1;
}

int64_t Layout::packed_row(int64_t row, int64_t n) const {
  if (!paired) return row;
  constexpr int64_t kHalf = kPanelRows / 2;
  const int64_t half_n = n / 2;
  const bool up = row >= half_n;
  const int64_t within = up ? row - half_n : row;
  return within / kHalf * kPanelRows + (up ? kHalf : 0) + within % kHalf;
}

namespace {

// Place of one code in a block of 16 rows x 64 columns: the A fragment of mma.m16n8k16, four steps
// of 16 columns in a row. Lane 4g + t holds, of each step, eight codes e = 0..7:
//   row g + 8 * (e / 2 % 2), column 2t + e % 2 + 8 * (e / 4)
// so that register i of the fragment is the pair e = 2i (low half), 2i + 1 (high half).
int64_t fragment_offset_bits(int64_t row, int64_t column, const Format& format) {
  const int64_t step = column / 16, c = column % 16;
  const int64_t lane = 4 * (row % 8) + c % 8 / 2;
  const int64_t e = c % 2 + 2 * (row / 8) + 4 * (c / 8);
  if (format.bits() == 4) {
    // A step is a 32-bit word. Values that are computed: a mask and shifts by 4i bring pair i to
    // the ends of both halves. Values from a table of pairs: pair i is byte i.
    const bool table = format.element == Element::kNF4;
    return 8 * (16 * lane + 4 * step) + 4 * (table ? e : e / 2 + 4 * (e % 2));
  }
  // A step is two words; a mask and a shift by 8 give the two pairs of each.
  return 8 * (16 * (kLanes * (step / 2) + lane) + 8 * (step % 2) + 4 * (e / 4) + e % 4 / 2 +
              2 * (e % 2));
}

}  // namespace

// Panel16, 4 bits: vector j (64 bytes) of a block holds columns 4j..4j+3 in the low nibbles and
// 16+4j..16+4j+3 in the high ones, four bytes a row, so that one 4-byte dot product per lane eats
// four columns of one row after a mask or a shift.
int64_t Layout::offset_bits(int64_t row, int64_t column, const PackedWeightInfo& info) const {
  const int bits = info.format.bits();
  switch (id) {
    case LayoutId::kRowMajor:
      return row * info.format.code_row_bytes(info.k) * 8 + column * bits;
    case LayoutId::kCpuPanel16: {
      const int64_t packed = packed_row(row, info.n);
      const int64_t block =
          packed / kPanelRows * (info.k_padded / kBlockColumns) + column / kBlockColumns;
      const int64_t lane = 4 * (packed % kPanelRows), c = column % kBlockColumns;
      if (bits == 8) return 8 * (block * 512 + 64 * (c / 4) + lane + c % 4);
      return 8 * (block * 256 + 64 * (c % 16 / 4) + lane + c % 4) + (c >= 16 ? 4 : 0);
    }
    case LayoutId::kCudaFrag16: {
      const int64_t packed = packed_row(row, info.n);
      const int64_t block =
          packed / kPanelRows * (info.k_padded / kFragmentColumns) + column / kFragmentColumns;
      return block * kPanelRows * kFragmentColumns * bits +
             fragment_offset_bits(packed % kPanelRows, column % kFragmentColumns, info.format);
    }
  }
  return 0;
}

int64_t Layout::scale_index(int64_t row, int64_t group, const PackedWeightInfo& info) const {
  switch (id) {
    case LayoutId::kRowMajor:
      return row * info.num_groups + group;
    case LayoutId::kCpuPanel16: {
      const int64_t packed = packed_row(row, info.n);
      return (packed / kPanelRows * info.num_groups + group) * kPanelRows + packed % kPanelRows;
    }
    case LayoutId::kCudaFrag16: {
      // The groups of one block lie together, rows g and g + 8 of a lane beside each other.
      const int64_t packed = packed_row(row, info.n), within = packed % kPanelRows;
      const int64_t per_block = groups_per_fragment_block(info.format);
      const int64_t place = 2 * (within % 8) + within / 8;
      return packed / kPanelRows * kPanelRows * info.num_groups +
             (group / per_block * kPanelRows + place) * per_block + group % per_block;
    }
  }
  return 0;
}

Status lay_out(PackedWeightInfo& info, bool has_k_perm, bool has_pre_scale) {
  const Layout& layout = info.layout;
  if (layout.paired && info.n % 2 != 0) {
    return invalid_argument(
        "a paired layout needs gate and up rows; n = " + std::to_string(info.n) + " is odd");
  }
  if (layout.paired && layout.id == LayoutId::kRowMajor)
    return unsupported("row_major has no paired form");
  const int64_t half = layout.tile_n() / 2;
  info.n_padded =
      layout.paired ? 2 * round_up(info.n / 2, half) : round_up(info.n, layout.tile_n());
  info.k_padded = round_up(info.k, layout.tile_k());
  info.num_groups = info.format.groups(info.k_padded);
  const auto values = checked_product(info.n_padded, info.num_groups);
  const auto codes = checked_product(info.n_padded, info.k_padded);
  if (!values || !codes || *codes > INT64_MAX / 64 || *values > INT64_MAX / 64) {
    return invalid_argument("a packed weight of [" + std::to_string(info.n) + ", " +
                            std::to_string(info.k) + "] overflows 63 bits");
  }
  info.bytes = 0;
  const auto place = [&info](SectionId id, int64_t bytes) {
    info.section(id) = {info.bytes, bytes};
    info.bytes = round_up(info.bytes + bytes, kSectionAlign);
  };
  const bool zeros = info.format.zero != ZeroKind::kNone;
  place(SectionId::kCodes, info.n_padded * info.format.code_row_bytes(info.k_padded));
  place(SectionId::kScales, *values * dtype_bytes(info.format.scale));
  place(SectionId::kZeros, zeros ? *values * dtype_bytes(info.format.zero_dtype()) : 0);
  place(SectionId::kRowScale, info.num_tensor_scales > 0 ? info.n_padded * 4 : 0);
  place(SectionId::kRowShift, 0);  // written by FP8 layouts only
  place(SectionId::kKPerm, has_k_perm ? info.k * 4 : 0);
  place(SectionId::kPreScale, has_pre_scale ? info.k * 4 : 0);
  return {};
}

int64_t groups_per_fragment_block(const Format& format) {
  return format.group == 0 || format.group >= kFragmentColumns ? 1
                                                               : kFragmentColumns / format.group;
}

uint8_t layout_code_xor(LayoutId layout, Element element) {
  switch (layout) {
    case LayoutId::kRowMajor:
      return 0;
    case LayoutId::kCpuPanel16:
      if (element == Element::kInt4) return 0x8;
      return element == Element::kInt8 ? 0x80 : 0;
    case LayoutId::kCudaFrag16:
      if (element == Element::kInt4) return 0x8;
      return element == Element::kUint8 ? 0x80 : 0;
  }
  return 0;
}

}  // namespace nibble
