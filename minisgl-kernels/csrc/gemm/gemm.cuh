// Products of many tokens on Hopper, with the gated activation in the same pass.
//
// Bound by the tensor cores. A CTA stays on its SM and takes every so many-th tile: 128 rows by 256 or 224 rows of the
// weight, which with gates are half gates and half their ups, so that a thread has both of a pair. One warp fetches; two
// warpgroups compute 64 rows each, and store a tile under the products of the next one (epilogue.cuh). Two CTAs, a
// cluster, work on the same rows of the weight and each fetches half of them for both.
//
// Every element is summed over k from the left by one warpgroup, so its bits depend on its row and column alone.
#pragma once
#include "epilogue.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/elect.cuh"
#include "ptx/grid.cuh"
#include "ptx/tensor_multicast.cuh"
#include "ptx/warpgroup.cuh"

namespace msgl {

struct GemmMaps {
    CUtensorMap x, weight;
};

template <typename Tile>
__device__ __forceinline__ void fetch_gemm(const msgl_gemm_params& p, const GemmMaps& maps, const GemmTiles& tiles,
                                           const GemmShared<Tile>& shared, uint32_t rank) {
    constexpr uint16_t kAll = (1u << kGemmCluster) - 1;
    GemmCursor<Tile> at;
    for (uint32_t idx = blockIdx.x / kGemmCluster; idx < tiles.count(); idx += gridDim.x / kGemmCluster) {
        uint32_t row_tile, col_tile;
        tiles.at(idx, row_tile, col_tile);
        const uint32_t row = (row_tile * kGemmCluster + rank) * kGemmRows;
        // This CTA's half.
        const uint32_t weight_row = p.is_gated != 0 ? rank * (p.n / 2) + col_tile * Tile::kHalf
                                                    : col_tile * Tile::kCols + rank * Tile::kHalf;
        for (uint32_t k = 0; k < p.k; k += kGemmDepth, ++at.count) {
            const uint32_t stage = at.stage(), full = shared.full(stage);
            mbarrier_wait(shared.empty(stage), at.parity() ^ 1);
            mbarrier_arrive_expect(full, Tile::kStageBytes);
            matrix_copy(shared.x(stage), maps.x, full, k, row);
            tensor_multicast(shared.weight(stage) + rank * Tile::kHalfBytes, maps.weight, full, kAll, k,
                             weight_row / Tile::kGroup);
        }
    }
    // The other CTA arrives at this one's barriers until it has read the last stages: stay until then.
    for (uint32_t i = 0; i < Tile::kStages; ++i, ++at.count) mbarrier_wait(shared.empty(at.stage()), at.parity() ^ 1);
}

template <typename T, typename Tile, GemmEpilogue kEpilogue>
struct GemmConsumer {
    using Held = GemmHeld<T, Tile, kEpilogue>;
    using Cursor = GemmCursor<Tile>;

    const msgl_gemm_params& p;
    const GemmTiles& tiles;
    const GemmShared<Tile> shared;
    const uint32_t rank, warpgroup;

    Cursor at;
    float d[Tile::kTiles][4];

    // One arrival of each warp at each CTA.
    __device__ __forceinline__ void release(uint32_t stage) {
        __syncwarp();
        const uint32_t lane = threadIdx.x % 32;
        if (lane < kGemmCluster) cluster_barrier_arrive(cluster_address(shared.empty(stage), lane));
    }

    // Begins the products of a stage, and ends those of the one before.
    __device__ __forceinline__ void step(bool is_first) {
        const uint32_t stage = at.stage();
        const uint32_t x = shared.x(stage) + warpgroup * 8 * GemmMatrix::kEightRowsBytes;
        const uint32_t weight = shared.weight(stage);
        mbarrier_wait(shared.full(stage), at.parity());
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < int(kGemmDepth / 16); ++i) {
            Wgmma<T, Tile::kTiles>::shared_a(d, GemmMatrix::columns(x, i), GemmMatrix::columns(weight, i),
                                           !is_first || i != 0);
        }
        wgmma_commit();
        if (!is_first) {
            wgmma_wait<1>();
            release(Cursor{at.count - 1}.stage());
        }
        ++at.count;
    }

    __device__ __forceinline__ GemmTarget<T, Tile> target(uint32_t idx) const {
        uint32_t row_tile, col_tile;
        tiles.at(idx, row_tile, col_tile);
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t row = (row_tile * kGemmCluster + rank) * kGemmRows + threadIdx.x / 32 % 4 * 16 +
                             warpgroup * 64 + lane / 4;
        const uint32_t col = col_tile * (Held::kIsGated ? Tile::kHalf : Tile::kCols) + lane % 4 * (2 * Tile::kPairs);
        const uint32_t cols = Held::kIsGated ? p.n / 2 : p.n;
        return {static_cast<T*>(p.out) + uint64_t{row} * cols + col, int(p.rows) - int(row), int(cols) - int(col)};
    }

    __device__ void run() {
        const uint32_t steps = ceil_div(p.k, kGemmDepth);
        Held held{Held::kIsGated ? p.n / 2 : p.n};
        for (uint32_t idx = blockIdx.x / kGemmCluster; idx < tiles.count(); idx += gridDim.x / kGemmCluster) {
            fence_registers(d);
#pragma unroll
            for (int c = 0; c < Tile::kChunks; ++c) {
                step(c == 0);
                held.store(c);
            }
            for (uint32_t i = Tile::kChunks; i < steps; ++i) step(false);
            const GemmTarget<T, Tile> done = target(idx);
            wgmma_wait<0>();
            fence_registers(d);
            release(Cursor{at.count - 1}.stage());
            held.take(d, done);
        }
#pragma unroll
        for (int c = 0; c < Tile::kChunks; ++c) held.store(c);
    }
};

template <typename T, typename Tile, GemmEpilogue kEpilogue>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm_kernel(const __grid_constant__ msgl_gemm_params p, const __grid_constant__ GemmMaps maps,
                const __grid_constant__ GemmTiles tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char gemm_shared[];
    const GemmShared<Tile> shared{shared_address(gemm_shared)};
    const uint32_t rank = cluster_rank();
    if (threadIdx.x == 0) shared.init();
    __syncwarp();
    cluster_arrive();
    cluster_wait();
    grid_wait();
    grid_launch_next();
    if (threadIdx.x < 128) {
        release_registers<kGemmProducerRegisters>();
        if (threadIdx.x < 32 && elect_one()) fetch_gemm(p, maps, tiles, shared, rank);
    } else {
        claim_registers<kGemmConsumerRegisters>();
        GemmConsumer<T, Tile, kEpilogue>{p, tiles, shared, rank, threadIdx.x / 128 - 1}.run();
    }
#endif
}

}  // namespace msgl
