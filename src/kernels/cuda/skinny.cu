#include <cuda_runtime.h>

#include "kernels/cuda/skinny_geometry.h"

namespace nibble {

#define NIBBLE_SKINNY_INSTANCES(name)                         \
  const void* skinny_##name##_g16(int32_t tiles, bool zeros); \
  const void* skinny_##name##_g32(int32_t tiles, bool zeros); \
  const void* skinny_##name##_g64(int32_t tiles, bool zeros)
NIBBLE_SKINNY_INSTANCES(integer4);
NIBBLE_SKINNY_INSTANCES(e2m1);
NIBBLE_SKINNY_INSTANCES(table4);
NIBBLE_SKINNY_INSTANCES(integer8);
#undef NIBBLE_SKINNY_INSTANCES

namespace {

struct InstanceRow {
  Expand expand;
  int32_t group;
  bool has_zeros;  // compiled with zeros too
  SkinnyInstance of;
};

constexpr InstanceRow kInstances[] = {
    {Expand::kInteger4, 16, true, skinny_integer4_g16},
    {Expand::kInteger4, 32, true, skinny_integer4_g32},
    {Expand::kInteger4, 64, true, skinny_integer4_g64},
    {Expand::kE2M1, 16, false, skinny_e2m1_g16},
    {Expand::kE2M1, 32, false, skinny_e2m1_g32},
    {Expand::kE2M1, 64, false, skinny_e2m1_g64},
    {Expand::kTable4, 16, false, skinny_table4_g16},
    {Expand::kTable4, 32, false, skinny_table4_g32},
    {Expand::kTable4, 64, false, skinny_table4_g64},
    {Expand::kInteger8, 16, true, skinny_integer8_g16},
    {Expand::kInteger8, 32, true, skinny_integer8_g32},
    {Expand::kInteger8, 64, true, skinny_integer8_g64},
};

Expand expand_of(Element element) {
  switch (element) {
    case Element::kInt4:
    case Element::kUint4:
      return Expand::kInteger4;
    case Element::kE2M1:
      return Expand::kE2M1;
    case Element::kNF4:
      return Expand::kTable4;
    case Element::kInt8:
    case Element::kUint8:
      return Expand::kInteger8;
  }
  return Expand::kInteger4;
}

const void* instance_of(const SkinnyArgs& args) {
  const WeightArgs& w = args.matmul.w;
  const int32_t group = skinny::group_instance(w);
  for (const InstanceRow& row : kInstances) {
    if (row.expand != expand_of(w.element) || row.group != group) continue;
    return row.of(skinny::tiles(args.matmul.m, args.terms), w.zero_kind != ZeroKind::kNone);
  }
  return nullptr;
}

}  // namespace

// Attributes are set for every instance, so that the first call may stand in a graph capture.
int skinny_load() {
  int device = 0, shared = 0;
  if (const int error = cudaGetDevice(&device); error != 0) return error;
  if (const int error =
          cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
      error != 0) {
    return error;
  }
  for (const InstanceRow& row : kInstances) {
    for (const bool zeros : {false, true}) {
      if (zeros && !row.has_zeros) continue;
      for (const int32_t tiles : {1, 2, 4}) {
        const void* kernel = row.of(tiles, zeros);
        cudaFuncAttributes attributes;  // asking for them loads the kernel
        if (const int error = cudaFuncGetAttributes(&attributes, kernel); error != 0) return error;
        const int dynamic = shared - static_cast<int>(attributes.sharedSizeBytes);
        if (const int error =
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic);
            error != 0) {
          return error;
        }
      }
    }
  }
  return cudaSuccess;
}

int skinny_launch(const SkinnyArgs& args, void* stream) {
  const SkinnyGeometry& g = args.geometry;
  const void* kernel = instance_of(args);
  const int64_t panels = args.matmul.w.n_padded / kSkinnyPanelRows;
  const int64_t clusters = (panels + g.panels - 1) / g.panels;
  const int64_t token_blocks = (args.matmul.m + args.tokens - 1) / args.tokens;
  if (kernel == nullptr || clusters * g.cluster > INT32_MAX || token_blocks > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (args.matmul.device.sm >= 90 && args.matmul.device.programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (g.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(g.cluster), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(static_cast<unsigned>(clusters * g.cluster), static_cast<unsigned>(token_blocks));
  config.blockDim = dim3(static_cast<unsigned>(32 * g.warps));
  config.dynamicSmemBytes = static_cast<size_t>(args.memory.total);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  void* parameters[] = {const_cast<SkinnyArgs*>(&args)};
  return cudaLaunchKernelExC(&config, kernel, parameters);
}

int skinny_matmul(const MatmulArgs& matmul, void* stream) {
  return skinny_launch(skinny_args(matmul), stream);
}

}  // namespace nibble
