#include "nibble/core.h"

namespace nibble {

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk:
      return "ok";
    case Code::kInvalidArgument:
      return "invalid argument";
    case Code::kUnsupported:
      return "unsupported";
    case Code::kCorruptFile:
      return "corrupt file";
    case Code::kIo:
      return "i/o error";
    case Code::kOutOfMemory:
      return "out of memory";
    case Code::kCuda:
      return "cuda error";
    case Code::kInternal:
      return "internal error";
  }
  return "?";
}

Status Status::with_context(std::string_view context) && {
  if (!ok()) message_.insert(0, std::string(context) + ": ");
  return std::move(*this);
}

const char* version() { return "0.1.0"; }

}  // namespace nibble
