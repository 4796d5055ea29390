// One PTX instruction = one function, with what it promises. Included by device code only.
#ifndef NIBBLE_KERNELS_CUDA_PTX_CUH_
#define NIBBLE_KERNELS_CUDA_PTX_CUH_

#include <stdint.h>

#define NIBBLE_DEVICE __device__ __forceinline__

// BF16 arithmetic and its MMA came with sm_80: the kernels that use them are empty below.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define NIBBLE_SM80 1
#else
#define NIBBLE_SM80 0
#endif

// Bulk copies, mbarriers with transactions, clusters and programmatic launch came with sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define NIBBLE_SM90 1
#else
#define NIBBLE_SM90 0
#endif

namespace nibble {

/// Address of shared memory as PTX counts it.
NIBBLE_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// d = a * b + d, [16 x 16] * [16 x 8], BF16 in, FP32 out.
NIBBLE_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

NIBBLE_DEVICE float half_to_float(uint16_t bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

/// 16 bytes of shared memory.
NIBBLE_DEVICE uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
NIBBLE_DEVICE uint2 load_shared_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
NIBBLE_DEVICE uint32_t load_shared_4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
NIBBLE_DEVICE void store_shared_4(uint32_t address, uint32_t v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
template <int kCount>
NIBBLE_DEVICE void store_floats(uint32_t address, const float (&v)[kCount]) {
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address + 4 * i), "f"(v[i]),
                   "f"(v[i + 1]), "f"(v[i + 2]), "f"(v[i + 3])
                   : "memory");
    }
  } else if constexpr (kCount == 2) {
    asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(address), "f"(v[0]), "f"(v[1]) : "memory");
  } else {
    static_assert(kCount == 1);
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(v[0]) : "memory");
  }
}

/// Constant global memory that is read once: past L1.
NIBBLE_DEVICE uint4 load_global_16(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
NIBBLE_DEVICE uint2 load_global_8(const uint8_t* p) {
  uint2 v;
  asm volatile("ld.global.nc.v2.b32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
NIBBLE_DEVICE uint32_t load_global_4(const uint8_t* p) {
  uint32_t v;
  asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
NIBBLE_DEVICE uint32_t load_global_2(const uint8_t* p) {
  uint16_t v;
  asm volatile("ld.global.nc.b16 %0, [%1];" : "=h"(v) : "l"(p));
  return v;
}
NIBBLE_DEVICE uint32_t load_global_1(const uint8_t* p) {
  uint32_t v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

#if NIBBLE_SM90
/// Every thread of every block of the cluster arrives, then waits; shared memory written before is
/// visible to all of them after.
NIBBLE_DEVICE void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
/// Reads a float of the shared memory of block `rank` of the cluster, at this block's `address`.
NIBBLE_DEVICE float load_cluster(uint32_t address, uint32_t rank) {
  float v;
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %1, %2;\n"
      "ld.shared::cluster.f32 %0, [remote];\n}"
      : "=f"(v)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}
#endif  // NIBBLE_SM90

/// Returns when the kernels before this one on the stream have finished and their writes are seen;
/// at once for a launch without programmatic order.
NIBBLE_DEVICE void wait_for_earlier_kernels() {
#if NIBBLE_SM90
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel of the stream start as soon as all blocks of this one have come here.
NIBBLE_DEVICE void let_next_kernel_start() {
#if NIBBLE_SM90
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace nibble

#endif  // NIBBLE_KERNELS_CUDA_PTX_CUH_
