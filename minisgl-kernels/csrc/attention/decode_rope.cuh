// Query and key norm, rotation and the store of the new K and V row inside of the decode kernel, for steps of one token
// a sequence. As a kernel of its own it is microseconds of latency a layer, and it would stand between the projection
// and the copies of K and V, which need nothing of it.
//
// Queries are normed and rotated in registers, by every warp that multiplies them: a quad holds a row, a thread both
// elements of a rotation (Su et al. 2021, half-split). The new row of K and V is computed by the warp that has the last
// piece of its job, with the arithmetic of rope_store_kv, so that the stored bits are the same: it puts the row into
// the piece in shared memory, in place of what was copied there before it existed, and stores it at its slot.
#pragma once
#include "decode_shape.cuh"
#include "job.cuh"
#include "ptx/proxy.cuh"

namespace msgl {

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}
template <>
__device__ __forceinline__ float2 unpack_pair<__half>(uint32_t pair) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
}

__device__ __forceinline__ void store_shared_4(uint32_t address, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

// What a kernel without rotation has in its place.
struct NoRope {
    static constexpr bool kIsFused = false;
    __device__ NoRope(const msgl_rope_store_kv_params*, char*, uint32_t) {}
};

template <typename T, int kHeadDim>
struct DecodeRope {
    static constexpr bool kIsFused = true;
    using Shape = DecodeShape<kHeadDim>;
    static constexpr int kHalf = kHeadDim / 2;
    static constexpr int kKChunks = kHeadDim / 32;
    // Neighbouring elements of the rotation table that a lane brings.
    static constexpr int kAngles = kHeadDim / 32;
    static_assert(kHeadDim == 64 || kHeadDim == 128, "a lane has 2 elements of each half of a row, or none");

    // The lane's elements of a projected row, 2 neighbours of each half.
    struct Row {
        uint32_t low, high;
    };

    const msgl_rope_store_kv_params& params;
    float* angles;         // [kHeadDim] of the warp, in shared memory: cosines, sines
    const T* norms;        // [2][kHeadDim] in shared memory: of queries, of keys
    float next[kAngles];   // on their way to `angles`
    Row k[Shape::kHeads];  // of the sequence's new position
    Row v[Shape::kHeads];
    uint32_t new_slot;

    // Brings the norms, which all threads may read after the next barrier. `shared` is kRopeBytes.
    __device__ DecodeRope(const msgl_rope_store_kv_params* params_, char* shared, uint32_t warp)
        : params(*params_),
          angles(reinterpret_cast<float*>(shared) + warp * kHeadDim),
          norms(reinterpret_cast<const T*>(shared + Shape::kWarps * Shape::kAnglesBytes)) {
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

    // Norms and rotates queries in the layout of DecodeHead::load_queries.
    __device__ void turn(uint4 (&queries)[kKChunks]) const {
        const uint32_t t = threadIdx.x % 4;
        float scale = 1.0f;
        if (params.q_norm != nullptr) {
            float sum = 0.0f;
#pragma unroll
            for (int c = 0; c < kKChunks; ++c) {
                const uint32_t words[4] = {queries[c].x, queries[c].y, queries[c].z, queries[c].w};
#pragma unroll
                for (uint32_t word : words) {
                    const float2 x = unpack_pair<T>(word);
                    sum += x.x * x.x + x.y * x.y;
                }
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            scale = rsqrtf(sum / kHeadDim + params.eps);
        }
#pragma unroll
        for (int c = 0; c < kKChunks / 2; ++c) {
            turn_chunk(queries[c], queries[c + kKChunks / 2], 32 * c + 8 * t, scale);
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
        const uint32_t lane = threadIdx.x % 32, token = cursor.seq.q_start;
        const uint32_t num_all = params.num_heads + 2 * params.num_kv_heads;
        const T* row = static_cast<const T*>(params.qkv) + size_t{token} * num_all * kHeadDim;
        new_slot = __ldg(params.slots + token);
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            k[h] = v[h] = {};
            if (h >= cursor.num_heads(sizes) || 2 * lane >= kHalf) continue;
            const T* key = row + (params.num_heads + cursor.first_head + h) * kHeadDim + 2 * lane;
            const T* value = key + params.num_kv_heads * kHeadDim;
            k[h] = {*reinterpret_cast<const uint32_t*>(key), *reinterpret_cast<const uint32_t*>(key + kHalf)};
            v[h] = {*reinterpret_cast<const uint32_t*>(value), *reinterpret_cast<const uint32_t*>(value + kHalf)};
        }
    }

    // Norms and rotates the new keys, stores the new rows at their slot and puts them into the piece at `stage`, in place
    // of every copy of the position's row (piece_slot).
    __device__ void put_new(const JobCursor& cursor, const JobSizes& sizes, uint32_t stage) {
        const uint32_t lane = threadIdx.x % 32, newest = cursor.seq.kv_len - 1;
        const bool is_alone = first_visible(newest, sizes.window) == newest;
        const uint32_t first_row = is_alone ? 0 : newest % kPieceTokens;
        const bool has_elements = 2 * lane < kHalf;
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            if (h >= cursor.num_heads(sizes)) continue;
            turn_key(k[h]);
            if (!has_elements) continue;
            const uint32_t at = (h * kHeadDim + 2 * lane) * sizeof(T);
            for (uint32_t row = first_row; row < kPieceTokens; ++row) {
                store_shared_4(stage + row * Shape::kKStride + at, k[h].low);
                store_shared_4(stage + row * Shape::kKStride + at + kHalf * sizeof(T), k[h].high);
                store_shared_4(stage + Shape::kVOffset + row * Shape::kVStride + at, v[h].low);
                store_shared_4(stage + Shape::kVOffset + row * Shape::kVStride + at + kHalf * sizeof(T), v[h].high);
            }
            // Where a KV head has several tiles of query rows, the first stores.
            if (cursor.first_row == 0 && new_slot < params.num_slots) {
                const size_t to = (size_t{new_slot} * params.num_kv_heads + cursor.first_head + h) * kHeadDim + 2 * lane;
                store_global(params.k, to, k[h]);
                store_global(params.v, to, v[h]);
            }
        }
        __syncwarp();
        // The next copy into this stage comes through another path to the same memory.
        fence_async_proxy();
    }

  private:
    __device__ static void store_global(void* storage, size_t at, const Row& row) {
        T* to = static_cast<T*>(storage) + at;
        *reinterpret_cast<uint32_t*>(to) = row.low;
        *reinterpret_cast<uint32_t*>(to + kHalf) = row.high;
    }

    // Eight neighbouring elements of each half, from element `at` of the half on.
    __device__ void turn_chunk(uint4& low, uint4& high, uint32_t at, float scale) const {
        const float4 c[2] = {*reinterpret_cast<const float4*>(angles + at),
                             *reinterpret_cast<const float4*>(angles + at + 4)};
        const float4 s[2] = {*reinterpret_cast<const float4*>(angles + kHalf + at),
                             *reinterpret_cast<const float4*>(angles + kHalf + at + 4)};
        uint4 low_norm = {}, high_norm = {};
        if (params.q_norm != nullptr) {
            low_norm = *reinterpret_cast<const uint4*>(norms + at);
            high_norm = *reinterpret_cast<const uint4*>(norms + kHalf + at);
        }
        turn_pair(low.x, high.x, low_norm.x, high_norm.x, {c[0].x, c[0].y}, {s[0].x, s[0].y}, scale);
        turn_pair(low.y, high.y, low_norm.y, high_norm.y, {c[0].z, c[0].w}, {s[0].z, s[0].w}, scale);
        turn_pair(low.z, high.z, low_norm.z, high_norm.z, {c[1].x, c[1].y}, {s[1].x, s[1].y}, scale);
        turn_pair(low.w, high.w, low_norm.w, high_norm.w, {c[1].z, c[1].w}, {s[1].z, s[1].w}, scale);
    }

    __device__ void turn_pair(uint32_t& low, uint32_t& high, uint32_t low_norm, uint32_t high_norm, float2 c, float2 s,
                              float scale) const {
        float2 x = unpack_pair<T>(low), y = unpack_pair<T>(high);
        if (params.q_norm != nullptr) {
            scale_pair(x, low_norm, scale);
            scale_pair(y, high_norm, scale);
        }
        rotate(x, y, c, s);
        low = pack_pair<T>(x.x, x.y);
        high = pack_pair<T>(y.x, y.y);
    }

    __device__ void turn_key(Row& row) const {
        const uint32_t at = threadIdx.x % 32 * 2;
        float2 x = unpack_pair<T>(row.low), y = unpack_pair<T>(row.high);
        float scale = 1.0f;
        if (params.k_norm != nullptr) {
            float sum = 0.0f;
            sum += x.x * x.x + y.x * y.x;
            sum += x.y * x.y + y.y * y.y;
            for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
            scale = rsqrtf(sum / kHeadDim + params.eps);
        }
        if (at >= kHalf) return;
        if (params.k_norm != nullptr) {
            scale_pair(x, *reinterpret_cast<const uint32_t*>(norms + kHeadDim + at), scale);
            scale_pair(y, *reinterpret_cast<const uint32_t*>(norms + kHeadDim + kHalf + at), scale);
        }
        rotate(x, y, *reinterpret_cast<const float2*>(angles + at), *reinterpret_cast<const float2*>(angles + kHalf + at));
        row.low = pack_pair<T>(x.x, x.y);
        row.high = pack_pair<T>(y.x, y.y);
    }

    __device__ static void scale_pair(float2& x, uint32_t norm, float scale) {
        const float2 weight = unpack_pair<T>(norm);
        x.x *= scale * weight.x;
        x.y *= scale * weight.y;
    }

    __device__ static void rotate(float2& x, float2& y, float2 c, float2 s) {
        const float2 turned = {x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y};
        y = {y.x * c.x + x.x * s.x, y.y * c.y + x.y * s.y};
        x = turned;
    }
};

}  // namespace msgl
