// `fa` on Hopper: prefill over pages with wgmma (after Shah et al. 2024, FlashAttention-3).
//
// Bound by the tensor cores on long prompts. A CTA stays on its SM and draws tiles in the plan's order until none is
// left. Its first warpgroup fetches queries, K and V (prefill_load.cuh); each of the others owns 64 rows of
// the tile. Rows are (token, head of the group) pairs, as in prefill.cuh.
//
// Two things overlap with a warpgroup's softmax: its own product of the weights before with V, which is issued
// together with the next Q K^T; and the products of the other warpgroup, since they take turns at issuing.
//
// KV tiles begin at multiples of kCols positions of the sequence, so that a row is summed in the same order however
// its prompt is cut into tiles and chunks.
#pragma once
#include <climits>
#include <type_traits>

#include "prefill_load.cuh"
#include "ptx/grid.cuh"
#include "ptx/warpgroup.cuh"

namespace msgl {

constexpr uint32_t kNoRow = ~0u;

// What a consumer thread keeps of its rows g and g + 8.
struct RowStats {
    int last_visible[2];
    float maximum[2];
    float sum[2];
};

// Turns scores into weights and gives the factors by which what was summed before has to shrink.
template <int kTiles>
__device__ __forceinline__ void softmax_step(float (&s)[kTiles][4], RowStats& row, float (&factor)[2],
                                             float scale_log2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float largest = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
        for (int n = 1; n < kTiles; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const float raised = fmaxf(row.maximum[h], largest * scale_log2);
        factor[h] = exp2_approx(row.maximum[h] - raised);
        row.maximum[h] = raised;
        float added = 0.0f;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; ++i) {
                s[n][i] = exp2_approx(s[n][i] * scale_log2 - raised);
                added += s[n][i];
            }
        }
        row.sum[h] = row.sum[h] * factor[h] + added;
    }
}

template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&s)[kTiles][4], const RowStats& row, int base, int window) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int position = base + n * 8 + 2 * t + i % 2, last = row.last_visible[i / 2];
            if (position > last || position <= last - window) s[n][i] = -INFINITY;
        }
    }
}

// Weights as the A operand of the second product.
template <typename T, int kSteps>
__device__ __forceinline__ void pack_weights(const float (&s)[2 * kSteps][4], uint32_t (&p)[kSteps][4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float(&pair)[4] = s[2 * step + i / 2];
            p[step][i] = pack_pair<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
    }
}

// Swaps words among the four threads of a row so that thread t has the pairs of column tile t from all four.
__device__ __forceinline__ uint4 gather_tile(uint32_t (&x)[4]) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
        if (odd) x[i] = other; else x[i + 1] = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
        if (high) x[i] = other; else x[i + 2] = other;
    }
    return make_uint4(x[0], x[1], x[2], x[3]);
}

template <typename Shape>
struct PrefillConsumer {
    using T = typename Shape::Element;
    using Matrix = typename Shape::Matrix;
    static constexpr int kCols = Shape::kCols, kHeadDim = Shape::kHeadDim;
    static constexpr int kScoreTiles = kCols / 8, kSteps = kCols / 16;

    const msgl_attention_params& params;
    const PrefillShared<Shape> shared;
    const PrefillTile* const tiles;
    const uint32_t warpgroup;  // of the consumers

    RingCursor<Shape::kQStages> at_q;
    RingCursor<Shape::kStages> at_k;  // V is one behind
    // Of the tile whose scores are computed.
    int base, end;
    int first_whole, end_whole;  // positions that every row sees
    RowStats row;
    uint32_t out_row[2];  // of `params.out` as [num_tokens * num_heads, head_dim]

    float s[kScoreTiles][4];
    float out[kHeadDim / 8][4];
    uint32_t p[kSteps][4];
    float factor[2];

    // s = Q K^T, begun.
    __device__ __forceinline__ void begin_scores() {
        mbarrier_wait(shared.full_kv(0, at_k.stage()), at_k.parity());
        const uint32_t q = shared.q(at_q.stage()) + warpgroup * 8 * Matrix::kEightRowsBytes;
        const uint32_t k = shared.kv(0, at_k.stage());
        fence_registers(s);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            Wgmma<T, kScoreTiles>::shared_a(s, Matrix::columns(q, step), Matrix::columns(k, step), step != 0);
        }
        wgmma_commit();
    }

    // out (+)= P V, begun.
    __device__ __forceinline__ void begin_values(bool add) {
        const RingCursor<Shape::kStages> at_v{at_k.count - 1};
        mbarrier_wait(shared.full_kv(1, at_v.stage()), at_v.parity());
        const uint32_t v = shared.kv(1, at_v.stage());
        fence_registers(out);
        fence_registers(p);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            Wgmma<T, kHeadDim / 8>::register_a(out, p[step], Matrix::rows(v, step), step != 0 || add);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void end_scores() {
        fence_registers(s);
        arrive_warp(shared.empty_kv(0, at_k.stage()));
    }

    __device__ __forceinline__ void end_values() {
        fence_registers(out);
        arrive_warp(shared.empty_kv(1, RingCursor<Shape::kStages>{at_k.count - 1}.stage()));
    }

    // Turns scores into weights.
    __device__ __forceinline__ void weigh() {
        if (base < first_whole || base + kCols > end_whole) {
            const uint32_t window = params.sizes.window;
            mask_scores(s, row, base, window == 0 || window > INT_MAX ? INT_MAX : window);
        }
        softmax_step(s, row, factor, params.scale * kLog2E);
        base += kCols;
        if (base >= end) {
            arrive_warp(shared.empty_q(at_q.stage()));
            ++at_q.count;
        }
    }

    __device__ __forceinline__ void shrink() {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[n][i] *= factor[i / 2];
        }
    }

    // Waits for a tile; false at the end of the work.
    __device__ __forceinline__ bool next_tile() {
        mbarrier_wait(shared.full_q(at_q.stage()), at_q.parity());
        const PrefillTile& tile = tiles[at_q.stage()];
        if (tile.end == 0) return false;
        base = tile.begin;
        end = tile.end;
        first_whole = first_visible(tile.last_position, params.sizes.window);
        end_whole = tile.first_position + 1;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t idx = warpgroup * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + h * 8;
            row.last_visible[h] = tile.position(params.sizes, idx);
            row.maximum[h] = kNoMaximum;
            row.sum[h] = 0.0f;
            out_row[h] = idx < tile.rows ? tile.out_row(params.sizes, idx) : kNoRow;
        }
        return true;
    }

    // Writes rows of which `out` holds the weighted sum and `sum` this thread's part of the weights.
    __device__ __forceinline__ void store(const uint32_t (&rows)[2], const float (&sum)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float total = sum[h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float inverse = 1.0f / total;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; n += 4) {
                uint32_t words[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    words[i] = pack_pair<T>(out[n + i][2 * h] * inverse, out[n + i][2 * h + 1] * inverse);
                }
                const uint4 chunk = gather_tile(words);
                if (rows[h] != kNoRow) {
                    T* dst = static_cast<T*>(params.out) + uint64_t{rows[h]} * kHeadDim;
                    *reinterpret_cast<uint4*>(dst + (n + threadIdx.x % 4) * 8) = chunk;
                }
            }
        }
    }

    __device__ __forceinline__ void take_turn() { barrier_wait(1 + warpgroup, 256); }
    __device__ __forceinline__ void give_turn() { barrier_arrive(1 + (warpgroup + 1) % Shape::kConsumers, 256); }

    // The next scores, under which the weights of the last ones meet V. `kIsOther`: they are another tile's, and the
    // sums in `out` are complete.
    template <bool kIsOther>
    __device__ __forceinline__ void step(bool add, const uint32_t (&done_rows)[2], const float (&done_sum)[2]) {
        take_turn();
        begin_scores();
        begin_values(add);
        give_turn();
        wgmma_wait<1>();
        end_scores();
        weigh();
        wgmma_wait<0>();
        end_values();
        if constexpr (kIsOther) {
            store(done_rows, done_sum);
        } else {
            shrink();
        }
        pack_weights<T>(s, p);
        ++at_k.count;
    }

    __device__ void run() {
        if (!next_tile()) return;
        if (warpgroup == Shape::kConsumers - 1) give_turn();
        begin_scores();
        wgmma_wait<0>();
        end_scores();
        weigh();
        pack_weights<T>(s, p);
        ++at_k.count;
        for (;;) {
            bool add = false;
            for (; base < end; add = true) step<false>(add, out_row, row.sum);
            const uint32_t done_rows[2] = {out_row[0], out_row[1]};
            const float done_sum[2] = {row.sum[0], row.sum[1]};
            if (!next_tile()) {
                begin_values(add);
                wgmma_wait<0>();
                end_values();
                store(done_rows, done_sum);
                return;
            }
            step<true>(add, done_rows, done_sum);
        }
    }
};

template <typename Shape, template <typename> class Fetch>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ msgl_attention_params params, const __grid_constant__ KvMaps maps) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(1024) char prefill_shared[];
    using Producer = PrefillProducer<Shape, Fetch>;
    const PrefillShared<Shape> shared{shared_address(prefill_shared)};
    PrefillTile* const tiles = reinterpret_cast<PrefillTile*>(prefill_shared + Shape::kTileOffset);
    if (threadIdx.x == 0) shared.init(Fetch<Shape>::kArrivals);
    __syncthreads();
    grid_wait();
    grid_launch_next();
    if (threadIdx.x < 128) {
        release_registers<Shape::kProducerRegisters>();
        Producer{params, maps, shared, tiles}.run();
    } else {
        claim_registers<Shape::kConsumerRegisters>();
        PrefillConsumer<Shape>{params, shared, tiles, threadIdx.x / 128 - 1}.run();
    }
#endif
}

}  // namespace msgl
