#include "checkpoint/gguf.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "checkpoint/container.h"
#include "checkpoint/json.h"
#include "checkpoint/model_path.h"

namespace nibble::checkpoint {
namespace {

// ggml.h and its quantized blocks; a size of 0 marks types that are gone.
constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, DType::kF32},    {1, "F16", 1, 2, DType::kF16},
    {2, "Q4_0", 32, 18, {}},          {3, "Q4_1", 32, 20, {}},
    {4, "Q4_2", 32, 0, {}},           {5, "Q4_3", 32, 0, {}},
    {6, "Q5_0", 32, 22, {}},          {7, "Q5_1", 32, 24, {}},
    {8, "Q8_0", 32, 34, {}},          {9, "Q8_1", 32, 36, {}},
    {10, "Q2_K", 256, 84, {}},        {11, "Q3_K", 256, 110, {}},
    {12, "Q4_K", 256, 144, {}},       {13, "Q5_K", 256, 176, {}},
    {14, "Q6_K", 256, 210, {}},       {15, "Q8_K", 256, 292, {}},
    {16, "IQ2_XXS", 256, 66, {}},     {17, "IQ2_XS", 256, 74, {}},
    {18, "IQ3_XXS", 256, 98, {}},     {19, "IQ1_S", 256, 50, {}},
    {20, "IQ4_NL", 32, 18, {}},       {21, "IQ3_S", 256, 110, {}},
    {22, "IQ2_S", 256, 82, {}},       {23, "IQ4_XS", 256, 136, {}},
    {24, "I8", 1, 1, DType::kI8},     {25, "I16", 1, 2, DType::kI16},
    {26, "I32", 1, 4, DType::kI32},   {27, "I64", 1, 8, DType::kI64},
    {28, "F64", 1, 8, DType::kF64},   {29, "IQ1_M", 256, 56, {}},
    {30, "BF16", 1, 2, DType::kBF16}, {31, "Q4_0_4_4", 32, 0, {}},
    {32, "Q4_0_4_8", 32, 0, {}},      {33, "Q4_0_8_8", 32, 0, {}},
    {34, "TQ1_0", 256, 54, {}},       {35, "TQ2_0", 256, 66, {}},
    {36, "IQ4_NL_4_4", 32, 0, {}},    {37, "IQ4_NL_4_8", 32, 0, {}},
    {38, "IQ4_NL_8_8", 32, 0, {}},    {39, "MXFP4", 32, 17, {}},
    {40, "NVFP4", 64, 36, {}},        {41, "Q1_0", 128, 18, {}},
};

/// Bytes of a value, 0 for those of varying length, -1 for a type that there is not.
int64_t value_bytes(uint32_t type) {
  constexpr int8_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < std::size(kBytes) ? kBytes[type] : -1;
}

constexpr int64_t kMinPairBytes = 8 + 4 + 1;        // an empty key and one byte
constexpr int64_t kMinTensorBytes = 8 + 4 + 4 + 8;  // an empty name and no dimension
constexpr int64_t kMinArrayBytes = 4 + 8;

/// Walks the header; every read is checked against what is left.
class HeaderReader {
 public:
  HeaderReader(const uint8_t* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  int64_t position() const { return position_; }
  int64_t left() const { return bytes_ - position_; }

  template <class T>
  Status read(T& value) {
    if (left() < static_cast<int64_t>(sizeof(T))) return ends();
    std::memcpy(&value, data_ + position_, sizeof(T));
    position_ += static_cast<int64_t>(sizeof(T));
    return {};
  }
  Status read(std::string_view& text) {
    uint64_t length = 0;
    NIBBLE_RETURN_IF_ERROR(read(length));
    NIBBLE_RETURN_IF_ERROR(fits("a string", length, 1));
    text = {reinterpret_cast<const char*>(data_ + position_), static_cast<size_t>(length)};
    position_ += static_cast<int64_t>(length);
    return {};
  }
  void skip(int64_t count) { position_ += count; }
  /// `count` things of at least `each` bytes may follow.
  Status fits(const char* what, uint64_t count, int64_t each) const {
    if (count <= static_cast<uint64_t>(left() / each)) return {};
    return corrupt_file(std::string(what) + " of " + std::to_string(count) + " where " +
                        std::to_string(left()) + " bytes are left in the file");
  }
  Status ends() const {
    return corrupt_file("the header ends at byte " + std::to_string(bytes_) +
                        "; the file may be truncated");
  }

 private:
  const uint8_t* data_;
  int64_t bytes_, position_ = 0;
};

// ------------------------------------------------------------------------------ values as text

constexpr size_t kShownWhole = 16, kShownFirst = 8;      // elements of an array
constexpr size_t kShownElement = 40, kShownArray = 600;  // bytes

/// The first bytes of a text, ending between two UTF-8 characters.
std::string_view cut(std::string_view text, size_t bytes) {
  if (text.size() <= bytes) return text;
  while (bytes > 0 && (static_cast<uint8_t>(text[bytes]) & 0xC0) == 0x80) --bytes;
  return text.substr(0, bytes);
}

template <class T>
Status add_number(HeaderReader& in, std::string* out) {
  T value{};
  NIBBLE_RETURN_IF_ERROR(in.read(value));
  if (out == nullptr) return {};
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  out->append(text, end.ptr);
  return {};
}

Status add_array(HeaderReader& in, int depth, std::string* out);

/// Reads one value and appends it to `out`, unless that is null. Strings are quoted and shortened
/// inside arrays.
Status add_value(HeaderReader& in, GgufValue type, int depth, std::string* out) {
  switch (type) {
    case GgufValue::kU8:
      return add_number<uint8_t>(in, out);
    case GgufValue::kI8:
      return add_number<int8_t>(in, out);
    case GgufValue::kU16:
      return add_number<uint16_t>(in, out);
    case GgufValue::kI16:
      return add_number<int16_t>(in, out);
    case GgufValue::kU32:
      return add_number<uint32_t>(in, out);
    case GgufValue::kI32:
      return add_number<int32_t>(in, out);
    case GgufValue::kU64:
      return add_number<uint64_t>(in, out);
    case GgufValue::kI64:
      return add_number<int64_t>(in, out);
    case GgufValue::kF32:
      return add_number<float>(in, out);
    case GgufValue::kF64:
      return add_number<double>(in, out);
    case GgufValue::kBool: {
      uint8_t value = 0;
      NIBBLE_RETURN_IF_ERROR(in.read(value));
      if (out != nullptr) *out += value != 0 ? "true" : "false";
      return {};
    }
    case GgufValue::kString: {
      std::string_view text;
      NIBBLE_RETURN_IF_ERROR(in.read(text));
      if (out == nullptr) return {};
      if (depth == 0) {
        *out += text;
      } else {
        const std::string_view part = cut(text, kShownElement);
        *out += "\"" + std::string(part) + (part.size() < text.size() ? "…\"" : "\"");
      }
      return {};
    }
    case GgufValue::kArray:
      return add_array(in, depth + 1, out);
  }
  return corrupt_file("type " + std::to_string(static_cast<uint32_t>(type)) + " of a value");
}

Status add_array(HeaderReader& in, int depth, std::string* out) {
  if (depth > kMaxGgufDepth) {
    return corrupt_file("arrays nested deeper than " + std::to_string(kMaxGgufDepth));
  }
  uint32_t type = 0;
  uint64_t count = 0;
  NIBBLE_RETURN_IF_ERROR(in.read(type));
  NIBBLE_RETURN_IF_ERROR(in.read(count));
  const int64_t each = value_bytes(type);
  if (each < 0) return corrupt_file("type " + std::to_string(type) + " of an array's values");
  const bool varies = each == 0;
  const int64_t least = !varies                                            ? each
                        : type == static_cast<uint32_t>(GgufValue::kArray) ? kMinArrayBytes
                                                                           : 8;
  NIBBLE_RETURN_IF_ERROR(in.fits("an array", count, least));
  const uint64_t wanted = count <= kShownWhole ? count : kShownFirst;
  uint64_t shown_count = 0;
  if (out != nullptr) *out += "[";
  for (uint64_t i = 0; i < count; ++i) {
    const bool show = out != nullptr && i < wanted && out->size() < kShownArray;
    if (!show && !varies) {
      in.skip(static_cast<int64_t>(count - i) * each);
      break;
    }
    if (show && i > 0) *out += ", ";
    if (show) ++shown_count;
    NIBBLE_RETURN_IF_ERROR(
        add_value(in, static_cast<GgufValue>(type), depth, show ? out : nullptr));
  }
  if (out != nullptr) {
    if (shown_count < count) *out += ", … " + std::to_string(count) + " in all";
    *out += "]";
  }
  return {};
}

// --------------------------------------------------------------------------------- the header

struct Header {
  std::vector<GgufPair> pairs;
  std::map<std::string, std::string> metadata;
  std::vector<TensorInfo> tensors;  ///< file_offset counts from the data
  int64_t bytes = 0;
};

Status read_pair(HeaderReader& in, Header& header) {
  GgufPair pair;
  pair.begin = in.position();
  NIBBLE_RETURN_IF_ERROR(in.read(pair.key));
  const auto read_value = [&]() -> Status {
    uint32_t type = 0;
    NIBBLE_RETURN_IF_ERROR(in.read(type));
    if (value_bytes(type) < 0) return corrupt_file("type " + std::to_string(type) + " of a value");
    pair.type = static_cast<GgufValue>(type);
    pair.value = in.position();
    std::string text;
    NIBBLE_RETURN_IF_ERROR(add_value(in, pair.type, 0, &text));
    pair.end = in.position();
    if (header.metadata.emplace(pair.key, std::move(text)).second) return {};
    return corrupt_file("stands twice");
  };
  NIBBLE_RETURN_IF_ERROR(read_value().with_context("key " + shown(pair.key)));
  header.pairs.push_back(pair);
  return {};
}

Status read_tensor(HeaderReader& in, TensorInfo& tensor) {
  uint32_t rank = 0, id = 0;
  NIBBLE_RETURN_IF_ERROR(in.read(rank));
  if (rank > kMaxGgufRank) {
    return corrupt_file(std::to_string(rank) + " dimensions, at most " +
                        std::to_string(kMaxGgufRank) + " are allowed");
  }
  for (uint32_t i = 0; i < rank; ++i) {
    uint64_t extent = 0;
    NIBBLE_RETURN_IF_ERROR(in.read(extent));
    if (extent > static_cast<uint64_t>(INT64_MAX)) {
      return corrupt_file("dimension " + std::to_string(i) + " is " + std::to_string(extent) +
                          ", past 63 bits");
    }
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));
  }
  NIBBLE_RETURN_IF_ERROR(in.read(id));
  uint64_t offset = 0;
  NIBBLE_RETURN_IF_ERROR(in.read(offset));
  const GgmlType* type = ggml_type(id);
  if (type == nullptr) {
    return unsupported("ggml type " + std::to_string(id) +
                       " is not one of those known here, 0 to " +
                       std::to_string(std::size(kTypes) - 1));
  }
  if (type->block_bytes == 0) {
    return unsupported(std::string("ggml has removed its type ") + type->name +
                       "; files with it have to be made again");
  }
  tensor.dtype_name = type->name;
  tensor.dtype = type->dtype;
  NIBBLE_ASSIGN_OR_RETURN(tensor.bytes, ggml_bytes(*type, tensor.shape));
  if (offset > static_cast<uint64_t>(INT64_MAX)) {
    return corrupt_file("offset " + std::to_string(offset) + " is past 63 bits");
  }
  tensor.file_offset = static_cast<int64_t>(offset);
  return {};
}

Result<Header> read_header(const MappedFile& file) {
  HeaderReader in(file.data(), file.bytes());
  char magic[4] = {};
  NIBBLE_RETURN_IF_ERROR(in.read(magic));
  if (std::memcmp(magic, kGgufMagic, sizeof(magic)) != 0) {
    return corrupt_file("does not begin with GGUF");
  }
  uint32_t version = 0;
  NIBBLE_RETURN_IF_ERROR(in.read(version));
  if ((version & 0xFFFF) == 0 && version != 0) {
    return unsupported("is big-endian; only little-endian GGUF files are read");
  }
  if (version != 2 && version != 3) {
    return unsupported("GGUF version " + std::to_string(version) + "; versions 2 and 3 are read");
  }
  uint64_t tensors = 0, pairs = 0;
  NIBBLE_RETURN_IF_ERROR(in.read(tensors));
  NIBBLE_RETURN_IF_ERROR(in.read(pairs));
  NIBBLE_RETURN_IF_ERROR(in.fits("a number of pairs", pairs, kMinPairBytes));
  NIBBLE_RETURN_IF_ERROR(in.fits("a number of tensors", tensors, kMinTensorBytes));
  Header header;
  for (uint64_t i = 0; i < pairs; ++i) {
    NIBBLE_RETURN_IF_ERROR(
        read_pair(in, header)
            .with_context("pair " + std::to_string(i) + " of " + std::to_string(pairs)));
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    const std::string which = "tensor " + std::to_string(i) + " of " + std::to_string(tensors);
    std::string_view name;
    NIBBLE_RETURN_IF_ERROR(in.read(name).with_context(which));
    TensorInfo tensor;
    tensor.name = name;
    NIBBLE_RETURN_IF_ERROR(read_tensor(in, tensor).with_context("tensor " + shown(name)));
    header.tensors.push_back(std::move(tensor));
  }
  header.bytes = in.position();
  return header;
}

/// The value of an integer pair, or nullopt when there is none of that name. Alignment is always
/// stored as u32; the keys of split files differ between tools.
Result<std::optional<int64_t>> integer_of(const MappedFile& file, const Header& header,
                                          std::string_view key) {
  const auto pair = std::find_if(header.pairs.begin(), header.pairs.end(),
                                 [key](const GgufPair& each) { return each.key == key; });
  if (pair == header.pairs.end()) return std::optional<int64_t>();
  const auto read = [&](auto value) {
    std::memcpy(&value, file.data() + pair->value, sizeof(value));
    return std::optional<int64_t>(static_cast<int64_t>(value));
  };
  if (pair->type == GgufValue::kU32) return read(uint32_t{});
  if (key == kGgufAlignment) return corrupt_file("key " + shown(key) + " is no u32");
  if (pair->type == GgufValue::kU16) return read(uint16_t{});
  if (pair->type == GgufValue::kI32) return read(int32_t{});
  return corrupt_file("key " + shown(key) + " is no integer of 16 or 32 bits");
}

/// Names are unique; every tensor lies in the data at a multiple of the alignment; none overlaps
/// another. Sorts them by offset and makes offsets count from the start of the file.
Status place_tensors(std::vector<TensorInfo>& tensors, int64_t data_begin, int64_t alignment,
                     int64_t file_bytes) {
  std::vector<std::string_view> names;
  for (const TensorInfo& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) return corrupt_file("tensor " + shown(*twice) + " stands twice");
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.file_offset, a.bytes) < std::pair(b.file_offset, b.bytes);
  });
  const int64_t data_bytes = std::max<int64_t>(0, file_bytes - data_begin);
  int64_t position = 0;
  for (TensorInfo& tensor : tensors) {
    const std::string where = "tensor " + shown(tensor.name) + ": its " +
                              std::to_string(tensor.bytes) + " bytes at offset " +
                              std::to_string(tensor.file_offset);
    if (tensor.file_offset > data_bytes || tensor.bytes > data_bytes - tensor.file_offset) {
      return corrupt_file(where + " pass the end of the data (" + std::to_string(data_bytes) +
                          " bytes); the file may be truncated");
    }
    if (tensor.file_offset % alignment != 0) {
      return corrupt_file(where + " are not aligned to " + std::to_string(alignment));
    }
    if (tensor.file_offset < position) return corrupt_file(where + " overlap another tensor");
    position = tensor.file_offset + tensor.bytes;
    tensor.file_offset += data_begin;
  }
  return {};
}

Result<GgufFile> parse(MappedFile file) {
  NIBBLE_ASSIGN_OR_RETURN(Header header, read_header(file));
  NIBBLE_ASSIGN_OR_RETURN(const auto alignment, integer_of(file, header, kGgufAlignment));
  const int64_t align = alignment.value_or(kGgufDefaultAlignment);
  if (align < 1 || (align & (align - 1)) != 0) {
    return corrupt_file("general.alignment = " + std::to_string(align) + " is not a power of two");
  }
  NIBBLE_RETURN_IF_ERROR(
      place_tensors(header.tensors, round_up(header.bytes, align), align, file.bytes()));
  GgufFile out;
  NIBBLE_ASSIGN_OR_RETURN(const auto number, integer_of(file, header, "split.no"));
  NIBBLE_ASSIGN_OR_RETURN(const auto count, integer_of(file, header, "split.count"));
  NIBBLE_ASSIGN_OR_RETURN(const auto total, integer_of(file, header, "split.tensors.count"));
  out.split_number = number.value_or(0);
  out.split_count = std::max<int64_t>(1, count.value_or(1));
  out.split_tensors = total.value_or(-1);
  if (out.split_number < 0 || out.split_number >= out.split_count) {
    return corrupt_file("split.no = " + std::to_string(out.split_number) +
                        " of split.count = " + std::to_string(out.split_count));
  }
  out.pairs = std::move(header.pairs);
  out.file = {std::move(file), std::move(header.tensors), std::move(header.metadata)};
  return out;
}

// ------------------------------------------------------------------------------------ opening

/// "-00001-of-00003.gguf" for number 0 of 3.
std::string part_suffix(int64_t number, int64_t count) {
  const auto five = [](int64_t value) {
    const std::string digits = std::to_string(value);
    return std::string(5 - std::min<size_t>(5, digits.size()), '0') + digits;
  };
  return "-" + five(number + 1) + "-of-" + five(count) + ".gguf";
}

/// The other parts of a split model lie beside the first and are named like it.
Status open_parts(const GgufFile& first, const std::string& path, const std::string& directory,
                  OpenedModel& model) {
  const int64_t count = first.split_count;
  if (first.split_number != 0) {
    return unsupported("is part " + std::to_string(first.split_number + 1) + " of " +
                       std::to_string(count) + "; open part 1, whose name ends in " +
                       part_suffix(0, count));
  }
  const std::string name = path.substr(path.rfind('/') + 1);
  const auto stem = without_suffix(name, part_suffix(0, count));
  if (!stem) {
    return corrupt_file("is part 1 of " + std::to_string(count) +
                        ", but its name does not end in " + part_suffix(0, count));
  }
  if (directory.empty()) return unsupported("is split, and a file in memory has no other parts");
  auto tensors = static_cast<int64_t>(model.files[0].tensors.size());
  for (int64_t i = 1; i < count; ++i) {
    const std::string part_name = *stem + part_suffix(i, count);
    NIBBLE_ASSIGN_OR_RETURN(const std::string part_path, path_inside(directory, part_name));
    NIBBLE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::open(part_path));
    NIBBLE_ASSIGN_OR_RETURN(GgufFile part, parse_gguf(std::move(mapped), part_path));
    if (part.split_number != i || part.split_count != count) {
      return corrupt_file(part_name + " says that it is part " +
                          std::to_string(part.split_number + 1) + " of " +
                          std::to_string(part.split_count));
    }
    tensors += static_cast<int64_t>(part.file.tensors.size());
    model.files.push_back(std::move(part.file));
    model.names.push_back(part_name);
  }
  if (first.split_tensors >= 0 && first.split_tensors != tensors) {
    return corrupt_file("split.tensors.count = " + std::to_string(first.split_tensors) +
                        ", but the parts hold " + std::to_string(tensors) + " tensors");
  }
  return {};
}

Result<OpenedModel> open_gguf(MappedFile file, const std::string& path,
                              const std::string& directory) {
  NIBBLE_ASSIGN_OR_RETURN(GgufFile first, parse_gguf(std::move(file), path));
  OpenedModel model;
  model.files.push_back(std::move(first.file));
  model.names.push_back(path.substr(path.rfind('/') + 1));
  if (first.split_count > 1) {
    NIBBLE_RETURN_IF_ERROR(open_parts(first, path, directory, model).with_context(path));
  }
  return model;
}

}  // namespace

const GgmlType* ggml_type(uint32_t id) { return id < std::size(kTypes) ? &kTypes[id] : nullptr; }

const GgmlType* ggml_type(std::string_view name) {
  for (const GgmlType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

Result<int64_t> ggml_bytes(const GgmlType& type, std::span<const int64_t> shape) {
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % type.block != 0) {
    return corrupt_file(std::string(type.name) + " " + shape_text(shape) + ": rows of " +
                        std::to_string(row) + " are not whole blocks of " +
                        std::to_string(type.block));
  }
  // Values are counted too: two of four bits share a byte.
  int64_t rows = 1;
  const auto overflows = [&shape] {
    return corrupt_file("the shape " + shape_text(shape) + " overflows 63 bits");
  };
  for (size_t i = 0; i + 1 < shape.size(); ++i) {
    const auto product = checked_product(rows, shape[i]);
    if (!product) return overflows();
    rows = *product;
  }
  const auto row_bytes = checked_product(row / type.block, type.block_bytes);
  if (!row_bytes || !checked_product(row, rows)) return overflows();
  const auto bytes = checked_product(*row_bytes, rows);
  if (!bytes) return overflows();
  return *bytes;
}

Result<GgufFile> parse_gguf(MappedFile file, const std::string& path) {
  Result<GgufFile> parsed = parse(std::move(file));
  if (!parsed.ok()) return std::move(parsed).status().with_context(path);
  return parsed;
}

extern const Container kGguf;
const Container kGguf = {"gguf", ".gguf", kGgufMagic, open_gguf};

}  // namespace nibble::checkpoint
