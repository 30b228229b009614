// Shared memory of the Hopper GEMM (gemm.cuh), the barriers that hand its stages around, and the order of its tiles.
#pragma once
#include "minisgl_kernels.h"
#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/wgmma.cuh"

namespace msgl {

constexpr uint32_t kGemmConsumers = 2;  // warpgroups that compute, 64 rows each
constexpr uint32_t kGemmThreads = 128 * (1 + kGemmConsumers);
constexpr uint32_t kGemmRows = 64 * kGemmConsumers;
constexpr uint32_t kGemmDepth = 64;  // of k in a stage
// CTAs that share the rows of the weight; each fetches its half for all.
constexpr uint32_t kGemmCluster = 2;
constexpr uint32_t kGemmProducerRegisters = 24, kGemmConsumerRegisters = 240;  // what 64 K registers give

using GemmMatrix = SwizzledMatrix<kGemmDepth>;

// Rows of the weight that a CTA multiplies with, in two halves: gates and ups, or neighbours.
template <uint32_t kHalf_>
struct GemmTile {
    static constexpr uint32_t kHalf = kHalf_, kCols = 2 * kHalf;
    static constexpr int kTiles = kCols / 8;
    // The weight's rows go to shared memory in another order within each group, see encode_weight_map(): a thread has so
    // many pairs of neighbours of a group of the output.
    static constexpr uint32_t kGroup = kHalf % 32 == 0 ? 32 : 16;
    static constexpr int kPairs = kGroup / 8;
    static constexpr uint32_t kXBytes = kGemmRows * kGemmDepth * 2, kHalfBytes = kHalf * kGemmDepth * 2;
    static constexpr uint32_t kStages = 4, kStageBytes = kXBytes + 2 * kHalfBytes;
    static constexpr uint32_t kBarrierOffset = kStages * kStageBytes;
    static constexpr uint32_t kSharedBytes = kBarrierOffset + 2 * kStages * 8;
    // Pieces in which a tile is stored, one under each stage of the next tile, which must have as many: a row of one group,
    // or of two where there are no gates.
    static constexpr int kChunks = 2 * (kHalf / kGroup);
    static constexpr uint32_t kMinK = kChunks * kGemmDepth - (kGemmDepth - 1);
};

// The wider one asks the L2 for less; the other one is there for what it leaves multiprocessors idle with.
using GemmWide = GemmTile<128>;
using GemmNarrow = GemmTile<112>;

// Addresses in shared memory. `full` says that a stage has been filled, `empty` that it may be filled again: in both
// CTAs, since each one's copies go to both.
template <typename Tile>
struct GemmShared {
    uint32_t base;

    __device__ uint32_t x(uint32_t stage) const { return base + stage * Tile::kStageBytes; }
    __device__ uint32_t weight(uint32_t stage) const { return x(stage) + Tile::kXBytes; }
    __device__ uint32_t full(uint32_t stage) const { return base + Tile::kBarrierOffset + stage * 8; }
    __device__ uint32_t empty(uint32_t stage) const { return full(Tile::kStages + stage); }

    __device__ void init() const {
        for (uint32_t stage = 0; stage < Tile::kStages; ++stage) {
            mbarrier_init(full(stage), 1);
            mbarrier_init(empty(stage), kGemmCluster * kGemmConsumers * 4);
        }
        mbarrier_init_fence();
    }
};

// Counts the fillings of the stages.
template <typename Tile>
struct GemmCursor {
    uint32_t count = 0;

    __device__ uint32_t stage() const { return count % Tile::kStages; }
    __device__ uint32_t parity() const { return count / Tile::kStages % 2; }
};

// The tiles of a cluster, kGemmCluster tiles of rows that share a tile of columns. They are taken in bands of kBand
// along the rows, so that clusters that run together read few rows of either operand, and find most of them in L2.
struct GemmTiles {
    static constexpr uint32_t kBand = 8;

    uint32_t row_tiles, col_tiles;  // clusters along the rows, CTAs along the columns

    __host__ __device__ uint32_t count() const { return row_tiles * col_tiles; }

    __device__ void at(uint32_t idx, uint32_t& row_tile, uint32_t& col_tile) const {
        const uint32_t in_full = kBand * col_tiles, first = idx / in_full * kBand, in_band = idx % in_full;
        const uint32_t rows = row_tiles - first < kBand ? row_tiles - first : kBand;
        row_tile = first + in_band % rows;
        col_tile = in_band / rows;
    }
};

}  // namespace msgl
