// Loads from global memory to registers of what is read once (PTX ISA, ld.global.nc; sm_80).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace msgl {

// Of memory that nobody writes while the kernel runs. It keeps its place among other volatile statements, so that what
// stands before grid_wait() is asked for before the wait.
__device__ __forceinline__ uint4 load_once_16(const void* address, uint64_t policy) {
    uint4 x;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(address), "l"(policy));
    return x;
}

}  // namespace msgl
