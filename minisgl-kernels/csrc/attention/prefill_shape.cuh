// Shared memory of the Hopper prefill kernel (prefill_wgmma.cuh), and the barriers that hand its buffers around.
#pragma once
#include "prefill_tile.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"

namespace msgl {

// Counts the fillings of a ring of buffers: which buffer the next one goes to, and the parity of its phase.
template <int kStages>
struct RingCursor {
    uint32_t count = 0;

    __device__ uint32_t stage() const { return count % kStages; }
    __device__ uint32_t parity() const { return count / kStages % 2; }
};

template <typename T, int kHeadDim_>
struct PrefillWgmmaShape {
    using Element = T;
    static constexpr int kHeadDim = kHeadDim_;
    // Warpgroups that compute, 64 rows each.
    static constexpr int kConsumers = kHeadDim == 64 ? 3 : 2;
    static constexpr int kRows = 64 * kConsumers;
    static constexpr int kCols = kHeadDim == 256 ? 64 : 128;
    static constexpr int kThreads = 128 * (1 + kConsumers);
    using Matrix = SwizzledMatrix<kHeadDim>;
    // What 64 K registers give.
    static constexpr int kProducerRegisters = kConsumers == 2 ? 56 : 32;
    static constexpr int kConsumerRegisters = kConsumers == 2 ? 224 : 160;

    // Warpgroups that take turns in threes are up to a stage apart, and the copies of a stage take as long.
    static constexpr int kStages = kConsumers == 3 ? 4 : 2;
    static constexpr int kQStages = kHeadDim <= 128 ? 2 : 1;
    static constexpr uint32_t kQBytes = kRows * kHeadDim * 2, kKvBytes = kCols * kHeadDim * 2;
    static constexpr uint32_t kKvOffset = kQStages * kQBytes;
    static constexpr uint32_t kBarrierOffset = kKvOffset + 2 * kStages * kKvBytes;
    static constexpr uint32_t kNumBarriers = 3 * kQStages + 4 * kStages + 1;
    static constexpr uint32_t kTileOffset = (kBarrierOffset + kNumBarriers * 8 + 15) / 16 * 16;
    static constexpr uint32_t kSharedBytes = kTileOffset + kQStages * sizeof(PrefillTile);
};

// Threads of the producer that fetch queries.
constexpr uint32_t kQueryThreads = 64;

// Addresses in shared memory. Of each pair of barriers, `full` says that the producer has filled a buffer and `empty`
// that it may do so again. In `which`, 0 stands for K and 1 for V.
template <typename Shape>
struct PrefillShared {
    uint32_t base;

    __device__ uint32_t q(uint32_t stage) const { return base + stage * Shape::kQBytes; }
    __device__ uint32_t kv(uint32_t which, uint32_t stage) const {
        return base + Shape::kKvOffset + (which * Shape::kStages + stage) * Shape::kKvBytes;
    }

    __device__ uint32_t barrier(uint32_t idx) const { return base + Shape::kBarrierOffset + idx * 8; }
    // The tile is written down, for the producer's warps; full_q says so to the consumers.
    __device__ uint32_t full_tile(uint32_t stage) const { return barrier(stage); }
    __device__ uint32_t full_q(uint32_t stage) const { return barrier(Shape::kQStages + stage); }
    __device__ uint32_t empty_q(uint32_t stage) const { return barrier(2 * Shape::kQStages + stage); }
    __device__ uint32_t full_kv(uint32_t which, uint32_t stage) const {
        return barrier(3 * Shape::kQStages + which * Shape::kStages + stage);
    }
    __device__ uint32_t empty_kv(uint32_t which, uint32_t stage) const {
        return full_kv(2 + which, stage);
    }
    // Rows have arrived, some of which have to be cleared.
    __device__ uint32_t partial_v() const { return full_kv(4, 0); }

    // `kv_arrivals`: of the producer's threads that fill a buffer with K or V.
    __device__ void init(uint32_t kv_arrivals) const {
        constexpr uint32_t kWarps = 4 * Shape::kConsumers;
        for (int stage = 0; stage < Shape::kQStages; ++stage) {
            mbarrier_init(full_tile(stage), 1);
            mbarrier_init(full_q(stage), kQueryThreads);
            // Two of the producer's warps read the tile and fetch no queries.
            mbarrier_init(empty_q(stage), kWarps + 2);
        }
        for (int which = 0; which < 2; ++which) {
            for (int stage = 0; stage < Shape::kStages; ++stage) {
                mbarrier_init(full_kv(which, stage), kv_arrivals);
                mbarrier_init(empty_kv(which, stage), kWarps);
            }
        }
        mbarrier_init(partial_v(), 1);
        mbarrier_init_fence();
    }
};

// One arrival for a warp, after all of its lanes.
__device__ __forceinline__ void arrive_warp(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}

}  // namespace msgl
