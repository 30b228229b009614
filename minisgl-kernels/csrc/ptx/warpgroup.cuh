// Roles of the warpgroups of a CTA: registers moved between them, and barriers among some of the threads (PTX ISA,
// setmaxnreg, barrier; sm_90a).
#pragma once
#include <cstdint>

namespace msgl {

// Registers a thread from here on, for a warpgroup that needs fewer than at launch, or more.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Barrier 0 is that of __syncthreads. `threads` counts those that wait and those that only arrive.
__device__ __forceinline__ void barrier_wait(int barrier, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace msgl
