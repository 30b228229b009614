// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the same
// numbers as src/philox.rs: a pure function of counter and key, so a draw depends on nothing but its seed and
// position.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

namespace msgl {

__device__ __forceinline__ uint4 philox4x32_10(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t hi0 = __umulhi(0xD2511F53u, counter.x), lo0 = 0xD2511F53u * counter.x;
    const uint32_t hi1 = __umulhi(0xCD9E8D57u, counter.z), lo1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(hi1 ^ counter.y ^ key.x, lo1, hi0 ^ counter.w ^ key.y, lo0);
    key = make_uint2(key.x + 0x9E3779B9u, key.y + 0xBB67AE85u);
  }
  return counter;
}

// The middles of 2^23 equal cells of (0, 1), exact in f32: neither logarithm of a Gumbel draw can meet 0.
__device__ __forceinline__ float unit_open(uint32_t bits) {
  return (static_cast<float>(bits >> 9) + 0.5f) * (1.f / 8388608.f);
}

// The numbers of tokens 4 * block ..= 4 * block + 3 in a draw at `position` under `seed`.
__device__ __forceinline__ uint4 token_noise(uint64_t seed, uint32_t position, uint32_t block) {
  return philox4x32_10(make_uint4(block, position, 0, 0),
                       make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)));
}

}  // namespace msgl
