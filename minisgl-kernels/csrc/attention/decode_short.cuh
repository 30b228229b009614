// `fi` with rotation and KV store for few sequences of short contexts, one token each: a cluster for every job.
//
// The time is a chain of latencies, from the end of the projection to the last store, so all that needs nothing of the
// projection comes before it has ended: the sequence, its pages, the first pieces of K and V, norms and angles, the
// barriers of the cluster, and every address. Behind it: the rows of the new token are normed and rotated, each by one
// warp, and taken from shared memory by all; each warp multiplies its pieces (decode_head.cuh); the CTAs of the cluster
// add up their rows (short_exchange.cuh).
//
// What is read early may be: within a recorded step no other kernel writes the lengths, the page table, or K and V of
// this layer; what earlier steps and the upload of this one wrote was there before the first kernel of this step
// started, which waits for them like any launch without the attribute. The slot of the new position is copied too,
// whatever it holds, and its copy is replaced.
#pragma once
#include "decode_reader.cuh"
#include "ptx/grid.cuh"
#include "rope_row.cuh"
#include "short_exchange.cuh"

namespace msgl {

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
    static constexpr int kNewStride = k_row_stride(Decode::kHeadBytes);
    static constexpr int kNewBytes = kNewRows * kNewStride;
    static constexpr int kSharedBytes = kRingBytes + kNewBytes + Decode::kClusterBytes;
};

// The copies of a warp's pieces.
template <typename T, int kHeadDim>
struct ShortReader {
    using Decode = DecodeShape<kHeadDim>;
    using Shape = ShortShape<kHeadDim>;

    const msgl_attention_params& params;
    const JobCursor& cursor;
    const JobSizes& sizes;
    uint32_t ring, barriers, bytes;  // of the warp: its stages, their barriers, what a row of them has

    // The slot of row lane % 16 of a piece.
    __device__ uint32_t look_up(uint32_t piece) const {
        return piece < cursor.piece_end ? piece_slot(params, cursor, sizes, piece) : 0;
    }

    __device__ void copy(int stage, uint32_t slot) const {
        copy_piece_rows<Decode>(stage_address(stage), barriers + stage * 8,
                                static_cast<const T*>(params.k) + cursor.first_head * kHeadDim,
                                static_cast<const T*>(params.v) + cursor.first_head * kHeadDim,
                                sizes.num_kv_heads * kHeadDim, slot, bytes);
    }

    __device__ uint32_t stage_address(int stage) const { return ring + stage * Decode::kStageBytes; }
};

// The rows of the new token that are a lane's in a pass: queries, and in the cluster's last CTA keys and values.
template <typename T, int kHeadDim>
struct ShortNewRow {
    using Shape = ShortShape<kHeadDim>;
    using Row = RopeRow<T, kHeadDim>;
    static constexpr uint32_t kPassRows = Shape::kWarps * Row::kRowsAtOnce;
    static constexpr int kPasses = (Shape::kMergeRows + Shape::kHeads + kPassRows - 1) / kPassRows;

    bool exists, is_query;
    uint32_t to;    // in shared memory
    const T* from;  // in qkv
    T* k;           // where a key is stored, or null
    T* v;

    // The warp's first row of a pass.
    __device__ static uint32_t first_of_warp(int pass) {
        return pass * kPassRows + threadIdx.x / 32 * Row::kRowsAtOnce;
    }

    __device__ void turn(Row row, const Row& value, const msgl_rope_store_kv_params& rope, const Row& q_norm,
                         const Row& k_norm, float2 c, float2 s) const {
        const bool has_norm = (is_query ? rope.q_norm : rope.k_norm) != nullptr;
        const Row norm = {is_query ? q_norm.low : k_norm.low, is_query ? q_norm.high : k_norm.high};
        row.turn(has_norm, norm, rope.eps, c, s);
        if (!exists) return;
        row.store_shared(to);
        if (is_query) return;
        value.store_shared(to + Shape::kHeads * Shape::kNewStride);
        if (k != nullptr) {
            row.store(k);
            value.store(v);
        }
    }
};

// Puts the new key in its place of the last piece, at `stage`, and the new value there and in place of every copy of
// it (piece_slot), as the position has it in these: a weight of 0 makes no 0 of a NaN.
template <int kHeadDim>
__device__ __forceinline__ void put_new_rows(uint32_t new_rows, uint32_t stage, uint32_t newest, uint32_t window,
                                             uint32_t num_heads) {
    using Decode = DecodeShape<kHeadDim>;
    using Shape = ShortShape<kHeadDim>;
    constexpr uint32_t kChunks = Decode::kHeadBytes / 16;
    static_assert(Shape::kHeads * kChunks == 16, "two rows of a piece in a warp");
    const uint32_t lane = threadIdx.x % 32, head = lane % 16 / kChunks, at = lane % kChunks * 16;
    if (head < num_heads) {
        const uint32_t from = new_rows + (Shape::kMergeRows + head) * Shape::kNewStride + at;
        const uint4 value = load_shared_16(from + Shape::kHeads * Shape::kNewStride);
        const uint32_t to = stage + head * Decode::kHeadBytes + at, row = newest % kPieceTokens;
        if (lane < 16) store_shared_16(to + row * Decode::kKStride, load_shared_16(from));
        const uint32_t first = first_visible(newest, window) == newest ? 0 : row;
        for (uint32_t i = first + lane / 16; i < kPieceTokens; i += 2) {
            store_shared_16(to + Decode::kVOffset + i * Decode::kVStride, value);
        }
    }
    __syncwarp();
}

template <typename T, int kHeadDim>
__device__ __forceinline__ void decode_short(const msgl_attention_params& params,
                                             const msgl_rope_store_kv_params& rope) {
    using Decode = DecodeShape<kHeadDim>;
    using Shape = ShortShape<kHeadDim>;
    using Head = DecodeHead<T, kHeadDim>;
    using Row = RopeRow<T, kHeadDim>;
    using NewRow = ShortNewRow<T, kHeadDim>;
    using Exchange = ShortExchange<T, kHeadDim>;
    extern __shared__ __align__(128) char dynamic_shared[];
    __shared__ float2 stats[Shape::kWarps * Shape::kMergeRows];
    __shared__ uint64_t barriers[Shape::kWarps * Shape::kDepth];
    __shared__ uint64_t received_barrier;
    // The same in all lanes, which the compiler shall know.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
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
    const uint32_t num_rows = min(sizes.group - cursor.first_row, kJobRows), num_heads = cursor.num_heads(sizes);

    const Exchange exchange(num_ctas, rank, num_heads, num_rows);
    const uint32_t ring = shared_address(dynamic_shared), new_rows = ring + Shape::kRingBytes;
    const uint32_t received = new_rows + Shape::kNewBytes, received_full = shared_address(&received_barrier);
    if (threadIdx.x < Shape::kWarps * Shape::kDepth) mbarrier_init(shared_address(&barriers[threadIdx.x]), 1);
    if (threadIdx.x == 0) mbarrier_init(received_full, 1);
    mbarrier_init_fence();
    __syncthreads();
    // Behind the barrier, since racecheck takes a uniform instruction for one of the warp's last lane.
    if (threadIdx.x == 0) mbarrier_arrive_expect(received_full, exchange.received_bytes());
    if (cursor.seq.q_len == 0 || cursor.seq.kv_len == 0) {
        grid_wait();
        return;
    }
    cluster_arrive_relaxed();

    // An even share of its pieces; short jobs leave CTAs without one, but the last has the newest position's.
    const uint32_t first = first_piece(cursor.seq, sizes.window), pieces = pieces_per_job(cursor.seq, sizes.window);
    cursor.piece = first + pieces * rank / num_ctas;
    cursor.piece_end = first + pieces * (rank + 1) / num_ctas;
    const bool has_new = rank + 1 == num_ctas;
    const uint32_t first_of_warp = cursor.piece + warp;
    const ShortReader<T, kHeadDim> reader = {params,
                                             cursor,
                                             sizes,
                                             ring + warp * Shape::kWarpBytes,
                                             shared_address(&barriers[warp * Shape::kDepth]),
                                             num_heads * Decode::kHeadBytes};
    uint32_t slots[Shape::kDepth];
#pragma unroll
    for (int i = 0; i < Shape::kDepth; ++i) slots[i] = reader.look_up(first_of_warp + i * Shape::kWarps);

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
        if (first_of_warp + i * Shape::kWarps < cursor.piece_end) reader.copy(i, slots[i]);
    }

    const uint32_t num_queries = num_heads * num_rows, num_new = num_queries + (has_new ? num_heads : 0);
    const size_t token = size_t{cursor.seq.q_start} * (rope.num_heads + 2 * rope.num_kv_heads) * kHeadDim;
    const uint32_t first_query = cursor.first_head * sizes.group + cursor.first_row;
    NewRow new_row[NewRow::kPasses];
#pragma unroll
    for (int pass = 0; pass < NewRow::kPasses; ++pass) {
        NewRow& row = new_row[pass];
        const uint32_t item = NewRow::first_of_warp(pass) + lane / Row::kLanes;
        row.exists = item < num_new;
        row.is_query = item < num_queries;
        const uint32_t head = row.is_query ? item / num_rows : item - num_queries;
        const uint32_t of_head = row.is_query ? first_query + head * sizes.group + item % num_rows
                                              : rope.num_heads + cursor.first_head + head;
        row.from = static_cast<const T*>(params.qkv) + token + of_head * kHeadDim;
        row.to = new_rows + (row.is_query ? head * kJobRows + item % num_rows : Shape::kMergeRows + head) *
                                Shape::kNewStride;
        keep(row.from);
        keep(row.to);
        // Where a KV head has several tiles of query rows, the first stores.
        const bool is_stored = cursor.first_row == 0 && new_slot < rope.num_slots;
        const size_t to = (size_t{new_slot} * rope.num_kv_heads + cursor.first_head + head) * kHeadDim;
        row.k = is_stored ? static_cast<T*>(rope.k) + to : nullptr;
        row.v = is_stored ? static_cast<T*>(rope.v) + to : nullptr;
    }
    Head heads[Shape::kHeads];
#pragma unroll
    for (int h = 0; h < Shape::kHeads; ++h) heads[h].start(cursor.seq, sizes);
    const uint32_t warp_stats = shared_address(stats);
    auto sent = exchange.sent(threadIdx.x, ring, warp_stats, received, received_full);
    sent.compute_now();
    T* out = static_cast<T*>(params.out) +
             (size_t{cursor.seq.q_start} * params.sizes.num_heads + first_query) * kHeadDim;
    auto stored = exchange.stored(threadIdx.x, received, out, sizes.group);
    stored.compute_now();
    cluster_wait();
    grid_wait();

    Row rows[NewRow::kPasses], values[NewRow::kPasses];
#pragma unroll
    for (int pass = 0; pass < NewRow::kPasses; ++pass) {
        rows[pass] = values[pass] = {};
        if (NewRow::first_of_warp(pass) >= num_new) break;
        const NewRow& row = new_row[pass];
        if (row.exists) rows[pass] = Row::load(row.from);
        if (row.exists && !row.is_query) values[pass] = Row::load(row.from + rope.num_kv_heads * kHeadDim);
    }
#pragma unroll
    for (int pass = 0; pass < NewRow::kPasses; ++pass) {
        if (NewRow::first_of_warp(pass) >= num_new) break;
        new_row[pass].turn(rows[pass], values[pass], rope, q_norm, k_norm, c, s);
    }
    __syncthreads();

    const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < Shape::kHeads; ++h) {
#pragma unroll
        for (int i = 0; i < Head::kKChunks; ++i) {
            const bool is_query = g < num_rows && h < num_heads;
            const uint32_t from = new_rows + (h * kJobRows + g) * Shape::kNewStride + 16 * Decode::Rows::k_chunk(i, t);
            heads[h].q[i] = is_query ? load_shared_16(from) : uint4{};
        }
    }
    const float scale_log2 = params.scale * kLog2E;
    uint32_t parity = 0;
    int stage = 0;
#pragma unroll 1
    for (uint32_t piece = first_of_warp; piece < cursor.piece_end; piece += Shape::kWarps) {
        const uint32_t piece_rows = reader.stage_address(stage), next = piece + Shape::kDepth * Shape::kWarps;
        mbarrier_wait(reader.barriers + stage * 8, parity);
        __syncwarp();
        if (has_new && piece + 1 == cursor.piece_end) {
            put_new_rows<kHeadDim>(new_rows, piece_rows, newest, sizes.window, num_heads);
        }
        uint32_t next_slot = 0;
        if (next < cursor.piece_end) next_slot = reader.look_up(next);
        attend(heads, Decode::k_rows(piece_rows), Decode::v_rows(piece_rows), piece, scale_log2);
        __syncwarp();
        if (next < cursor.piece_end) reader.copy(stage, next_slot);
        if (++stage == Shape::kDepth) {
            stage = 0;
            parity ^= 1;
        }
    }

    // The warp's stages are free.
    float* warp_rows = reinterpret_cast<float*>(dynamic_shared + warp * Shape::kWarpBytes);
#pragma unroll
    for (int h = 0; h < Shape::kHeads; ++h) {
        if (h >= num_heads) continue;
        heads[h].finish_sums();
        heads[h].store_partial(warp_rows + h * kJobRows * Decode::kMergeStride, Decode::kMergeStride,
                               stats + warp * Shape::kMergeRows + h * kJobRows, num_rows);
    }
    __syncthreads();
    if (threadIdx.x < exchange.units) exchange.template send<Shape::kWarps>(sent, Shape::kWarpBytes);
#pragma unroll 1
    for (uint32_t unit = threadIdx.x + Shape::kThreads; unit < exchange.units; unit += Shape::kThreads) {
        const auto more = exchange.sent(unit, ring, warp_stats, received, received_full);
        exchange.template send<Shape::kWarps>(more, Shape::kWarpBytes);
    }
    mbarrier_wait(received_full, 0);
    static_assert(Decode::kClusterUnits <= 2 * Shape::kThreads, "a share of two CTAs is a unit for each thread");
    if (threadIdx.x < exchange.own_units) exchange.store(stored);
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(ShortShape<kHeadDim>::kThreads, 3)
    decode_short_kernel(const __grid_constant__ msgl_rope_attention_params params) {
#if __CUDA_ARCH__ >= 900
    decode_short<T, kHeadDim>(params.attention, params.rope);
#endif
}

}  // namespace msgl
