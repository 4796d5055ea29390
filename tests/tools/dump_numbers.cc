// Numbers and quantized tensors as raw little-endian files, for tests/python.
//
//   dump_numbers decode DTYPE IN OUT        codes (u8 or u16) to f32
//   dump_numbers encode DTYPE IN OUT        f32 to codes
//   dump_numbers quantize FORMAT SCALES MXFP-RULE K IN OUT
//       f32 weights [size / K, K] to: tensor scale f32 (e4m3 scales only), scales, zeros, codes,
//       decoded f32 weights
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "nibble/core.h"
#include "nibble/quantize.h"

namespace {

using nibble::DType;

int fail(const std::string& why) {
  std::fprintf(stderr, "dump_numbers: %s\n", why.c_str());
  return 1;
}

std::vector<char> read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class T>
std::vector<T> read_values(const char* path) {
  const std::vector<char> bytes = read_file(path);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

template <class T>
void append(std::vector<char>& out, const T* values, size_t count) {
  const auto* bytes = reinterpret_cast<const char*>(values);
  out.insert(out.end(), bytes, bytes + count * sizeof(T));
}

int write_file(const char* path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  return file.good() ? 0 : fail(std::string("cannot write ") + path);
}

template <class From, class To>
int convert(const char* in, const char* out, To (*function)(From)) {
  std::vector<char> bytes;
  for (const From value : read_values<From>(in)) {
    const To result = function(value);
    append(bytes, &result, 1);
  }
  return write_file(out, bytes);
}

int decode(const std::string& dtype, const char* in, const char* out) {
  if (dtype == "bf16") return convert(in, out, nibble::bf16_to_f32);
  if (dtype == "f16") return convert(in, out, nibble::f16_to_f32);
  if (dtype == "e4m3") return convert(in, out, nibble::e4m3_to_f32);
  if (dtype == "e8m0") return convert(in, out, nibble::e8m0_to_f32);
  if (dtype == "e2m1") return convert(in, out, nibble::e2m1_to_f32);
  return fail("cannot decode " + dtype);
}

int encode(const std::string& dtype, const char* in, const char* out) {
  if (dtype == "bf16") return convert(in, out, nibble::f32_to_bf16);
  if (dtype == "f16") return convert(in, out, nibble::f32_to_f16);
  if (dtype == "e4m3") return convert(in, out, nibble::f32_to_e4m3);
  if (dtype == "e2m1") return convert(in, out, nibble::f32_to_e2m1);
  return fail("cannot encode " + dtype);
}

int quantize(char** arguments) {
  const auto format = nibble::Format::parse(arguments[0]);
  if (!format.ok()) return fail(format.status().message());
  const std::string scales = arguments[1], rule = arguments[2];
  nibble::QuantizeOptions options;
  options.scales = scales == "absmax" ? nibble::ScaleRule::kAbsmax : nibble::ScaleRule::kMse;
  if (rule == "ocp") options.mxfp = nibble::MxfpRule::kOcp;
  if (rule == "modelopt") options.mxfp = nibble::MxfpRule::kModelOpt;
  if (rule == "compressed-tensors") options.mxfp = nibble::MxfpRule::kCompressedTensors;
  const int64_t k = std::stoll(arguments[3]);
  const std::vector<float> w = read_values<float>(arguments[4]);
  const int64_t n = static_cast<int64_t>(w.size()) / k;
  const auto q = nibble::quantize({w.data(), DType::kF32, {n, k}}, *format, options);
  if (!q.ok()) return fail(q.status().message());
  std::vector<char> bytes;
  for (const auto& segment : q->tensor_scales) append(bytes, &segment.value, 1);
  for (const nibble::Buffer* part : {&q->scales, &q->zeros, &q->codes}) {
    append(bytes, part->data(), static_cast<size_t>(part->bytes()));
  }
  std::vector<float> decoded(w.size());
  q->dequantize(0, n, decoded.data());
  append(bytes, decoded.data(), decoded.size());
  return write_file(arguments[5], bytes);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "decode" && argc == 5) return decode(argv[2], argv[3], argv[4]);
  if (command == "encode" && argc == 5) return encode(argv[2], argv[3], argv[4]);
  if (command == "quantize" && argc == 8) return quantize(argv + 2);
  return fail("usage: decode|encode DTYPE IN OUT, quantize FORMAT SCALES MXFP-RULE K IN OUT");
}
