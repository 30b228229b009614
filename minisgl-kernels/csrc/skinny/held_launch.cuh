// Picks the instance of the held kernel that is large enough and launches it.
#pragma once
#include "launch.cuh"
#include "skinny/held.cuh"

namespace msgl {

template <typename T>
int launch_held(const msgl_skinny_params &p, cudaStream_t stream) {
  const HeldShape s = held_shape(p.rows, p.n, p.k, p.is_gated != 0, p.num_sms);
#define MSGL_HELD_LAUNCH(kHalves, kLoads)                                                      \
  if (s.size.halves == kHalves && s.size.loads == kLoads) {                                    \
    launch_overlapped(held_kernel<T, kHalves, kLoads>, s.ctas, kHeldThreads, 0, stream, p, s); \
    return launch_status();                                                                    \
  }
  MSGL_HELD_SIZES(MSGL_HELD_LAUNCH)
#undef MSGL_HELD_LAUNCH
  return MSGL_ERROR_UNSUPPORTED;
}

}  // namespace msgl
