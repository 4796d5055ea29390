// Rows of any CPU.
#include "kernels/cpu/rows.h"

namespace nibble {

void matmul_any_scalar(const MatmulArgs&, Range);
void matmul_any_int8_scalar(const MatmulArgs&, Range);
void prepare_f32_scalar(const PrepareArgs&, Range);
void prepare_f32_of_int8_scalar(const PrepareArgs&, Range);
void prepare_bf16_scalar(const PrepareArgs&, Range);
void prepare_int8_scalar(const PrepareArgs&, Range);

namespace {

constexpr uint32_t kAnyElement = bits(Element::kInt4, Element::kUint4, Element::kE2M1,
                                      Element::kNF4, Element::kInt8, Element::kUint8);
constexpr uint32_t kAnyScale =
    bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0);
constexpr uint32_t kAnyZero =
    bits(ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode, ZeroKind::kAdditive);
constexpr uint32_t kAnyX = bits(DType::kF32, DType::kF16, DType::kBF16);

constexpr KernelInfo any_row(const char* name, LayoutId layout, Compute compute, CpuMatmulFn run) {
  return {.row = {.name = name,
                  .kind = StepKind::kMatmul,
                  .isa = Isa::kScalar,
                  .layout = layout,
                  .elements = kAnyElement,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kAnyZero,
                  .min_group = 16,
                  .paired = layout == LayoutId::kCpuPanel16,
                  .compute = compute,
                  .x_form = XForm::kRaw,
                  .x_dtypes = kAnyX,
                  .gathers = true,
                  .pre_scales = true,
                  .numerics = {.w_rounds_to = DType::kF32,
                               .x_quant = compute,
                               .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = 0.45f,
                  .macs_per_ns = compute == Compute::kInt8 ? 2.0f : 3.0f},
          .cpu_matmul = run};
}

constexpr KernelInfo prepare_row(const char* name, XForm form, Compute compute, uint32_t x_dtypes,
                                 CpuPrepareFn run) {
  return {.row = {.name = name,
                  .kind = StepKind::kPrepareX,
                  .isa = Isa::kScalar,
                  .compute = compute,
                  .x_form = form,
                  .x_dtypes = x_dtypes,
                  .gathers = true,
                  .pre_scales = form != XForm::kBf16Rows,  // would round x
                  .numerics = {.x_quant = compute},
                  .macs_per_ns = 0.3f},  // values
          .cpu_prepare = run};
}

constexpr KernelInfo kRows[] = {
    prepare_row("scalar_prepare_f32", XForm::kF32Rows, Compute::kExact, kAnyX, prepare_f32_scalar),
    prepare_row("scalar_prepare_f32_of_int8", XForm::kF32Rows, Compute::kInt8, kAnyX,
                prepare_f32_of_int8_scalar),
    prepare_row("scalar_prepare_bf16", XForm::kBf16Rows, Compute::kExact, bits(DType::kBF16),
                prepare_bf16_scalar),
    prepare_row("scalar_prepare_int8", XForm::kInt8Tiles, Compute::kInt8, kAnyX,
                prepare_int8_scalar),
    any_row("scalar_any_row_major", LayoutId::kRowMajor, Compute::kExact, matmul_any_scalar),
    any_row("scalar_any_row_major_int8", LayoutId::kRowMajor, Compute::kInt8,
            matmul_any_int8_scalar),
    any_row("scalar_any_panel16", LayoutId::kCpuPanel16, Compute::kExact, matmul_any_scalar),
    any_row("scalar_any_panel16_int8", LayoutId::kCpuPanel16, Compute::kInt8,
            matmul_any_int8_scalar),
};

}  // namespace

std::span<const KernelInfo> scalar_rows() { return kRows; }

}  // namespace nibble
