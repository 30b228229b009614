// One KV head of a decode job in one warp: S^T = K Q^T, an online softmax, O^T += V^T P^T.
//
// A decode query is a thin matrix, so the query heads that share a KV head are packed into the N = 8 side of
// mma.m16n8k16 and 16 KV positions are its M side. Fragments are read from rows in shared memory, 16 bytes a thread,
// without ldmatrix:
//   K: an MMA may sum over the head's elements in any order, so thread t of a quad takes 8 neighbouring ones of row g
//      for two MMAs, and Q is read in the same order.
//   V: the rows of O^T may be any elements, so thread g takes 8 neighbouring ones of rows 2t, 2t + 1, 2t + 8, 2t + 9;
//      one byte permute pairs two rows. movmatrix turns P from the accumulator's layout into the operand's.
// Where the rows lie (PaddedRows, BlockRows) is such that the eight threads of a phase meet no bank twice: a phase reads 4
// chunks of 16 bytes of K from 2 rows, and 2 chunks of V from every other of 8 rows.
#pragma once
#include "job.cuh"
#include "ptx/shared.cuh"

namespace msgl {

__host__ __device__ constexpr uint32_t k_row_stride(uint32_t row_bytes) {
    return row_bytes + (row_bytes % 128 == 0 ? 64 : 0);
}

__host__ __device__ constexpr uint32_t v_row_stride(uint32_t row_bytes) { return row_bytes + 16; }

// The rows of a piece one after the other, with padding behind each.
struct PaddedRows {
    uint32_t base, stride;

    __device__ uint32_t at(uint32_t row, uint32_t byte) const { return base + row * stride + byte; }
    // From the first element of another head on.
    __device__ PaddedRows from(uint32_t byte) const { return {base + byte, stride}; }
    // The 16 bytes of K that thread t of a quad takes: its c-th of a row.
    __device__ static constexpr uint32_t k_chunk(uint32_t c, uint32_t t) { return 4 * c + t; }
};

// Blocks of 128 bytes of each of the 16 rows, as a swizzled copy leaves them: the 16-byte chunks of a block are permuted
// by the row. Begins at a multiple of 1024 bytes.
struct BlockRows {
    static constexpr uint32_t kBlockBytes = kPieceTokens * 128;
    uint32_t base;

    __device__ uint32_t at(uint32_t row, uint32_t byte) const {
        return base + byte / 128 * kBlockBytes + row * 128 + ((byte / 16 ^ row) & 7) * 16;
    }
    __device__ BlockRows from(uint32_t byte) const { return {base + byte / 128 * kBlockBytes}; }
    // Every other one of a block: the row's lowest bit exchanges the even ones with the odd ones.
    __device__ static constexpr uint32_t k_chunk(uint32_t c, uint32_t t) { return c / 2 * 8 + 2 * t + c % 2; }
};

struct PlainStore {
    template <typename X>
    __device__ void operator()(X* place, const X& x) const {
        *place = x;
    }
};

// With g = lane / 4 and t = lane % 4 a thread holds columns (query rows) 2t and 2t + 1.
template <typename T, int kHeadDim>
struct DecodeHead {
    // Elements that a thread takes from a row of V at once: all lanes of a row must fit in it.
    static constexpr int kVec = kHeadDim % 64 == 0 ? 8 : 4;
    static constexpr int kKChunks = kHeadDim / 32;
    static constexpr int kVChunks = kHeadDim / (8 * kVec);
    static constexpr int kOutTiles = kHeadDim / 16;
    static_assert(kHeadDim % 32 == 0, "a quad reads 32 elements of K");

    uint4 q[kKChunks];
    float out[kOutTiles][4];
    float maximum[2];
    float sum[2];
    int last_visible[2];
    int first_visible_position[2];

    // In the order in which K lies in `Rows`. `head` is counted from the job's first; one behind its last gets queries of
    // zeros.
    template <typename Rows>
    __device__ static void load_queries(const msgl_attention_params& params, const JobCursor& cursor,
                                        const JobSizes& sizes, uint32_t head, uint4 (&queries)[kKChunks]) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const uint32_t row = cursor.first_row + g, rows = cursor.seq.q_len * sizes.group;
        const T* src = static_cast<const T*>(params.qkv) +
                       int64_t{cursor.seq.q_start + row / sizes.group} * params.qkv_stride +
                       ((cursor.first_head + head) * sizes.group + row % sizes.group) * kHeadDim;
#pragma unroll
        for (int c = 0; c < kKChunks; ++c) {
            const bool is_query = row < rows && head < cursor.num_heads(sizes);
            queries[c] = is_query ? *reinterpret_cast<const uint4*>(src + 8 * Rows::k_chunk(c, t)) : uint4{};
        }
    }

    __device__ void start(const uint4 (&queries)[kKChunks], const JobCursor& cursor, const JobSizes& sizes) {
        const uint32_t t = threadIdx.x % 4, rows = cursor.seq.q_len * sizes.group;
#pragma unroll
        for (int c = 0; c < kKChunks; ++c) q[c] = queries[c];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t row = min(cursor.first_row + 2 * t + i, rows - 1);
            see(i, cursor.seq.kv_len - cursor.seq.q_len + row / sizes.group, sizes.window);
        }
        clear();
    }

    // The same for a sequence of one token, without its queries.
    __device__ void start(const PlanSeq& seq, const JobSizes& sizes) {
#pragma unroll
        for (int i = 0; i < 2; ++i) see(i, seq.kv_len - 1, sizes.window);
        clear();
    }

    // Column 2t + i is a query at this position.
    __device__ void see(int i, uint32_t position, uint32_t window) {
        last_visible[i] = position;
        first_visible_position[i] = first_visible(position, window);
    }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            maximum[i] = kNoMaximum;
            sum[i] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kOutTiles; ++i) {
            out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
        }
    }

    // S^T of one piece, from rows of K in shared memory.
    template <typename Rows>
    __device__ void scores(const Rows& k, uint32_t piece, float scale_log2, float (&s)[4]) const {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int c = 0; c < kKChunks; ++c) {
            const uint4 a = load_shared_16(k.at(g, 16 * Rows::k_chunk(c, t)));
            const uint4 b = load_shared_16(k.at(g + 8, 16 * Rows::k_chunk(c, t)));
            mma_m16n8k16<T>(even, a.x, b.x, a.y, b.y, q[c].x, q[c].y);
            mma_m16n8k16<T>(odd, a.z, b.z, a.w, b.w, q[c].z, q[c].w);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int position = piece * kPieceTokens + g + i / 2 * 8;
            const bool is_visible = position <= last_visible[i % 2] && position >= first_visible_position[i % 2];
            s[i] = is_visible ? (even[i] + odd[i]) * scale_log2 : -INFINITY;
        }
    }

    // Raises the running maximum to what a piece has.
    __device__ void raise(const float (&largest)[2]) {
        float factor[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float raised = fmaxf(maximum[i], largest[i]);
            factor[i] = exp2_approx(maximum[i] - raised);
            maximum[i] = raised;
            sum[i] *= factor[i];
        }
#pragma unroll
        for (int i = 0; i < kOutTiles; ++i) {
            out[i][0] *= factor[0];
            out[i][1] *= factor[1];
            out[i][2] *= factor[0];
            out[i][3] *= factor[1];
        }
    }

    // P^T of one piece as the B operand of the second product.
    __device__ void weights(const float (&s)[4], uint32_t (&p)[2]) {
        float e[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) e[i] = exp2_approx(s[i] - maximum[i % 2]);
        sum[0] += e[0] + e[2];
        sum[1] += e[1] + e[3];
        p[0] = movmatrix_trans(pack_pair<T>(e[0], e[1]));
        p[1] = movmatrix_trans(pack_pair<T>(e[2], e[3]));
    }

    // O^T += V^T P^T, from rows of V in shared memory.
    template <typename Rows>
    __device__ void accumulate(const Rows& v, const uint32_t (&p)[2]) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        constexpr int kWords = kVec / 2;
#pragma unroll
        for (int c = 0; c < kVChunks; ++c) {
            uint32_t rows[4][kWords];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t row = 2 * t + i % 2 + i / 2 * 8;
                if constexpr (kWords == 4) {
                    const uint4 x = load_shared_16(v.at(row, (8 * c + g) * 16));
                    rows[i][0] = x.x, rows[i][1] = x.y, rows[i][2] = x.z, rows[i][3] = x.w;
                } else {
                    const uint2 x = load_shared_8(v.at(row, (8 * c + g) * 8));
                    rows[i][0] = x.x, rows[i][1] = x.y;
                }
            }
#pragma unroll
            for (int j = 0; j < kWords; ++j) {
                mma_m16n8k16<T>(out[c * kWords + j], __byte_perm(rows[0][j], rows[1][j], 0x5410),
                                __byte_perm(rows[0][j], rows[1][j], 0x7632),
                                __byte_perm(rows[2][j], rows[3][j], 0x5410),
                                __byte_perm(rows[2][j], rows[3][j], 0x7632), p[0], p[1]);
            }
        }
    }

    // The rows' sums over all positions, on all lanes.
    __device__ void finish_sums() {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int mask = 4; mask <= 16; mask *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], mask);
        }
    }

    // Elements `4 * part ..` of the thread's contiguous ones in chunk `c` of row 2t + i.
    __device__ float4 out4(int c, int part, int i) const {
        const int tile = c * (kVec / 2) + 2 * part;
        return {out[tile][i], out[tile][i + 2], out[tile + 1][i], out[tile + 1][i + 2]};
    }

    // Writes the first `num_rows` rows unnormalised, [kJobRows][stride], and their (maximum, sum), each by `store`.
    template <typename Store = PlainStore>
    __device__ void store_partial(float* rows, int stride, float2* stats, uint32_t num_rows, Store store = {}) const {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (2 * t + i >= num_rows) continue;
            if (g == 0) store(stats + 2 * t + i, make_float2(maximum[i], sum[i]));
            float* row = rows + (2 * t + i) * stride + g * kVec;
#pragma unroll
            for (int c = 0; c < kVChunks; ++c) {
#pragma unroll
                for (int part = 0; part < kVec / 4; ++part) {
                    store(reinterpret_cast<float4*>(row + 8 * kVec * c + 4 * part), out4(c, part, i));
                }
            }
        }
    }

    // Writes the normalised rows of a job that nothing is to be added to.
    __device__ void store_out(const msgl_attention_params& params, const JobCursor& cursor, const JobSizes& sizes,
                              uint32_t head) const {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (2 * t + i >= cursor.num_rows(sizes)) continue;
            T* row = out_row<T, kHeadDim>(params, cursor, sizes, head, 2 * t + i) + g * kVec;
#pragma unroll
            for (int c = 0; c < kVChunks; ++c) {
#pragma unroll
                for (int part = 0; part < kVec / 4; ++part) {
                    store_row4(row + 8 * kVec * c + 4 * part, out4(c, part, i), 1.0f / sum[i]);
                }
            }
        }
    }
};

// One piece of neighbouring heads, whose rows lie side by side in shared memory. Each step is done for all heads before
// the next: one head alone is a chain of latencies.
template <typename T, int kHeadDim, int kHeads, typename Rows>
__device__ __forceinline__ void attend(DecodeHead<T, kHeadDim> (&heads)[kHeads], const Rows& k, const Rows& v,
                                       uint32_t piece, float scale_log2) {
    float s[kHeads][4], largest[kHeads][2];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        heads[h].scores(k.from(h * kHeadDim * 2), piece, scale_log2, s[h]);
        largest[h][0] = fmaxf(s[h][0], s[h][2]);
        largest[h][1] = fmaxf(s[h][1], s[h][3]);
    }
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
            largest[h][0] = fmaxf(largest[h][0], __shfl_xor_sync(~0u, largest[h][0], mask));
            largest[h][1] = fmaxf(largest[h][1], __shfl_xor_sync(~0u, largest[h][1], mask));
        }
    }
    bool rises = false;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        rises |= largest[h][0] > heads[h].maximum[0] || largest[h][1] > heads[h].maximum[1];
    }
    if (__any_sync(~0u, rises)) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) heads[h].raise(largest[h]);
    }
    uint32_t p[kHeads][2];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) heads[h].weights(s[h], p[h]);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) heads[h].accumulate(v.from(h * kHeadDim * 2), p[h]);
}

}  // namespace msgl
