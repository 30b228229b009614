// Top-k, top-p and min-p without a sort: the set they keep is 'every token with a logit of at least t', so only
// t is looked for.
//
// Each of top-k and top-p asks for the largest t whose tokens reach a target: k in number, or top_p of the mass.
// Both measures grow as t falls, so t is found by bisection, exactly, over the order-preserving integers of
// float_key(): seven pivots a pass over the row, which cuts the bracket to an eighth. bf16 logits without
// penalties have 2^16 different keys, f16 ones 2^19, others 2^32. Sums run in a fixed order, so the same row gives
// the same set.
//
// A pass over the row is what costs. So cheap bounds of t come first, the few tokens within them are collected in
// shared memory (sample/candidates.cuh), and the bisection runs over these; over the whole row only where they are too
// many.
#pragma once

#include "sample/candidates.cuh"

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
  each_group<kFinishAhead>(row, 0, row.vocab, [&](uint32_t, const auto &group) {
    float x[kGroup];
    row.values(group, x);
    const float top = Logits{x}.top<0, kGroup>();
    if (float_key(top) < pivots[0]) return;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const uint32_t key = float_key(x[e]);
      if (key < pivots[0]) continue;
      const float weight = by_mass ? __expf((x[e] - max) * row.inv_temperature) : 1.f;
#pragma unroll
      for (int i = 0; i < kPivots; i++) sums[i] += key >= pivots[i] ? weight : 0.f;
    }
  });
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

// A logit below which top-k keeps no token. Each thread has the largest of its tokens twice, of the first and the
// second halves of the groups: the k-th largest of these, since k tokens are at least as large.
template <typename T>
__device__ float top_k_bound(const Row<T> &row, uint32_t top_k) {
  if (top_k > 2 * kFinishThreads) return -FLT_MAX;
  float tops[2] = {-INFINITY, -INFINITY};
  each_group<2>(row, 0, row.vocab, [&](uint32_t, const auto &group) {
    if (row.counts == nullptr) {
      tops[0] = fmaxf(tops[0], row.template raw_top<0, kGroup / 2>(group));
      tops[1] = fmaxf(tops[1], row.template raw_top<kGroup / 2, kGroup>(group));
      return;
    }
    float x[kGroup];
    row.values(group, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) tops[e / (kGroup / 2)] = fmaxf(tops[e / (kGroup / 2)], x[e]);
  });
  const uint32_t keys[2] = {float_key(tops[0]), float_key(tops[1])};
  uint32_t kth = 0;
  for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
    const int reached = __syncthreads_count(keys[0] >= (kth | bit)) + __syncthreads_count(keys[1] >= (kth | bit));
    if (reached >= static_cast<int>(top_k)) kth |= bit;
  }
  return fmaxf(key_float(kth), -FLT_MAX);
}

// The smallest key that top-k and top-p keep. `tokens` are those of the row from `low` on, up to `high`, without those
// above that are sure to be kept and have the mass `above`.
template <typename Tokens>
__device__ uint32_t filter_threshold(const Tokens &tokens, const msgl_sample_spec &spec, const Kind &kind, int shift,
                                     uint32_t low, uint32_t high, const SoftmaxSum &all, float above,
                                     FilterShared &shared) {
  if (low > high) return ~0u;
  float target = spec.top_p * all.sum - above;
  if (kind.has_top_k) {
    // A row with fewer finite logits than k keeps them all: nothing reaches the target, and low stays.
    low = largest_reaching(tokens, low, high, shift, static_cast<float>(spec.top_k), false, all.max, shared);
    if (kind.has_top_p) {
      uint32_t pivots[kPivots];
#pragma unroll
      for (int i = 0; i < kPivots; i++) pivots[i] = low;
      measure(tokens, pivots, true, all.max, shared);
      target = spec.top_p * shared.sums[0];
    }
  }
  if (kind.has_top_p) low = largest_reaching(tokens, low, high, shift, target, true, all.max, shared);
  return low;
}

}  // namespace msgl
