// Clusters: CTAs that run at the same time and reach each other's shared memory (PTX ISA, barrier.cluster, mapa,
// st.shared::cluster, st.async; sm_90).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace msgl {

// Number of this CTA in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Says that this thread has come so far. Its writes before are visible to every thread of the cluster that has waited
// for the same phase.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }

// The same for barriers alone, which mbarrier_init_fence() was called for.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Waits until all threads of the cluster have arrived, which this one must have done.
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// The address in the CTA of this rank of what lies at `address` here.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

__device__ __forceinline__ void cluster_store_16(uint32_t address, const float4& x) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(x.x), "f"(x.y), "f"(x.z),
                 "f"(x.w)
                 : "memory");
}

__device__ __forceinline__ void cluster_store_8(uint32_t address, const float2& x) {
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x.x), "f"(x.y) : "memory");
}

// Stores to a CTA of the cluster and counts the bytes on its barrier.
__device__ __forceinline__ void store_async(uint32_t dst, float value, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(dst), "f"(value),
                 "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void store_async(uint32_t dst, float first, float second, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(dst),
                 "f"(first), "f"(second), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void store_async(uint32_t dst, const float4 &x, uint32_t barrier) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(dst),
        "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(barrier)
        : "memory");
}

// Arrives at the barrier of a CTA of the cluster.
__device__ __forceinline__ void cluster_barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

}  // namespace msgl
