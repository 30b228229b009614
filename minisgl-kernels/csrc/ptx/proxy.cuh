// Order between ordinary accesses to shared memory and those of the tensor cores and the copy engine (PTX ISA,
// fence.proxy.async; sm_90).
#pragma once

namespace msgl {

// Orders earlier accesses of this thread to shared memory before what the tensor cores and the copy engine do later, or
// after the next barrier where another thread starts them.
__device__ __forceinline__ void fence_async_proxy() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace msgl
