// Top-k, top-p and min-p without a sort: the set they keep is 'every token with a logit of at least t', so only
// t is looked for.
//
// Each of top-k and top-p asks for the largest t whose tokens reach a target: k in number, or top_p of the mass.
// Both measures grow as t falls, so t is found by bisection, exactly, over the order-preserving integers of
// float_key(): seven pivots a pass over the row, which cuts the bracket to an eighth. bf16 logits without
// penalties have 2^16 different keys, f16 ones 2^19, others 2^32. Sums run in a fixed order, so the same row gives
// the same set.
//
// A pass over the row is what costs. So a cheap lower bound of t comes first, the few tokens above it are
// collected in shared memory (sample/candidates.cuh), and the bisection runs over these; over the whole row only
// where they are too many.
#pragma once

#include "sample/row.cuh"

namespace msgl {

constexpr int kPivots = 7;

// Low bits that are the same in every T widened to f32.
template <typename T>
constexpr int kUnusedBits = 0;
template <>
constexpr int kUnusedBits<__nv_bfloat16> = 16;
template <>
constexpr int kUnusedBits<__half> = 13;

struct FilterShared {
  float warp_sums[kWarpSize][kPivots];
  float sums[kPivots];
};

// Measures of {token: float_key(x) >= pivot} for each pivot: how many, or their mass exp((x - max) / temperature).
template <typename Tokens>
__device__ void measure(const Tokens &row, const uint32_t (&pivots)[kPivots], bool by_mass, float max,
                        FilterShared &shared) {
  float sums[kPivots] = {};
  for (uint32_t first = threadIdx.x * kGroup; first < row.vocab; first += blockDim.x * kGroup) {
    float x[kGroup];
    row.load(first, row.vocab, x);
    float top = x[0];
#pragma unroll
    for (uint32_t e = 1; e < kGroup; e++) top = fmaxf(top, x[e]);
    if (float_key(top) < pivots[0]) continue;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const uint32_t key = float_key(x[e]);
      if (key < pivots[0]) continue;
      const float weight = by_mass ? expf((x[e] - max) * row.inv_temperature) : 1.f;
#pragma unroll
      for (int i = 0; i < kPivots; i++) sums[i] += key >= pivots[i] ? weight : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < kPivots; i++) {
    for (int offset = 1; offset < kWarpSize; offset *= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], offset);
  }
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) {
#pragma unroll
    for (int i = 0; i < kPivots; i++) shared.warp_sums[threadIdx.x / kWarpSize][i] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x < kPivots) {
    float sum = 0.f;
    for (uint32_t warp = 0; warp < blockDim.x / kWarpSize; warp++) sum += shared.warp_sums[warp][threadIdx.x];
    shared.sums[threadIdx.x] = sum;
  }
  __syncthreads();
}

// The largest t in [low, high] whose tokens measure at least `target`, where those of `low` do.
// Keys are compared in steps of 2^shift, below which they do not differ.
template <typename Tokens>
__device__ uint32_t largest_reaching(const Tokens &row, uint32_t low, uint32_t high, int shift, float target,
                                     bool by_mass, float max, FilterShared &shared) {
  uint32_t lo = low >> shift, hi = (high >> shift) + 1;  // lo reaches the target, hi does not
  while (hi - lo > 1) {
    uint32_t pivots[kPivots];
#pragma unroll
    for (int i = 0; i < kPivots; i++) {
      // With fewer than eight keys left, some pivots repeat lo + 1; they cost nothing and decide nothing.
      const uint32_t step = static_cast<uint32_t>((static_cast<uint64_t>(hi - lo) * (i + 1)) >> 3);
      pivots[i] = (lo + (step == 0 ? 1 : step)) << shift;
    }
    measure(row, pivots, by_mass, max, shared);
    uint32_t next_lo = lo, next_hi = hi;
#pragma unroll
    for (int i = kPivots - 1; i >= 0; i--) {
      const uint32_t pivot = pivots[i] >> shift;
      if (shared.sums[i] < target) {
        next_hi = pivot;
      } else if (pivot > next_lo) {
        next_lo = pivot;
      }
    }
    // Rounding could make a sum over fewer tokens the larger one only by an ulp: keep the bracket a bracket.
    lo = next_lo < next_hi ? next_lo : next_hi - 1;
    hi = next_hi;
  }
  return lo << shift;
}

__device__ __forceinline__ bool has_top_k(const msgl_sample_spec &spec, uint32_t vocab) {
  return spec.top_k > 1 && static_cast<uint32_t>(spec.top_k) < vocab;
}

// A key below which no token is kept by top-p: all tokens below it together weigh less than what may be dropped
// of `total`.
__device__ __forceinline__ uint32_t top_p_bound(const msgl_sample_spec &spec, const SoftmaxSum &all, float total,
                                                float vocab, float inv_temperature) {
  const float cut = all.max + logf(0.5f * (1.f - spec.top_p) * total / vocab) / inv_temperature;
  return float_key(cut > -FLT_MAX ? cut : -FLT_MAX);
}

__device__ __forceinline__ uint32_t min_p_bound(const msgl_sample_spec &spec, const SoftmaxSum &all,
                                                float inv_temperature) {
  return float_key(all.max + logf(spec.min_p) / inv_temperature);
}

// The smallest key that the sample's top_k, top_p and min_p keep, where none below `low` is kept. `tokens` are
// those of the row, or all of them from `low` on.
template <typename Tokens>
__device__ uint32_t filter_threshold(const Tokens &tokens, const msgl_sample_spec &spec, uint32_t vocab, int shift,
                                     uint32_t low, const SoftmaxSum &all, FilterShared &shared) {
  const uint32_t top = float_key(all.max);
  float total = all.sum;
  if (has_top_k(spec, vocab)) {
    // A row with fewer finite logits than k keeps them all: nothing reaches the target, and low stays.
    low = largest_reaching(tokens, low, top, shift, static_cast<float>(spec.top_k), false, all.max, shared);
    if (spec.top_p < 1.f) {
      uint32_t pivots[kPivots];
#pragma unroll
      for (int i = 0; i < kPivots; i++) pivots[i] = low;
      measure(tokens, pivots, true, all.max, shared);
      total = shared.sums[0];
    }
  }
  if (spec.top_p < 1.f) {
    const uint32_t start = top_p_bound(spec, all, total, static_cast<float>(vocab), tokens.inv_temperature);
    low = largest_reaching(tokens, start > low ? start : low, top, shift, spec.top_p * total, true, all.max, shared);
  }
  if (spec.min_p > 0.f) {
    const uint32_t least = min_p_bound(spec, all, tokens.inv_temperature);
    if (least > low) low = least;
  }
  return low < top ? low : top;
}

}  // namespace msgl
