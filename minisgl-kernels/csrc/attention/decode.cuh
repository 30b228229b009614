// `fi`: split-KV decode attention over pages of any size (after FlashInfer, Ye et al. 2025, and Flash-Decoding).
//
// Bound by reading K and V once. One CTA walks its range of the plan (plan.cu); its warps take the pieces in turn, each
// with an online softmax of its own (decode_head.cuh). At a job's end each leaves its rows in shared memory and goes
// on; the last to arrive merges them, in the warps' order. Waiting for each other instead would let the rings run full
// and the memory idle, once a job.
#pragma once
#include "decode_cluster.cuh"
#include "decode_reader.cuh"
#include "ptx/grid.cuh"
#include "shared_job.cuh"

namespace msgl {

// Merges the warps' rows of a job, in one warp. The result is the output, or where other CTAs have parts of the job a
// partial one.
template <typename T, int kHeadDim, bool kByBlocks>
__device__ void merge_warps(const msgl_attention_params& params, const PlanView& view, const JobSizes& sizes,
                            const JobCursor& cursor, const float* rows, const float2* stats) {
    using Shape = DecodeShape<kHeadDim, kByBlocks>;
    constexpr uint32_t kParts = kHeadDim / 4;
    const uint32_t num_rows = cursor.num_rows(sizes);
    const bool is_whole = cursor.is_whole(sizes);
    const bool begins = cursor.begins(sizes);
    for (uint32_t h = 0; h < cursor.num_heads(sizes); ++h) {
        for (uint32_t i = threadIdx.x % 32; i < num_rows * kParts; i += 32) {
            const uint32_t dim = i % kParts * 4, row = i / kParts;
            RowSum total;
#pragma unroll
            for (int w = 0; w < Shape::kWarps; ++w) {
                const uint32_t at = w * Shape::kMergeRows + h * kJobRows + row;
                total.add(*reinterpret_cast<const float4*>(rows + at * Shape::kMergeStride + dim), stats[at]);
            }
            if (is_whole) {
                store_row4(out_row<T, kHeadDim>(params, cursor, sizes, h, row) + dim, total.out, 1.0f / total.sum);
            } else {
                const size_t at = partial_row(blockIdx.x, begins, h, row, sizes);
                leave_part(reinterpret_cast<float4*>(view.partial_out + at * kHeadDim + dim), total.out);
                if (dim == 0) leave_part(view.partial_stats + at, make_float2(total.maximum, total.sum));
            }
        }
    }
}

// The CTA's range of the plan, and what the plan says about all.
struct DecodeStart {
    PlanBucket bucket;
    uint32_t active_ctas;
    bool is_clustered;

    // All loads at once: at small batches the time is a chain of such loads. Past L1, since this grid may have started
    // before the one before it has ended: what the plan's kernel wrote is in L2 (release_plan in plan.cu).
    __device__ explicit DecodeStart(const PlanView& view, const msgl_attention_sizes& sizes) {
        const uint4* from = reinterpret_cast<const uint4*>(view.buckets + blockIdx.x);
        uint4* to = reinterpret_cast<uint4*>(&bucket);
        static_assert(sizeof(PlanBucket) % sizeof(uint4) == 0, "16 bytes at a time");
#pragma unroll
        for (uint32_t i = 0; i < sizeof(PlanBucket) / sizeof(uint4); ++i) to[i] = __ldcg(from + i);
        active_ctas = __ldcg(&view.header->active_ctas);
        is_clustered = sizes.cluster_ctas > 1 && __ldcg(&view.header->is_clustered) != 0;
    }
};

// The kernel reads the plan and the page table before the grids before it have ended: the plan's kernel, which comes before
// all that read it and waits for all before it like any launch without the attribute, lets the next one start only after
// its last write (plan.cu), and nothing behind it writes the page table. Where the caller says that it may
// (`reads_early`), the kernel reads K and V early too: within a recorded step then nothing but rope_store_kv writes K or V
// of this layer, and only the rows of this step's positions, which are left for later.
template <typename T, int kHeadDim, bool kByBlocks>
__device__ __forceinline__ void decode(const msgl_attention_params& params, const DecodeMaps& maps) {
    using Shape = DecodeShape<kHeadDim, kByBlocks>;
    extern __shared__ __align__(1024) char decode_shared[];
    __shared__ float2 stats[Shape::kWarps * Shape::kMergeRows];
    __shared__ uint64_t barriers[Shape::kWarps * Shape::kDepth];
    // A phase of each for every job: all warps have left their rows; the rows have been merged.
    __shared__ uint64_t left_barrier, merged_barrier;
    __shared__ uint32_t num_left;  // warps that have left rows, over all jobs so far
    __shared__ PlanBucket bucket;  // for the end of the work
    float* merge_rows = reinterpret_cast<float*>(decode_shared + Shape::kRingBytes);
    // The same in all lanes, which the compiler shall know.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const float scale_log2 = params.scale * kLog2E;

    grid_launch_next();
    const PlanView view = plan_view(params.sizes, params.plan);
    const DecodeStart start(view, params.sizes);

#if __CUDA_ARCH__ >= 900
    if (!kByBlocks && start.is_clustered && blockIdx.x < start.active_ctas) cluster_arrive();
    if (threadIdx.x < Shape::kWarps * Shape::kDepth) mbarrier_init(shared_address(&barriers[threadIdx.x]), 1);
    mbarrier_init_fence();
#endif
    const uint32_t left = shared_address(&left_barrier), merged = shared_address(&merged_barrier);
    if (threadIdx.x == 0) {
        mbarrier_init(left, Shape::kThreads);
        mbarrier_init(merged, 32);
        num_left = 0;
        bucket = start.bucket;
    }
    __syncthreads();
    if (blockIdx.x >= start.active_ctas) {
        // One CTA of the grid at least has to wait, and a step of padding has no other.
        if (blockIdx.x == 0) grid_wait();
        return;
    }

    const JobSizes sizes(params.sizes);
    JobCursor cursor(view, start.bucket, sizes);
    using Head = DecodeHead<T, kHeadDim>;
    Head heads[Shape::kHeads];
    uint4 queries[Shape::kHeads][Head::kKChunks];
    const auto load_queries = [&](const JobCursor& of) {
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            Head::template load_queries<typename Shape::Rows>(params, of, sizes, h, queries[h]);
        }
    };
    DecodeReader<T, kHeadDim, kByBlocks> reader(
        params, maps, view, sizes, cursor, warp,
        shared_address(decode_shared) + warp * Shape::kDepth * Shape::kStageBytes,
        shared_address(&barriers[warp * Shape::kDepth]));
    int ahead = 0;
    if (params.reads_early != 0) {
#pragma unroll 1
        while (ahead < Shape::kDepth && !reader.is_new()) {
            reader.copy();
            ++ahead;
        }
    }
    grid_wait();
#pragma unroll 1
    for (; ahead < Shape::kDepth; ++ahead) reader.copy();
    load_queries(cursor);

    bool has_next;
    uint32_t job = 0;
    do {
        const uint32_t first = reader.first_of_warp(cursor, warp);
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            heads[h].start(queries[h], cursor, sizes);
        }
        JobCursor next = cursor;
        has_next = next.next(view, sizes);
        if (has_next) load_queries(next);
        for (uint32_t piece = first; piece < cursor.piece_end; piece += Shape::kWarps) {
            const uint32_t stage = reader.wait();
            if constexpr (kByBlocks) reader.clear_unseen(stage, cursor, piece);
            attend(heads, Shape::k_rows(stage), Shape::v_rows(stage), piece, scale_log2);
            reader.release();
        }
        // The buffer holds the rows of the job before until they are merged.
        mbarrier_wait(merged, (job & 1) ^ 1);
#pragma unroll
        for (int h = 0; h < Shape::kHeads; ++h) {
            if (h >= cursor.num_heads(sizes)) continue;
            const uint32_t at = warp * Shape::kMergeRows + h * kJobRows;
            heads[h].finish_sums();
            heads[h].store_partial(merge_rows + at * Shape::kMergeStride, Shape::kMergeStride, stats + at, kJobRows);
        }
#if __CUDA_ARCH__ >= 900
        if constexpr (!kByBlocks) {
            if (start.is_clustered) {
                finish_in_cluster<T, kHeadDim>(params, sizes, cursor, merge_rows, stats,
                                               decode_shared + Shape::kSharedBytes);
                return;
            }
        }
#endif
        mbarrier_arrive(left);
        __syncwarp();
        uint32_t arrivals = 0;
        if (lane == 0) arrivals = atomicAdd(&num_left, 1u) + 1;
        if (__shfl_sync(~0u, arrivals, 0) == (job + 1) * Shape::kWarps) {
            mbarrier_wait(left, job & 1);
            merge_warps<T, kHeadDim, kByBlocks>(params, view, sizes, cursor, merge_rows, stats);
            mbarrier_arrive(merged);
        }
        ++job;
        cursor = next;
    } while (has_next);
    finish_shared_job<T, kHeadDim>(params, view, sizes, bucket);
}

template <typename T, int kHeadDim, bool kByBlocks>
__global__ void __launch_bounds__(DecodeShape<kHeadDim, kByBlocks>::kThreads,
                                  DecodeShape<kHeadDim, kByBlocks>::kCtasPerSm)
    decode_kernel(const __grid_constant__ msgl_attention_params params, const __grid_constant__ DecodeMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    decode<T, kHeadDim, kByBlocks>(params, maps);
#else
    if constexpr (!kByBlocks) decode<T, kHeadDim, false>(params, maps);
#endif
}

}  // namespace msgl
