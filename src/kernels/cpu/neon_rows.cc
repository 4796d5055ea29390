// Rows of AArch64: Advanced SIMD, then dot products (Armv8.2), int8 and BF16 matrix products
// (Armv8.6).
#include "kernels/cpu/rows.h"

namespace nibble {

void prepare_f32_neon(const PrepareArgs&, Range);
void prepare_f32_of_int8_neon(const PrepareArgs&, Range);
void prepare_bf16_neon(const PrepareArgs&, Range);
void prepare_int8_neon(const PrepareArgs&, Range);
void gemm_f32_neon(const MatmulArgs&, Range);
void gemv_f32_neon(const MatmulArgs&, Range);
void gemm_int8_neon_dotprod(const MatmulArgs&, Range);
void gemm_int8_neon_i8mm(const MatmulArgs&, Range);
void gemm_exact_neon_bf16(const MatmulArgs&, Range);

namespace {

constexpr uint32_t kFourBit = bits(Element::kInt4, Element::kUint4, Element::kE2M1);
constexpr uint32_t kInteger = kFourBit | bits(Element::kInt8, Element::kUint8);
constexpr uint32_t kAnyElement = kInteger | bit(Element::kNF4);
constexpr uint32_t kAnyScale =
    bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0);
constexpr uint32_t kIntegerZero = bits(ZeroKind::kNone, ZeroKind::kInteger);
constexpr uint32_t kAnyZero = kIntegerZero | bits(ZeroKind::kFloatCode, ZeroKind::kAdditive);
constexpr uint32_t kAnyX = bits(DType::kF32, DType::kF16, DType::kBF16);

// Nobody has measured these rows. The planner needs an order, which it gets from multiply-adds an
// instruction makes (FMLA 4, BFDOT 8, BFMMLA and SDOT 16, SMMLA 32), and for the streaming rate
// from the work of decoding a byte.
struct Rates {
  float bytes_per_ns, macs_per_ns;
};

constexpr KernelInfo prepare_row(const char* name, XForm form, Compute compute, uint32_t x_dtypes,
                                 CpuPrepareFn run) {
  return {.row = {.name = name,
                  .kind = StepKind::kPrepareX,
                  .isa = Isa::kNeon,
                  .compute = compute,
                  .x_form = form,
                  .x_dtypes = x_dtypes,
                  .gathers = true,
                  .pre_scales = form != XForm::kBf16Rows,  // would round x
                  .numerics = {.x_quant = compute},
                  .macs_per_ns = 3},
          .cpu_prepare = run};
}

constexpr KernelInfo f32_row(const char* name, uint32_t elements, uint32_t zero_kinds,
                             int32_t max_m, ScaleAt scale_at, Rates rates, CpuMatmulFn run) {
  return {.row = {.name = name,
                  .isa = Isa::kNeon,
                  .layout = LayoutId::kCpuPanel16,
                  .elements = elements,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = zero_kinds,
                  .min_group = 16,
                  .paired = true,
                  .compute = Compute::kExact,
                  .x_form = XForm::kF32Rows,
                  .max_m = max_m,
                  .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = scale_at},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = run};
}

constexpr KernelInfo int8_row(const char* name, Isa isa, Rates rates, CpuMatmulFn run) {
  return {.row = {.name = name,
                  .isa = isa,
                  .layout = LayoutId::kCpuPanel16,
                  .elements = kInteger,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kIntegerZero,
                  .min_group = 16,
                  .paired = true,
                  .compute = Compute::kInt8,
                  .x_form = XForm::kInt8Tiles,
                  .numerics = {.x_quant = Compute::kInt8, .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = run};
}

constexpr KernelInfo bf16_row(const char* name, Rates rates, CpuMatmulFn run) {
  return {.row = {.name = name,
                  .isa = Isa::kNeonBf16,
                  .layout = LayoutId::kCpuPanel16,
                  .elements = kFourBit,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kIntegerZero,
                  .min_group = 16,
                  .paired = true,
                  .compute = Compute::kExact,
                  .x_form = XForm::kBf16Rows,
                  .numerics = {.w_rounds_to = DType::kBF16,  // which holds every code exactly
                               .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = run};
}

constexpr KernelInfo kRows[] = {
    prepare_row("neon_prepare_f32", XForm::kF32Rows, Compute::kExact, kAnyX,
                NIBBLE_NEON_CODE(prepare_f32_neon)),
    prepare_row("neon_prepare_f32_of_int8", XForm::kF32Rows, Compute::kInt8, kAnyX,
                NIBBLE_NEON_CODE(prepare_f32_of_int8_neon)),
    prepare_row("neon_prepare_bf16", XForm::kBf16Rows, Compute::kExact, bits(DType::kBF16),
                NIBBLE_NEON_CODE(prepare_bf16_neon)),
    prepare_row("neon_prepare_int8", XForm::kInt8Tiles, Compute::kInt8, kAnyX,
                NIBBLE_NEON_CODE(prepare_int8_neon)),
    f32_row("neon_any_panel16", kAnyElement, kAnyZero, 0, ScaleAt::kWeight, {1.5f, 16},
            NIBBLE_NEON_CODE(gemm_f32_neon)),
    f32_row("neon_few_rows_panel16", kFourBit, kIntegerZero, 8, ScaleAt::kGroupSum, {4, 12},
            NIBBLE_NEON_CODE(gemv_f32_neon)),
    int8_row("neon_int8_dotprod_panel16", Isa::kNeonDotprod, {10, 60},
             NIBBLE_NEON_CODE(gemm_int8_neon_dotprod)),
    int8_row("neon_int8_i8mm_panel16", Isa::kNeonI8mm, {10, 110},
             NIBBLE_NEON_CODE(gemm_int8_neon_i8mm)),
    bf16_row("neon_bf16_panel16", {6, 60}, NIBBLE_NEON_CODE(gemm_exact_neon_bf16)),
};

}  // namespace

std::span<const KernelInfo> neon_rows() { return kRows; }

}  // namespace nibble
