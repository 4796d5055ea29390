// CUDA rows of this build.
#include "kernels/table.h"

namespace nibble {

int naive_load_cuda();
int naive_matmul_cuda(const MatmulArgs&, void* stream);
int skinny_load();
int skinny_matmul(const MatmulArgs&, void* stream);
int wide_load();
int wide_matmul(const MatmulArgs&, void* stream);

namespace {

constexpr KernelInfo kRows[] = {
    {.row = {.name = "cuda_naive",
             .kind = StepKind::kMatmul,
             .backend = Backend::kCuda,
             .min_sm = 75,
             .max_sm = 129,
             .layout = LayoutId::kRowMajor,
             .elements = bits(Element::kInt4, Element::kUint4, Element::kE2M1, Element::kNF4,
                              Element::kInt8, Element::kUint8),
             .scale_dtypes =
                 bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0),
             .zero_kinds = bits(ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode,
                                ZeroKind::kAdditive),
             .min_group = 16,
             .compute = Compute::kExact,
             .x_form = XForm::kRaw,
             .x_dtypes = bits(DType::kF32, DType::kF16, DType::kBF16),
             .gathers = true,
             .pre_scales = true,
             .block_m = 1,
             .block_n = 128,
             .numerics = {.w_rounds_to = DType::kF32, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 50,
             .macs_per_ns = 400},
     .cuda_matmul = naive_matmul_cuda,
     .cuda_load = naive_load_cuda},
    {.row = {.name = "cuda_skinny_frag16",
             .kind = StepKind::kMatmul,
             .backend = Backend::kCuda,
             .min_sm = 80,
             .max_sm = 129,
             .layout = LayoutId::kCudaFrag16,
             .elements = bits(Element::kInt4, Element::kUint4, Element::kE2M1, Element::kNF4,
                              Element::kInt8, Element::kUint8),
             .scale_dtypes =
                 bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0),
             .zero_kinds = bits(ZeroKind::kNone, ZeroKind::kInteger, ZeroKind::kFloatCode,
                                ZeroKind::kAdditive),
             .min_group = 16,
             .paired = true,
             .compute = Compute::kExact,
             .x_form = XForm::kRaw,
             .x_dtypes = bits(DType::kF32, DType::kF16, DType::kBF16),
             .gathers = true,
             .pre_scales = true,
             .block_m = 16,
             .block_n = 16,
             .bits_depend_on_m = true,
             // Only nf4 has values that BF16 does not hold.
             .numerics = {.w_rounds_to = DType::kBF16, .scale_applied_at = ScaleAt::kGroupSum},
             .bytes_per_ns = 2500,
             .macs_per_ns = 40000},
     .cuda_matmul = skinny_matmul,
     .cuda_load = skinny_load},
    {.row = {.name = "cuda_wide_frag16",
             .kind = StepKind::kMatmul,
             .backend = Backend::kCuda,
             .min_sm = 90,
             .max_sm = 90,
             .layout = LayoutId::kCudaFrag16,
             .elements = bits(Element::kInt4, Element::kUint4, Element::kE2M1),
             .scale_dtypes =
                 bits(DType::kF32, DType::kF16, DType::kBF16, DType::kE4M3, DType::kE8M0),
             .zero_kinds = bits(ZeroKind::kNone, ZeroKind::kInteger),
             .min_group = 16,
             .paired = true,
             .compute = Compute::kExact,
             .x_form = XForm::kRaw,
             .x_dtypes = bits(DType::kBF16),
             .min_m = 17,
             .block_m = 64,
             .block_n = 128,
             .bits_depend_on_m = true,
             // e2m1 times e4m3 or e8m0 is exact in BF16; integers times a scale are rounded.
             .numerics = {.w_rounds_to = DType::kBF16, .scale_applied_at = ScaleAt::kWeight},
             .bytes_per_ns = 2000,
             .macs_per_ns = 350000},
     .cuda_matmul = wide_matmul,
     .cuda_load = wide_load},
};

}  // namespace

std::span<const KernelInfo> cuda_kernels() { return kRows; }

}  // namespace nibble
