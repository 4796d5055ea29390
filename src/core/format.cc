#include <charconv>

#include "core/names.h"
#include "nibble/core.h"

namespace nibble {
namespace {

constexpr NamedValue<Element> kElements[] = {
    {"int4", Element::kInt4},   {"uint4", Element::kUint4}, {"int8", Element::kInt8},
    {"uint8", Element::kUint8}, {"fp4", Element::kE2M1},    {"nf4", Element::kNF4},
};
constexpr NamedValue<DType> kScales[] = {
    {"f32", DType::kF32},   {"f16", DType::kF16},   {"bf16", DType::kBF16},
    {"e4m3", DType::kE4M3}, {"e8m0", DType::kE8M0},
};
constexpr NamedValue<ZeroKind> kZeros[] = {
    {"zint", ZeroKind::kInteger},
    {"zfloat", ZeroKind::kFloatCode},
    {"zadd", ZeroKind::kAdditive},
};

constexpr Format kNvfp4{Element::kE2M1, 16, DType::kE4M3, ZeroKind::kNone};
constexpr Format kMxfp4{Element::kE2M1, 32, DType::kE8M0, ZeroKind::kNone};

DType default_scale(Element element) {
  switch (element) {
    case Element::kInt4:
    case Element::kUint4:
    case Element::kInt8:
    case Element::kUint8:
      return DType::kBF16;
    case Element::kE2M1:
    case Element::kNF4:
      return DType::kF32;
  }
  return DType::kF32;
}

ZeroKind default_zero(Element element) {
  return element == Element::kUint4 || element == Element::kUint8 ? ZeroKind::kInteger
                                                                  : ZeroKind::kNone;
}

bool is_group(int32_t group) {
  return group == 0 || group == 16 || group == 32 || group == 64 || group == 128;
}

}  // namespace

Result<Format> Format::parse(std::string_view text) {
  const std::string whole(text);
  if (text == "nvfp4") return kNvfp4;
  if (text == "mxfp4") return kMxfp4;
  const auto wrong = [&whole](const std::string& why) {
    return invalid_argument(
        "format '" + whole + "': " + why +
        "; a format is nvfp4, mxfp4 or element-group[:scale][:zero], for example int4-g128");
  };
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos) return wrong("no group");
  Format format;
  auto element = value_of(kElements, text.substr(0, dash), "element");
  if (!element.ok()) return wrong(element.status().message());
  format.element = *element;
  format.scale = default_scale(format.element);
  format.zero = default_zero(format.element);
  text.remove_prefix(dash + 1);

  const size_t colon = text.find(':');
  const std::string_view group = text.substr(0, colon);
  if (group == "channel") {
    format.group = 0;
  } else {
    int32_t columns = 0;
    const char* end = group.data() + group.size();
    if (group.size() < 2 || group[0] != 'g' ||
        std::from_chars(group.data() + 1, end, columns) !=
            std::from_chars_result{end, std::errc{}} ||
        columns == 0) {
      return wrong("group '" + std::string(group) + "' is not g16, g32, g64, g128 or channel");
    }
    format.group = columns;
  }

  bool has_scale = false, has_zero = false;
  while (text.find(':') != std::string_view::npos) {
    text.remove_prefix(text.find(':') + 1);
    const std::string_view part = text.substr(0, text.find(':'));
    if (auto scale = value_of(kScales, part, "scale"); scale.ok() && !has_scale) {
      format.scale = *scale;
      has_scale = true;
    } else if (auto zero = value_of(kZeros, part, "zero"); zero.ok() && !has_zero) {
      format.zero = *zero;
      has_zero = true;
    } else {
      return wrong("'" + std::string(part) +
                   "' is neither a scale dtype nor a zero kind, or stands twice");
    }
  }
  if (Status status = format.validate(); !status.ok()) return wrong(status.message());
  return format;
}

Status Format::validate() const {
  if (!is_group(group)) {
    return invalid_argument("group " + std::to_string(group) +
                            " is not 16, 32, 64, 128 or the whole row (0)");
  }
  bool known = false;
  for (const auto& row : kScales) known |= row.value == scale;
  if (!known) return invalid_argument(std::string(dtype_name(scale)) + " is not a scale dtype");
  const bool has_zero = element == Element::kUint4 || element == Element::kUint8;
  if (has_zero && zero == ZeroKind::kNone)
    return invalid_argument("unsigned codes need a zero kind");
  if (!has_zero && zero != ZeroKind::kNone) {
    return invalid_argument(std::string(element_name(element)) +
                            " takes no zero point; only uint4 and uint8 do");
  }
  const bool eight_bit_scale = scale == DType::kE4M3 || scale == DType::kE8M0;
  if (eight_bit_scale && (zero == ZeroKind::kFloatCode || zero == ZeroKind::kAdditive)) {
    return invalid_argument(std::string("a float zero cannot be stored as ") + dtype_name(scale));
  }
  return {};
}

std::string Format::name() const {
  if (*this == kNvfp4) return "nvfp4";
  if (*this == kMxfp4) return "mxfp4";
  std::string name = name_of(kElements, element);
  name += group == 0 ? "-channel" : "-g" + std::to_string(group);
  if (scale != default_scale(element)) name += std::string(":") + name_of(kScales, scale);
  if (zero != default_zero(element)) name += std::string(":") + name_of(kZeros, zero);
  return name;
}

int Format::bits() const {
  switch (element) {
    case Element::kInt4:
    case Element::kUint4:
    case Element::kE2M1:
    case Element::kNF4:
      return 4;
    case Element::kInt8:
    case Element::kUint8:
      return 8;
  }
  return 0;
}

DType Format::zero_dtype() const { return zero == ZeroKind::kInteger ? DType::kU8 : scale; }

int64_t Format::groups(int64_t k) const { return group == 0 ? 1 : ceil_div(k, group); }

double Format::bits_per_weight(int64_t k) const {
  const int64_t per_group =
      dtype_bytes(scale) + (zero == ZeroKind::kNone ? 0 : dtype_bytes(zero_dtype()));
  return static_cast<double>(8 * (code_row_bytes(k) + groups(k) * per_group)) /
         static_cast<double>(k);
}

std::span<const char* const> named_formats() {
  static constexpr const char* kNames[] = {
      "int4-g16",  "int4-g32",  "int4-g64",  "int4-g128",  "int4-channel",
      "uint4-g16", "uint4-g32", "uint4-g64", "uint4-g128", "uint4-channel",
      "int8-g16",  "int8-g32",  "int8-g64",  "int8-g128",  "int8-channel",
      "nvfp4",     "mxfp4",     "fp4-g32",   "nf4-g64",
  };
  return kNames;
}

float decode_element(Element element, uint8_t code, const float* codebook) {
  switch (element) {
    case Element::kInt4:
      return static_cast<float>(static_cast<int>((code & 15) ^ 8) - 8);
    case Element::kUint4:
      return static_cast<float>(code & 15);
    case Element::kE2M1:
      return e2m1_to_f32(code);
    case Element::kNF4:
      return codebook[code & 15];
    case Element::kInt8:
      return static_cast<float>(static_cast<int8_t>(code));
    case Element::kUint8:
      return static_cast<float>(code);
  }
  return 0;
}

}  // namespace nibble
