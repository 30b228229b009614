// A decode CTA's walk over its range of the plan's pieces, and what its warps do with a finished job.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.cuh"
#include "ptx/mma.cuh"

namespace msgl {

// Scores are kept in units of log2; the running maximum starts at a finite number so that a piece in which a query
// sees nothing multiplies by exp2(-inf - kNoMaximum) = 0 and not by NaN.
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNoMaximum = -1e30f;
constexpr uint32_t kNoSlot = ~0u;

// The part of a job that lies in one CTA's range.
struct JobCursor {
    PlanSeq seq;
    uint32_t seq_idx;
    uint32_t job;        // of the sequence
    uint32_t piece;      // first piece of this part, counted from the start of the sequence
    uint32_t piece_end;  // end of this part
    uint32_t left;       // pieces of the CTA's range from `piece` on

    __device__ JobCursor(const PlanBucket& bucket, uint32_t window)
        : seq(bucket.seq), seq_idx(bucket.seq_idx), job(bucket.job), left(bucket.num_pieces) {
        piece = first_piece(seq, window) + bucket.piece;
        piece_end = min(piece + left, div_up(seq.kv_len, kPieceTokens));
    }

    // Moves to the next job; false at the end of the range.
    __device__ bool next(const PlanView& view, const msgl_attention_sizes& sizes) {
        left -= piece_end - piece;
        if (left == 0) return false;
        if (++job == jobs_per_seq(seq, sizes)) {
            job = 0;
            seq = view.seqs[++seq_idx];
        }
        piece = first_piece(seq, sizes.window);
        piece_end = min(piece + left, div_up(seq.kv_len, kPieceTokens));
        return true;
    }
};

// Which CTAs share a job, and where this one's partial result goes. A CTA has at most two partial results: slot 1
// for the job that begins in its range and does not end there, slot 0 for the one that began before.
struct JobSpan {
    uint32_t first_cta, last_cta, slot;

    __device__ JobSpan(const JobCursor& cursor, const PlanHeader& header, uint32_t window, uint32_t cta) {
        const uint32_t begin = first_piece(cursor.seq, window);
        const uint32_t job_start = bucket_start(header, cta + 1) - cursor.left - (cursor.piece - begin);
        first_cta = bucket_of(header, job_start);
        last_cta = bucket_of(header, job_start + pieces_per_job(cursor.seq, window) - 1);
        slot = 2 * cta + (first_cta == cta ? 1 : 0);
    }

    __device__ bool is_whole() const { return first_cta == last_cta; }
    __device__ uint32_t slot_of(uint32_t i) const { return i == 0 ? 2 * first_cta + 1 : 2 * (first_cta + i); }
};

template <typename T>
__device__ __forceinline__ void store_row4(T* dst, const float4& x) {
    uint2 pairs;
    pairs.x = pack_pair<T>(x.x, x.y);
    pairs.y = pack_pair<T>(x.z, x.w);
    *reinterpret_cast<uint2*>(dst) = pairs;
}

__device__ __forceinline__ void add_scaled(float4& sum, float factor, const float4& x) {
    sum.x += factor * x.x;
    sum.y += factor * x.y;
    sum.z += factor * x.z;
    sum.w += factor * x.w;
}

__device__ __forceinline__ float4 divide(const float4& x, float divisor) {
    const float factor = 1.0f / divisor;
    return {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
}

// The largest of one row's partial maxima, on all lanes.
__device__ inline float largest_maximum(const PlanView& view, const JobSpan& span, uint32_t row, uint32_t rows) {
    float largest = kNoMaximum;
    for (uint32_t i = threadIdx.x % 32; i <= span.last_cta - span.first_cta; i += 32) {
        largest = fmaxf(largest, __ldcg(&view.partial_stats[size_t{span.slot_of(i)} * rows + row]).x);
    }
    for (int mask = 16; mask != 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    return largest;
}

// Four elements of one row of a job: the partial results added in the order of their CTAs.
template <int kHeadDim>
__device__ inline float4 combine_partials(const PlanView& view, const JobSpan& span, uint32_t row, uint32_t rows,
                                          uint32_t dim, float largest) {
    float4 out = {};
    float sum = 0.0f;
#pragma unroll 4
    for (uint32_t i = 0; i <= span.last_cta - span.first_cta; ++i) {
        const size_t at = size_t{span.slot_of(i)} * rows + row;
        const float2 stats = __ldcg(&view.partial_stats[at]);
        const float factor = exp2_approx(stats.x - largest);
        sum += factor * stats.y;
        add_scaled(out, factor, __ldcg(reinterpret_cast<const float4*>(view.partial_out + at * kHeadDim + dim)));
    }
    return divide(out, sum);
}

// Counts this CTA in for a job that several share; true for the last, which then sees the others' partial results.
// All threads of the CTA call it, after they have written theirs.
__device__ inline bool arrive_last(const PlanView& view, const JobSpan& span) {
    __shared__ bool is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* count = &view.arrivals[span.first_cta];
        is_last = atomicAdd(count, 1u) == span.last_cta - span.first_cta;
        if (is_last) *count = 0;
    }
    __syncthreads();
    if (is_last) __threadfence();
    return is_last;
}

}  // namespace msgl
