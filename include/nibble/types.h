// The plain data that every stage and every kernel shares: enumerations and structs of numbers.
// C++17 and <stdint.h> only, so that device code and single-ISA kernel files may include it.
#ifndef NIBBLE_TYPES_H_
#define NIBBLE_TYPES_H_

#include <stdint.h>

namespace nibble {

/// Type of one stored value.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kE4M3,  ///< FP8 e4m3fn: bias 7, largest 448, no infinity, 0x7F and 0xFF are NaN
  kE8M0,  ///< 2^(e-127), 0xFF is NaN
  kE5M2,
  kF64,
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kBool,
};

/// Meaning of one weight code.
enum class Element : uint8_t {
  kInt4,   ///< two's complement, -8..7
  kUint4,  ///< 0..15, with a zero point
  kE2M1,   ///< FP4: sign, 2 exponent bits, 1 mantissa bit; magnitudes 0 .5 1 1.5 2 3 4 6
  kNF4,    ///< index into 16 quantiles; the codebook is data of the tensor
  kInt8,   ///< two's complement, -128..127
  kUint8,  ///< 0..255, with a zero point
};

/// How a group's zero enters: the kinds are distinct because their roundings differ.
enum class ZeroKind : uint8_t {
  kNone,       ///< q * s
  kInteger,    ///< (q - z) * s, z stored as u8
  kFloatCode,  ///< (q - z) * s, z stored in the scale's dtype
  kAdditive,   ///< q * s + b, b stored in the scale's dtype
};

/// How the per-tensor scale meets the group scale; kept as stored because 1/g is not g's inverse.
enum class TensorScaleOp : uint8_t { kMultiply, kDivide };

/// Order of the codes in a PackedWeight; see docs/layouts.md for pictures.
enum class LayoutId : uint8_t {
  kRowMajor,    ///< [N, ceil(K*bits/8)], low bits first along K; scales [N, groups]
  kCpuPanel16,  ///< panels of 16 rows x blocks of 32 columns, in the order of 4-byte dot products
  kCudaFrag16,  ///< panels of 16 rows x blocks of 64 columns, in the order of mma.m16n8k16
                ///< fragments
};

enum class Activation : uint8_t { kNone, kRelu, kSilu, kGeluTanh, kGeluErf };

/// What may happen to the activations x.
enum class Compute : uint8_t {
  kExact,  ///< x is never rounded
  kInt8,   ///< x rounded to int8, symmetric, one scale per row and 32 columns (CPU)
  kFp8,    ///< x rounded to E4M3, one scale per row (CUDA)
};

enum class Backend : uint8_t { kCpu, kCuda };

/// CPU instruction sets: scalar for any CPU, then those of x86-64 and those of AArch64, each family
/// in rising order of preference.
enum class Isa : uint8_t {
  kScalar,
  kAvx2,
  kAvxVnni,
  kAvx512Vnni,
  kAvx512Bf16,
  kNeon,         ///< any AArch64
  kNeonDotprod,  ///< Armv8.2 dot products of int8
  kNeonI8mm,     ///< Armv8.6 int8 matrix products
  kNeonBf16,     ///< Armv8.6 BF16 dot and matrix products
};
inline constexpr int kNumIsas = 9;

/// Form in which a matmul row reads x. All but kRaw are written by a kPrepareX row into the
/// workspace, gathered by k_perm, multiplied by pre_scale and zero-filled up to k_padded.
enum class XForm : uint8_t {
  kRaw,        ///< the caller's matrix as it is
  kF32Rows,    ///< f32 [m][k_padded]
  kBf16Rows,   ///< bf16 [m][k_padded], each four columns stored in the order 0 2 1 3
  kInt8Tiles,  ///< tiles of 8 rows x blocks of 32 columns; see Int8TileBlock in kernels/args.h
};

enum class StepKind : uint8_t { kPrepareX, kMatmul, kReduce };

/// Where the group scale meets the sum.
enum class ScaleAt : uint8_t {
  kWeight,    ///< each weight becomes value*scale, rounded to `w_rounds_to`, before it meets x
  kGroupSum,  ///< the FP32 (or integer) sum of value*x over a group is multiplied by the scale
};

/// The roundings a matmul row makes; the test oracle applies exactly these to its operands.
struct Numerics {
  DType w_rounds_to = DType::kF32;  ///< type a decoded weight has when it meets x
  Compute x_quant = Compute::kExact;
  ScaleAt scale_applied_at = ScaleAt::kGroupSum;
  DType accumulator = DType::kF32;
  int32_t promote_every_k = 0;  ///< columns between promotions to FP32; 0: always FP32
};

/// One bit per enumerator: the sets that a kernel row accepts.
template <class E>
constexpr uint32_t bit(E e) {
  return 1u << static_cast<uint32_t>(e);
}
template <class... E>
constexpr uint32_t bits(E... e) {
  return (0u | ... | bit(e));
}

/// bits(Isa...) of the family of `isa` up to `isa`, scalar included.
constexpr uint32_t isas_up_to(Isa isa) {
  const uint32_t arm = bits(Isa::kNeon, Isa::kNeonDotprod, Isa::kNeonI8mm, Isa::kNeonBf16);
  const uint32_t family = (bit(isa) & arm) != 0 ? arm : ~arm;
  return (((bit(isa) << 1) - 1) & family) | bit(Isa::kScalar);
}

/// What one row of the kernel table accepts and does, as plain data.
struct KernelRow {
  const char* name = nullptr;
  StepKind kind = StepKind::kMatmul;
  Backend backend = Backend::kCpu;
  Isa isa = Isa::kScalar;  ///< CPU: the instruction set it is compiled for
  /// False: this build is for another architecture and has the row's numbers, for plans and
  /// documents, but not its code.
  bool compiled = true;
  int32_t min_sm = 0;  ///< CUDA: compute capability * 10, inclusive bounds
  int32_t max_sm = 0;
  LayoutId layout = LayoutId::kCpuPanel16;
  uint32_t elements = 0;      ///< bits(Element...)
  uint32_t scale_dtypes = 0;  ///< bits(DType...)
  uint32_t zero_kinds = 0;    ///< bits(ZeroKind...)
  int32_t min_group = 0;      ///< smallest group it takes; a whole-row group always passes
  bool paired = false;        ///< takes paired (gate|up) weights
  Compute compute = Compute::kExact;
  XForm x_form = XForm::kRaw;  ///< kMatmul: the form read; kPrepareX: the form written
  uint32_t x_dtypes = 0;       ///< bits(DType...): caller's x (kRaw and kPrepareX)
  bool gathers = false;        ///< applies k_perm itself (kRaw and kPrepareX)
  bool pre_scales = false;     ///< applies pre_scale itself (kRaw and kPrepareX)
  int32_t min_m = 1;
  int32_t max_m = 0;                  ///< 0: no limit
  int32_t block_m = 8, block_n = 16;  ///< tile held in registers; a plan's block_m is a multiple
  bool bits_depend_on_m = false;      ///< a row of y may differ in its last bits with m
  Numerics numerics;
  /// Measured rates on the machine of bench/results (one thread, or the whole GPU), for the
  /// planner's cost: weight bytes per ns when streaming, multiply-adds per ns when computing.
  float bytes_per_ns = 1;
  float macs_per_ns = 1;
};

}  // namespace nibble

#endif  // NIBBLE_TYPES_H_
