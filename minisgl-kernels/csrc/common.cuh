// What every kernel file shares: dtypes as C++ types, 16-byte vectors of them, fixed-order block reductions, and
// dispatch from a params struct's dtype to a template.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "minisgl_kernels.h"

namespace msgl {

constexpr int kWarpSize = 32;

__host__ __device__ constexpr uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
__host__ __device__ constexpr uint64_t ceil_div64(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

inline cudaStream_t as_stream(msgl_stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

// A launch leaves its error, if any, for this call; it also clears it, so that a launch that was refused for its
// arguments does not look like the failure of the next one.
inline int launch_status() { return static_cast<int>(cudaGetLastError()); }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// N elements that load and store as one access; 16 bytes is the widest there is.
template <typename T, int N = 16 / sizeof(T)>
struct alignas(sizeof(T) * N) Vec {
  static constexpr int kSize = N;
  T elems[N];
};

// The sum over the lanes of a warp, in each of them: by butterfly, the farthest first.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// Sums over the block, the same bits every time: those of warps, then warps in order. `shared` has room for
// one float a warp and may be used again after the next __syncthreads().
__device__ __forceinline__ float block_sum(float x, float *shared) {
  x = warp_sum(x);
  const int warp = threadIdx.x / kWarpSize, num_warps = ceil_div(blockDim.x, kWarpSize);
  if (num_warps == 1) return x;
  if (threadIdx.x % kWarpSize == 0) shared[warp] = x;
  __syncthreads();
  float sum = 0.f;
  for (int i = 0; i < num_warps; i++) sum += shared[i];
  return sum;
}

}  // namespace msgl

// Runs the statement with T as the C++ type of `dtype`.
#define MSGL_DISPATCH_DTYPE(dtype, ...)   \
  switch (dtype) {                        \
    case MSGL_BF16: {                     \
      using T = __nv_bfloat16;            \
      __VA_ARGS__;                        \
      break;                              \
    }                                     \
    case MSGL_F16: {                      \
      using T = __half;                   \
      __VA_ARGS__;                        \
      break;                              \
    }                                     \
    case MSGL_F32: {                      \
      using T = float;                    \
      __VA_ARGS__;                        \
      break;                              \
    }                                     \
    default:                              \
      return MSGL_ERROR_UNSUPPORTED;      \
  }
