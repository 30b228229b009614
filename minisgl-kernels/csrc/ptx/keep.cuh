// Values that shall be computed here, and not where they are used: behind a wait the compiler would compute them late.
#pragma once
#include <cstdint>

namespace msgl {

__device__ __forceinline__ void keep(uint32_t& x) { asm volatile("" : "+r"(x)); }

template <typename T>
__device__ __forceinline__ void keep(T*& x) {
    asm volatile("" : "+l"(x));
}

}  // namespace msgl
