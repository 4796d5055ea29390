#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/wide_geometry.h"
#include "kernels/cuda/wide_maps.h"

namespace nibble {

int skinny_matmul(const MatmulArgs&, void* stream);

#define NIBBLE_WIDE_INSTANCES(name)                         \
  WideKernel wide_##name##_g16(int32_t tokens, bool zeros); \
  WideKernel wide_##name##_g32(int32_t tokens, bool zeros); \
  WideKernel wide_##name##_g64(int32_t tokens, bool zeros)
NIBBLE_WIDE_INSTANCES(integer4_bf16);
NIBBLE_WIDE_INSTANCES(integer4_f32);
NIBBLE_WIDE_INSTANCES(e2m1_bf16);
NIBBLE_WIDE_INSTANCES(e2m1_f32);
#undef NIBBLE_WIDE_INSTANCES

namespace {

struct InstanceRow {
  Expand expand;
  WideScale scale;
  int32_t group;  // 64: of 64 and above
  WideInstance of;
};

constexpr InstanceRow kInstances[] = {
    {Expand::kInteger4, WideScale::kBf16, 16, wide_integer4_bf16_g16},
    {Expand::kInteger4, WideScale::kBf16, 32, wide_integer4_bf16_g32},
    {Expand::kInteger4, WideScale::kBf16, 64, wide_integer4_bf16_g64},
    {Expand::kInteger4, WideScale::kF32, 16, wide_integer4_f32_g16},
    {Expand::kInteger4, WideScale::kF32, 32, wide_integer4_f32_g32},
    {Expand::kInteger4, WideScale::kF32, 64, wide_integer4_f32_g64},
    {Expand::kE2M1, WideScale::kBf16, 16, wide_e2m1_bf16_g16},
    {Expand::kE2M1, WideScale::kBf16, 32, wide_e2m1_bf16_g32},
    {Expand::kE2M1, WideScale::kBf16, 64, wide_e2m1_bf16_g64},
    {Expand::kE2M1, WideScale::kF32, 16, wide_e2m1_f32_g16},
    {Expand::kE2M1, WideScale::kF32, 32, wide_e2m1_f32_g32},
    {Expand::kE2M1, WideScale::kF32, 64, wide_e2m1_f32_g64},
};

WideInstance instance_of(const WeightArgs& w) {
  const Expand expand = w.element == Element::kE2M1 ? Expand::kE2M1 : Expand::kInteger4;
  const bool wide_scale = w.scale_dtype == DType::kF32 || w.scale_dtype == DType::kF16;
  const int32_t group = w.group == 16 || w.group == 32 ? static_cast<int32_t>(w.group) : 64;
  for (const InstanceRow& row : kInstances) {
    if (row.expand == expand && row.group == group &&
        row.scale == (wide_scale ? WideScale::kF32 : WideScale::kBf16)) {
      return row.of;
    }
  }
  return nullptr;
}

/// What does not change while a process runs; the same for every kernel, whose blocks fill an SM.
struct DeviceFacts {
  int error = cudaSuccess;
  wide::ClusterSlots slots{};
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
};

DeviceFacts find_facts() {
  DeviceFacts facts;
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found;
  facts.error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                                 cudaEnableDefault, &found);
  if (facts.error == cudaSuccess && encode == nullptr) facts.error = cudaErrorNotSupported;
  facts.encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(encode);
  const WideKernel kernel = kInstances[0].of(64, false);
  for (int32_t size = 1; size <= kWideMostSplit && facts.error == cudaSuccess; ++size) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(size) * 1024);
    config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
    config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
    config.attrs = &cluster;
    config.numAttrs = 1;
    facts.error = cudaOccupancyMaxActiveClusters(&facts.slots[static_cast<size_t>(size)],
                                                 kernel.kernel, &config);
  }
  return facts;
}

/// Found by the first wide_load, after the attributes are set.
const DeviceFacts& device_facts() {
  static const DeviceFacts facts = find_facts();
  return facts;
}

/// A dense tensor of up to three dimensions, innermost first, and the box that one copy moves.
struct BoxedTensor {
  CUtensorMapDataType type;
  const void* data;
  cuuint64_t sizes[3];
  cuuint64_t strides[2];  // bytes, of the outer dimensions
  cuuint32_t box[3];
};

int describe(const BoxedTensor& t, unsigned dimensions, CUtensorMapSwizzle swizzle,
             CUtensorMap& map) {
  constexpr cuuint32_t kSteps[] = {1, 1, 1};
  const CUresult error =
      device_facts().encode(&map, t.type, dimensions, const_cast<void*>(t.data), t.sizes, t.strides,
                            t.box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return error == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

int describe_operands(const WideArgs& args, const WideKernel& kernel, int32_t tokens,
                      WideMaps& maps) {
  const MatmulArgs& a = args.matmul;
  const WeightArgs& w = a.w;
  const auto u32 = [](int64_t v) { return static_cast<cuuint32_t>(v); };
  const auto u64 = [](int64_t v) { return static_cast<cuuint64_t>(v); };
  // Blocks of 64 columns are a dimension of their own where the last is whole; else the copy engine
  // has to know where rows end.
  const BoxedTensor blocks_of_x{CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                a.x,
                                {64, u64(a.m), u64(w.k / 64)},
                                {u64(a.x_stride_bytes), 128},
                                {64, u32(tokens), u32(kernel.blocks)}};
  const BoxedTensor rows_of_x{CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                              a.x,
                              {u64(w.k), u64(a.m)},
                              {u64(a.x_stride_bytes)},
                              {64, u32(tokens)}};
  if (const int error = describe(args.whole_blocks ? blocks_of_x : rows_of_x,
                                 args.whole_blocks ? 3 : 2, CU_TENSOR_MAP_SWIZZLE_128B, maps.x);
      error != 0) {
    return error;
  }
  const int64_t panels = w.n_padded / 16;
  const BoxedTensor codes{CU_TENSOR_MAP_DATA_TYPE_UINT32,
                          w.codes,
                          {128, u64(args.blocks), u64(panels)},
                          {512, u64(int64_t{args.blocks} * 512)},
                          {128, u32(kernel.blocks), kWidePanels}};
  if (const int error = describe(codes, 3, CU_TENSOR_MAP_SWIZZLE_NONE, maps.codes); error != 0) {
    return error;
  }
  // Values of one block, or of one group where groups are longer: a box then holds one group.
  const int64_t per_block = w.group < 64 ? 64 / w.group : 1, values = 16 * per_block;
  const auto scales_of = [&](const void* data, int64_t bytes) {
    return BoxedTensor{
        CU_TENSOR_MAP_DATA_TYPE_UINT8,
        data,
        {u64(values * bytes), u64(w.num_groups / per_block), u64(panels)},
        {u64(values * bytes), u64(16 * w.num_groups * bytes)},
        {u32(values * bytes), u32(args.group_shift > 0 ? 1 : kernel.blocks), kWidePanels}};
  };
  if (const int error = describe(scales_of(w.scales, args.scale_bytes), 3,
                                 CU_TENSOR_MAP_SWIZZLE_NONE, maps.scales);
      error != 0) {
    return error;
  }
  if (w.zeros == nullptr) return cudaSuccess;
  return describe(scales_of(w.zeros, 1), 3, CU_TENSOR_MAP_SWIZZLE_NONE, maps.zeros);
}

}  // namespace

// Attributes are set for every instance, so that the first call may stand in a graph capture.
int wide_load() {
  for (const InstanceRow& row : kInstances) {
    for (const int32_t tokens : {64, 128, 256}) {
      for (const bool zeros : {false, true}) {
        if (zeros && row.expand == Expand::kE2M1) continue;
        const WideKernel kernel = row.of(tokens, zeros);
        if (const int error = cudaFuncSetAttribute(
                kernel.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
            error != 0) {
          return error;
        }
      }
    }
  }
  return device_facts().error;
}

int wide_matmul(const MatmulArgs& matmul, void* stream) {
  // The copy engine wants 16-byte rows; x that has others takes the kernel that reads any.
  if (((reinterpret_cast<uintptr_t>(matmul.x) | static_cast<uintptr_t>(matmul.x_stride_bytes)) &
       15) != 0) {
    return skinny_matmul(matmul, stream);
  }
  const WeightArgs& w = matmul.w;
  const WideInstance of = instance_of(w);
  if (of == nullptr || matmul.m > INT32_MAX) return cudaErrorInvalidConfiguration;
  const WideGeometry geometry =
      wide::geometry(w.n_padded, w.k_padded, matmul.m, device_facts().slots);
  WideArgs args = wide_args(matmul, geometry);
  const WideKernel kernel = of(geometry.tokens, w.zero_kind != ZeroKind::kNone);
  WideMaps maps;
  if (const int error = describe_operands(args, kernel, geometry.tokens, maps); error != 0) {
    return error;
  }

  const int64_t tiles = int64_t{args.tiles_n} * args.tiles_m;
  if (tiles * geometry.split > INT32_MAX) return cudaErrorInvalidConfiguration;
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (matmul.device.programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (geometry.split > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(geometry.split), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(
      static_cast<unsigned>(geometry.split > 1 ? tiles * geometry.split
                                               : std::min<int64_t>(tiles, matmul.device.num_sms)));
  config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
  config.dynamicSmemBytes = static_cast<size_t>(kernel.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  void* parameters[] = {&maps, &args};
  return cudaLaunchKernelExC(&config, kernel.kernel, parameters);
}

}  // namespace nibble
