// Copies one row of a matrix with all threads of a block, in the widest unit that divides a row.
#pragma once

#include "common.cuh"

namespace msgl {

template <typename Unit>
__device__ __forceinline__ void copy_row(Unit *dst, const Unit *src, uint32_t units) {
  for (uint32_t i = threadIdx.x; i < units; i += blockDim.x) dst[i] = src[i];
}

// All bits set: a NaN in bf16, f16 and f32 alike.
template <typename Unit>
__device__ __forceinline__ void poison_row(Unit *dst, uint32_t units) {
  for (uint32_t i = threadIdx.x; i < units; i += blockDim.x) memset(&dst[i], 0xff, sizeof(Unit));
}

inline uint32_t dtype_bytes(msgl_dtype dtype) { return dtype == MSGL_F32 ? 4 : 2; }

// Threads for a row of so many units: whole warps, at most 256.
inline uint32_t row_threads(uint32_t units) {
  const uint32_t threads = ceil_div(units, kWarpSize) * kWarpSize;
  return threads < 256 ? threads : 256;
}

}  // namespace msgl

// Runs the statement with Unit as the widest type that divides `row_bytes`, a multiple of 2.
#define MSGL_DISPATCH_UNIT(row_bytes, ...) \
  if ((row_bytes) % 16 == 0) {             \
    using Unit = uint4;                    \
    __VA_ARGS__;                           \
  } else if ((row_bytes) % 4 == 0) {       \
    using Unit = uint32_t;                 \
    __VA_ARGS__;                           \
  } else {                                 \
    using Unit = uint16_t;                 \
    __VA_ARGS__;                           \
  }
