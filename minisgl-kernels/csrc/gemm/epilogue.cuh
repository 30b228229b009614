// What becomes of the sums of the Hopper GEMM (gemm.cuh).
//
// A finished tile is rounded to the dtype and held in registers while the next one is multiplied, and stored a chunk at
// a time under it. Of each group of 32 columns a thread has column tiles 0 to 3 of its rows g and g + 8, and the order of
// the weight's rows in shared memory is such that these are 8 neighbours of the output: 16 bytes, stored as they are.
#pragma once
#include "common.cuh"
#include "ptx/mma.cuh"
#include "shape.cuh"

namespace msgl {

constexpr int kGemmTiles = kGemmCols / 8;
// Chunks of a thread's results: a row of one group of columns, or of two where there are no gates.
constexpr int kGemmChunks = 2 * (kGemmHalf / kGemmGroup);
constexpr uint32_t kGemmMinK = kGemmChunks * kGemmDepth - (kGemmDepth - 1);

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
template <typename T>
struct GemmTarget {
    T* first = nullptr;
    int rows = 0, cols = 0;

    __device__ bool has(int h, int group) const { return h * 8 < rows && group * int(kGemmGroup) < cols; }
    __device__ uint4* at(int h, int group, uint32_t stride) const {
        return reinterpret_cast<uint4*>(first + uint64_t{stride} * (h * 8) + group * kGemmGroup);
    }
};

// A finished tile.
template <typename T, GemmEpilogue kEpilogue>
struct GemmHeld {
    static constexpr bool kIsGated = kEpilogue != GemmEpilogue::kNone;
    // Groups of a chunk: the second is half a tile further.
    static constexpr int kGroups = kIsGated ? 1 : 2, kNextGroup = kGemmHalf / kGemmGroup;

    const uint32_t stride;  // elements of a row of the output
    GemmTarget<T> target;
    uint32_t words[kGemmTiles][2] = {};

    __device__ explicit GemmHeld(uint32_t stride) : stride(stride) {}

    __device__ __forceinline__ void take(const float (&d)[kGemmTiles][4], const GemmTarget<T>& to) {
#pragma unroll
        for (int n = 0; n < kGemmTiles; ++n) {
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
            uint32_t out[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t word = opaque(words[4 * group + j][h]);
                if constexpr (kIsGated) {
                    const float2 gate = unpack_pair<T>(word);
                    const float2 up = unpack_pair<T>(opaque(words[kGemmTiles / 2 + 4 * group + j][h]));
                    out[j] = pack_pair<T>(activate_approx<kEpilogue>(gate.x) * up.x,
                                          activate_approx<kEpilogue>(gate.y) * up.y);
                } else {
                    out[j] = word;
                }
            }
            if (target.has(h, group)) *target.at(h, group, stride) = make_uint4(out[0], out[1], out[2], out[3]);
        }
    }
};

}  // namespace msgl
