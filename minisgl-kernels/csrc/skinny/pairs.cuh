// Arithmetic on pairs of 16-bit elements as they lie in 32-bit words.
#pragma once
#include "common.cuh"

namespace msgl {

template <typename T>
struct Pair;
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  __device__ static float2 to_floats(Type p) { return __bfloat1622float2(p); }
};
template <>
struct Pair<__half> {
  using Type = __half2;
  __device__ static float2 to_floats(Type p) { return __half22float2(p); }
};

template <typename T>
__device__ __forceinline__ float sum_squares(uint4 v) {
  using P = Pair<T>;
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  float sum = 0.f;
#pragma unroll
  for (uint32_t word : words) {
    const float2 f = P::to_floats(reinterpret_cast<const typename P::Type &>(word));
    sum += f.x * f.x;
    sum += f.y * f.y;
  }
  return sum;
}

template <typename T>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  using Type = typename Pair<T>::Type;
  const Type product = __hmul2(reinterpret_cast<const Type &>(a), reinterpret_cast<const Type &>(b));
  return reinterpret_cast<const uint32_t &>(product);
}

}  // namespace msgl
