// A decode CTA's walk over its range of the plan's pieces.
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

// What a job's shape depends on besides its sequence.
struct JobSizes {
    uint32_t group;          // query heads of a KV head
    uint32_t num_kv_heads;
    uint32_t heads_per_job;  // KV heads of a job; the last job of a sequence may have fewer
    uint32_t window;

    __device__ explicit JobSizes(const msgl_attention_sizes& sizes)
        : group(sizes.num_heads / sizes.num_kv_heads),
          num_kv_heads(sizes.num_kv_heads),
          heads_per_job(sizes.heads_per_job),
          window(sizes.window) {}
};

// Past L1, as all of the plan that decode reads (decode.cuh).
__device__ inline PlanSeq load_seq(const PlanView& view, uint32_t idx) {
    const uint4 words = __ldcg(reinterpret_cast<const uint4*>(view.seqs + idx));
    return {words.x, words.y, words.z, words.w};
}

// The part of a job that lies in one CTA's range.
struct JobCursor {
    PlanSeq seq;
    PlanSeq next_seq;     // loaded long before it is needed
    uint32_t seq_idx;
    uint32_t first_head;  // KV head
    uint32_t first_row;   // query row of the sequence
    uint32_t piece;       // first piece of this part, counted from the start of the sequence
    uint32_t piece_end;   // end of this part
    uint32_t left;        // pieces of the CTA's range from `piece` on

    JobCursor() = default;

    __device__ JobCursor(const PlanView& view, const PlanBucket& bucket, const JobSizes& sizes)
        : seq(bucket.seq),
          next_seq(load_seq(view, bucket.seq_idx + 1)),
          seq_idx(bucket.seq_idx),
          left(bucket.num_pieces) {
        const uint32_t tiles = div_up(seq.q_len * sizes.group, kJobRows);
        first_head = bucket.job / tiles * sizes.heads_per_job;
        first_row = bucket.job % tiles * kJobRows;
        piece = first_piece(seq, sizes.window) + bucket.piece;
        piece_end = min(piece + left, div_up(seq.kv_len, kPieceTokens));
    }

    __device__ uint32_t num_rows(const JobSizes& sizes) const {
        return min(seq.q_len * sizes.group - first_row, kJobRows);
    }

    __device__ uint32_t num_heads(const JobSizes& sizes) const {
        return min(sizes.num_kv_heads - first_head, sizes.heads_per_job);
    }

    // Whether this part has the job's first piece.
    __device__ bool begins(const JobSizes& sizes) const { return piece == first_piece(seq, sizes.window); }

    // Whether no other CTA has a part of the job.
    __device__ bool is_whole(const JobSizes& sizes) const {
        return begins(sizes) && piece_end == div_up(seq.kv_len, kPieceTokens);
    }

    // Moves to the next job; false at the end of the range.
    __device__ bool next(const PlanView& view, const JobSizes& sizes) {
        left -= piece_end - piece;
        if (left == 0) return false;
        first_row += kJobRows;
        if (first_row >= seq.q_len * sizes.group) {
            first_row = 0;
            first_head += sizes.heads_per_job;
            if (first_head >= sizes.num_kv_heads) {
                first_head = 0;
                seq = next_seq;
                next_seq = load_seq(view, ++seq_idx + 1);
            }
        }
        piece = first_piece(seq, sizes.window);
        piece_end = min(piece + left, div_up(seq.kv_len, kPieceTokens));
        return true;
    }
};

// The slot of a position of a sequence.
__device__ inline uint32_t position_slot(const msgl_attention_params& params, const PlanSeq& seq, uint32_t position) {
    const uint32_t page_shift = __ffs(params.page_size) - 1;
    const uint32_t page = __ldg(params.page_table + size_t{seq.row} * params.max_pages + (position >> page_shift));
    return limit_slot(params, (page << page_shift) | (position & (params.page_size - 1)));
}

// The slot of token lane % 16 of a piece. Rows before the window and after the end may lie in pages that were given
// away, and 0 * NaN is NaN: in their place the nearest row that is seen is read once more.
__device__ inline uint32_t piece_slot(const msgl_attention_params& params, const JobCursor& cursor,
                                      const JobSizes& sizes, uint32_t piece) {
    const PlanSeq& seq = cursor.seq;
    const uint32_t position =
        min(max(piece * kPieceTokens + threadIdx.x % kPieceTokens, first_visible(seq.kv_len - seq.q_len, sizes.window)),
            seq.kv_len - 1);
    return position_slot(params, seq, position);
}

// First element of the output of a query row of a job.
template <typename T, int kHeadDim>
__device__ inline T* out_row(const msgl_attention_params& params, const JobCursor& cursor, const JobSizes& sizes,
                             uint32_t head, uint32_t row) {
    const uint32_t seq_row = cursor.first_row + row;
    const uint32_t token = cursor.seq.q_start + seq_row / sizes.group;
    const uint32_t query_head = (cursor.first_head + head) * sizes.group + seq_row % sizes.group;
    return static_cast<T*>(params.out) + (size_t{token} * params.sizes.num_heads + query_head) * kHeadDim;
}

template <typename T>
__device__ __forceinline__ void store_row4(T* dst, const float4& x, float factor) {
    uint2 pairs;
    pairs.x = pack_pair<T>(x.x * factor, x.y * factor);
    pairs.y = pack_pair<T>(x.z * factor, x.w * factor);
    *reinterpret_cast<uint2*>(dst) = pairs;
}

// One row's running (sum, maximum) and four of its elements.
struct RowSum {
    float4 out = {};
    float sum = 0.0f;
    float maximum = kNoMaximum;

    __device__ __forceinline__ void add(const float4& x, float2 stats) {
        const float raised = fmaxf(maximum, stats.x);
        const float keep = exp2_approx(maximum - raised), factor = exp2_approx(stats.x - raised);
        maximum = raised;
        sum = sum * keep + stats.y * factor;
        out.x = out.x * keep + x.x * factor;
        out.y = out.y * keep + x.y * factor;
        out.z = out.z * keep + x.z * factor;
        out.w = out.w * keep + x.w * factor;
    }
};

}  // namespace msgl
