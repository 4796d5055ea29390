#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "checkpoint/container.h"
#include "checkpoint/json.h"

namespace nibble::checkpoint {
namespace {

struct NamedDType {
  const char* name;
  DType dtype;
};
constexpr NamedDType kDTypes[] = {
    {"F32", DType::kF32},      {"F16", DType::kF16},      {"BF16", DType::kBF16},
    {"F8_E4M3", DType::kE4M3}, {"F8_E8M0", DType::kE8M0}, {"F8_E5M2", DType::kE5M2},
    {"F64", DType::kF64},      {"U8", DType::kU8},        {"I8", DType::kI8},
    {"U16", DType::kU16},      {"I16", DType::kI16},      {"U32", DType::kU32},
    {"I32", DType::kI32},      {"U64", DType::kU64},      {"I64", DType::kI64},
    {"BOOL", DType::kBool},
};

constexpr const char* kMetadataKey = "__metadata__";

/// Reads the header without building a document, so that a hostile header costs no more memory than
/// its own size. Offsets end up in TensorInfo::file_offset relative to the data.
class HeaderReader {
 public:
  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) {
    return unexpected("a number that is no 63-bit integer");
  }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }
  bool number_unsigned(uint64_t value) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return unexpected("a number that is no 63-bit integer");
    }
    const auto number = static_cast<int64_t>(value);
    if (state_ == State::kShape) {
      tensors.back().shape.push_back(number);
      if (tensors.back().shape.size() <= kMaxRank) return true;
      return fail("more than " + std::to_string(kMaxRank) + " dimensions");
    }
    if (state_ == State::kOffsets && num_offsets_ < 2) {
      (num_offsets_++ == 0 ? tensors.back().file_offset : end_) = number;
      return true;
    }
    return unexpected("a number");
  }
  bool string(std::string& text) {
    if (state_ == State::kMetadata) {
      if (metadata.emplace(key_, text).second) return true;
      return fail("the metadata key " + shown(key_) + " stands twice");
    }
    if (state_ == State::kTensor && key_ == "dtype") {
      tensors.back().dtype_name = text;
      return true;
    }
    return unexpected("a string");
  }
  bool start_object(size_t) {
    if (state_ == State::kStart) {
      state_ = State::kTop;
      return true;
    }
    if (state_ != State::kTop) return unexpected("an object");
    if (key_ == kMetadataKey) {
      if (has_metadata_) return fail("two __metadata__ entries");
      has_metadata_ = true;
      state_ = State::kMetadata;
      return true;
    }
    state_ = State::kTensor;
    tensors.emplace_back().name = key_;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    return true;
  }
  bool key(std::string& name) {
    key_ = name;
    if (state_ != State::kTensor) return true;
    bool* seen = name == "dtype"          ? &has_dtype_
                 : name == "shape"        ? &has_shape_
                 : name == "data_offsets" ? &has_offsets_
                                          : nullptr;
    if (seen == nullptr) return fail("unknown key " + shown(name));
    if (*seen) return fail("the key " + shown(name) + " stands twice");
    *seen = true;
    return true;
  }
  bool start_array(size_t) {
    if (state_ == State::kTensor && key_ == "shape") {
      state_ = State::kShape;
      return true;
    }
    if (state_ == State::kTensor && key_ == "data_offsets") {
      state_ = State::kOffsets;
      num_offsets_ = 0;
      return true;
    }
    return unexpected("an array");
  }
  bool end_array() {
    if (state_ == State::kOffsets && num_offsets_ != 2) return fail("data_offsets needs 2 numbers");
    state_ = State::kTensor;
    return true;
  }
  bool end_object() {
    if (state_ == State::kTensor) {
      if (!has_dtype_ || !has_shape_ || !has_offsets_) {
        return fail("needs dtype, shape and data_offsets");
      }
      TensorInfo& tensor = tensors.back();
      if (end_ < tensor.file_offset) {
        return fail("data_offsets [" + std::to_string(tensor.file_offset) + ", " +
                    std::to_string(end_) + "] end before they begin");
      }
      tensor.bytes = end_ - tensor.file_offset;
    }
    state_ = State::kTop;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    error_ = "the header is not valid JSON at byte " + std::to_string(position);
    return false;
  }

  const std::string& error() const { return error_; }
  std::vector<TensorInfo> tensors;
  std::map<std::string, std::string> metadata;

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool fail(const std::string& message) {
    const bool in_tensor =
        state_ == State::kTensor || state_ == State::kShape || state_ == State::kOffsets;
    error_ =
        in_tensor ? "tensor " + shown(tensors.back().name) + ": " + message : "header: " + message;
    return false;
  }
  bool unexpected(const char* what) {
    return fail(std::string("found ") + what + " where it does not belong" +
                (key_.empty() ? "" : " (after the key " + shown(key_) + ")"));
  }

  State state_ = State::kStart;
  std::string key_, error_;
  int64_t end_ = 0;
  int num_offsets_ = 0;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false, has_metadata_ = false;
};

/// The size that dtype and shape give, where the dtype is known; overflow is an error for any.
Status check_size(const TensorInfo& tensor) {
  std::optional<int64_t> elements = 1;
  for (const int64_t extent : tensor.shape) {
    elements = elements ? checked_product(*elements, extent) : std::nullopt;
  }
  if (!elements)
    return corrupt_file("the shape " + shape_text(tensor.shape) + " overflows 63 bits");
  if (!tensor.dtype) return {};
  const auto bytes = checked_product(*elements, dtype_bytes(*tensor.dtype));
  if (!bytes) return corrupt_file("the shape " + shape_text(tensor.shape) + " overflows 63 bits");
  if (*bytes == tensor.bytes) return {};
  return corrupt_file(tensor.dtype_name + " " + shape_text(tensor.shape) + " has " +
                      std::to_string(*bytes) + " bytes, data_offsets say " +
                      std::to_string(tensor.bytes));
}

/// Tensors must tile the data exactly: sorted by offset, each begins where the last one ended.
Status check_offsets(std::vector<TensorInfo>& tensors, int64_t data_bytes) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.file_offset, a.bytes) < std::pair(b.file_offset, b.bytes);
  });
  int64_t position = 0;
  for (const TensorInfo& tensor : tensors) {
    const auto wrong = [&tensor](const std::string& why) {
      return corrupt_file("tensor " + shown(tensor.name) + ": " + why);
    };
    const std::string range = "data_offsets [" + std::to_string(tensor.file_offset) + ", " +
                              std::to_string(tensor.file_offset + tensor.bytes) + "]";
    if (tensor.file_offset > data_bytes || tensor.bytes > data_bytes - tensor.file_offset) {
      return wrong(range + " pass the end of the data (" + std::to_string(data_bytes) +
                   " bytes); the file may be truncated");
    }
    if (tensor.file_offset < position) return wrong(range + " overlap another tensor");
    if (tensor.file_offset > position) {
      return wrong(range + " leave a hole after byte " + std::to_string(position));
    }
    if (Status size = check_size(tensor); !size.ok()) return wrong(size.message());
    position += tensor.bytes;
  }
  if (position == data_bytes) return {};
  return corrupt_file("the tensors end at byte " + std::to_string(position) +
                      " of the data, which has " + std::to_string(data_bytes));
}

Status check_names(const std::vector<TensorInfo>& tensors) {
  std::vector<std::string_view> names(tensors.size());
  std::transform(tensors.begin(), tensors.end(), names.begin(),
                 [](const TensorInfo& tensor) { return std::string_view(tensor.name); });
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return {};
  return corrupt_file("tensor " + shown(*twice) + " stands twice in the header");
}

}  // namespace

std::optional<DType> safetensors_dtype(std::string_view name) {
  for (const NamedDType& row : kDTypes) {
    if (name == row.name) return row.dtype;
  }
  return std::nullopt;
}

const char* safetensors_name(DType dtype) {
  for (const NamedDType& row : kDTypes) {
    if (dtype == row.dtype) return row.name;
  }
  return "";
}

Result<TensorFile> parse_safetensors(MappedFile file, const std::string& name) {
  const auto wrong = [&name](const std::string& why) { return corrupt_file(name + ": " + why); };
  constexpr int64_t kLengthBytes = 8;
  if (file.bytes() < kLengthBytes) {
    return wrong("the file has " + std::to_string(file.bytes()) +
                 " bytes; the length of a safetensors header takes 8");
  }
  uint64_t length;
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return wrong("a header of " + std::to_string(length) + " bytes, at most " +
                 std::to_string(kMaxHeaderBytes) + " are read");
  }
  const auto header_bytes = static_cast<int64_t>(length);
  if (header_bytes > file.bytes() - kLengthBytes) {
    return wrong("a header of " + std::to_string(header_bytes) + " bytes in a file of " +
                 std::to_string(file.bytes()));
  }
  const Buffer text = file.view(kLengthBytes, header_bytes);
  if (header_bytes == 0 || text.data()[0] != '{')
    return wrong("the header does not begin with '{'");

  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text.data(), text.data() + header_bytes, &reader)) {
    return wrong(reader.error());
  }
  for (TensorInfo& tensor : reader.tensors) tensor.dtype = safetensors_dtype(tensor.dtype_name);
  const int64_t data_begin = kLengthBytes + header_bytes;
  NIBBLE_RETURN_IF_ERROR(check_names(reader.tensors).with_context(name));
  NIBBLE_RETURN_IF_ERROR(
      check_offsets(reader.tensors, file.bytes() - data_begin).with_context(name));
  for (TensorInfo& tensor : reader.tensors) tensor.file_offset += data_begin;

  return TensorFile{std::move(file), std::move(reader.tensors), std::move(reader.metadata)};
}

std::string safetensors_header(std::span<const TensorInfo> tensors,
                               const std::map<std::string, std::string>& metadata) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::string text = header.dump();
  text.pop_back();
  int64_t offset = 0;
  for (const TensorInfo& tensor : tensors) {
    const OrderedJson entry = {{"dtype", tensor.dtype_name},
                               {"shape", tensor.shape},
                               {"data_offsets", {offset, offset + tensor.bytes}}};
    if (text.size() > 1) text += ",";
    text += Json(tensor.name).dump() + ":" + entry.dump();
    offset += tensor.bytes;
  }
  text += "}";
  text.resize(static_cast<size_t>(round_up(static_cast<int64_t>(text.size()), 8)), ' ');
  const uint64_t length = text.size();
  std::string out(sizeof(length), '\0');
  std::memcpy(out.data(), &length, sizeof(length));
  return out + text;
}

namespace {

Result<OpenedModel> open_alone(MappedFile file, const std::string& path, const std::string&) {
  OpenedModel model;
  NIBBLE_ASSIGN_OR_RETURN(TensorFile opened, parse_safetensors(std::move(file), path));
  model.files.push_back(std::move(opened));
  model.names.push_back(path.substr(path.rfind('/') + 1));
  return model;
}

}  // namespace

extern const Container kSafetensors;
const Container kSafetensors = {"safetensors", ".safetensors", "", open_alone};

}  // namespace nibble::checkpoint
