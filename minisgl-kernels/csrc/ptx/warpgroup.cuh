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

// True in one lane of a whole warp. Where its branch is all that a copy instruction depends on, the assembler knows
// that there is one thread and leaves out the loop over lanes.
__device__ __forceinline__ bool elect_lane() {
    uint32_t is_elected;
    asm volatile(
        "{\n"
        ".reg .pred elected;\n"
        "elect.sync _|elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, elected;\n"
        "}\n"
        : "=r"(is_elected));
    return is_elected != 0;
}

// Barrier 0 is that of __syncthreads. `threads` counts those that wait and those that only arrive.
__device__ __forceinline__ void barrier_wait(int barrier, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace msgl
