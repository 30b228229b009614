// Programmatic dependent launch (PTX ISA, griddepcontrol; sm_90): a grid may start while the one before it in the stream
// is still running, and waits here for what that one has written. Without the launch attribute (launch.cuh) neither
// instruction does anything.
#pragma once

namespace msgl {

// Waits until the grid before has ended and its writes are visible. Every grid of a chain has to wait, even one that
// reads nothing: the grid after it waits for this one alone.
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the grid after this one start as soon as every CTA of this one has said so and there is room.
__device__ __forceinline__ void grid_launch_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace msgl
