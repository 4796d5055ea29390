// The list of roof loops; each is one function of an ISA file beside this one.
#include "kernels/table.h"

namespace nibble {

uint64_t roof_read_scalar(const void*, int64_t, int64_t);
uint64_t roof_int8_scalar(const void*, int64_t, int64_t);
uint64_t roof_f32_scalar(const void*, int64_t, int64_t);
#ifdef NIBBLE_HAVE_X86_ISA
uint64_t roof_read_avx2(const void*, int64_t, int64_t);
uint64_t roof_read_avx2_ahead_4k(const void*, int64_t, int64_t);
uint64_t roof_read_avx2_2_streams_ahead_2k(const void*, int64_t, int64_t);
uint64_t roof_read_avx2_4_streams(const void*, int64_t, int64_t);
uint64_t roof_int8_avx2(const void*, int64_t, int64_t);
uint64_t roof_int8_avx2_four_pairs(const void*, int64_t, int64_t);
uint64_t roof_f32_avx2(const void*, int64_t, int64_t);
uint64_t roof_int8_avxvnni(const void*, int64_t, int64_t);
uint64_t roof_read_avx512(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_ahead_4k(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_ahead_8k(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_2_streams(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_2_streams_ahead_2k(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_4_streams(const void*, int64_t, int64_t);
uint64_t roof_read_avx512_4_streams_ahead_2k(const void*, int64_t, int64_t);
uint64_t roof_int8_avx512_vnni(const void*, int64_t, int64_t);
uint64_t roof_f32_avx512(const void*, int64_t, int64_t);
uint64_t roof_bf16_avx512(const void*, int64_t, int64_t);
#endif
#ifdef NIBBLE_HAVE_NEON_ISA
uint64_t roof_read_neon(const void*, int64_t, int64_t);
uint64_t roof_read_neon_4_streams(const void*, int64_t, int64_t);
uint64_t roof_f32_neon(const void*, int64_t, int64_t);
uint64_t roof_int8_neon_dotprod(const void*, int64_t, int64_t);
uint64_t roof_int8_neon_i8mm(const void*, int64_t, int64_t);
uint64_t roof_bf16_neon(const void*, int64_t, int64_t);
#endif

namespace {

constexpr RoofInfo read_loop(const char* name, Isa isa, RoofFn run) {
  return {.name = name, .kind = RoofKind::kRead, .isa = isa, .ops_per_step = 0, .run = run};
}

// `macs`: multiply-adds of one step.
constexpr RoofInfo compute_loop(const char* name, RoofKind kind, Isa isa, int macs, RoofFn run) {
  return {.name = name, .kind = kind, .isa = isa, .ops_per_step = 2.0 * macs, .run = run};
}

constexpr RoofInfo kRoofs[] = {
    read_loop("read_scalar", Isa::kScalar, roof_read_scalar),
    compute_loop("int8_scalar", RoofKind::kInt8, Isa::kScalar, 32, roof_int8_scalar),
    compute_loop("f32_scalar", RoofKind::kF32, Isa::kScalar, 32, roof_f32_scalar),
#ifdef NIBBLE_HAVE_X86_ISA
    read_loop("read_avx2", Isa::kAvx2, roof_read_avx2),
    read_loop("read_avx2_ahead_4k", Isa::kAvx2, roof_read_avx2_ahead_4k),
    read_loop("read_avx2_2_streams_ahead_2k", Isa::kAvx2, roof_read_avx2_2_streams_ahead_2k),
    read_loop("read_avx2_4_streams", Isa::kAvx2, roof_read_avx2_4_streams),
    compute_loop("int8_avx2", RoofKind::kInt8, Isa::kAvx2, 12 * 32, roof_int8_avx2),
    compute_loop("int8_avx2_four_pairs", RoofKind::kInt8, Isa::kAvx2, 3 * 128,
                 roof_int8_avx2_four_pairs),
    compute_loop("f32_avx2", RoofKind::kF32, Isa::kAvx2, 12 * 8, roof_f32_avx2),
    compute_loop("int8_avxvnni", RoofKind::kInt8, Isa::kAvxVnni, 12 * 32, roof_int8_avxvnni),
    read_loop("read_avx512", Isa::kAvx512Vnni, roof_read_avx512),
    read_loop("read_avx512_ahead_4k", Isa::kAvx512Vnni, roof_read_avx512_ahead_4k),
    read_loop("read_avx512_ahead_8k", Isa::kAvx512Vnni, roof_read_avx512_ahead_8k),
    read_loop("read_avx512_2_streams", Isa::kAvx512Vnni, roof_read_avx512_2_streams),
    read_loop("read_avx512_2_streams_ahead_2k", Isa::kAvx512Vnni,
              roof_read_avx512_2_streams_ahead_2k),
    read_loop("read_avx512_4_streams", Isa::kAvx512Vnni, roof_read_avx512_4_streams),
    read_loop("read_avx512_4_streams_ahead_2k", Isa::kAvx512Vnni,
              roof_read_avx512_4_streams_ahead_2k),
    compute_loop("int8_avx512_vnni", RoofKind::kInt8, Isa::kAvx512Vnni, 16 * 64,
                 roof_int8_avx512_vnni),
    compute_loop("f32_avx512", RoofKind::kF32, Isa::kAvx512Vnni, 16 * 16, roof_f32_avx512),
    compute_loop("bf16_avx512", RoofKind::kBf16, Isa::kAvx512Bf16, 16 * 32, roof_bf16_avx512),
#endif
#ifdef NIBBLE_HAVE_NEON_ISA
    read_loop("read_neon", Isa::kNeon, roof_read_neon),
    read_loop("read_neon_4_streams", Isa::kNeon, roof_read_neon_4_streams),
    compute_loop("f32_neon", RoofKind::kF32, Isa::kNeon, 24 * 4, roof_f32_neon),
    compute_loop("int8_neon_dotprod", RoofKind::kInt8, Isa::kNeonDotprod, 24 * 16,
                 roof_int8_neon_dotprod),
    compute_loop("int8_neon_i8mm", RoofKind::kInt8, Isa::kNeonI8mm, 24 * 32, roof_int8_neon_i8mm),
    compute_loop("bf16_neon", RoofKind::kBf16, Isa::kNeonBf16, 24 * 16, roof_bf16_neon),
#endif
};

}  // namespace

std::span<const RoofInfo> cpu_roofs() { return kRoofs; }

}  // namespace nibble
