// A head's row of a new token in the lanes of a warp: norm and rotation, with the arithmetic of rope_store_kv, so that
// the bits of what is stored are the same.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ptx/mma.cuh"
#include "ptx/shared.cuh"

namespace msgl {

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}
template <>
__device__ __forceinline__ float2 unpack_pair<__half>(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
}

// A lane's elements of a row: 2 neighbours of each half, so that both elements of a rotation (Su et al. 2021,
// half-split) are in one lane.
template <typename T, int kHeadDim>
struct RopeRow {
    static constexpr int kHalf = kHeadDim / 2;
    // Lanes that share a row, and rows that a warp has at once.
    static constexpr int kLanes = kHalf / 2;
    static constexpr int kRowsAtOnce = 32 / kLanes;
    static_assert(kHeadDim == 64 || kHeadDim == 128, "whole rows in a warp");

    uint32_t low, high;

    __device__ static uint32_t lane() { return threadIdx.x % kLanes; }

    __device__ static RopeRow load(const T* row) {
        const T* from = row + 2 * lane();
        return {*reinterpret_cast<const uint32_t*>(from), *reinterpret_cast<const uint32_t*>(from + kHalf)};
    }

    __device__ void store(T* row) const {
        T* to = row + 2 * lane();
        *reinterpret_cast<uint32_t*>(to) = low;
        *reinterpret_cast<uint32_t*>(to + kHalf) = high;
    }

    // To shared memory, where the row begins at `row`.
    __device__ void store_shared(uint32_t row) const {
        const uint32_t to = row + 2 * lane() * sizeof(T);
        store_shared_4(to, low);
        store_shared_4(to + kHalf * sizeof(T), high);
    }

    // Norms the row, where it has a norm, and rotates it. All lanes of the warp call it. `norm`: the lane's elements of
    // the norm's weights; `c` and `s`: the cosines and sines of its two rotations.
    __device__ void turn(bool has_norm, const RopeRow& norm, float eps, float2 c, float2 s) {
        float2 x = unpack_pair<T>(low), y = unpack_pair<T>(high);
        if (has_norm) {
            float sum = 0.0f;
            sum += x.x * x.x + y.x * y.x;
            sum += x.y * x.y + y.y * y.y;
#pragma unroll
            for (int offset = kLanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
            const float scale = rsqrtf(sum / kHeadDim + eps);
            scale_pair(x, norm.low, scale);
            scale_pair(y, norm.high, scale);
        }
        low = pack_pair<T>(x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y);
        high = pack_pair<T>(y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y);
    }

  private:
    __device__ static void scale_pair(float2& x, uint32_t norm, float scale) {
        const float2 weight = unpack_pair<T>(norm);
        x.x *= scale * weight.x;
        x.y *= scale * weight.y;
    }
};

}  // namespace msgl
