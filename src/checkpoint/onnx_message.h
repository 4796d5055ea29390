// Protobuf as the files of ONNX need it; included by those that parse its messages, and by nothing
// else. Protozero throws where bytes end early; those exceptions, and Malformed of our own, end in
// caught().
#ifndef NIBBLE_CHECKPOINT_ONNX_MESSAGE_H_
#define NIBBLE_CHECKPOINT_ONNX_MESSAGE_H_

#include <protozero/pbf_reader.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/onnx.h"

namespace nibble::checkpoint::onnx_message {

using protozero::pbf_reader;
using protozero::pbf_wire_type;

/// Field numbers of AttributeProto.
namespace attribute_field {
enum : uint32_t {
  kName = 1,
  kF = 2,
  kI = 3,
  kS = 4,
  kT = 5,
  kG = 6,
  kFloats = 7,
  kInts = 8,
  kGraphs = 11,
};
}  // namespace attribute_field

struct Malformed {
  Code code;
  std::string message;
};
[[noreturn]] inline void fail(std::string message) {
  throw Malformed{Code::kCorruptFile, std::move(message)};
}

inline std::string_view bytes_of(pbf_reader& in, const char* what) {
  if (in.wire_type() != pbf_wire_type::length_delimited) {
    fail(std::string(what) + " is not stored as bytes");
  }
  const protozero::data_view view = in.get_view();
  return {view.data(), view.size()};
}
inline int64_t integer_of(pbf_reader& in, const char* what) {
  if (in.wire_type() != pbf_wire_type::varint) fail(std::string(what) + " is not an integer");
  return in.get_int64();
}
inline pbf_reader reader_of(std::string_view message) {
  return pbf_reader(message.data(), message.size());
}

/// Appends a repeated integer, packed or one at a time.
inline void append_integers(pbf_reader& in, const char* what, std::vector<int64_t>& out) {
  if (in.wire_type() != pbf_wire_type::length_delimited) {
    out.push_back(integer_of(in, what));
    return;
  }
  for (const int64_t value : in.get_packed_int64()) out.push_back(value);
}

/// key and value of a StringStringEntryProto.
inline std::pair<std::string_view, std::string_view> entry_of(std::string_view message) {
  std::pair<std::string_view, std::string_view> out;
  pbf_reader in = reader_of(message);
  while (in.next()) {
    if (in.tag() == 1) {
      out.first = bytes_of(in, "a key");
    } else if (in.tag() == 2) {
      out.second = bytes_of(in, "a value");
    } else {
      in.skip();
    }
  }
  return out;
}

/// Runs `parse`, turning what it and protozero throw into a Status.
template <class Parse>
Status caught(const Parse& parse) {
  try {
    parse();
  } catch (const Malformed& malformed) {
    return {malformed.code, malformed.message};
  } catch (const protozero::exception& error) {
    return corrupt_file(std::string("not a valid protobuf message (") + error.what() +
                        "); the file may be truncated");
  }
  return {};
}

/// A TensorProto, checked; `name` is the stored one. Throws.
OnnxTensor parse_tensor(std::string_view message);
/// The value of a Constant's attribute, without a name; nullopt for other attributes. Throws.
std::optional<OnnxTensor> parse_constant(const OnnxAttribute& attribute);

}  // namespace nibble::checkpoint::onnx_message

#endif  // NIBBLE_CHECKPOINT_ONNX_MESSAGE_H_
