// One thread of a warp (PTX ISA, elect.sync; sm_90). The compiler sees that it is one, and keeps what it needs for copies
// in uniform registers; of another condition it makes a loop over the lanes, 40 ns for each copy.
#pragma once
#include <cstdint>

namespace msgl {

// Whether this is the thread; all threads of the warp call it together.
__device__ __forceinline__ bool elect_one() {
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

}  // namespace msgl
