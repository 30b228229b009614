// Bulk copies from global to shared memory (PTX ISA, cp.async.bulk; sm_90). They complete on barriers (mbarrier.cuh).
#pragma once
#include <cstdint>

namespace msgl {

// L2 policy of data that is read once: its lines are the first to be replaced. What createpolicy.fractional returns
// for L2::evict_first and a fraction of 1, as a constant (as CUTLASS has it).
constexpr uint64_t kEvictFirst = 0x12F0000000000000ull;
constexpr uint64_t kEvictLast = 0x14F0000000000000ull;

// Copies `bytes` (a multiple of 16; both addresses aligned to 16) and counts them on the barrier.
__device__ __forceinline__ void bulk_copy(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier,
                                          uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(dst),
        "l"(src), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

}  // namespace msgl
