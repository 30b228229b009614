// What becomes of the sums of the Hopper GEMM (gemm.cuh).
//
// A finished tile is rounded to the dtype and held in registers while the next one is multiplied, and stored a chunk at
// a time under it. Of each group of 32 columns a thread has column tiles 0 to 3 of its rows g and g + 8, and the order of
// the weight's rows in shared memory is such that these are 8 neighbours of the output: 16 bytes, stored as they are; of a
// group of 16 it has half of that.
#pragma once
#include "common.cuh"
#include "ptx/mma.cuh"
#include "shape.cuh"

namespace msgl {

enum class GemmEpilogue { kNone, kSilu, kGelu, kGeluTanh };

// x / (1 + exp(-y)), with a relative error of some 2^-22, and more only where it is below 2^-24 of x.
__device__ __forceinline__ float times_sigmoid(float x, float y) {
    return __fdividef(x, 1.0f + exp2_approx(y * -1.4426950408889634f));
}

template <GemmEpilogue kEpilogue>
__device__ __forceinline__ float activate_approx(float x) {
    if constexpr (kEpilogue == GemmEpilogue::kSilu) {
        return times_sigmoid(x, x);
    } else if constexpr (kEpilogue == GemmEpilogue::kGelu) {
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    } else {
        // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
        constexpr float kTwoSqrt2OverPi = 2.0f * 0.79788456080286536f;
        return times_sigmoid(x, kTwoSqrt2OverPi * (x + 0.044715f * x * x * x));
    }
}

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
    T elems[2];
    memcpy(elems, &pair, 4);
    return make_float2(to_float(elems[0]), to_float(elems[1]));
}

// Hides from the compiler what a register holds, which would else unpack it as soon as it is known, into more of them.
__device__ __forceinline__ uint32_t opaque(uint32_t word) {
    asm volatile("" : "+r"(word));
    return word;
}

// Where a thread's results go: from `first` on there are so many rows and columns.
template <typename T, typename Tile>
struct GemmTarget {
    T* first = nullptr;
    int rows = 0, cols = 0;

    __device__ bool has(int h, int group) const { return h * 8 < rows && group * int(Tile::kGroup) < cols; }
    __device__ void store(int h, int group, uint32_t stride, const uint32_t (&pairs)[Tile::kPairs]) const {
        T* at = first + uint64_t{stride} * (h * 8) + group * Tile::kGroup;
        if constexpr (Tile::kPairs == 4) {
            *reinterpret_cast<uint4*>(at) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        } else {
            *reinterpret_cast<uint2*>(at) = make_uint2(pairs[0], pairs[1]);
        }
    }
};

// A finished tile.
template <typename T, typename Tile, GemmEpilogue kEpilogue>
struct GemmHeld {
    static constexpr bool kIsGated = kEpilogue != GemmEpilogue::kNone;
    // Groups of a chunk: the second is half a tile further.
    static constexpr int kGroups = kIsGated ? 1 : 2, kNextGroup = Tile::kHalf / Tile::kGroup;

    const uint32_t stride;  // elements of a row of the output
    GemmTarget<T, Tile> target;
    uint32_t words[Tile::kTiles][2] = {};

    __device__ explicit GemmHeld(uint32_t stride) : stride(stride) {}

    __device__ __forceinline__ void take(const float (&d)[Tile::kTiles][4], const GemmTarget<T, Tile>& to) {
#pragma unroll
        for (int n = 0; n < Tile::kTiles; ++n) {
#pragma unroll
            for (int h = 0; h < 2; ++h) words[n][h] = pack_pair<T>(d[n][2 * h], d[n][2 * h + 1]);
        }
        target = to;
    }

    // `c` must be known to the compiler.
    __device__ __forceinline__ void store(int c) {
        const int h = c % 2;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
            const int group = c / 2 + i * kNextGroup;
            uint32_t out[Tile::kPairs];
#pragma unroll
            for (int j = 0; j < Tile::kPairs; ++j) {
                const uint32_t word = opaque(words[Tile::kPairs * group + j][h]);
                if constexpr (kIsGated) {
                    const float2 gate = unpack_pair<T>(word);
                    const float2 up = unpack_pair<T>(opaque(words[Tile::kTiles / 2 + Tile::kPairs * group + j][h]));
                    out[j] = pack_pair<T>(activate_approx<kEpilogue>(gate.x) * up.x,
                                          activate_approx<kEpilogue>(gate.y) * up.y);
                } else {
                    out[j] = word;
                }
            }
            if (target.has(h, group)) target.store(h, group, stride, out);
        }
    }
};

}  // namespace msgl
