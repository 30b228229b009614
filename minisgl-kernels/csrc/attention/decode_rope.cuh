// Query and key norm, rotation and the store of the new K and V row inside of the decode kernel, for steps of one token
// a sequence. As a kernel of its own it is microseconds of latency a layer, and it would stand between the projection
// and the copies of K and V, which need nothing of it.
//
// Queries are normed and rotated by every warp that multiplies them, a row at a time, with both elements of a rotation
// (Su et al. 2021, half-split) in one lane; they go through shared memory into the layout of the MMA. The new row of K
// and V is computed by the warp that has the last piece of its job, with the arithmetic of rope_store_kv, so that the
// stored bits are the same: it puts the row into the piece in shared memory, in place of what was copied there before
// it existed, and stores it at its slot.
#pragma once
#include "decode_rope_row.cuh"
#include "decode_shape.cuh"
#include "job.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/proxy.cuh"
#include "ptx/shared.cuh"

namespace msgl {

// What a kernel without rotation has in its place.
struct NoRope {
    static constexpr bool kIsFused = false;
    __device__ NoRope(const msgl_rope_store_kv_params*, char*, uint32_t) {}
};

template <typename T, int kHeadDim>
struct DecodeRope {
    static constexpr bool kIsFused = true;
    using Shape = DecodeShape<kHeadDim>;
    using Row = RopeRow<T, kHeadDim>;
    static constexpr int kHalf = kHeadDim / 2;
    static constexpr int kKChunks = kHeadDim / 32;
    // Neighbouring elements of the rotation table that a lane brings.
    static constexpr int kAngles = kHeadDim / 32;
    static constexpr int kRowsAtOnce = Row::kRowsAtOnce;
    static constexpr int kPasses = Shape::kHeads * kJobRows / kRowsAtOnce;

    const msgl_rope_store_kv_params& params;
    float* angles;         // [kHeadDim] of the warp, in shared memory: cosines, sines
    const T* norms;        // [2][kHeadDim] in shared memory: of queries, of keys
    uint32_t turned;       // shared memory of the warp: queries on their way from rows to fragments
    float next[kAngles];   // on their way to `angles`
    Row q[kPasses];        // of the job, or of the next one, as they were projected
    Row k[Shape::kHeads];  // of the sequence's new position
    Row v[Shape::kHeads];
    uint32_t new_slot;

    // Brings the norms, which all threads may read after the next barrier. `shared` is kRopeBytes.
    __device__ DecodeRope(const msgl_rope_store_kv_params* params_, char* shared, uint32_t warp)
        : params(*params_),
          angles(reinterpret_cast<float*>(shared) + warp * kHeadDim),
          norms(reinterpret_cast<const T*>(shared + Shape::kWarps * Shape::kAnglesBytes)),
          turned(shared_address(shared) + Shape::kRopeBytes + warp * Shape::kTurnedBytes) {
        uint32_t* to = reinterpret_cast<uint32_t*>(shared + Shape::kWarps * Shape::kAnglesBytes);
        for (uint32_t i = threadIdx.x; i < kHeadDim; i += Shape::kThreads) {
            const void* norm = i < kHalf ? params.q_norm : params.k_norm;
            if (norm != nullptr) to[i] = __ldg(static_cast<const uint32_t*>(norm) + i % kHalf);
        }
    }

    // Starts to bring the angles of a sequence's new position.
    __device__ void load_angles(const PlanSeq& seq) {
        const uint32_t position = min(seq.kv_len - 1, params.max_position - 1);
        const float* row = params.rope + size_t{position} * kHeadDim + threadIdx.x % 32 * kAngles;
        if constexpr (kAngles == 4) {
            const float4 x = __ldg(reinterpret_cast<const float4*>(row));
            next[0] = x.x, next[1] = x.y, next[2] = x.z, next[3] = x.w;
        } else {
            const float2 x = __ldg(reinterpret_cast<const float2*>(row));
            next[0] = x.x, next[1] = x.y;
        }
    }

    // Makes them those of the warp's job.
    __device__ void keep_angles() {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < kAngles; ++i) angles[threadIdx.x % 32 * kAngles + i] = next[i];
        __syncwarp();
    }

    // Starts to bring a job's queries.
    __device__ void load_queries(const JobCursor& cursor, const JobSizes& sizes) {
        const uint32_t num_rows = cursor.num_rows(sizes), num_heads = cursor.num_heads(sizes);
        const uint32_t num_all = params.num_heads + 2 * params.num_kv_heads;
        const T* token = static_cast<const T*>(params.qkv) + size_t{cursor.seq.q_start} * num_all * kHeadDim;
        const uint32_t first = cursor.first_head * sizes.group + cursor.first_row;
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const uint32_t row = pass_row(pass), head = pass_head(pass);
            q[pass] = {};
            if (row < num_rows && head < num_heads) {
                q[pass] = Row::load(token + (first + head * sizes.group + row) * kHeadDim);
            }
        }
    }

    // Norms and rotates them, into the layout of DecodeHead::load_queries.
    __device__ void turn_queries(const JobCursor& cursor, const JobSizes& sizes,
                                 uint4 (&queries)[Shape::kHeads][kKChunks]) {
        const uint32_t num_rows = cursor.num_rows(sizes), num_heads = cursor.num_heads(sizes);
        __syncwarp();
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            // Of the pass's rows the first lane's is the lowest.
            if (pass * kRowsAtOnce % kJobRows >= num_rows) continue;
            turn(q[pass], 0, params.q_norm != nullptr);
            q[pass].store_shared(turned + (pass * kRowsAtOnce + row_at_once()) * Shape::kTurnedStride);
        }
        __syncwarp();
        const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
#pragma unroll
            for (int c = 0; c < kKChunks; ++c) {
                const bool is_query = g < num_rows && h < num_heads;
                const uint32_t from = turned + (h * kJobRows + g) * Shape::kTurnedStride + (32 * c + 8 * t) * sizeof(T);
                queries[h][c] = is_query ? load_shared_16(from) : uint4{};
            }
        }
    }

    // Whether the warp has the last piece of the part of the job, and that is the job's last piece.
    __device__ static bool has_new(const JobCursor& cursor, uint32_t first_of_warp) {
        return cursor.piece_end == div_up(cursor.seq.kv_len, kPieceTokens) &&
               first_of_warp < cursor.piece_end &&
               (cursor.piece_end - 1 - first_of_warp) % Shape::kWarps == 0;
    }

    // Starts to bring the new rows of the job's KV heads, as they were projected.
    __device__ void load_new(const JobCursor& cursor, const JobSizes& sizes) {
        const uint32_t token = cursor.seq.q_start, num_all = params.num_heads + 2 * params.num_kv_heads;
        const T* row = static_cast<const T*>(params.qkv) + size_t{token} * num_all * kHeadDim;
        new_slot = __ldg(params.slots + token);
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            k[h] = v[h] = {};
            if (h >= cursor.num_heads(sizes)) continue;
            const T* key = row + (params.num_heads + cursor.first_head + h) * kHeadDim;
            k[h] = Row::load(key);
            v[h] = Row::load(key + params.num_kv_heads * kHeadDim);
        }
    }

    // Norms and rotates the new keys, stores the new rows at their slot and puts them into the piece at `stage`, in
    // place of every copy of the position's row (piece_slot).
    __device__ void put_new(const JobCursor& cursor, const JobSizes& sizes, uint32_t stage) {
        const uint32_t newest = cursor.seq.kv_len - 1;
        const bool is_alone = first_visible(newest, sizes.window) == newest;
        const uint32_t first_row = is_alone ? 0 : newest % kPieceTokens;
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            if (h >= cursor.num_heads(sizes)) continue;
            // All groups of lanes that share a row have this one.
            turn(k[h], kHeadDim, params.k_norm != nullptr);
            for (uint32_t row = first_row + row_at_once(); row < kPieceTokens; row += kRowsAtOnce) {
                k[h].store_shared(stage + row * Shape::kKStride + h * Shape::kHeadBytes);
                v[h].store_shared(stage + Shape::kVOffset + row * Shape::kVStride + h * Shape::kHeadBytes);
            }
            // Where a KV head has several tiles of query rows, the first stores.
            if (cursor.first_row == 0 && new_slot < params.num_slots && threadIdx.x % 32 < Row::kLanes) {
                const size_t to = (size_t{new_slot} * params.num_kv_heads + cursor.first_head + h) * kHeadDim;
                k[h].store(static_cast<T*>(params.k) + to);
                v[h].store(static_cast<T*>(params.v) + to);
            }
        }
        __syncwarp();
        // The next copy into this stage comes through another path to the same memory.
        fence_async_proxy();
    }

  private:
    // Which of the rows that the warp has at once is this lane's.
    __device__ static uint32_t row_at_once() { return threadIdx.x % 32 / Row::kLanes; }

    // Query row and KV head of the job that a lane has in a pass.
    __device__ static uint32_t pass_row(int pass) {
        return (pass * kRowsAtOnce + row_at_once()) % kJobRows;
    }
    __device__ static constexpr uint32_t pass_head(int pass) { return pass * kRowsAtOnce / kJobRows; }

    // Norms and rotates a row in the lanes that share it. `norm`: where its weights begin.
    __device__ void turn(Row& row, uint32_t norm, bool has_norm) const {
        const uint32_t at = 2 * Row::lane();
        Row weights = {};
        if (has_norm) weights = Row::load(norms + norm);
        row.turn(has_norm, weights, params.eps, *reinterpret_cast<const float2*>(angles + at),
                 *reinterpret_cast<const float2*>(angles + kHalf + at));
    }
};

}  // namespace msgl
