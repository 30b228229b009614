// The tokens of a row that top-k, top-p and min-p can keep at all, in shared memory.
#pragma once

#include "sample/filter.cuh"

namespace msgl {

constexpr uint32_t kMaxCandidates = 4096;

struct CandidateShared {
  float values[kMaxCandidates];
  uint32_t tokens[kMaxCandidates];
  uint32_t warp_counts[kWarpSize];
};

// Candidates as the filter sees a row.
struct CandidateList {
  const float *values;  // [vocab]
  uint32_t vocab;       // candidates
  float inv_temperature;

  __device__ __forceinline__ void load(uint32_t first, uint32_t end, float (&x)[kGroup]) const {
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) x[e] = first + e < end ? values[first + e] : -INFINITY;
  }
};

// A key below which no token is kept.
//
// For top-k: the k-th largest of the threads' own maxima, since k threads hold a token at least as large.
template <typename T>
__device__ uint32_t lower_bound(const Row<T> &row, const msgl_sample_spec &spec, const SoftmaxSum &all) {
  uint32_t bound = float_key(-FLT_MAX);
  const bool by_top_k = has_top_k(spec, row.vocab);
  if (by_top_k && static_cast<uint32_t>(spec.top_k) <= blockDim.x) {
    float top = -INFINITY;
    for (uint32_t first = threadIdx.x * kGroup; first < row.vocab; first += blockDim.x * kGroup) {
      float x[kGroup];
      row.load(first, row.vocab, x);
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) top = fmaxf(top, x[e]);
    }
    const uint32_t mine = float_key(top);
    uint32_t kth = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
      if (__syncthreads_count(mine >= (kth | bit)) >= spec.top_k) kth |= bit;
    }
    if (kth > bound) bound = kth;
  } else if (!by_top_k && spec.top_p < 1.f) {
    bound = top_p_bound(spec, all, all.sum, static_cast<float>(row.vocab), row.inv_temperature);
  }
  // Top-p after top-k needs the mass of all that top-k leaves, also of what min-p drops.
  if (spec.min_p > 0.f && !(by_top_k && spec.top_p < 1.f)) {
    const uint32_t least = min_p_bound(spec, all, row.inv_temperature);
    if (least > bound) bound = least;
  }
  const uint32_t top = float_key(all.max);
  return bound < top ? bound : top;
}

// Collects the tokens from `bound` on, in an order that depends on the row alone, and returns how many there
// are; where they are more than fit, none.
template <typename T>
__device__ uint32_t collect(const Row<T> &row, uint32_t bound, CandidateShared &shared) {
  uint32_t mine = 0;
  for (uint32_t first = threadIdx.x * kGroup; first < row.vocab; first += blockDim.x * kGroup) {
    float x[kGroup];
    row.load(first, row.vocab, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) mine += float_key(x[e]) >= bound ? 1 : 0;
  }
  uint32_t before = mine;
  const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, before, offset);
    if (lane >= static_cast<uint32_t>(offset)) before += other;
  }
  if (lane == kWarpSize - 1) shared.warp_counts[warp] = before;
  __syncthreads();
  uint32_t total = 0, at = before - mine;
  for (uint32_t i = 0; i < blockDim.x / kWarpSize; i++) {
    if (i < warp) at += shared.warp_counts[i];
    total += shared.warp_counts[i];
  }
  if (total > kMaxCandidates) return total;
  if (mine > 0) {
    for (uint32_t first = threadIdx.x * kGroup; first < row.vocab; first += blockDim.x * kGroup) {
      float x[kGroup];
      row.load(first, row.vocab, x);
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) {
        if (float_key(x[e]) < bound) continue;
        shared.values[at] = x[e];
        shared.tokens[at] = first + e;
        at++;
      }
    }
  }
  __syncthreads();
  return total;
}

}  // namespace msgl
