// `trtllm`: decode attention over pages of 16, 32 or 64 tokens, moved whole (sm_90).
//
// Bound by reading K and V once. The rows of all KV heads of a token lie side by side, so a CTA takes up to eight heads
// of a sequence at once and a page is copied as long rows: one producer warp issues 16 positions at a time with bulk
// copies, and each of the other warps computes one head of them (decode_head.cuh). Warps share a ring but no result:
// nothing is merged at a job's end, and a warp writes its own rows.
#pragma once
#include "decode_head.cuh"
#include "launch.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid.cuh"
#include "ptx/mbarrier.cuh"
#include "shared_job.cuh"

namespace msgl {

// Stages of the ring. With rows of 2 KB a stage is 65 KB: one in use and two on their way.
constexpr uint32_t kPageDepth = 3;
// KV heads, and with them warps, of a CTA; and the longest row.
constexpr uint32_t kMaxPageHeads = 8;
constexpr uint32_t kMaxPageRowBytes = 2048;
__host__ __device__ constexpr uint32_t max_page_heads(uint32_t head_dim) {
    const uint32_t fit = kMaxPageRowBytes / (head_dim * 2);
    return fit < kMaxPageHeads ? fit : kMaxPageHeads;
}

// Also what the host asks for.
struct PageShape {
    uint32_t row_bytes, k_stride, v_stride, stage_bytes, shared_bytes;

    __host__ __device__ PageShape(uint32_t heads_per_job, uint32_t head_dim)
        : row_bytes(heads_per_job * head_dim * 2),
          k_stride(k_row_stride(row_bytes)),
          v_stride(v_row_stride(row_bytes)),
          stage_bytes(kPieceTokens * (k_stride + v_stride)),
          shared_bytes(kPageDepth * stage_bytes) {}

    __host__ __device__ static uint32_t heads_per_job(uint32_t head_dim, uint32_t num_kv_heads) {
        const uint32_t most = max_page_heads(head_dim);
        return num_kv_heads < most ? num_kv_heads : most;
    }
};

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(32 * (max_page_heads(kHeadDim) + 1), 1)
    decode_pages_kernel(const __grid_constant__ msgl_attention_params params) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char dynamic_shared[];
    __shared__ uint64_t full[kPageDepth], empty[kPageDepth];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    grid_wait();
    grid_launch_next();
    const PlanView view = plan_view(params.sizes, params.plan);
    const PlanBucket bucket = view.buckets[blockIdx.x];
    if (blockIdx.x >= view.header->active_ctas) return;
    const JobSizes sizes(params.sizes);
    const PageShape shape(sizes.heads_per_job, kHeadDim);
    const uint32_t v_offset = kPieceTokens * shape.k_stride;

    if (threadIdx.x < kPageDepth) {
        mbarrier_init(shared_address(&full[threadIdx.x]), 1);
        mbarrier_init(shared_address(&empty[threadIdx.x]), 32 * sizes.heads_per_job);
        mbarrier_init_fence();
    }
    __syncthreads();

    JobCursor cursor(view, bucket, sizes);
    uint32_t stage = 0, parity = 0;
    const auto advance = [&]() {
        stage = stage + 1 == kPageDepth ? 0 : stage + 1;
        if (stage == 0) parity ^= 1;
    };
    if (warp == sizes.heads_per_job) {
        do {
            const uint32_t bytes = cursor.num_heads(sizes) * kHeadDim * 2;
            for (uint32_t piece = cursor.piece; piece < cursor.piece_end; ++piece) {
                const uint32_t slot = piece_slot(params, cursor, sizes, piece);
                // A fresh barrier counts as past its odd phase, so the first round waits for nobody.
                mbarrier_wait(shared_address(&empty[stage]), parity ^ 1);
                const uint32_t barrier = shared_address(&full[stage]);
                if (lane == 0) mbarrier_arrive_expect(barrier, 2 * kPieceTokens * bytes);
                __syncwarp();
                const uint32_t row = lane % kPieceTokens;
                const bool is_k = lane < kPieceTokens;
                const T* src = static_cast<const T*>(is_k ? params.k : params.v) +
                               (size_t{slot} * sizes.num_kv_heads + cursor.first_head) * kHeadDim;
                bulk_copy(shared_address(dynamic_shared) + stage * shape.stage_bytes +
                              (is_k ? row * shape.k_stride : v_offset + row * shape.v_stride),
                          src, bytes, barrier, kEvictFirst);
                advance();
            }
        } while (cursor.next(view, sizes));
    } else {
        const float scale_log2 = params.scale * kLog2E;
        DecodeHead<T, kHeadDim> heads[1];
        DecodeHead<T, kHeadDim>& head = heads[0];
        do {
            const bool has_head = warp < cursor.num_heads(sizes);
            if (has_head) {
                uint4 queries[DecodeHead<T, kHeadDim>::kKChunks];
                head.template load_queries<PaddedRows>(params, cursor, sizes, warp, queries);
                head.start(queries, cursor, sizes);
            }
            for (uint32_t piece = cursor.piece; piece < cursor.piece_end; ++piece) {
                mbarrier_wait(shared_address(&full[stage]), parity);
                __syncwarp();
                if (has_head) {
                    const uint32_t rows = shared_address(dynamic_shared) + stage * shape.stage_bytes +
                                          warp * kHeadDim * 2;
                    attend(heads, PaddedRows{rows, shape.k_stride}, PaddedRows{rows + v_offset, shape.v_stride}, piece,
                           scale_log2);
                }
                mbarrier_arrive(shared_address(&empty[stage]));
                advance();
            }
            if (has_head) {
                head.finish_sums();
                if (cursor.is_whole(sizes)) {
                    head.store_out(params, cursor, sizes, warp);
                } else {
                    const size_t at = partial_row(blockIdx.x, cursor.begins(sizes), warp, 0, sizes);
                    head.store_partial(view.partial_out + at * kHeadDim, kHeadDim, view.partial_stats + at,
                                       cursor.num_rows(sizes),
                                       [](auto* place, const auto& x) { leave_part(place, x); });
                }
            }
        } while (cursor.next(view, sizes));
    }
    finish_shared_job<T, kHeadDim>(params, view, sizes, bucket);
#endif
}

template <typename T, int kHeadDim>
int launch_decode_pages(const msgl_attention_params& params, cudaStream_t stream) {
    const PageShape shape(params.sizes.heads_per_job, kHeadDim);
    const auto kernel = decode_pages_kernel<T, kHeadDim>;
    // Always the most of any shape: other engines' threads set it too.
    const PageShape largest(max_page_heads(kHeadDim), kHeadDim);
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(largest.shared_bytes));
    if (status != cudaSuccess) return status;
    launch_overlapped(kernel, params.sizes.grid_ctas, 32 * (params.sizes.heads_per_job + 1), shape.shared_bytes,
                      stream, params);
    return cudaGetLastError();
}

template <typename T>
int launch_decode_pages_dtype(const msgl_attention_params& params, cudaStream_t stream) {
    switch (params.sizes.head_dim) {
        case 64: return launch_decode_pages<T, 64>(params, stream);
        case 96: return launch_decode_pages<T, 96>(params, stream);
        case 128: return launch_decode_pages<T, 128>(params, stream);
        case 256: return launch_decode_pages<T, 256>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

}  // namespace msgl
