// A decode warp's copies of K and V: pieces go into a ring of its own, so that it waits for nothing but its own copies.
//
// From pages of 16 and more, on sm_90a, a piece is one tensor copy of K and one of V. Elsewhere the rows of a piece may
// lie anywhere: each is a bulk copy where the chip has them, and cp.async on others. Bulk copies ask L2 for whole rows: by
// cp.async the same bytes were twice as many L2 sectors, and L2, not HBM, was the limit. The copy engine takes about 5 ns
// for each copy whatever its size, so heads of 64 are read in pairs, which makes rows of 256 bytes of them too.
#pragma once
#include "decode_shape.cuh"
#include "job.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/elect.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/proxy.cuh"
#include "ptx/shared.cuh"
#include "ptx/tensor_copy.cuh"

namespace msgl {

// K and V, [num_slots, num_kv_heads * head_dim], as [num_kv_heads * head_dim / 64, num_slots, 64], to be copied a piece of
// a job's heads at once.
struct DecodeMaps {
    CUtensorMap k, v;
};

// Copies a piece row by row: `bytes` of K and of V for each of its 16 slots, where `slot` is that of row lane % 16 and `k`
// and `v` begin at slot 0 with the first head. All lanes of the warp call it.
template <typename Shape, typename T>
__device__ __forceinline__ void copy_piece_rows(uint32_t stage, uint32_t barrier, const T* k, const T* v,
                                                uint32_t slot_elements, uint32_t slot, uint32_t bytes) {
    if (elect_one()) mbarrier_arrive_expect(barrier, 2 * kPieceTokens * bytes);
#pragma unroll 4
    for (uint32_t row = 0; row < kPieceTokens; ++row) {
        const size_t from = size_t{__shfl_sync(~0u, slot, row)} * slot_elements;
        if (elect_one()) {
            bulk_copy(stage + row * Shape::kKStride, k + from, bytes, barrier, kEvictFirst);
            bulk_copy(stage + Shape::kVOffset + row * Shape::kVStride, v + from, bytes, barrier, kEvictFirst);
        }
    }
}

// Copies K and V of the warp's pieces, running ahead of the arithmetic.
template <typename T, int kHeadDim, bool kByBlocks>
struct DecodeReader {
    using Shape = DecodeShape<kHeadDim, kByBlocks>;

    const msgl_attention_params& params;
    const DecodeMaps& maps;
    const PlanView& view;
    const JobSizes& sizes;
    JobCursor cursor;
    uint32_t warp;
    uint32_t ring;         // stage 0 of the warp
    uint32_t barriers;     // of stage 0 of the warp
    uint32_t piece;        // the next to copy
    uint32_t slot = 0;     // of token lane % 16 of that piece, or of its first
    bool is_done = false;  // there is no such piece
    uint32_t write_stage = 0;
    uint32_t read_stage = 0;
    uint32_t read_parity = 0;

    __device__ DecodeReader(const msgl_attention_params& params, const DecodeMaps& maps, const PlanView& view,
                            const JobSizes& sizes, const JobCursor& start, uint32_t warp, uint32_t ring,
                            uint32_t barriers)
        : params(params),
          maps(maps),
          view(view),
          sizes(sizes),
          cursor(start),
          warp(warp),
          ring(ring),
          barriers(barriers),
          piece(first_of_warp(start, warp)) {
        settle();
        look_up();
    }

    // The warp's first piece of a job. Warps go on in turn from job to job, so that none always has one more.
    __device__ static uint32_t first_of_warp(const JobCursor& cursor, uint32_t warp) {
        return cursor.piece + (warp + cursor.left) % Shape::kWarps;
    }

    // Whether the next piece has a position of this step.
    __device__ bool is_new() const {
        return !is_done && (piece + 1) * kPieceTokens > cursor.seq.kv_len - cursor.seq.q_len;
    }

    // Copies a piece, and looks up the slots of the one after it, which are needed a stage later.
    __device__ void copy() {
        if (!is_done) {
            if constexpr (kByBlocks) {
                copy_blocks();
            } else {
                copy_rows();
            }
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
#endif
        __syncwarp();
        return ring + read_stage * Shape::kStageBytes;
    }

    // Gives the stage of the oldest piece back and copies another into it.
    __device__ void release() {
        __syncwarp();
        read_stage = read_stage + 1 == Shape::kDepth ? 0 : read_stage + 1;
        if (read_stage == 0) read_parity ^= 1;
        copy();
    }

    // Makes zeros of the rows of V that no query of the job sees: their pages may have been given away, and 0 * NaN is NaN.
    // Row by row copies bring none (piece_slot).
    __device__ void clear_unseen(uint32_t stage, const JobCursor& job, uint32_t piece) const {
        const uint32_t first = first_visible(job.seq.kv_len - job.seq.q_len, sizes.window);
        const uint32_t position = piece * kPieceTokens;
        if (position >= first && position + kPieceTokens <= job.seq.kv_len) return;
        constexpr uint32_t kChunks = Shape::kRowBytes / 16;
        const auto v = Shape::v_rows(stage);
        for (uint32_t i = threadIdx.x % 32; i < kPieceTokens * kChunks; i += 32) {
            const uint32_t row = i / kChunks;
            if (position + row < first || position + row >= job.seq.kv_len) {
                store_shared_16(v.at(row, i % kChunks * 16), make_uint4(0, 0, 0, 0));
            }
        }
        // The stage is copied to again.
        fence_async_proxy();
        __syncwarp();
    }

  private:
    __device__ void copy_blocks() const {
        const uint32_t stage = ring + write_stage * Shape::kStageBytes, barrier = barriers + write_stage * 8;
        const uint32_t row = __shfl_sync(~0u, slot, 0), block = cursor.first_head * kHeadDim / 64;
        if (elect_one()) {
            mbarrier_arrive_expect(barrier, 2 * kPieceTokens * Shape::kRowBytes);
            block_copy(stage, maps.k, barrier, row, block, kEvictFirst);
            block_copy(stage + Shape::kVOffset, maps.v, barrier, row, block, kEvictFirst);
        }
    }

    __device__ void copy_rows() const {
        const uint32_t stage = ring + write_stage * Shape::kStageBytes;
        const uint32_t bytes = cursor.num_heads(sizes) * Shape::kHeadBytes;
#if __CUDA_ARCH__ >= 900
        copy_piece_rows<Shape>(stage, barriers + write_stage * 8, source(params.k, 0), source(params.v, 0),
                               sizes.num_kv_heads * kHeadDim, slot, bytes);
#else
        constexpr uint32_t kChunks = Shape::kRowBytes / 16;
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < Shape::kRowBytes / 32; ++i) {
            const uint32_t row = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
            const uint32_t row_slot = __shfl_sync(~0u, slot, row);
            const bool is_head = chunk * 16 < bytes;
            const uint32_t offset = is_head ? chunk * 8 : 0;
            cp_async_16(stage + row * Shape::kKStride + chunk * 16, source(params.k, row_slot) + offset, is_head);
            cp_async_16(stage + Shape::kVOffset + row * Shape::kVStride + chunk * 16,
                        source(params.v, row_slot) + offset, is_head);
        }
#endif
    }

    __device__ const T* source(const void* kv, uint32_t row_slot) const {
        return static_cast<const T*>(kv) + (size_t{row_slot} * sizes.num_kv_heads + cursor.first_head) * kHeadDim;
    }

    // Goes to the job that holds the warp's next piece.
    __device__ void settle() {
        while (!is_done && piece >= cursor.piece_end) {
            is_done = !cursor.next(view, sizes);
            piece = first_of_warp(cursor, warp);
        }
    }

    __device__ void look_up() {
        if (is_done) return;
        slot = kByBlocks ? position_slot(params, cursor.seq, piece * kPieceTokens)
                         : piece_slot(params, cursor, sizes, piece);
    }
};

}  // namespace msgl
