#include "core/names.h"

#include <cmath>

namespace nibble {
namespace {

constexpr NamedValue<Isa> kIsaNames[] = {
    {"scalar", Isa::kScalar},
    {"avx2", Isa::kAvx2},
    {"avx_vnni", Isa::kAvxVnni},
    {"avx512_vnni", Isa::kAvx512Vnni},
    {"avx512_bf16", Isa::kAvx512Bf16},
    {"neon", Isa::kNeon},
    {"neon_dotprod", Isa::kNeonDotprod},
    {"neon_i8mm", Isa::kNeonI8mm},
    {"neon_bf16", Isa::kNeonBf16},
};
constexpr NamedValue<LayoutId> kLayoutNames[] = {
    {"row_major", LayoutId::kRowMajor},
    {"cpu_panel16", LayoutId::kCpuPanel16},
    {"cuda_frag16", LayoutId::kCudaFrag16},
};
constexpr NamedValue<Compute> kComputeNames[] = {
    {"exact", Compute::kExact},
    {"int8", Compute::kInt8},
    {"fp8", Compute::kFp8},
};
constexpr NamedValue<Activation> kActivationNames[] = {
    {"none", Activation::kNone},        {"relu", Activation::kRelu},
    {"silu", Activation::kSilu},        {"gelu_tanh", Activation::kGeluTanh},
    {"gelu_erf", Activation::kGeluErf},
};
constexpr NamedValue<Element> kElementNames[] = {
    {"int4", Element::kInt4}, {"uint4", Element::kUint4}, {"fp4", Element::kE2M1},
    {"nf4", Element::kNF4},   {"int8", Element::kInt8},   {"uint8", Element::kUint8},
};
constexpr NamedValue<XForm> kXFormNames[] = {
    {"raw", XForm::kRaw},
    {"f32_rows", XForm::kF32Rows},
    {"bf16_rows", XForm::kBf16Rows},
    {"int8_tiles", XForm::kInt8Tiles},
};

}  // namespace

const char* isa_name(Isa isa) { return name_of(kIsaNames, isa); }
Result<Isa> parse_isa(std::string_view name) {
  return value_of(kIsaNames, name, "instruction set");
}
const char* layout_name(LayoutId id) { return name_of(kLayoutNames, id); }
const char* compute_name(Compute compute) { return name_of(kComputeNames, compute); }
Result<Compute> parse_compute(std::string_view name) {
  return value_of(kComputeNames, name, "compute");
}
const char* activation_name(Activation a) { return name_of(kActivationNames, a); }
const char* element_name(Element element) { return name_of(kElementNames, element); }
const char* x_form_name(XForm form) { return name_of(kXFormNames, form); }

double activate(Activation activation, double v) {
  switch (activation) {
    case Activation::kNone:
      return v;
    case Activation::kRelu:
      return v < 0 ? 0 : v;  // keeps NaN
    case Activation::kSilu:
      return v / (1 + std::exp(-v));
    case Activation::kGeluTanh: {
      constexpr double kSqrt2OverPi = 0.79788456080286535588;
      return 0.5 * v * (1 + std::tanh(kSqrt2OverPi * (v + 0.044715 * v * v * v)));
    }
    case Activation::kGeluErf:
      return 0.5 * v * (1 + std::erf(v * 0.70710678118654752440));
  }
  return v;
}

}  // namespace nibble
