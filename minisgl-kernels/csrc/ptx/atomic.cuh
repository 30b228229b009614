// Atomic operations with an order (PTX ISA, atom; sm_70).
#pragma once
#include <cstdint>

namespace msgl {

// Adds to a counter in global memory and returns what it was. What this thread wrote before, or saw written, is visible
// to a thread that sees the sum; what others wrote before they added is visible to this one. Cheaper than
// __threadfence(), which orders all of the device's memory operations sequentially.
__device__ __forceinline__ uint32_t atomic_add_acq_rel(uint32_t* counter, uint32_t value) {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(value)
                 : "memory");
    return before;
}

}  // namespace msgl
