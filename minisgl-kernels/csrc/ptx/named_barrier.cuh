// Barriers among some of a CTA's warps (PTX ISA, bar.sync).
#pragma once
#include <cstdint>

namespace msgl {

// Waits until `threads` threads, whole warps, are at barrier `id` (1 to 15; 0 is __syncthreads).
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace msgl
