// The gate's activation of a gated feed-forward layer (Shazeer 2020).
#pragma once
#include "common.cuh"

namespace msgl {

template <msgl_activation kActivation>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kActivation == MSGL_SILU) {
    return x / (1.f + expf(-x));
  } else if constexpr (kActivation == MSGL_GELU) {
    return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  } else {
    constexpr float kSqrt2OverPi = 0.79788456080286536f;
    return 0.5f * x * (1.f + tanhf(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
  }
}

// The same for a choice made at run time, where it is a small part of the work.
__device__ __forceinline__ float activate(msgl_activation activation, float x) {
  switch (activation) {
    case MSGL_SILU: return activate<MSGL_SILU>(x);
    case MSGL_GELU: return activate<MSGL_GELU>(x);
    default: return activate<MSGL_GELU_TANH>(x);
  }
}

}  // namespace msgl
