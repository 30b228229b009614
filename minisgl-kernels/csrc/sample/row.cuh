// One row of logits as a sampler sees it: groups of eight tokens, penalties applied, NaN gone.
#pragma once

#include <float.h>

#include "common.cuh"
#include "philox.cuh"

namespace msgl {

// Tokens that a thread takes at a time: one 16-byte load of 16-bit logits, two numbers of Philox.
constexpr uint32_t kGroup = 8;

// Unsigned integers in the order of the floats (Herf 2001), minus infinity just below all finite ones.
__device__ __forceinline__ uint32_t float_key(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// The float of a key.
__device__ __forceinline__ float key_float(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) ? 0x80000000u : 0xffffffffu));
}

// NaN counts as minus infinity; plus infinity becomes the largest number, so that differences stay numbers; minus zero
// becomes zero, with which it ties.
__device__ __forceinline__ float clean(float x) { return fminf(fmaxf(x, -INFINITY), FLT_MAX) + 0.f; }

template <typename T>
struct Row {
  const T *logits;         // [vocab]
  const uint16_t *counts;  // [vocab], or null where the sample has no penalties
  uint32_t vocab;
  bool is_aligned;  // groups of logits and of counts start at multiples of 16 bytes
  float inv_temperature;
  float presence, frequency, repetition;

  __device__ Row(const msgl_sample_params &p, const msgl_sample_spec &spec, uint32_t sample) {
    vocab = p.vocab;
    is_aligned = vocab % kGroup == 0;
    logits = static_cast<const T *>(p.logits) + static_cast<uint64_t>(sample) * vocab;
    presence = spec.presence_penalty;
    frequency = spec.frequency_penalty;
    repetition = spec.repetition_penalty;
    const bool has_penalties = presence != 0.f || frequency != 0.f || repetition != 1.f;
    counts = has_penalties ? p.token_counts + static_cast<uint64_t>(spec.seq_row) * vocab : nullptr;
    inv_temperature = 1.f / spec.temperature;
  }

  // What memory holds of eight tokens; several of them can be on their way at once.
  struct Group {
    Vec<T> logits[kGroup / Vec<T>::kSize];
    Vec<uint16_t, kGroup> counts;  // of rows with penalties

    __device__ __forceinline__ T &logit(uint32_t e) { return logits[e / Vec<T>::kSize].elems[e % Vec<T>::kSize]; }
    __device__ __forceinline__ T logit(uint32_t e) const {
      return logits[e / Vec<T>::kSize].elems[e % Vec<T>::kSize];
    }
  };

  // Tokens first .. first + 7; NaN from `end` on, which is `vocab` or a multiple of the group.
  __device__ __forceinline__ Group fetch(uint32_t first, uint32_t end) const {
    Group group;
    if (is_aligned && first < end) {
#pragma unroll
      for (uint32_t i = 0; i < kGroup / Vec<T>::kSize; i++) {
        group.logits[i] = reinterpret_cast<const Vec<T> *>(logits + first)[i];
      }
      if (counts != nullptr) group.counts = *reinterpret_cast<const Vec<uint16_t, kGroup> *>(counts + first);
    } else {
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) {
        const bool is_token = first + e < end;
        group.logit(e) = is_token ? logits[first + e] : from_float<T>(NAN);
        if (counts != nullptr) group.counts.elems[e] = is_token ? counts[first + e] : 0;
      }
    }
    return group;
  }

  // The largest of the group's logits from `kFrom` on, without penalties.
  template <uint32_t kFrom, uint32_t kEnd>
  __device__ __forceinline__ static float raw_top(const Group &group) {
    float top = to_float(group.logit(kFrom));
#pragma unroll
    for (uint32_t e = kFrom + 1; e < kEnd; e++) top = fmaxf(top, to_float(group.logit(e)));
    return clean(top);
  }

  // The logits as the model gave them.
  __device__ __forceinline__ void raw_values(const Group &group, float (&x)[kGroup]) const {
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) x[e] = clean(to_float(group.logit(e)));
  }

  // The same after repetition (Keskar et al. 2019, section 4.1), frequency and presence penalty.
  __device__ __forceinline__ void values(const Group &group, float (&x)[kGroup]) const {
    raw_values(group, x);
    if (counts == nullptr) return;
    uint32_t any = 0;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) any |= group.counts.elems[e];
    if (any == 0) return;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const uint32_t count = group.counts.elems[e] & 0x7fffu;
      if (group.counts.elems[e] == 0) continue;
      x[e] = x[e] > 0.f ? x[e] / repetition : x[e] * repetition;
      x[e] -= frequency * static_cast<float>(count);
      if (count > 0) x[e] -= presence;
    }
  }
};

// Calls visit(first, group) for the groups that the block's threads take of tokens begin .. end - 1, with several
// loads on their way. Every thread of the block makes every call, also for groups past the end.
template <int kAhead, typename Tokens, typename Visit>
__device__ __forceinline__ void each_group(const Tokens &tokens, uint32_t begin, uint32_t end, Visit &&visit) {
  const uint32_t stride = blockDim.x * kGroup;
#pragma unroll 1
  for (uint32_t base = begin; base < end; base += kAhead * stride) {
    typename Tokens::Group groups[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) groups[i] = tokens.fetch(base + i * stride + threadIdx.x * kGroup, end);
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      if (base + i * stride < end) visit(base + i * stride + threadIdx.x * kGroup, groups[i]);
    }
  }
}

// What a draw asks for.
struct Kind {
  bool is_greedy;    // the arg max
  bool has_top_k;
  bool has_top_p;
  bool has_min_p;

  __device__ Kind(const msgl_sample_spec &s, uint32_t vocab)
      : is_greedy(s.temperature == 0.f || s.top_k == 1),
        has_top_k(!is_greedy && s.top_k > 1 && static_cast<uint32_t>(s.top_k) < vocab),
        has_top_p(!is_greedy && s.top_p < 1.f),
        has_min_p(!is_greedy && s.min_p > 0.f) {}

  // Restricted to a part of the vocabulary.
  __device__ bool is_filtered() const { return has_top_k || has_top_p || has_min_p; }
};

// The best token so far: the largest score, ties to the lowest id. No token has a score of minus infinity.
struct Best {
  float score;
  uint32_t token;

  __device__ __forceinline__ static Best none() { return {-INFINITY, 0xffffffffu}; }

  __device__ __forceinline__ void take(float other_score, uint32_t other_token) {
    if (other_score > score || (other_score == score && other_token < token)) {
      score = other_score;
      token = other_token;
    }
  }
};

// A token's score in a draw: logit / temperature + Gumbel noise (Gumbel 1954), so that the arg max is a draw from the
// softmax. `u` is the token's uniform number. The product is rounded by itself: the same bits wherever this is inlined.
__device__ __forceinline__ float noisy_score(float x, float inv_temperature, float u) {
  return __fmul_rn(x, inv_temperature) - logf(-logf(u));
}

// The score of one token by itself.
__device__ __forceinline__ float noisy_score(float x, float inv_temperature, const msgl_sample_spec &spec,
                                             uint32_t token) {
  const uint4 noise = token_noise(spec.seed, spec.position, token / 4);
  const uint32_t low = token % 2 == 0 ? noise.x : noise.y, high = token % 2 == 0 ? noise.z : noise.w;
  return noisy_score(x, inv_temperature, unit_open(token % 4 < 2 ? low : high));
}

// The best score of a block's draw so far. Two logarithms and a part of ten rounds of Philox are a token's noise, and
// nearly no token can win: what cannot beat the bound is passed over, so that a draw does not depend on who raised it when.
struct DrawBound {
  uint32_t *key;  // of the score, in shared memory

  // Every thread of the block calls it, once.
  __device__ void reset() const {
    if (threadIdx.x == 0) *key = float_key(-INFINITY);
    __syncthreads();
  }

  // Raises it to the best of the warp's scores, and returns it. Every lane of the warp must come here.
  __device__ __forceinline__ float raise(float score) const {
    uint32_t best = __reduce_max_sync(~0u, float_key(score));
    if (threadIdx.x % kWarpSize == 0) best = max(best, atomicMax(key, best));
    return key_float(__shfl_sync(~0u, best, 0));
  }
};

// Takes tokens kFrom .. kFrom + 3 of a group that begins at `first`, see take_noisy().
//
// With u the uniform number and v = 1 - u, the noise -log(-log(u)) is at most -log(v): a token is passed over unless
// v < exp(x / temperature - bound).
template <uint32_t kFrom, typename Group>
__device__ __forceinline__ void take_noisy_four(Best &best, const Group &group, uint32_t first, float inv_temperature,
                                                const msgl_sample_spec &spec, float bound) {
  constexpr float kMaxNoise = 16.7f;   // -log(2^-24), with room for rounding
  constexpr float kRounding = 1.001f;  // of the fast exponential, on the safe side
  const float top = group.template top<kFrom, kFrom + 4>() * inv_temperature;
  if (top == -INFINITY || top + kMaxNoise < bound) return;
  const uint4 noise = token_noise(spec.seed, spec.position, (first + kFrom) / 4);
  const uint32_t bits[4] = {noise.x, noise.y, noise.z, noise.w};
  // First the four at once: the largest u with the largest logit.
  const float most = unit_open(max(max(bits[0], bits[1]), max(bits[2], bits[3])));
  if (!(1.f - most < __expf(top - bound) * kRounding)) return;
#pragma unroll
  for (uint32_t e = 0; e < 4; e++) {
    const float u = unit_open(bits[e]), x = group.logit(kFrom + e);
    // False for minus infinity, whose exponential is 0; true for a bound of minus infinity.
    if (!(1.f - u < __expf(x * inv_temperature - bound) * kRounding)) continue;
    best.take(noisy_score(x, inv_temperature, u), first + kFrom + e);
  }
}

// Takes a group, of which logit(e) tells the logits, minus infinity for tokens that are out of the draw, and
// top<kFrom, kEnd>() the largest of some. Every lane of the warp must come here.
template <typename Group>
__device__ __forceinline__ void take_noisy(Best &best, const Group &group, uint32_t first, float inv_temperature,
                                           const msgl_sample_spec &spec, const DrawBound &draw_bound) {
  float bound = draw_bound.raise(best.score);
  if (bound == -INFINITY) {
    // Nothing can be passed over yet. The likeliest token of each lane's eight gives a bound for all the others.
    Best likeliest = Best::none();
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) likeliest.take(group.logit(e), first + e);
    if (likeliest.score != -INFINITY) {
      best.take(noisy_score(likeliest.score, inv_temperature, spec, likeliest.token), likeliest.token);
    }
    bound = draw_bound.raise(best.score);
  }
  take_noisy_four<0>(best, group, first, inv_temperature, spec, bound);
  take_noisy_four<4>(best, group, first, inv_temperature, spec, bound);
}

// A group's logits after penalties and filters.
struct Logits {
  const float (&x)[kGroup];

  __device__ __forceinline__ float logit(uint32_t e) const { return x[e]; }

  template <uint32_t kFrom, uint32_t kEnd>
  __device__ __forceinline__ float top() const {
    float top = x[kFrom];
#pragma unroll
    for (uint32_t e = kFrom + 1; e < kEnd; e++) top = fmaxf(top, x[e]);
    return top;
  }
};

// A group's logits as the model gave them, made only where they are asked for.
template <typename T>
struct RawLogits {
  const typename Row<T>::Group &group;

  __device__ __forceinline__ float logit(uint32_t e) const { return clean(to_float(group.logit(e))); }

  template <uint32_t kFrom, uint32_t kEnd>
  __device__ __forceinline__ float top() const {
    return Row<T>::template raw_top<kFrom, kEnd>(group);
  }
};

// The largest of some numbers and the sum of exp((x - max) * scale): softmax's denominator, in one pass
// (Milakov, Gimelshein 2018).
struct SoftmaxSum {
  float max;
  float sum;

  __device__ __forceinline__ static SoftmaxSum none() { return {-INFINITY, 0.f}; }

  __device__ __forceinline__ SoftmaxSum shuffled(int offset) const {
    return {__shfl_xor_sync(~0u, max, offset), __shfl_xor_sync(~0u, sum, offset)};
  }

  __device__ __forceinline__ void merge(const SoftmaxSum &other, float scale) {
    const float both = fmaxf(max, other.max);
    if (both == -INFINITY) return;
    sum = sum * expf((max - both) * scale) + other.sum * expf((other.max - both) * scale);
    max = both;
  }

  __device__ __forceinline__ void take(const float (&x)[kGroup], float scale) {
    float top = max;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) top = fmaxf(top, x[e]);
    if (top == -INFINITY) return;
    float part = 0.f;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) part += expf((x[e] - top) * scale);
    sum = sum * expf((max - top) * scale) + part;
    max = top;
  }
};

// What a part of a row gives to the whole.
struct Partial {
  Best best;       // of the greedy or the unrestricted draw; of the logits where the draw is restricted
  SoftmaxSum raw;  // of the model's logits, where log probabilities are asked for

  __device__ __forceinline__ static Partial none() { return {Best::none(), SoftmaxSum::none()}; }

  // Merges what lane ^ offset has. The softmax sums cost exponentials: only where the row needs them.
  __device__ __forceinline__ void merge_warp(bool logprobs) {
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      best.take(__shfl_xor_sync(~0u, best.score, offset), __shfl_xor_sync(~0u, best.token, offset));
      if (logprobs) raw.merge(raw.shuffled(offset), 1.f);
    }
  }
};

// Merges the block's partials in a fixed order; every thread of warp 0 gets the result. `shared` has an entry a
// warp, and the block has at most 32 warps.
__device__ __forceinline__ Partial block_merge(Partial mine, bool logprobs, Partial *shared) {
  mine.merge_warp(logprobs);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) shared[threadIdx.x / kWarpSize] = mine;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    mine = threadIdx.x < blockDim.x / kWarpSize ? shared[threadIdx.x] : Partial::none();
    mine.merge_warp(logprobs);
  }
  return mine;
}

}  // namespace msgl
