// `fi`: split-KV decode attention over pages of any size (after FlashInfer, Ye et al. 2025, and Flash-Decoding).
//
// Bound by reading K and V once. A decode query is a thin matrix, so the query heads that share a KV head are packed
// into the N = 8 side of mma.m16n8k16 and 16 KV positions are its M side: S^T = K Q^T, then O^T += V^T P^T.
//
// A warp copies whole rows into a ring of its own, with one bulk copy a row where the chip has them and with cp.async
// elsewhere, so that it waits for nothing but its own copies. It reads fragments 16 bytes a thread, without ldmatrix:
//   K: an MMA may sum over the head's elements in any order, so thread t of a quad takes 8 neighbouring ones of row g
//      for two MMAs, and Q is read in the same order.
//   V: the rows of O^T may be any elements, so thread g takes 8 neighbouring ones of rows 2t, 2t + 1, 2t + 8, 2t + 9;
//      one byte permute pairs two rows. movmatrix turns P from the accumulator's layout into the operand's.
// Rows are padded so that the eight threads of a phase meet no bank twice.
//
// One CTA walks its range of the plan (plan.cu); the warps take pieces of a job in turn, each with its own
// online softmax, and merge through shared memory at the job's end while the ring is already reading the next job.
#pragma once
#include "job.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cp_async.cuh"

namespace msgl {

template <int kHeadDim>
struct DecodeShape {
    static constexpr int kWarps = kHeadDim <= 128 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kRowBytes = kHeadDim * 2;
    // A phase reads 4 chunks of 16 bytes of K from 2 rows, and 2 chunks of V from every other of 8 rows.
    static constexpr int kKStride = kRowBytes + (kRowBytes % 128 == 0 ? 64 : 0);
    static constexpr int kVStride = kRowBytes + 16;
    static constexpr int kVOffset = kPieceTokens * kKStride;
    // K and V of one piece.
    static constexpr int kStageBytes = kPieceTokens * (kKStride + kVStride);
    // 64 to 80 KB for each CTA, two or three CTAs an SM: four times what the latency of HBM at its bandwidth asks for,
    // and still under the 99 KB of the small sm_8x chips.
    static constexpr int kDepth = kHeadDim <= 96 ? 3 : 2;
    static constexpr int kCtasPerSm = kHeadDim <= 64 ? 3 : 2;
    static constexpr int kRingBytes = kWarps * kDepth * kStageBytes;
    // Rows of the merge buffer are staggered over the banks.
    static constexpr int kMergeStride = kHeadDim + 8;
    static constexpr int kMergeBytes = kWarps * kJobRows * kMergeStride * 4;
    static constexpr int kSharedBytes = kRingBytes + kMergeBytes;
    // Elements that a thread takes from a row of V at once: all lanes of a row must fit in it.
    static constexpr int kVec = kHeadDim % 64 == 0 ? 8 : 4;
    static constexpr int kKChunks = kHeadDim / 32;
    static constexpr int kVChunks = kHeadDim / (8 * kVec);
    static constexpr int kOutTiles = kHeadDim / 16;
    static_assert(kHeadDim % 32 == 0, "a quad reads 32 elements of K");
};

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address)
                 : "memory");
    return x;
}

__device__ __forceinline__ uint2 load_shared_8(uint32_t address) {
    uint2 x;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(address) : "memory");
    return x;
}

// Copies K and V of the warp's pieces, running ahead of the arithmetic.
template <typename T, int kHeadDim>
struct DecodeReader {
    using Shape = DecodeShape<kHeadDim>;

    const msgl_attention_params& params;
    const PlanView& view;
    JobCursor cursor;
    uint32_t warp;
    uint32_t ring;            // stage 0 of the warp
    uint32_t barriers;        // of stage 0 of the warp
    uint32_t piece;           // the next to look up
    bool is_done = false;     // nothing is left to look up
    uint32_t slot = 0;        // of token lane % 16 of the piece to be copied next
    uint32_t head = 0;        // KV head of that piece
    uint32_t write_stage = 0;
    uint32_t read_stage = 0;
    uint32_t read_parity = 0;

    __device__ DecodeReader(const msgl_attention_params& params, const PlanView& view, const JobCursor& start,
                            uint32_t warp, uint32_t ring, uint32_t barriers)
        : params(params),
          view(view),
          cursor(start),
          warp(warp),
          ring(ring),
          barriers(barriers),
          piece(start.piece + warp) {
        settle();
        look_up();
    }

    // Copies the piece that was looked up, and looks up the one after it, whose page is needed a stage later.
    __device__ void copy() {
        if (!is_done) {
            const uint32_t lane = threadIdx.x % 32;
            const uint32_t stage = ring + write_stage * Shape::kStageBytes;
#if __CUDA_ARCH__ >= 900
            const uint32_t barrier = barriers + write_stage * 8;
            if (lane == 0) mbarrier_arrive_expect(barrier, 2 * kPieceTokens * Shape::kRowBytes);
            __syncwarp();
            const uint32_t row = lane % kPieceTokens;
            const void* kv = lane < kPieceTokens ? params.k : params.v;
            const uint32_t dst = stage + (lane < kPieceTokens ? row * Shape::kKStride
                                                              : Shape::kVOffset + row * Shape::kVStride);
            bulk_copy(dst, source(kv, slot, 0), Shape::kRowBytes, barrier, kEvictFirst);
#else
            constexpr uint32_t kChunks = kHeadDim / 8;
#pragma unroll
            for (int i = 0; i < kHeadDim / 16; ++i) {
                const uint32_t row = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
                const uint32_t row_slot = __shfl_sync(~0u, slot, row);
                cp_async_16(stage + row * Shape::kKStride + chunk * 16, source(params.k, row_slot, chunk), true);
                cp_async_16(stage + Shape::kVOffset + row * Shape::kVStride + chunk * 16,
                            source(params.v, row_slot, chunk), true);
            }
#endif
            write_stage = write_stage + 1 == Shape::kDepth ? 0 : write_stage + 1;
            piece += Shape::kWarps;
            settle();
            look_up();
        }
#if __CUDA_ARCH__ < 900
        cp_async_commit();
#endif
    }

    // Waits for the oldest piece and returns its stage.
    __device__ uint32_t wait() {
#if __CUDA_ARCH__ >= 900
        mbarrier_wait(barriers + read_stage * 8, read_parity);
#else
        cp_async_wait<Shape::kDepth - 1>();
        __syncwarp();
#endif
        return ring + read_stage * Shape::kStageBytes;
    }

    // Gives the stage of the oldest piece back and copies another into it.
    __device__ void release() {
        __syncwarp();
        read_stage = read_stage + 1 == Shape::kDepth ? 0 : read_stage + 1;
        if (read_stage == 0) read_parity ^= 1;
        copy();
    }

  private:
    __device__ const T* source(const void* kv, uint32_t row_slot, uint32_t chunk) const {
        return static_cast<const T*>(kv) + (size_t{row_slot} * params.sizes.num_kv_heads + head) * kHeadDim +
               chunk * 8;
    }

    // Goes to the job that holds the warp's next piece.
    __device__ void settle() {
        while (!is_done && piece >= cursor.piece_end) {
            is_done = !cursor.next(view, params.sizes);
            piece = cursor.piece + warp;
        }
    }

    __device__ void look_up() {
        if (is_done) return;
        const PlanSeq& seq = cursor.seq;
        head = cursor.job / query_tiles(seq, params.sizes);
        // Rows before the window and after the end may lie in pages that were given away, and 0 * NaN is NaN: in their
        // place the nearest row that is seen is read once more.
        const uint32_t position = min(max(piece * kPieceTokens + threadIdx.x % kPieceTokens,
                                          first_visible(seq.kv_len - seq.q_len, params.sizes.window)),
                                      seq.kv_len - 1);
        const uint32_t page_shift = __ffs(params.page_size) - 1;
        const uint32_t page =
            __ldg(params.page_table + size_t{seq.row} * params.max_pages + (position >> page_shift));
        slot = (page << page_shift) | (position & (params.page_size - 1));
    }
};

// One warp's share of a job: 8 query rows against its share of the pieces. With g = lane / 4 and t = lane % 4 a thread
// holds columns (query rows) 2t and 2t + 1.
template <typename T, int kHeadDim>
struct DecodeWarp {
    using Shape = DecodeShape<kHeadDim>;

    uint4 q[Shape::kKChunks];
    float out[Shape::kOutTiles][4];
    float maximum[2];
    float sum[2];
    int last_visible[2];
    int first_visible_position[2];

    __device__ void start(const msgl_attention_params& params, const JobCursor& cursor) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const msgl_attention_sizes& sizes = params.sizes;
        const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
        const uint32_t tiles = query_tiles(cursor.seq, sizes);
        const uint32_t head = cursor.job / tiles, first_row = cursor.job % tiles * kJobRows;
        const uint32_t rows = cursor.seq.q_len * group;
        const uint32_t row = first_row + g;
        const T* src = static_cast<const T*>(params.qkv) +
                       int64_t{cursor.seq.q_start + row / group} * params.qkv_stride +
                       (head * group + row % group) * kHeadDim + 8 * t;
#pragma unroll
        for (int c = 0; c < Shape::kKChunks; ++c) {
            q[c] = row < rows ? *reinterpret_cast<const uint4*>(src + 32 * c) : uint4{};
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t position =
                cursor.seq.kv_len - cursor.seq.q_len + min(first_row + 2 * t + i, rows - 1) / group;
            last_visible[i] = position;
            first_visible_position[i] = first_visible(position, sizes.window);
            maximum[i] = kNoMaximum;
            sum[i] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < Shape::kOutTiles; ++i) {
            out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.0f;
        }
    }

    // P^T of one piece as the B operand of the second product, from K in shared memory.
    __device__ void scores(uint32_t k_rows, uint32_t piece, float scale_log2, uint32_t (&p)[2]) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int c = 0; c < Shape::kKChunks; ++c) {
            const uint4 a = load_shared_16(k_rows + g * Shape::kKStride + (4 * c + t) * 16);
            const uint4 b = load_shared_16(k_rows + (g + 8) * Shape::kKStride + (4 * c + t) * 16);
            mma_m16n8k16<T>(even, a.x, b.x, a.y, b.y, q[c].x, q[c].y);
            mma_m16n8k16<T>(odd, a.z, b.z, a.w, b.w, q[c].z, q[c].w);
        }
        float s[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int position = piece * kPieceTokens + g + i / 2 * 8;
            const bool is_visible = position <= last_visible[i % 2] && position >= first_visible_position[i % 2];
            s[i] = is_visible ? (even[i] + odd[i]) * scale_log2 : -INFINITY;
        }
        float largest[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            largest[i] = fmaxf(s[i], s[i + 2]);
#pragma unroll
            for (int mask = 4; mask <= 16; mask *= 2) {
                largest[i] = fmaxf(largest[i], __shfl_xor_sync(~0u, largest[i], mask));
            }
        }
        if (__any_sync(~0u, largest[0] > maximum[0] || largest[1] > maximum[1])) {
            float factor[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const float raised = fmaxf(maximum[i], largest[i]);
                factor[i] = exp2_approx(maximum[i] - raised);
                maximum[i] = raised;
                sum[i] *= factor[i];
            }
#pragma unroll
            for (int i = 0; i < Shape::kOutTiles; ++i) {
                out[i][0] *= factor[0];
                out[i][1] *= factor[1];
                out[i][2] *= factor[0];
                out[i][3] *= factor[1];
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[i] = exp2_approx(s[i] - maximum[i % 2]);
        sum[0] += s[0] + s[2];
        sum[1] += s[1] + s[3];
        p[0] = movmatrix_trans(pack_pair<T>(s[0], s[1]));
        p[1] = movmatrix_trans(pack_pair<T>(s[2], s[3]));
    }

    // O^T += V^T P^T, from V in shared memory.
    __device__ void accumulate(uint32_t v_rows, const uint32_t (&p)[2]) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        constexpr int kWords = Shape::kVec / 2;
#pragma unroll
        for (int c = 0; c < Shape::kVChunks; ++c) {
            uint32_t rows[4][kWords];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t row = 2 * t + i % 2 + i / 2 * 8;
                if constexpr (kWords == 4) {
                    const uint4 x = load_shared_16(v_rows + row * Shape::kVStride + (8 * c + g) * 16);
                    rows[i][0] = x.x, rows[i][1] = x.y, rows[i][2] = x.z, rows[i][3] = x.w;
                } else {
                    const uint2 x = load_shared_8(v_rows + row * Shape::kVStride + (8 * c + g) * 8);
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

    // Writes the warp's unnormalised rows, [kJobRows][stride], and their (maximum, sum).
    __device__ void store(float* rows, int stride, float2* stats) {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        constexpr int kWords = Shape::kVec / 2;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int mask = 4; mask <= 16; mask *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], mask);
            if (g == 0) stats[2 * t + i] = make_float2(maximum[i], sum[i]);
            float* row = rows + (2 * t + i) * stride + g * Shape::kVec;
#pragma unroll
            for (int c = 0; c < Shape::kVChunks; ++c) {
#pragma unroll
                for (int j = 0; j < kWords; j += 2) {
                    const float4 x = {out[c * kWords + j][i], out[c * kWords + j][i + 2],
                                      out[c * kWords + j + 1][i], out[c * kWords + j + 1][i + 2]};
                    *reinterpret_cast<float4*>(row + 8 * Shape::kVec * c + 2 * j) = x;
                }
            }
        }
    }
};

// Merges the warps' rows of a job, and the CTAs' where several share it.
template <typename T, int kHeadDim>
__device__ void finish_job(const msgl_attention_params& params, const PlanView& view, const PlanHeader& header,
                           const JobCursor& cursor, const float* rows, const float2* stats) {
    using Shape = DecodeShape<kHeadDim>;
    __shared__ float maxima[kJobRows];
    const msgl_attention_sizes& sizes = params.sizes;
    const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
    const uint32_t tiles = query_tiles(cursor.seq, sizes);
    const uint32_t head = cursor.job / tiles, first_row = cursor.job % tiles * kJobRows;
    const uint32_t num_rows = min(cursor.seq.q_len * group - first_row, kJobRows);
    const JobSpan span(cursor, header, sizes.window, blockIdx.x);
    T* out = static_cast<T*>(params.out);

    const auto out_at = [&](uint32_t row, uint32_t dim) {
        const uint32_t token = cursor.seq.q_start + (first_row + row) / group;
        return out + (size_t{token} * sizes.num_heads + head * group + (first_row + row) % group) * kHeadDim + dim;
    };

    for (uint32_t i = threadIdx.x; i < num_rows * (kHeadDim / 4); i += Shape::kThreads) {
        const uint32_t row = i / (kHeadDim / 4), dim = i % (kHeadDim / 4) * 4;
        float largest = kNoMaximum;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) largest = fmaxf(largest, stats[w * kJobRows + row].x);
        float4 merged = {};
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
            const float2 own = stats[w * kJobRows + row];
            const float factor = exp2_approx(own.x - largest);
            sum += factor * own.y;
            add_scaled(merged, factor,
                       *reinterpret_cast<const float4*>(rows + (w * kJobRows + row) * Shape::kMergeStride + dim));
        }
        if (span.is_whole()) {
            store_row4(out_at(row, dim), divide(merged, sum));
        } else {
            const size_t at = size_t{span.slot} * kJobRows + row;
            __stcg(reinterpret_cast<float4*>(view.partial_out + at * kHeadDim + dim), merged);
            if (dim == 0) __stcg(&view.partial_stats[at], make_float2(largest, sum));
        }
    }
    if (span.is_whole() || !arrive_last(view, span)) return;

    for (uint32_t row = threadIdx.x / 32; row < num_rows; row += Shape::kWarps) {
        const float largest = largest_maximum(view, span, row, kJobRows);
        if (threadIdx.x % 32 == 0) maxima[row] = largest;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < num_rows * (kHeadDim / 4); i += Shape::kThreads) {
        const uint32_t row = i / (kHeadDim / 4), dim = i % (kHeadDim / 4) * 4;
        store_row4(out_at(row, dim), combine_partials<kHeadDim>(view, span, row, kJobRows, dim, maxima[row]));
    }
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(DecodeShape<kHeadDim>::kThreads, DecodeShape<kHeadDim>::kCtasPerSm)
    decode_kernel(const __grid_constant__ msgl_attention_params params) {
    using Shape = DecodeShape<kHeadDim>;
    extern __shared__ __align__(128) char shared[];
    __shared__ float2 stats[Shape::kWarps * kJobRows];
    __shared__ uint64_t barriers[Shape::kWarps * Shape::kDepth];
    float* merge_rows = reinterpret_cast<float*>(shared + Shape::kRingBytes);
    const uint32_t warp = threadIdx.x / 32;
    const float scale_log2 = params.scale * kLog2E;

    const PlanView view = plan_view(params.sizes, params.plan);
    // Both loads at once: a step's latency at small batches is a chain of such loads.
    const PlanBucket bucket = view.buckets[blockIdx.x];
    const PlanHeader header = *view.header;
    if (blockIdx.x >= header.active_ctas) return;

#if __CUDA_ARCH__ >= 900
    if (threadIdx.x < Shape::kWarps * Shape::kDepth) mbarrier_init(shared_address(&barriers[threadIdx.x]), 1);
    mbarrier_init_fence();
    __syncthreads();
#endif

    JobCursor cursor(bucket, params.sizes.window);
    DecodeWarp<T, kHeadDim> state;
    state.start(params, cursor);
    DecodeReader<T, kHeadDim> reader(params, view, cursor, warp,
                                     shared_address(shared) + warp * Shape::kDepth * Shape::kStageBytes,
                                     shared_address(&barriers[warp * Shape::kDepth]));
#pragma unroll
    for (int i = 0; i < Shape::kDepth; ++i) reader.copy();

    while (true) {
        for (uint32_t piece = cursor.piece + warp; piece < cursor.piece_end; piece += Shape::kWarps) {
            const uint32_t stage = reader.wait();
            uint32_t p[2];
            state.scores(stage, piece, scale_log2, p);
            state.accumulate(stage + Shape::kVOffset, p);
            reader.release();
        }
        // The slowest warp may still be reading the last job's rows.
        __syncthreads();
        state.store(merge_rows + warp * kJobRows * Shape::kMergeStride, Shape::kMergeStride, stats + warp * kJobRows);
        __syncthreads();
        const JobCursor done = cursor;
        const bool is_end = !cursor.next(view, params.sizes);
        if (!is_end) state.start(params, cursor);
        finish_job<T, kHeadDim>(params, view, header, done, merge_rows, stats);
        if (is_end) break;
    }
}

template <typename T, int kHeadDim>
int launch_decode(const msgl_attention_params& params, cudaStream_t stream) {
    using Shape = DecodeShape<kHeadDim>;
    const auto kernel = decode_kernel<T, kHeadDim>;
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
    if (status != cudaSuccess) return status;
    kernel<<<params.sizes.decode_ctas, Shape::kThreads, Shape::kSharedBytes, stream>>>(params);
    return cudaGetLastError();
}

template <typename T>
int launch_decode_dtype(const msgl_attention_params& params, cudaStream_t stream) {
    switch (params.sizes.head_dim) {
        case 64: return launch_decode<T, 64>(params, stream);
        case 96: return launch_decode<T, 96>(params, stream);
        case 128: return launch_decode<T, 128>(params, stream);
        case 256: return launch_decode<T, 256>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

}  // namespace msgl
