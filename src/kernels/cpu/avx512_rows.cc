// Rows of CPUs with AVX-512 VNNI, and of those that have BF16 as well.
#include "kernels/cpu/rows.h"

namespace nibble {

void matmul_exact_f32_avx512_vnni(const MatmulArgs&, Range);
void matmul_int8_avx512_vnni(const MatmulArgs&, Range);
void matmul_exact_avx512_bf16(const MatmulArgs&, Range);
void gemv_row_major_int8_avx512_vnni(const MatmulArgs&, Range);
void prepare_f32_rows_avx512_vnni(const PrepareArgs&, Range);
void prepare_f32_of_int8_avx512_vnni(const PrepareArgs&, Range);
void prepare_bf16_rows_avx512_vnni(const PrepareArgs&, Range);
void prepare_int8_tiles_avx512_vnni(const PrepareArgs&, Range);

namespace {

constexpr uint32_t kAnyElement = bits(Element::kInt4, Element::kUint4, Element::kE2M1,
                                      Element::kNF4, Element::kInt8, Element::kUint8);
constexpr uint32_t kIntegerElement =
    bits(Element::kInt4, Element::kUint4, Element::kE2M1, Element::kInt8, Element::kUint8);
constexpr uint32_t kBf16Element = bits(Element::kInt4, Element::kUint4, Element::kE2M1);
constexpr uint32_t kAnyScale =
    bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0);
constexpr uint32_t kAnyZero =
    bits(ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode, ZeroKind::kAdditive);
constexpr uint32_t kIntegerZero = bits(ZeroKind::kNone, ZeroKind::kInteger);
constexpr uint32_t kAnyX = bits(DType::kF32, DType::kF16, DType::kBF16);

/// One thread of the Zen 4 machine of bench/results.
struct Rates {
  float bytes_per_ns, macs_per_ns;
};

constexpr KernelInfo f32_row(const char* name, LayoutId layout, Rates rates) {
  return {.row = {.name = name,
                  .kind = StepKind::kMatmul,
                  .isa = Isa::kAvx512Vnni,
                  .layout = layout,
                  .elements = kAnyElement,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kAnyZero,
                  .min_group = 16,
                  .paired = layout == LayoutId::kCpuPanel16,
                  .x_form = XForm::kF32Rows,
                  .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = NIBBLE_X86_CODE(matmul_exact_f32_avx512_vnni)};
}

constexpr KernelInfo bf16_row(const char* name, LayoutId layout, Rates rates) {
  return {.row = {.name = name,
                  .kind = StepKind::kMatmul,
                  .isa = Isa::kAvx512Bf16,
                  .layout = layout,
                  .elements = kBf16Element,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kIntegerZero,
                  .min_group = 16,
                  .paired = layout == LayoutId::kCpuPanel16,
                  .x_form = XForm::kBf16Rows,
                  .numerics = {.w_rounds_to = DType::kBF16,  // which holds every code exactly
                               .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = NIBBLE_X86_CODE(matmul_exact_avx512_bf16)};
}

constexpr KernelInfo int8_row(const char* name, LayoutId layout, Rates rates) {
  return {.row = {.name = name,
                  .kind = StepKind::kMatmul,
                  .isa = Isa::kAvx512Vnni,
                  .layout = layout,
                  .elements = kIntegerElement,
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = kIntegerZero,
                  .min_group = 16,
                  .paired = layout == LayoutId::kCpuPanel16,
                  .compute = Compute::kInt8,
                  .x_form = XForm::kInt8Tiles,
                  .numerics = {.w_rounds_to = DType::kF32,
                               .x_quant = Compute::kInt8,
                               .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = NIBBLE_X86_CODE(matmul_int8_avx512_vnni)};
}

/// One row of x, weights as callers have them.
constexpr KernelInfo gemv_row(const char* name, Rates rates) {
  return {.row = {.name = name,
                  .kind = StepKind::kMatmul,
                  .isa = Isa::kAvx512Vnni,
                  .layout = LayoutId::kRowMajor,
                  .elements = bits(Element::kInt4, Element::kE2M1),
                  .scale_dtypes = kAnyScale,
                  .zero_kinds = bits(ZeroKind::kNone),
                  .min_group = 16,
                  .compute = Compute::kInt8,
                  .x_form = XForm::kInt8Tiles,
                  .max_m = 1,
                  .numerics = {.w_rounds_to = DType::kF32,
                               .x_quant = Compute::kInt8,
                               .scale_applied_at = ScaleAt::kGroupSum},
                  .bytes_per_ns = rates.bytes_per_ns,
                  .macs_per_ns = rates.macs_per_ns},
          .cpu_matmul = NIBBLE_X86_CODE(gemv_row_major_int8_avx512_vnni)};
}

constexpr KernelInfo prepare_row(const char* name, XForm form, Compute compute, uint32_t x_dtypes,
                                 CpuPrepareFn run) {
  return {.row = {.name = name,
                  .kind = StepKind::kPrepareX,
                  .isa = Isa::kAvx512Vnni,
                  .compute = compute,
                  .x_form = form,
                  .x_dtypes = x_dtypes,
                  .gathers = true,
                  .pre_scales = form != XForm::kBf16Rows,  // would round x
                  .numerics = {.x_quant = compute},
                  .macs_per_ns = 4.0f},  // values
          .cpu_prepare = run};
}

constexpr KernelInfo kRows[] = {
    prepare_row("avx512_prepare_f32", XForm::kF32Rows, Compute::kExact, kAnyX,
                NIBBLE_X86_CODE(prepare_f32_rows_avx512_vnni)),
    prepare_row("avx512_prepare_f32_of_int8", XForm::kF32Rows, Compute::kInt8, kAnyX,
                NIBBLE_X86_CODE(prepare_f32_of_int8_avx512_vnni)),
    prepare_row("avx512_prepare_bf16", XForm::kBf16Rows, Compute::kExact, bits(DType::kBF16),
                NIBBLE_X86_CODE(prepare_bf16_rows_avx512_vnni)),
    prepare_row("avx512_prepare_int8", XForm::kInt8Tiles, Compute::kInt8, kAnyX,
                NIBBLE_X86_CODE(prepare_int8_tiles_avx512_vnni)),
    f32_row("avx512_f32_row_major", LayoutId::kRowMajor, {4.0f, 50.0f}),
    f32_row("avx512_f32_panel16", LayoutId::kCpuPanel16, {15.0f, 54.0f}),
    bf16_row("avx512_bf16_row_major", LayoutId::kRowMajor, {4.0f, 95.0f}),
    bf16_row("avx512_bf16_panel16", LayoutId::kCpuPanel16, {23.5f, 100.0f}),
    gemv_row("avx512_int8_row_major_gemv", {25.0f, 50.0f}),
    int8_row("avx512_int8_row_major", LayoutId::kRowMajor, {4.0f, 150.0f}),
    int8_row("avx512_int8_panel16", LayoutId::kCpuPanel16, {27.0f, 160.0f}),
};

}  // namespace

std::span<const KernelInfo> avx512_rows() { return kRows; }

}  // namespace nibble
