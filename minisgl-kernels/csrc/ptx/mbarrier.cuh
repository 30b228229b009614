// Barriers in shared memory (PTX ISA, mbarrier; sm_80). A barrier is a 64-bit word; a phase ends when as many threads
// have arrived as it was made for and every byte that was announced has been copied.
#pragma once
#include <cstdint>

namespace msgl {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine (sm_90).
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and tells the barrier how many bytes of copies this phase waits for (sm_90).
__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of this parity has ended. A barrier starts in its phase of parity 0, as if one of parity 1 had
// ended before.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    uint32_t is_done = 0;
    while (is_done == 0) {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
#if __CUDA_ARCH__ >= 900
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#else
            "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
#endif
            "selp.u32 %0, 1, 0, done;\n"
            "}\n"
            : "=r"(is_done)
            : "r"(barrier), "r"(parity)
            : "memory");
    }
}

// Whether that phase has ended.
__device__ __forceinline__ bool mbarrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t is_done;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(is_done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return is_done != 0;
}

}  // namespace msgl
