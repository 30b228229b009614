// Query and key norm, rotary embedding and the store to the paged KV, in one pass over the merged projection.
//
// Rotation is the half-split form: element i of a head turns with element i + head_dim / 2 by the angle of
// (position, i) (Su et al. 2021; GPT-NeoX). Fused because each of the three would read and write the projection
// again, and at decode sizes each launch costs more than its bytes.
//
// Bound by latency at decode sizes: one warp a head of a token, so that the norm is a shuffle and no warp waits for
// another; a lane keeps pairs (i, i + head_dim / 2) in registers. Queries go back in place; keys and values go to the
// token's slot only. Padding tokens are left alone. At prefill sizes, bound by bandwidth, rope_many_tokens.cuh does the
// same for the usual heads.
#include "launch.cuh"
#include "ptx/grid.cuh"
#include "rope_many_tokens.cuh"

namespace msgl {
namespace {

constexpr int kWarps = 4;

// kPairs: neighbouring elements a lane loads at once from each half. kIters: how often, to cover half a head.
template <typename T, int kPairs, int kIters>
__global__ void __launch_bounds__(kWarps *kWarpSize) rope_store_kv_kernel(msgl_rope_store_kv_params p) {
  using V = Vec<T, kPairs>;
  // Decode that comes next reads K and V of earlier steps meanwhile.
  grid_launch_next();
  grid_wait();
  const uint32_t t = blockIdx.x;
  const uint32_t head = blockIdx.y * kWarps + threadIdx.x / kWarpSize;
  const uint32_t lane = threadIdx.x % kWarpSize;
  const uint32_t num_rotated = p.num_heads + p.num_kv_heads;
  const uint32_t num_all = num_rotated + p.num_kv_heads;
  if (head >= num_all) return;
  const uint32_t slot = p.slots[t], position = p.positions[t];
  if (slot >= p.num_slots || position >= p.max_position) return;

  const uint32_t half = p.head_dim / 2;
  T *src = static_cast<T *>(p.qkv) + (static_cast<uint64_t>(t) * num_all + head) * p.head_dim;
  float lo[kIters][kPairs], hi[kIters][kPairs];
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < kIters; j++) {
    const uint32_t i = (j * kWarpSize + lane) * kPairs;
    if (i < half) {
      const V a = *reinterpret_cast<const V *>(src + i), b = *reinterpret_cast<const V *>(src + half + i);
#pragma unroll
      for (int e = 0; e < kPairs; e++) {
        lo[j][e] = to_float(a.elems[e]);
        hi[j][e] = to_float(b.elems[e]);
        sum += lo[j][e] * lo[j][e] + hi[j][e] * hi[j][e];
      }
    }
  }

  const bool is_query = head < p.num_heads, is_value = head >= num_rotated;
  T *dst = src;
  if (!is_query) {
    const uint32_t kv_head = head - (is_value ? num_rotated : p.num_heads);
    T *storage = static_cast<T *>(is_value ? p.v : p.k);
    dst = storage + (static_cast<uint64_t>(slot) * p.num_kv_heads + kv_head) * p.head_dim;
  }
  const T *norm = static_cast<const T *>(is_value ? nullptr : is_query ? p.q_norm : p.k_norm);
  float scale = 1.f;
  if (norm != nullptr) {
    scale = rsqrtf(warp_sum(sum) / p.head_dim + p.eps);
  }
  const float *angles = p.rope + static_cast<uint64_t>(position) * p.head_dim;
#pragma unroll
  for (int j = 0; j < kIters; j++) {
    const uint32_t i = (j * kWarpSize + lane) * kPairs;
    if (i < half) {
      V a, b;
#pragma unroll
      for (int e = 0; e < kPairs; e++) {
        float x = lo[j][e], y = hi[j][e];
        if (norm != nullptr) {
          x *= scale * to_float(norm[i + e]);
          y *= scale * to_float(norm[half + i + e]);
        }
        if (!is_value) {
          const float c = angles[i + e], s = angles[half + i + e];
          const float turned = x * c - y * s;
          y = y * c + x * s;
          x = turned;
        }
        a.elems[e] = from_float<T>(x);
        b.elems[e] = from_float<T>(y);
      }
      *reinterpret_cast<V *>(dst + i) = a;
      *reinterpret_cast<V *>(dst + half + i) = b;
    }
  }
}

template <typename T, int kPairs>
int launch(const msgl_rope_store_kv_params &p, cudaStream_t stream) {
  const dim3 grid(p.num_tokens, ceil_div(p.num_heads + 2 * p.num_kv_heads, kWarps));
  const uint32_t iters = ceil_div(p.head_dim / 2, kWarpSize * kPairs);
  constexpr uint32_t kThreads = kWarps * kWarpSize;
  if (iters == 1) {
    launch_waiting(rope_store_kv_kernel<T, kPairs, 1>, grid, kThreads, 0, stream, p);
  } else if (iters == 2) {
    launch_waiting(rope_store_kv_kernel<T, kPairs, 2>, grid, kThreads, 0, stream, p);
  } else if (iters <= 8) {
    launch_waiting(rope_store_kv_kernel<T, kPairs, 8>, grid, kThreads, 0, stream, p);
  } else {
    return MSGL_ERROR_UNSUPPORTED;
  }
  return launch_status();
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_rope_store_kv(const msgl_rope_store_kv_params *params, msgl_stream stream) {
  if (params->num_tokens == 0) return 0;
  // The largest head that both widths below can keep in registers.
  if (params->head_dim > 512) return MSGL_ERROR_UNSUPPORTED;
  if (msgl::takes_rope_many_tokens(*params)) {
    return msgl::launch_rope_many_tokens(*params, msgl::as_stream(stream));
  }
  MSGL_DISPATCH_DTYPE(params->dtype, {
    if (params->head_dim % 4 == 0) return msgl::launch<T, 2>(*params, msgl::as_stream(stream));
    return msgl::launch<T, 1>(*params, msgl::as_stream(stream));
  })
  return 0;
}
