// `fi` with rotation and KV store for few sequences of short contexts, one token each: a cluster for every job.
//
// The time is a chain of latencies, from the end of the projection to the last store, so all that needs nothing of the
// projection comes before it has ended: the sequence, its pages, the first pieces of K and V, norms and angles, the
// barriers of the cluster. Behind it: the rows of the new token are normed and rotated, each by one warp, and taken from
// shared memory by all; each warp multiplies its pieces (decode_head.cuh); each CTA adds up its warps and sends its
// rows, in equal shares, to the CTAs of the cluster, which add up theirs in the order of the ranks. What is sent is
// counted on a barrier of its receiver, so nobody waits for a fence.
//
// What is read early may be: within a recorded step no other kernel writes the lengths, the page table, or K and V of
// this layer; what earlier steps and the upload of this one wrote was there before the first kernel of this step
// started, which waits for them like any launch without the attribute. The slot of the new position is copied too,
// whatever it holds, and its copy is replaced.
#pragma once
#include "decode_head.cuh"
#include "decode_rope_row.cuh"
#include "decode_shape.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid.cuh"
#include "ptx/mbarrier.cuh"

namespace msgl {

#ifndef STAMP
#define STAMP(i)
#endif

template <int kHeadDim>
struct ShortShape {
    using Decode = DecodeShape<kHeadDim>;
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kDepth = 2;
    static constexpr int kHeads = Decode::kHeads;
    static constexpr int kMergeRows = Decode::kMergeRows;
    // A warp's stages, and its rows for merging in their place.
    static constexpr int kWarpBytes = kDepth * Decode::kStageBytes;
    static_assert(kMergeRows * Decode::kMergeStride * 4 <= kWarpBytes, "rows fit where pieces were");
    static constexpr int kRingBytes = kWarps * kWarpBytes;
    // Rows of the new token on their way: queries, then keys, then values.
    static constexpr int kNewRows = kMergeRows + 2 * kHeads;
    static constexpr int kNewBytes = kNewRows * Decode::kTurnedStride;
    // Four elements with their (maximum, sum) for each of these units, as many as a job can have.
    static constexpr int kUnits = Decode::kClusterUnits;
    static constexpr int kSharedBytes = kRingBytes + kNewBytes + Decode::kClusterBytes;
};

// Four neighbouring elements of a query row of a job.
struct ClusterUnit {
    uint32_t head, row, dim;

    __device__ ClusterUnit(uint32_t unit, uint32_t rows, uint32_t parts)
        : head(unit / parts / rows), row(unit / parts % rows), dim(unit % parts * 4) {}
};

// The weighted mean's parts of `count` rows, at most `kMost`: their common maximum first, so that no step of the chain
// but a multiplication waits for the one before.
template <int kMost, typename LoadStats, typename LoadRow>
__device__ __forceinline__ RowSum add_rows(uint32_t count, const LoadStats& load_stats, const LoadRow& load_row) {
    float2 stats[kMost];
    float4 rows[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        stats[i] = i < count ? load_stats(i) : make_float2(kNoMaximum, 0.0f);
        rows[i] = i < count ? load_row(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    RowSum total;
#pragma unroll
    for (int i = 0; i < kMost; ++i) total.maximum = fmaxf(total.maximum, stats[i].x);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        const float factor = exp2_approx(stats[i].x - total.maximum);
        total.sum += stats[i].y * factor;
        total.out.x += rows[i].x * factor;
        total.out.y += rows[i].y * factor;
        total.out.z += rows[i].z * factor;
        total.out.w += rows[i].w * factor;
    }
    return total;
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void decode_short(const msgl_attention_params& params,
                                             const msgl_rope_store_kv_params& rope) {
    using Decode = DecodeShape<kHeadDim>;
    using Shape = ShortShape<kHeadDim>;
    using Head = DecodeHead<T, kHeadDim>;
    using Row = RopeRow<T, kHeadDim>;
    constexpr uint32_t kParts = kHeadDim / 4, kPassRows = Shape::kWarps * Row::kRowsAtOnce;
    constexpr int kPasses = (Shape::kMergeRows + Shape::kHeads + kPassRows - 1) / kPassRows;
    extern __shared__ __align__(128) char dynamic_shared[];
    __shared__ float2 stats[Shape::kWarps * Shape::kMergeRows];
    __shared__ uint64_t barriers[Shape::kWarps * Shape::kDepth];
    __shared__ uint64_t received_barrier;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    STAMP(0);
    grid_launch_next();

    // The job of this cluster.
    const JobSizes sizes(params.sizes);
    const uint32_t num_ctas = params.sizes.cluster_ctas, rank = cluster_rank();
    const uint32_t tiles = div_up(sizes.group, kJobRows);
    const uint32_t jobs_per_seq = div_up(sizes.num_kv_heads, sizes.heads_per_job) * tiles;
    const uint32_t cluster = blockIdx.x / num_ctas, seq_idx = cluster / jobs_per_seq, job = cluster % jobs_per_seq;
    JobCursor cursor;
    cursor.seq.q_start = __ldg(params.cu_q_lens + seq_idx);
    cursor.seq.q_len = __ldg(params.cu_q_lens + seq_idx + 1) - cursor.seq.q_start;
    cursor.seq.kv_len = __ldg(params.kv_lens + seq_idx);
    cursor.seq.row = __ldg(params.seq_rows + seq_idx);
    cursor.first_head = job / tiles * sizes.heads_per_job;
    cursor.first_row = job % tiles * kJobRows;

    // What this CTA receives.
    const uint32_t num_rows = min(sizes.group - cursor.first_row, kJobRows), num_heads = cursor.num_heads(sizes);
    const uint32_t units = num_heads * num_rows * kParts, share = div_up(units, num_ctas);
    const uint32_t own_units = min(units - min(units, rank * share), share);
    const uint32_t received = shared_address(&received_barrier), ring = shared_address(dynamic_shared);
    if (threadIdx.x < Shape::kWarps * Shape::kDepth) mbarrier_init(shared_address(&barriers[threadIdx.x]), 1);
    if (threadIdx.x == 0) mbarrier_init(received, 1);
    mbarrier_init_fence();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(received, own_units * num_ctas * (sizeof(float4) + sizeof(float2)));
    }
    __syncthreads();
    if (cursor.seq.q_len == 0 || cursor.seq.kv_len == 0) {
        grid_wait();
        return;
    }
    cluster_arrive_relaxed();

    const uint32_t first = first_piece(cursor.seq, sizes.window), pieces = pieces_per_job(cursor.seq, sizes.window);
    cursor.piece = first + pieces * rank / num_ctas;
    cursor.piece_end = first + pieces * (rank + 1) / num_ctas;
    const uint32_t first_of_warp = cursor.piece + warp;
    const uint32_t warp_ring = ring + warp * Shape::kWarpBytes;
    const uint32_t bytes = num_heads * Decode::kHeadBytes;
    uint32_t slots[Shape::kDepth];
    const auto look_up = [&](uint32_t piece) {
        return piece < cursor.piece_end ? piece_slot(params, cursor, sizes, piece) : 0;
    };
    const auto copy = [&](int stage, uint32_t slot) {
        const uint32_t to = warp_ring + stage * Decode::kStageBytes;
        const uint32_t barrier = shared_address(&barriers[warp * Shape::kDepth + stage]);
        if (lane == 0) mbarrier_arrive_expect(barrier, 2 * kPieceTokens * bytes);
        __syncwarp();
        const uint32_t row = lane % kPieceTokens;
        const bool is_k = lane < kPieceTokens;
        const T* from = static_cast<const T*>(is_k ? params.k : params.v) +
                        (size_t{slot} * sizes.num_kv_heads + cursor.first_head) * kHeadDim;
        bulk_copy(to + (is_k ? row * Decode::kKStride : Decode::kVOffset + row * Decode::kVStride), from, bytes,
                  barrier, kEvictFirst);
    };
#pragma unroll
    for (int i = 0; i < Shape::kDepth; ++i) slots[i] = look_up(first_of_warp + i * Shape::kWarps);
    STAMP(1);

    // Norms and angles of the lane's elements.
    Row q_norm = {}, k_norm = {};
    if (rope.q_norm != nullptr) q_norm = Row::load(static_cast<const T*>(rope.q_norm));
    if (rope.k_norm != nullptr) k_norm = Row::load(static_cast<const T*>(rope.k_norm));
    const uint32_t newest = cursor.seq.kv_len - 1;
    const float* angles = rope.rope + size_t{min(newest, rope.max_position - 1)} * kHeadDim + 2 * Row::lane();
    const float2 c = __ldg(reinterpret_cast<const float2*>(angles));
    const float2 s = __ldg(reinterpret_cast<const float2*>(angles + Row::kHalf));
    const uint32_t new_slot = __ldg(rope.slots + cursor.seq.q_start);
#pragma unroll
    for (int i = 0; i < Shape::kDepth; ++i) {
        if (first_of_warp + i * Shape::kWarps < cursor.piece_end) copy(i, slots[i]);
    }

    // The rows of the new token that are this lane's, a pass at a time: queries, and in the last CTA keys and values.
    const bool has_new = rank + 1 == num_ctas;
    const uint32_t new_shared = ring + Shape::kRingBytes;
    const uint32_t num_queries = num_heads * num_rows, num_new = num_queries + (has_new ? num_heads : 0);
    const uint32_t num_all = rope.num_heads + 2 * rope.num_kv_heads;
    const T* token = static_cast<const T*>(params.qkv) + size_t{cursor.seq.q_start} * num_all * kHeadDim;
    uint32_t column[kPasses], to_row[kPasses];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
        const uint32_t item = pass * kPassRows + warp * Row::kRowsAtOnce + lane / Row::kLanes;
        const uint32_t head = item < num_queries ? item / num_rows : item - num_queries, row = item % num_rows;
        const bool is_query = item < num_queries;
        column[pass] = (is_query ? (cursor.first_head + head) * sizes.group + cursor.first_row + row
                                 : rope.num_heads + cursor.first_head + head) *
                       kHeadDim;
        to_row[pass] = is_query ? head * kJobRows + row : Shape::kMergeRows + head;
    }
    // Where the unit that this thread sends first, and the one that it stores first, lie.
    const ClusterUnit sent(threadIdx.x, num_rows, kParts);
    const uint32_t sent_owner = threadIdx.x / share, sent_at = rank * share + threadIdx.x % share;
    const ClusterUnit stored(rank * share + threadIdx.x, num_rows, kParts);
    char* received_shared = dynamic_shared + Shape::kRingBytes + Shape::kNewBytes;
    float4* received_rows = reinterpret_cast<float4*>(received_shared);
    float2* received_stats = reinterpret_cast<float2*>(received_shared + Shape::kUnits * sizeof(float4));
    cluster_wait();
    STAMP(2);
    grid_wait();
    STAMP(3);

    Row rows[kPasses], values[kPasses];
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
        const uint32_t item = pass * kPassRows + warp * Row::kRowsAtOnce + lane / Row::kLanes;
        rows[pass] = values[pass] = {};
        if (item < num_new) rows[pass] = Row::load(token + column[pass]);
        if (item >= num_queries && item < num_new) {
            values[pass] = Row::load(token + column[pass] + rope.num_kv_heads * kHeadDim);
        }
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
        // The first lane's item is the lowest of the warp.
        if (pass * kPassRows + warp * Row::kRowsAtOnce >= num_new) break;
        const uint32_t item = pass * kPassRows + warp * Row::kRowsAtOnce + lane / Row::kLanes;
        const bool is_query = item < num_queries;
        const bool has_norm = (is_query ? rope.q_norm : rope.k_norm) != nullptr;
        rows[pass].turn(has_norm, is_query ? q_norm : k_norm, rope.eps, c, s);
        if (item >= num_new) continue;
        rows[pass].store_shared(new_shared + to_row[pass] * Decode::kTurnedStride);
        if (!is_query) {
            values[pass].store_shared(new_shared + (to_row[pass] + Shape::kHeads) * Decode::kTurnedStride);
            // Where a KV head has several tiles of query rows, the first stores.
            if (cursor.first_row == 0 && new_slot < rope.num_slots) {
                const size_t to =
                    (size_t{new_slot} * rope.num_kv_heads + cursor.first_head + item - num_queries) * kHeadDim;
                rows[pass].store(static_cast<T*>(rope.k) + to);
                values[pass].store(static_cast<T*>(rope.v) + to);
            }
        }
    }
    STAMP(4);
    __syncthreads();
    STAMP(5);

    Head heads[Shape::kHeads];
    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < Shape::kHeads; ++h) {
        uint4 queries[Head::kKChunks];
#pragma unroll
        for (int i = 0; i < Head::kKChunks; ++i) {
            const bool is_query = g < num_rows && h < num_heads;
            const uint32_t from =
                new_shared + (h * kJobRows + g) * Decode::kTurnedStride + (32 * i + 8 * t) * sizeof(T);
            queries[i] = is_query ? load_shared_16(from) : uint4{};
        }
        heads[h].start(queries, cursor, sizes);
    }
    const float scale_log2 = params.scale * kLog2E;
    uint32_t parity = 0;
    int stage = 0;
    for (uint32_t piece = first_of_warp; piece < cursor.piece_end; piece += Shape::kWarps) {
        const uint32_t next = piece + Shape::kDepth * Shape::kWarps;
        const uint32_t next_slot = look_up(next);
        const uint32_t rows_at = warp_ring + stage * Decode::kStageBytes;
        mbarrier_wait(shared_address(&barriers[warp * Shape::kDepth + stage]), parity);
        __syncwarp();
        if (has_new && piece + 1 == cursor.piece_end) {
            // Every copy of the position's row (piece_slot).
            const bool is_alone = first_visible(newest, sizes.window) == newest;
            const uint32_t first_row = is_alone ? 0 : newest % kPieceTokens;
            const uint32_t words = num_heads * (kHeadDim / 2);
            for (uint32_t i = lane; i < words; i += 32) {
                const uint32_t h = i / (kHeadDim / 2), at = i % (kHeadDim / 2) * 4;
                const uint32_t from = new_shared + (Shape::kMergeRows + h) * Decode::kTurnedStride + at;
                const uint32_t key = load_shared_4(from);
                const uint32_t value = load_shared_4(from + Shape::kHeads * Decode::kTurnedStride);
                for (uint32_t row = first_row; row < kPieceTokens; ++row) {
                    store_shared_4(rows_at + row * Decode::kKStride + h * Decode::kHeadBytes + at, key);
                    store_shared_4(rows_at + Decode::kVOffset + row * Decode::kVStride + h * Decode::kHeadBytes + at,
                                   value);
                }
            }
            __syncwarp();
        }
        attend(heads, rows_at, Decode::kKStride, rows_at + Decode::kVOffset, Decode::kVStride, piece, scale_log2);
        __syncwarp();
        if (next < cursor.piece_end) copy(stage, next_slot);
        if (++stage == Shape::kDepth) {
            stage = 0;
            parity ^= 1;
        }
    }
    STAMP(6);

    // The warp's stages are free.
    const auto rows_of = [&](uint32_t w) { return reinterpret_cast<float*>(dynamic_shared + w * Shape::kWarpBytes); };
#pragma unroll
    for (int h = 0; h < Shape::kHeads; ++h) {
        if (h >= num_heads) continue;
        heads[h].finish_sums();
        heads[h].store_partial(rows_of(warp) + h * kJobRows * Decode::kMergeStride, Decode::kMergeStride,
                               stats + warp * Shape::kMergeRows + h * kJobRows, num_rows);
    }
    __syncthreads();
    STAMP(7);
    const auto send = [&](const ClusterUnit& unit, uint32_t owner, uint32_t at) {
        const uint32_t row = unit.head * kJobRows + unit.row;
        const RowSum sum = add_rows<Shape::kWarps>(
            Shape::kWarps, [&](uint32_t w) { return stats[w * Shape::kMergeRows + row]; },
            [&](uint32_t w) {
                return *reinterpret_cast<const float4*>(rows_of(w) + row * Decode::kMergeStride + unit.dim);
            });
        const uint32_t barrier = cluster_address(received, owner);
        store_async(cluster_address(shared_address(received_rows + at), owner), sum.out, barrier);
        store_async(cluster_address(shared_address(received_stats + at), owner), sum.maximum, sum.sum, barrier);
    };
    if (threadIdx.x < units) send(sent, sent_owner, sent_at);
    for (uint32_t unit = threadIdx.x + Shape::kThreads; unit < units; unit += Shape::kThreads) {
        send(ClusterUnit(unit, num_rows, kParts), unit / share, rank * share + unit % share);
    }
    STAMP(8);
    mbarrier_wait(received, 0);
    STAMP(9);
    const auto store = [&](const ClusterUnit& unit, uint32_t i) {
        const RowSum sum = add_rows<8>(
            num_ctas, [&](uint32_t from) { return received_stats[from * share + i]; },
            [&](uint32_t from) { return received_rows[from * share + i]; });
        store_row4(out_row<T, kHeadDim>(params, cursor, sizes, unit.head, unit.row) + unit.dim, sum.out,
                   1.0f / sum.sum);
    };
    if (threadIdx.x < own_units) store(stored, threadIdx.x);
    for (uint32_t i = threadIdx.x + Shape::kThreads; i < own_units; i += Shape::kThreads) {
        store(ClusterUnit(rank * share + i, num_rows, kParts), i);
    }
    STAMP(10);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(ShortShape<kHeadDim>::kThreads, 3)
    decode_short_kernel(const __grid_constant__ msgl_rope_attention_params params) {
#if __CUDA_ARCH__ >= 900
    decode_short<T, kHeadDim>(params.attention, params.rope);
#endif
}

}  // namespace msgl
