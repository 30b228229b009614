// Accesses to global memory that other CTAs see, in no order with others (PTX ISA, ld.relaxed, st.relaxed; sm_70). Each
// 32-bit word is one access.
#pragma once
#include <cuda_runtime.h>

namespace msgl {

__device__ __forceinline__ float4 load_relaxed(const float4* address) {
    float4 x;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(address)
                 : "memory");
    return x;
}

__device__ __forceinline__ float2 load_relaxed(const float2* address) {
    float2 x;
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(address) : "memory");
    return x;
}

__device__ __forceinline__ void store_relaxed(float4* address, const float4& x) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(address), "f"(x.x), "f"(x.y), "f"(x.z),
                 "f"(x.w)
                 : "memory");
}

__device__ __forceinline__ void store_relaxed(float2* address, const float2& x) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(address), "f"(x.x), "f"(x.y) : "memory");
}

}  // namespace msgl
