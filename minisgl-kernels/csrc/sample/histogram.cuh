// Where in a row the mass reaches top_p, from one pass and a histogram.
//
// Bins are equal steps of logit / temperature below the largest, and count mass in fixed point: integers add up to the
// same sum in any order. The sum is exact to 1 part in some thousands, so what comes out is not the last kept token but
// a narrow band of logits that holds it.
#pragma once

#include "sample/candidates.cuh"

namespace msgl {

constexpr uint32_t kBins = 4096;
constexpr float kBinsPerNat = 128.f;

struct Histogram {
  uint32_t bins[kBins];  // mass over that of a token in the bin's middle, times mass_unit()
  float warp_sums[kWarpSize];
  uint32_t near, far;
};

// The fixed-point number of one token: as large as a bin can hold of all tokens, each up to 1.004 of it.
__device__ __forceinline__ float mass_unit(uint32_t vocab) {
  const uint32_t most = 0xfe000000u / vocab;
  return static_cast<float>(most < 16384u ? most : 16384u);
}

// The band of logits in which the mass, of largest ones first, reaches top_p of the whole, which is left in `all.sum`.
template <typename T>
__device__ Band top_p_band(const Row<T> &row, float top_p, SoftmaxSum &all, Histogram &shared) {
  // Adding it rounds a number below 2^22 to an integer, which is then in the low bits: no conversion, of which the chip
  // does few at a time.
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23
  const Band band = {all.max, row.inv_temperature * kBinsPerNat, 0.f, FLT_MAX};
  const float unit = mass_unit(row.vocab);
  for (uint32_t i = threadIdx.x; i < kBins; i += kFinishThreads) shared.bins[i] = 0;
  if (threadIdx.x == 0) shared.near = shared.far = kBins;
  __syncthreads();
  float total = 0.f;
  each_group<kFinishAhead>(row, 0, row.vocab, [&](uint32_t, const auto &group) {
    float x[kGroup];
    row.values(group, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) {
      const float distance = band.distance(x[e]);
      if (!(distance < static_cast<float>(kBins) - 0.5f)) continue;
      total += __expf(distance * (-1.f / kBinsPerNat));
      const float rounded = distance + kRound;
      const uint32_t bin = __float_as_uint(rounded) - __float_as_uint(kRound);
      // exp(-step) of a step from the bin's middle, of at most 1 / 256: the error of three terms is 1e-8.
      const float step = (distance - (rounded - kRound)) * (1.f / kBinsPerNat);
      const float mass = unit * (1.f - step * (1.f - 0.5f * step)) + kRound;
      atomicAdd(&shared.bins[bin], __float_as_uint(mass) - __float_as_uint(kRound));
    }
  });
  total = block_sum(total, shared.warp_sums);
  __syncthreads();

  constexpr uint32_t kEach = kBins / kFinishThreads;
  const uint32_t lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  float sums[kEach], sum = 0.f;
  for (uint32_t i = 0; i < kEach; i++) {
    const uint32_t bin = threadIdx.x * kEach + i;
    sum += static_cast<float>(shared.bins[bin]) * expf(-static_cast<float>(bin) / kBinsPerNat);
    sums[i] = sum;
  }
  float before = sum;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const float other = __shfl_up_sync(~0u, before, offset);
    if (lane >= static_cast<uint32_t>(offset)) before += other;
  }
  if (lane == kWarpSize - 1) shared.warp_sums[warp] = before;
  __syncthreads();
  before -= sum;
  for (uint32_t i = 0; i < warp; i++) before += shared.warp_sums[i];
  // Half a unit of rounding a token, whose mass is nearly a unit or more; and the rounding of the sums.
  const float error = 0.6f / unit + 1e-5f, wanted = top_p * total * unit;
  for (uint32_t i = 0; i < kEach; i++) {
    const float mass = before + sums[i];
    if (mass * (1.f + error) >= wanted) atomicMin(&shared.near, threadIdx.x * kEach + i);
    if (mass * (1.f - error) >= wanted) atomicMin(&shared.far, threadIdx.x * kEach + i);
  }
  __syncthreads();
  all.sum = total;
  // Bins reach half a step to both sides. Where the mass is not reached in them, all that is left is in the band.
  const float far = shared.far < kBins ? static_cast<float>(shared.far) + 0.5f : FLT_MAX;
  return {band.origin, band.scale, static_cast<float>(shared.near) - 0.5f, far};
}

}  // namespace msgl
