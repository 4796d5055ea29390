// TensorProto: types, where the data lies, and values in typed fields.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>
#include <numeric>

#include "checkpoint/json.h"
#include "checkpoint/onnx_message.h"

namespace nibble::checkpoint {

using namespace onnx_message;  // NOLINT: this file implements a part of it

namespace {

// Field numbers of TensorProto.
namespace field {
enum : uint32_t {
  kDims = 1,
  kDataType = 2,
  kSegment = 3,
  kFloatData = 4,
  kInt32Data = 5,
  kInt64Data = 7,
  kName = 8,
  kRawData = 9,
  kDoubleData = 10,
  kUint64Data = 11,
  kExternalData = 13,
  kDataLocation = 14,
};
}  // namespace field

constexpr int32_t kFloatType = 1, kInt64Type = 7;
constexpr OnnxType kTypes[] = {
    {1, "FLOAT", 32, DType::kF32, field::kFloatData},
    {2, "UINT8", 8, DType::kU8, field::kInt32Data},
    {3, "INT8", 8, DType::kI8, field::kInt32Data},
    {4, "UINT16", 16, DType::kU16, field::kInt32Data},
    {5, "INT16", 16, DType::kI16, field::kInt32Data},
    {6, "INT32", 32, DType::kI32, field::kInt32Data},
    {7, "INT64", 64, DType::kI64, field::kInt64Data},
    {8, "STRING", 0, {}, 0},
    {9, "BOOL", 8, DType::kBool, field::kInt32Data},
    {10, "FLOAT16", 16, DType::kF16, field::kInt32Data},
    {11, "DOUBLE", 64, DType::kF64, field::kDoubleData},
    {12, "UINT32", 32, DType::kU32, field::kUint64Data},
    {13, "UINT64", 64, DType::kU64, field::kUint64Data},
    {14, "COMPLEX64", 64, {}, field::kFloatData},
    {15, "COMPLEX128", 128, {}, field::kDoubleData},
    {16, "BFLOAT16", 16, DType::kBF16, field::kInt32Data},
    {17, "FLOAT8E4M3FN", 8, DType::kE4M3, field::kInt32Data},
    {18, "FLOAT8E4M3FNUZ", 8, {}, field::kInt32Data},
    {19, "FLOAT8E5M2", 8, DType::kE5M2, field::kInt32Data},
    {20, "FLOAT8E5M2FNUZ", 8, {}, field::kInt32Data},
    {21, "UINT4", 4, {}, field::kInt32Data},
    {22, "INT4", 4, {}, field::kInt32Data},
    {23, "FLOAT4E2M1", 4, {}, field::kInt32Data},
    {24, "FLOAT8E8M0", 8, DType::kE8M0, field::kInt32Data},
    {25, "UINT2", 2, {}, field::kInt32Data},
    {26, "INT2", 2, {}, field::kInt32Data},
    {27, "FLOAT6E2M3", 0, {}, 0},
    {28, "FLOAT6E3M2", 0, {}, 0},
};

int64_t file_position(std::string_view text, const char* what) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    fail(std::string("the ") + what + " of its external data is " + shown(text) +
         ", not a number of bytes");
  }
  return value;
}

// ------------------------------------------------------------------------------- typed values

/// Values of a field that holds them packed, one at a time, or both ways in turn.
template <class Visit>
void for_each_value(std::string_view message, uint32_t values_field, bool fixed, int width,
                    const Visit& visit) {
  pbf_reader in = reader_of(message);
  while (in.next()) {
    if (in.tag() != values_field) {
      in.skip();
    } else if (in.wire_type() == pbf_wire_type::length_delimited) {
      const std::string_view packed = bytes_of(in, "a list of values");
      if (fixed) {
        if (packed.size() % static_cast<size_t>(width) != 0) {
          fail("its list of values ends inside a value");
        }
        for (size_t i = 0; i < packed.size(); i += static_cast<size_t>(width)) {
          uint64_t value = 0;
          std::memcpy(&value, packed.data() + i, static_cast<size_t>(width));
          visit(value);
        }
      } else {
        const char* position = packed.data();
        const char* const end = position + packed.size();
        while (position != end) visit(protozero::decode_varint(&position, end));
      }
    } else if (!fixed && in.wire_type() == pbf_wire_type::varint) {
      visit(in.get_uint64());
    } else if (fixed && width == 4 && in.wire_type() == pbf_wire_type::fixed32) {
      visit(uint64_t{in.get_fixed32()});
    } else if (fixed && width == 8 && in.wire_type() == pbf_wire_type::fixed64) {
      visit(in.get_fixed64());
    } else {
      fail("a value has the wrong wire type");
    }
  }
}

struct ValueCoding {
  bool fixed = false;
  int stored_bytes = 0;  ///< that one value of the list gives: two elements of 4 bits, …
};

ValueCoding coding_of(const OnnxType& type, uint32_t values_field, bool in_attribute) {
  const bool is_float =
      in_attribute ? values_field == attribute_field::kF || values_field == attribute_field::kFloats
                   : values_field == field::kFloatData;
  if (is_float) return {true, 4};
  if (!in_attribute && values_field == field::kDoubleData) return {true, 8};
  return {false, std::max(1, type.bits / 8)};
}

/// A Constant's attribute lies in an AttributeProto, whose fields have other numbers.
bool lies_in_attribute(const OnnxTensor& tensor) {
  const OnnxType* type = tensor.type();
  return type != nullptr && tensor.values_field != type->values_field;
}

std::string wrong_size(const OnnxTensor& tensor, const char* what, int64_t has) {
  return std::string(tensor.type()->name) + " " + shape_text(tensor.dims) + " takes " +
         std::to_string(tensor.bytes()) + " bytes; " + what + " " + std::to_string(has);
}

/// Where the data lies, and that its size is that of the dims.
void check_tensor(OnnxTensor& tensor, bool has_raw, bool is_external, uint32_t values_fields,
                  int value_chunks, const std::vector<std::string_view>& external) {
  if (tensor.dims.size() > kMaxOnnxRank) {
    fail(std::to_string(tensor.dims.size()) + " dimensions, at most " +
         std::to_string(kMaxOnnxRank) + " are read");
  }
  std::optional<int64_t> elements = 1;
  for (const int64_t extent : tensor.dims) {
    elements = elements ? checked_product(*elements, extent) : std::nullopt;
  }
  if (!elements || *elements > INT64_MAX / 128) {
    fail("the shape " + shape_text(tensor.dims) + " is negative or overflows 63 bits");
  }
  const OnnxType* type = tensor.type();
  if (is_external) {
    if (has_raw || values_fields != 0) fail("it has data in the file and outside of it");
    tensor.storage = OnnxTensor::Storage::kExternal;
    for (const std::string_view message : external) {
      const auto [key, value] = entry_of(message);
      if (key == "location") tensor.location = value;
      if (key == "offset") tensor.offset = file_position(value, "offset");
      if (key == "length") tensor.length = file_position(value, "length");
    }
    if (tensor.location.empty()) fail("its external data has no location");
    if (tensor.bytes() < 0 && tensor.length < 0) fail("its external data has no length");
    if (tensor.bytes() >= 0 && tensor.length >= 0 && tensor.length != tensor.bytes()) {
      fail(wrong_size(tensor, "the length of its external data is", tensor.length));
    }
    return;
  }
  if (has_raw && values_fields != 0) fail("it has raw_data and another field with values");
  if (!has_raw && values_fields != 0) {
    if (type == nullptr || values_fields != 1u << type->values_field || type->values_field == 0) {
      fail(std::string(type == nullptr ? "an unknown type" : type->name) +
           " values are not stored in this field");
    }
    tensor.values_field = type->values_field;
    const ValueCoding coding = coding_of(*type, tensor.values_field, false);
    if (coding.fixed && value_chunks == 1) {  // as raw_data would be
      has_raw = true;
    } else {
      tensor.storage = OnnxTensor::Storage::kValues;
      tensor.raw = {};
      const int64_t wanted = ceil_div(tensor.bytes(), coding.stored_bytes);
      int64_t count = 0;
      for_each_value(tensor.message, tensor.values_field, coding.fixed, coding.stored_bytes,
                     [&count](uint64_t) { ++count; });
      if (count != wanted) fail(wrong_size(tensor, "its list of values has", count));
      return;
    }
  }
  if (type != nullptr && !type->is_numeric()) return;
  const auto stored = static_cast<int64_t>(tensor.raw.size());
  if (tensor.bytes() >= 0 && stored != tensor.bytes()) {
    fail(wrong_size(tensor, "its data has", stored));
  }
}

}  // namespace

OnnxTensor onnx_message::parse_tensor(std::string_view message) {
  OnnxTensor tensor;
  tensor.message = message;
  bool has_raw = false, is_external = false;
  std::vector<std::string_view> external;
  uint32_t values_fields = 0;  // a bit for each field that is there
  int value_chunks = 0;
  pbf_reader in = reader_of(message);
  while (in.next()) {
    switch (in.tag()) {
      case field::kDims:
        append_integers(in, "a dimension", tensor.dims);
        break;
      case field::kDataType:
        tensor.data_type =
            static_cast<int32_t>(std::clamp<int64_t>(integer_of(in, "data_type"), -1, INT32_MAX));
        break;
      case field::kSegment:
        fail("a tensor is stored in segments");
      case field::kFloatData:
      case field::kInt32Data:
      case field::kInt64Data:
      case field::kDoubleData:
      case field::kUint64Data:
        values_fields |= 1u << in.tag();
        ++value_chunks;
        if (in.wire_type() == pbf_wire_type::length_delimited) {
          tensor.raw = bytes_of(in, "values");
        } else {
          value_chunks = 2;  // no bytes to view
          in.skip();
        }
        break;
      case field::kName:
        tensor.stored_name = bytes_of(in, "a tensor's name");
        break;
      case field::kRawData:
        has_raw = true;
        tensor.raw = bytes_of(in, "raw_data");
        break;
      case field::kExternalData:
        external.push_back(bytes_of(in, "external_data"));
        break;
      case field::kDataLocation:
        is_external = integer_of(in, "data_location") == 1;
        break;
      default:
        in.skip();
    }
  }
  tensor.name = tensor.stored_name;
  try {
    check_tensor(tensor, has_raw, is_external, values_fields, value_chunks, external);
  } catch (Malformed& malformed) {
    if (!tensor.name.empty()) {
      malformed.message = "tensor " + shown(tensor.name) + ": " + malformed.message;
    }
    throw;
  }
  return tensor;
}

std::optional<OnnxTensor> onnx_message::parse_constant(const OnnxAttribute& attribute) {
  const std::string_view key = attribute.name;
  if (key == "value") {
    pbf_reader in = reader_of(attribute.message);
    while (in.next()) {
      if (in.tag() != attribute_field::kT) {
        in.skip();
        continue;
      }
      return parse_tensor(bytes_of(in, "a constant's value"));
    }
    return std::nullopt;
  }
  const bool is_float = key == "value_float" || key == "value_floats";
  const bool is_list = key == "value_floats" || key == "value_ints";
  if (!is_float && !is_list && key != "value_int") return std::nullopt;
  OnnxTensor tensor;
  tensor.data_type = is_float ? kFloatType : kInt64Type;
  tensor.message = attribute.message;
  tensor.values_field =
      is_float ? (is_list ? uint32_t{attribute_field::kFloats} : uint32_t{attribute_field::kF})
               : (is_list ? uint32_t{attribute_field::kInts} : uint32_t{attribute_field::kI});
  tensor.storage = OnnxTensor::Storage::kValues;
  int64_t count = 0;
  for_each_value(tensor.message, tensor.values_field, is_float, 4, [&count](uint64_t) { ++count; });
  if (is_list) {
    tensor.dims = {count};
  } else if (count != 1) {
    fail("it has " + std::to_string(count) + " values");
  }
  return tensor;
}

const OnnxType* onnx_type(int32_t code) {
  for (const OnnxType& type : kTypes) {
    if (type.code == code) return &type;
  }
  return nullptr;
}

int64_t OnnxTensor::elements() const {
  return std::accumulate(dims.begin(), dims.end(), int64_t{1}, std::multiplies<>());
}

int64_t OnnxTensor::bytes() const {
  const OnnxType* known = type();
  return known == nullptr || known->bits == 0 ? -1 : ceil_div(elements() * known->bits, 8);
}

Status decode_onnx_values(const OnnxTensor& tensor, uint8_t* out) {
  const ValueCoding coding =
      coding_of(*tensor.type(), tensor.values_field, lies_in_attribute(tensor));
  uint8_t* const end = out + tensor.bytes();
  return caught([&] {
    for_each_value(tensor.message, tensor.values_field, coding.fixed, coding.stored_bytes,
                   [&](uint64_t value) {
                     const auto count = std::min<int64_t>(coding.stored_bytes, end - out);
                     std::memcpy(out, &value, static_cast<size_t>(count));
                     out += count;
                   });
  });
}

}  // namespace nibble::checkpoint
