// One pass over a row sorts its tokens by a band of logits: those above it are in the draw for sure, and drawn at once;
// those inside of it go to a list in shared memory, on which the filters decide; those below are out.
#pragma once

#include "sample/row.cuh"

namespace msgl {

constexpr uint32_t kFinishThreads = 1024;
constexpr int kFinishAhead = 1;  // groups of a thread that are on their way at once
constexpr uint32_t kMaxCandidates = 4 * kFinishThreads;

// A token's distance is (origin - x) * scale: below `near` it is above the band, up to `far` inside.
struct Band {
  float origin, scale, near, far;

  __device__ __forceinline__ float distance(float x) const { return (origin - x) * scale; }

  // All tokens from logit `least` on are inside.
  __device__ static Band from(float least) { return {0.f, 1.f, -INFINITY, -least}; }
};

// The list. Each warp has a part of its own, so that the order is that of the tokens; the rest is minus infinity.
struct CandidateList {
  float values[kMaxCandidates];
  uint32_t tokens[kMaxCandidates];
};

// The list as the filters see a row.
struct Candidates {
  const float *list;  // [vocab]
  float inv_temperature;
  static constexpr uint32_t vocab = kMaxCandidates;

  struct Group {
    float x[kGroup];
  };

  __device__ __forceinline__ Group fetch(uint32_t first, uint32_t end) const {
    Group group;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) group.x[e] = first + e < end ? list[first + e] : -INFINITY;
    return group;
  }

  __device__ __forceinline__ void values(const Group &group, float (&x)[kGroup]) const {
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) x[e] = group.x[e];
  }
};

// What the pass found, the same on every thread.
struct Split {
  float mass;          // of the tokens above the band
  uint32_t low, high;  // smallest and largest key inside
  bool is_overflow;    // more tokens inside than the list takes
};

struct SplitShared {
  float mass[kWarpSize];
  uint32_t low[kWarpSize], high[kWarpSize];
  bool is_overflow[kWarpSize];
};

// Makes the list, and takes to `best` the draw of the tokens above the band that are at least `least`. `largest` is the
// row's largest logit. Every thread of the block calls it.
template <typename T>
__device__ Split split_row(const Row<T> &row, const msgl_sample_spec &spec, const Band &band, float largest,
                           float least, Best &best, const DrawBound &bound, CandidateList &list,
                           SplitShared &shared) {
  const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  constexpr uint32_t kWarps = kFinishThreads / kWarpSize, kRoom = kMaxCandidates / kWarps;
  __syncthreads();  // the histogram that gave the band lies in the list's memory
  for (uint32_t i = threadIdx.x; i < kMaxCandidates; i += kFinishThreads) list.values[i] = -INFINITY;
  __syncthreads();

  float mass = 0.f, low = INFINITY, high = -INFINITY;  // no token is as low as the one, or as high as the other
  uint32_t taken = 0;
  each_group<kFinishAhead>(row, 0, row.vocab, [&](uint32_t first, const auto &group) {
    float x[kGroup];
    row.values(group, x);
    const float top = Logits{x}.top<0, kGroup>();
    if (!__any_sync(~0u, band.distance(top) <= band.far)) return;
    uint32_t inside = 0, above = 0;  // a bit for each token of the group
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const float distance = band.distance(x[e]);
      if (distance < band.near) {
        above |= 1u << e;
      } else if (distance <= band.far) {
        inside |= 1u << e;
      }
    }
    if (__any_sync(~0u, inside != 0)) {
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) {
        const bool is_inside = (inside >> e & 1) != 0;
        const uint32_t lanes = __ballot_sync(~0u, is_inside), at = taken + __popc(lanes & ((1u << lane) - 1));
        if (is_inside) {
          low = fminf(low, x[e]);
          high = fmaxf(high, x[e]);
          if (at < kRoom) {
            list.values[warp * kRoom + at] = x[e];
            list.tokens[warp * kRoom + at] = first + e;
          }
        }
        taken += __popc(lanes);
      }
    }
    if (!__any_sync(~0u, above != 0)) return;
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const bool is_above = (above >> e & 1) != 0;
      if (is_above) mass += __expf((x[e] - largest) * row.inv_temperature);
      if (!is_above || x[e] < least) x[e] = -INFINITY;
    }
    take_noisy(best, Logits{x}, first, row.inv_temperature, spec, bound);
  });

  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    mass += __shfl_xor_sync(~0u, mass, offset);
    low = fminf(low, __shfl_xor_sync(~0u, low, offset));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, offset));
  }
  if (lane == 0) {
    shared.mass[warp] = mass;
    shared.low[warp] = float_key(low);
    shared.high[warp] = float_key(high);
    shared.is_overflow[warp] = taken > kRoom;
  }
  __syncthreads();
  Split all = {0.f, ~0u, 0, false};
  for (uint32_t i = 0; i < kWarps; i++) {
    all.mass += shared.mass[i];
    all.low = min(all.low, shared.low[i]);
    all.high = max(all.high, shared.high[i]);
    all.is_overflow |= shared.is_overflow[i];
  }
  return all;
}

}  // namespace msgl
