// The most likely tokens of a row, best first, ties to the lowest id.
//
// Every thread keeps the best token of its share of the row; the best of the block is reported, and only the
// thread that held it looks for its next one. At most twenty rounds, for the few requests that ask.
#pragma once

#include "sample/candidates.cuh"

namespace msgl {

// Orders by logit, then by falling id; no two tokens are equal. 0 is no token.
__device__ __forceinline__ uint64_t rank_of(float x, uint32_t token) {
  return (static_cast<uint64_t>(float_key(x)) << 32) | (0xffffffffu - token);
}

template <typename T>
__device__ uint64_t best_below(const Row<T> &row, uint64_t limit) {
  uint64_t best = 0;
  each_group<kFinishAhead>(row, 0, row.vocab, [&](uint32_t first, const auto &group) {
    float x[kGroup];
    row.raw_values(group, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const uint64_t rank = rank_of(x[e], first + e);
      if (first + e < row.vocab && rank < limit && rank > best) best = rank;
    }
  });
  return best;
}

template <typename T>
__device__ void top_logprobs(const Row<T> &row, uint32_t count, float log_sum, uint32_t *tokens, float *logprobs,
                             uint64_t (&shared)[kWarpSize]) {
  uint64_t mine = best_below(row, ~0ull);
  for (uint32_t i = 0; i < count; i++) {
    uint64_t best = mine;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const uint64_t other = __shfl_xor_sync(~0u, best, offset);
      if (other > best) best = other;
    }
    __syncthreads();
    if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = best;
    __syncthreads();
    for (uint32_t warp = 0; warp < blockDim.x / kWarpSize; warp++) {
      if (shared[warp] > best) best = shared[warp];
    }
    const uint32_t token = 0xffffffffu - static_cast<uint32_t>(best);
    if (threadIdx.x == 0) {
      tokens[i] = best == 0 ? 0xffffffffu : token;
      logprobs[i] = best == 0 ? -INFINITY : clean(to_float(row.logits[token])) - log_sum;
    }
    if (best != 0 && mine == best) mine = best_below(row, best);
  }
}

}  // namespace msgl
