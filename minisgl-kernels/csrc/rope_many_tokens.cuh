// rope_store_kv for many tokens at 16 bits: the sums and products of rope_store_kv.cu in the same order, so the same
// bits, arranged for bandwidth.
//
// A lane has 8 neighbouring elements of each half of a head and a warp several heads of one token at once, as many of
// them in flight as its registers hold: slot, position and a token's cosines and sines are read once for all of them.
#pragma once
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {

// kLanes: lanes of a head of up to 16 * kLanes elements. kPasses: how many heads a lane has a part of.
template <typename T, int kLanes_, int kPasses_>
struct RopeManyShape {
  using Element = T;
  static constexpr int kLanes = kLanes_, kPasses = kPasses_;
  static constexpr int kHeads = kWarpSize / kLanes;  // of a pass
  static constexpr int kWarps = 4;
};

// The reciprocal root mean square of a head of which each lane has lo and hi. Pairs 2 n and 2 n + 1 are added first,
// then these sums by their distance, the farthest first.
template <int kLanes, typename V>
__device__ __forceinline__ float rope_norm_scale(const V &lo, const V &hi, uint32_t head_dim, float eps) {
  float sums[4] = {};
#pragma unroll
  for (int e = 0; e < V::kSize; e++) {
    const float x = to_float(lo.elems[e]), y = to_float(hi.elems[e]);
    sums[e / 2] += x * x + y * y;
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
#pragma unroll
    for (int i = 0; i < 4; i++) sums[i] += __shfl_xor_sync(~0u, sums[i], offset);
  }
  return rsqrtf(((sums[0] + sums[2]) + (sums[1] + sums[3])) / head_dim + eps);
}

template <typename Shape>
__global__ void __launch_bounds__(Shape::kWarps *kWarpSize)
    rope_many_tokens_kernel(msgl_rope_store_kv_params p, uint32_t warps_per_token, uint32_t passes) {
  using T = typename Shape::Element;
  using V = Vec<T, 8>;
  using Angles = Vec<float, 4>;
  constexpr int kPasses = Shape::kPasses;
  grid_wait();
  grid_launch_next();
  const uint32_t warp = blockIdx.x * Shape::kWarps + threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const uint32_t t = warp / warps_per_token;
  if (t >= p.num_tokens) return;
  const uint32_t slot = p.slots[t], position = p.positions[t];
  const uint32_t num_rotated = p.num_heads + p.num_kv_heads, num_all = num_rotated + p.num_kv_heads;
  const uint32_t first = warp % warps_per_token * passes * Shape::kHeads + lane / Shape::kLanes;
  const uint32_t half = p.head_dim / 2, i = lane % Shape::kLanes * V::kSize;
  const bool has_part = i < half;
  T *const row = static_cast<T *>(p.qkv) + static_cast<uint64_t>(t) * num_all * p.head_dim;

  V lo[kPasses], hi[kPasses];
#pragma unroll
  for (int pass = 0; pass < kPasses; pass++) {
    const uint32_t head = first + pass * Shape::kHeads;
    const T *src = row + head * p.head_dim + i;
    lo[pass] = hi[pass] = {};
    if (pass < passes && head < num_all && has_part) {
      lo[pass] = *reinterpret_cast<const V *>(src);
      hi[pass] = *reinterpret_cast<const V *>(src + half);
    }
  }
  if (slot >= p.num_slots || position >= p.max_position) return;

  Angles cosines[2] = {}, sines[2] = {};
  const float *angles = p.rope + static_cast<uint64_t>(position) * p.head_dim + i;
  if (has_part) {
#pragma unroll
    for (int part = 0; part < 2; part++) {
      cosines[part] = *reinterpret_cast<const Angles *>(angles + part * 4);
      sines[part] = *reinterpret_cast<const Angles *>(angles + half + part * 4);
    }
  }

  // For all heads at once, so that the sum of one runs under that of another.
  float scales[kPasses] = {};
  if (p.q_norm != nullptr || p.k_norm != nullptr) {
#pragma unroll
    for (int pass = 0; pass < kPasses; pass++) {
      scales[pass] = rope_norm_scale<Shape::kLanes>(lo[pass], hi[pass], p.head_dim, p.eps);
    }
  }
#pragma unroll
  for (int pass = 0; pass < kPasses; pass++) {
    const uint32_t head = first + pass * Shape::kHeads;
    if (pass >= passes || head >= num_all || !has_part) continue;
    const bool is_query = head < p.num_heads, is_value = head >= num_rotated;
    T *dst = row + head * p.head_dim;
    if (!is_query) {
      const uint32_t kv_head = head - (is_value ? num_rotated : p.num_heads);
      T *storage = static_cast<T *>(is_value ? p.v : p.k);
      dst = storage + (static_cast<uint64_t>(slot) * p.num_kv_heads + kv_head) * p.head_dim;
    }
    V a = lo[pass], b = hi[pass];
    if (!is_value) {
      const T *norm = static_cast<const T *>(is_query ? p.q_norm : p.k_norm);
      V low = {}, high = {};
      if (norm != nullptr) {
        low = *reinterpret_cast<const V *>(norm + i);
        high = *reinterpret_cast<const V *>(norm + half + i);
      }
#pragma unroll
      for (int e = 0; e < V::kSize; e++) {
        float x = to_float(a.elems[e]), y = to_float(b.elems[e]);
        if (norm != nullptr) {
          x *= scales[pass] * to_float(low.elems[e]);
          y *= scales[pass] * to_float(high.elems[e]);
        }
        const float c = cosines[e / 4].elems[e % 4], s = sines[e / 4].elems[e % 4];
        a.elems[e] = from_float<T>(x * c - y * s);
        b.elems[e] = from_float<T>(y * c + x * s);
      }
    }
    *reinterpret_cast<V *>(dst + i) = a;
    *reinterpret_cast<V *>(dst + half + i) = b;
  }
}

template <typename Shape>
int launch_rope_many_tokens_shape(const msgl_rope_store_kv_params &p, cudaStream_t stream) {
  const uint32_t all_passes = ceil_div(p.num_heads + 2 * p.num_kv_heads, Shape::kHeads);
  const uint32_t warps_per_token = ceil_div(all_passes, Shape::kPasses);
  const uint32_t passes = ceil_div(all_passes, warps_per_token);
  const uint64_t blocks = ceil_div64(static_cast<uint64_t>(p.num_tokens) * warps_per_token, Shape::kWarps);
  launch_waiting(rope_many_tokens_kernel<Shape>, static_cast<uint32_t>(blocks), Shape::kWarps * kWarpSize, 0, stream,
                    p, warps_per_token, passes);
  return launch_status();
}

template <typename T>
int launch_rope_many_tokens_dtype(const msgl_rope_store_kv_params &p, cudaStream_t stream) {
  if (p.head_dim <= 64) return launch_rope_many_tokens_shape<RopeManyShape<T, 4, 2>>(p, stream);
  return launch_rope_many_tokens_shape<RopeManyShape<T, 8, 2>>(p, stream);
}

// Where the kernel above is the faster one. Larger heads need too many registers a lane, and gain nothing.
constexpr uint32_t kMinManyTokens = 128, kMaxManyHeadDim = 128;

inline bool takes_rope_many_tokens(const msgl_rope_store_kv_params &p) {
  return p.num_tokens >= kMinManyTokens && p.dtype != MSGL_F32 && p.head_dim % 16 == 0 &&
         p.head_dim <= kMaxManyHeadDim;
}

inline int launch_rope_many_tokens(const msgl_rope_store_kv_params &p, cudaStream_t stream) {
  return p.dtype == MSGL_F16 ? launch_rope_many_tokens_dtype<__half>(p, stream)
                             : launch_rope_many_tokens_dtype<__nv_bfloat16>(p, stream);
}

}  // namespace msgl
