// Scalar decoding on the device: the same functions compile for the host, where naive_host_test.cc
// compares them with core over all bit patterns. Codes as LayoutId::kRowMajor stores them.
#ifndef NIBBLE_KERNELS_CUDA_DEQUANT_CUH_
#define NIBBLE_KERNELS_CUDA_DEQUANT_CUH_

#include "kernels/args.h"

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__ __forceinline__
#else
#define NIBBLE_HD inline
#endif
#if defined(__CUDA_ARCH__)
#define NIBBLE_UNROLL _Pragma("unroll")
#else
#define NIBBLE_UNROLL
#endif

namespace nibble {

NIBBLE_HD float float_of_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
NIBBLE_HD uint32_t bits_of_float(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

NIBBLE_HD float decode_bf16(uint16_t bits) { return float_of_bits(uint32_t{bits} << 16); }

//   f16   s eeeee mmmmmmmmmm          bias 15
//   f32   s 000eeeee mmmmmmmmmm0…     times 2^112 moves the bias to 127, subnormals included
NIBBLE_HD float decode_f16(uint16_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x8000u) << 16;
  if ((bits & 0x7C00) == 0x7C00) return float_of_bits(sign | 0x7F800000u | ((bits & 0x3FFu) << 13));
  const float magnitude = float_of_bits((uint32_t{bits} & 0x7FFFu) << 13) * 0x1p112f;
  return float_of_bits(sign | bits_of_float(magnitude));
}

//   e4m3  s eeee mmm                  bias 7, so 2^120
NIBBLE_HD float decode_e4m3(uint8_t bits) {
  const uint32_t sign = (uint32_t{bits} & 0x80u) << 24;
  if ((bits & 0x7F) == 0x7F) return float_of_bits(sign | 0x7FC00000u);
  const float magnitude = float_of_bits((uint32_t{bits} & 0x7Fu) << 20) * 0x1p120f;
  return float_of_bits(sign | bits_of_float(magnitude));
}

//   e8m0  eeeeeeee                    e = 0 is 2^-127, a subnormal of f32
NIBBLE_HD float decode_e8m0(uint8_t bits) {
  if (bits == 0xFF) return float_of_bits(0x7FC00000u);
  return float_of_bits(bits == 0 ? 0x00400000u : uint32_t{bits} << 23);
}

//   e2m1  s ee m                      bias 1: 2^126 times the f32 with exponent field ee
NIBBLE_HD float decode_e2m1(uint8_t code) {
  const float magnitude = float_of_bits((uint32_t{code} & 7u) << 22) * 0x1p126f;
  return float_of_bits(((uint32_t{code} & 8u) << 28) | bits_of_float(magnitude));
}

template <class T>
NIBBLE_HD T load_at(const void* data, int64_t index) {
  return static_cast<const T*>(data)[index];
}

/// One value of an array of a scale or activation dtype; NaN for dtypes that hold neither.
NIBBLE_HD float load_value(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return load_at<float>(data, index);
    case DType::kF16:
      return decode_f16(load_at<uint16_t>(data, index));
    case DType::kBF16:
      return decode_bf16(load_at<uint16_t>(data, index));
    case DType::kE4M3:
      return decode_e4m3(load_at<uint8_t>(data, index));
    case DType::kE8M0:
      return decode_e8m0(load_at<uint8_t>(data, index));
    case DType::kU8:
      return static_cast<float>(load_at<uint8_t>(data, index));
    case DType::kE5M2:
    case DType::kF64:
    case DType::kI8:
    case DType::kU16:
    case DType::kI16:
    case DType::kU32:
    case DType::kI32:
    case DType::kU64:
    case DType::kI64:
    case DType::kBool:
      break;
  }
  return float_of_bits(0x7FC00000u);
}

NIBBLE_HD uint16_t round_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Below 2^-14 the result is a count of 2^-24: adding 0.5 puts exactly that unit at the end of an
// f32's mantissa, and the addition rounds to nearest even.
NIBBLE_HD uint16_t round_to_f16(float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7FFFFFFFu;
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7F800000u)
    return static_cast<uint16_t>(sign | 0x7E00u | ((bits >> 13) & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above
  if (magnitude < 0x38800000u) {
    const float shifted = float_of_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

/// Rounds once into y; y's dtype is f32, f16 or bf16.
NIBBLE_HD void store_value(void* data, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        dtype == DType::kBF16 ? round_to_bf16(value) : round_to_f16(value);
  }
}

/// The element's number for one code; `codebook` is used by kNF4 only.
NIBBLE_HD float decode_code(Element element, uint8_t code, const float* codebook) {
  switch (element) {
    case Element::kInt4:
      return static_cast<float>((code ^ 8) - 8);
    case Element::kUint4:
    case Element::kUint8:
      return static_cast<float>(code);
    case Element::kE2M1:
      return decode_e2m1(code);
    case Element::kNF4:
      return codebook[code & 15];
    case Element::kInt8:
      return static_cast<float>(static_cast<int8_t>(code));
  }
  return 0;
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_DEQUANT_CUH_
