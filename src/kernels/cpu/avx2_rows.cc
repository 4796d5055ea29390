// Rows for x86 with AVX2, FMA, F16C and BMI2.
#include "kernels/cpu/rows.h"

namespace nibble {

void prepare_f32_avx2(const PrepareArgs&, Range);
void prepare_f32_of_int8_avx2(const PrepareArgs&, Range);
void prepare_int8_avx2(const PrepareArgs&, Range);
void gemm_f32_avx2(const MatmulArgs&, Range);
void gemv_f32_avx2(const MatmulArgs&, Range);
void gemm_int8_avx2(const MatmulArgs&, Range);
void row_major_f32_avx2(const MatmulArgs&, Range);
void row_major_int8_avx2(const MatmulArgs&, Range);

namespace {

constexpr uint32_t kFourBit = bits(Element::kInt4, Element::kUint4, Element::kE2M1);
constexpr uint32_t kEightBit = bits(Element::kInt8, Element::kUint8);
constexpr uint32_t kAnyElement = kFourBit | kEightBit | bit(Element::kNF4);
constexpr uint32_t kAnyScale =
    bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0);
constexpr uint32_t kIntegerZero = bits(ZeroKind::kNone, ZeroKind::kInteger);
constexpr uint32_t kAnyZero = kIntegerZero | bits(ZeroKind::kFloatCode, ZeroKind::kAdditive);
constexpr uint32_t kAnyX = bits(DType::kF32, DType::kF16, DType::kBF16);

constexpr KernelInfo prepare_row(const char* name, XForm form, Compute compute, float macs_per_ns,
                                 CpuPrepareFn run) {
  return {.row = {.name = name,
                  .kind = StepKind::kPrepareX,
                  .isa = Isa::kAvx2,
                  .compute = compute,
                  .x_form = form,
                  .x_dtypes = kAnyX,
                  .gathers = true,
                  .pre_scales = true,
                  .numerics = {.x_quant = compute},
                  .macs_per_ns = macs_per_ns},
          .cpu_prepare = run};
}

// Rates: one thread of a Zen 4 core at 3.7 GHz.
constexpr KernelInfo kRows[] = {
    prepare_row("avx2_prepare_f32", XForm::kF32Rows, Compute::kExact, 7,
                NIBBLE_X86_CODE(prepare_f32_avx2)),
    prepare_row("avx2_prepare_f32_of_int8", XForm::kF32Rows, Compute::kInt8, 5,
                NIBBLE_X86_CODE(prepare_f32_of_int8_avx2)),
    prepare_row("avx2_prepare_int8", XForm::kInt8Tiles, Compute::kInt8, 4.5f,
                NIBBLE_X86_CODE(prepare_int8_avx2)),
    {.row = {.name = "avx2_any_panel16",
             .isa = Isa::kAvx2,
             .layout = LayoutId::kCpuPanel16,
             .elements = kAnyElement,
             .scale_dtypes = kAnyScale,
             .zero_kinds = kAnyZero,
             .min_group = 16,
             .paired = true,
             .compute = Compute::kExact,
             .x_form = XForm::kF32Rows,
             .block_m = 8,
             .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = ScaleAt::kWeight},
             .bytes_per_ns = 4,
             .macs_per_ns = 30},
     .cpu_matmul = NIBBLE_X86_CODE(gemm_f32_avx2)},
    {.row = {.name = "avx2_few_rows_panel16",
             .isa = Isa::kAvx2,
             .layout = LayoutId::kCpuPanel16,
             .elements = kFourBit,
             .scale_dtypes = kAnyScale,
             .zero_kinds = kIntegerZero,
             .min_group = 16,
             .paired = true,
             .compute = Compute::kExact,
             .x_form = XForm::kF32Rows,
             .max_m = 8,
             .block_m = 8,
             .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 11,
             .macs_per_ns = 32},
     .cpu_matmul = NIBBLE_X86_CODE(gemv_f32_avx2)},
    {.row = {.name = "avx2_int8_panel16",
             .isa = Isa::kAvx2,
             .layout = LayoutId::kCpuPanel16,
             .elements = kFourBit | kEightBit,
             .scale_dtypes = kAnyScale,
             .zero_kinds = kIntegerZero,
             .min_group = 16,
             .paired = true,
             .compute = Compute::kInt8,
             .x_form = XForm::kInt8Tiles,
             .block_m = 8,
             .numerics = {.x_quant = Compute::kInt8, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 24.5f,
             .macs_per_ns = 110},
     .cpu_matmul = NIBBLE_X86_CODE(gemm_int8_avx2)},
    {.row = {.name = "avx2_row_major",
             .isa = Isa::kAvx2,
             .layout = LayoutId::kRowMajor,
             .elements = kFourBit,
             .scale_dtypes = kAnyScale,
             .zero_kinds = kIntegerZero,
             .min_group = 16,
             .compute = Compute::kExact,
             .x_form = XForm::kF32Rows,
             .block_m = 8,
             .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 7.5f,
             .macs_per_ns = 15},
     .cpu_matmul = NIBBLE_X86_CODE(row_major_f32_avx2)},
    {.row = {.name = "avx2_row_major_int8",
             .isa = Isa::kAvx2,
             .layout = LayoutId::kRowMajor,
             .elements = kFourBit,
             .scale_dtypes = kAnyScale,
             .zero_kinds = kIntegerZero,
             .min_group = 16,
             .compute = Compute::kInt8,
             .x_form = XForm::kInt8Tiles,
             .block_m = 8,
             .numerics = {.x_quant = Compute::kInt8, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 16,
             .macs_per_ns = 30},
     .cpu_matmul = NIBBLE_X86_CODE(row_major_int8_avx2)},
};

}  // namespace

std::span<const KernelInfo> avx2_rows() { return kRows; }

}  // namespace nibble
