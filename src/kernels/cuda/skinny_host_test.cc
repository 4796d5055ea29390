// Launch numbers of the skinny kernels on machines that are not here.
#include <gtest/gtest.h>

#include <set>
#include <tuple>

#include "kernels/cuda/skinny_geometry.h"
#include "kernels/table.h"
#include "nibble/core.h"
#include "nibble/plan.h"

namespace nibble {
namespace {

SkinnyArgs args_of(const char* format, int64_t n, int64_t k, int64_t m, DType x_dtype,
                   const Device& device) {
  const PackedWeightInfo info =
      *described_weight(*Format::parse(format), n, k, {LayoutId::kCudaFrag16, false});
  MatmulArgs a{};
  a.x_dtype = x_dtype;
  a.x_stride_bytes = k * dtype_bytes(x_dtype);
  a.m = m;
  a.w.element = info.format.element;
  a.w.scale_dtype = info.format.scale;
  a.w.zero_kind = info.format.zero;
  a.w.group = info.format.group_columns(info.k_padded);
  a.w.num_groups = info.num_groups;
  a.w.n = n;
  a.w.k = k;
  a.w.n_padded = info.n_padded;
  a.w.k_padded = info.k_padded;
  a.device = {device.sm, device.num_sms, device.shared_bytes, true, true};
  return skinny_args(a);
}

TEST(SkinnyGeometryTest, EveryChunkOfEveryPanelIsSomebodysAndFitsInTheDevice) {
  for (const char* device_name : {"h200", "thor", "orin", "rtx4090"}) {
    const Device device = *Device::named(device_name);
    for (const char* format : {"int4-g128", "nvfp4", "uint4-g16", "nf4-g64", "int8-channel"}) {
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{1, 2},
                                 {17, 130},
                                 {2048, 16384},
                                 {16384, 2048},
                                 {4096, 4304},
                                 {28672, 8192},
                                 {256000, 2048}}) {
        for (const DType x : {DType::kBF16, DType::kF32}) {
          for (const int64_t m : {1, 3, 16, 100}) {
            const SkinnyArgs a = args_of(format, n, k, m, x, device);
            const SkinnyGeometry& g = a.geometry;
            SCOPED_TRACE(std::string(device_name) + " " + format + " n=" + std::to_string(n) +
                         " k=" + std::to_string(k) + " m=" + std::to_string(m));
            ASSERT_GE(g.warps, 1);
            ASSERT_LE(g.warps, kSkinnyMostWarps);
            ASSERT_EQ(g.warps % g.parts, 0);
            ASSERT_LE(a.memory.total, device.shared_bytes);
            ASSERT_EQ(1 << a.cluster_log2, g.cluster);
            if (device.sm < 90) {
              ASSERT_EQ(g.cluster, 1);
            }
            ASSERT_GE(int64_t{a.tokens} * ceil_div(m, a.tokens), m);
            ASSERT_LE(a.columns, 8 * skinny::tiles(m, a.terms));
            // Blocks cover K, slices a block's share, parts a slice.
            ASSERT_GE(a.rank_chunks * g.cluster, a.chunks);
            ASSERT_GE(a.slices * g.slice_chunks, a.rank_chunks);
            ASSERT_GE(a.part_chunks * g.parts, std::min(a.rank_chunks, g.slice_chunks));
            ASSERT_EQ(a.panel_step * g.parts, g.warps);
            // The multiplications that stand for divisions.
            for (int32_t warp = 0; warp < g.warps; ++warp)
              ASSERT_EQ(warp * a.parts_inverse >> 16, warp / g.parts);
            for (int32_t left = 1; left <= g.panels; ++left) {
              ASSERT_EQ((left + a.panel_step - 1) * a.panel_step_inverse >> 16,
                        ceil_div(left, a.panel_step));
            }
            const auto tokens = static_cast<uint64_t>(a.tokens);
            for (uint64_t i = 0; i < tokens * 64 && tokens > 1; ++i)
              ASSERT_EQ(i * a.tokens_inverse >> 32, i / tokens);
          }
        }
      }
    }
  }
}

TEST(SkinnyGeometryTest, OneRowKeepsAlmostAllSmsOfAnH200Busy) {
  const Device h200 = *Device::named("h200");
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 16384},
                             {16384, 2048},
                             {4096, 4096},
                             {4096, 14336},
                             {8192, 8192},
                             {8192, 28672}}) {
    const SkinnyArgs a = args_of("int4-g128", n, k, 1, DType::kBF16, h200);
    const int64_t blocks = ceil_div(a.panels, a.geometry.panels) * a.geometry.cluster;
    EXPECT_GE(blocks, 120) << k << " " << n;
    EXPECT_LE(blocks, 2 * h200.num_sms);
  }
}

TEST(SkinnyPlanTest, EveryFormatHasAPlanWithoutWorkspaceOnEveryGpuInThePreferredLayout) {
  if (cuda_kernels().empty()) GTEST_SKIP() << "this build has no CUDA rows";
  for (const char* device_name : {"h200", "thor", "orin", "rtx4090"}) {
    const Device device = *Device::named(device_name);
    for (const char* format : named_formats()) {
      Layout layout = *preferred_layout(*Format::parse(format), device);
      EXPECT_EQ(layout.id, LayoutId::kCudaFrag16);
      for (const bool paired : {false, true}) {
        layout.paired = paired;
        const auto weight = *described_weight(*Format::parse(format), 64, 4304, layout);
        for (const DType x : {DType::kF32, DType::kF16, DType::kBF16}) {
          for (const int64_t m : {1, 16, 17, 3000}) {
            PlanOptions options;
            options.x_dtype = x;
            options.max_workspace_bytes = 0;
            const auto made = plan({m, 64, 4304}, weight, device, options);
            ASSERT_TRUE(made.ok())
                << device_name << " " << format << ": " << made.status().message();
            const Element element = weight.format.element;
            const bool wide =
                device.sm == 90 && m >= 17 && x == DType::kBF16 &&
                (bit(element) & bits(Element::kInt4, Element::kUint4, Element::kE2M1)) != 0;
            EXPECT_STREQ(kernels()[static_cast<size_t>(made->matmul().kernel)].name,
                         wide ? "cuda_wide_frag16" : "cuda_skinny_frag16");
            EXPECT_EQ(made->workspace_bytes, 0);
          }
        }
      }
    }
  }
  Device turing = *Device::named("h200");
  turing.sm = 75;
  EXPECT_EQ(preferred_layout(*Format::parse("nvfp4"), turing)->id, LayoutId::kRowMajor);
}

TEST(SkinnyGeometryTest, XNeedsOnePartInBf16TwoInFp16AndThreeInFp32) {
  EXPECT_EQ(skinny::terms(DType::kBF16, false), 1);
  EXPECT_EQ(skinny::terms(DType::kF16, false), 2);
  EXPECT_EQ(skinny::terms(DType::kF32, false), 3);
  EXPECT_EQ(skinny::terms(DType::kBF16, true), 3);  // the product with pre_scale is an FP32
}

}  // namespace
}  // namespace nibble
