// What a decode CTA has in shared memory, for the kernels of decode.cuh.
#pragma once
#include <type_traits>

#include "decode_head.cuh"

namespace msgl {

// Whether a piece can be one copy for K and one for V: its rows are whole blocks of 128 bytes (BlockRows). Rows of 512
// bytes have few copies as they are, and no register to spare.
__host__ __device__ constexpr bool has_block_rows(int head_dim) { return head_dim == 64 || head_dim == 128; }

// Pages that hold whole pieces.
constexpr uint32_t kMinBlockPage = kPieceTokens;

template <int kHeadDim, bool kByBlocks = false>
struct DecodeShape {
    using Rows = std::conditional_t<kByBlocks, BlockRows, PaddedRows>;
    static constexpr int kWarps = kHeadDim == 96 ? 3 : kHeadDim <= 128 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kHeads = kHeadDim < 128 ? 2 : 1;
    static constexpr int kHeadBytes = kHeadDim * 2;
    static constexpr int kRowBytes = kHeads * kHeadBytes;
    static constexpr int kKStride = k_row_stride(kRowBytes);
    static constexpr int kVStride = v_row_stride(kRowBytes);
    static constexpr int kVOffset = kPieceTokens * (kByBlocks ? kRowBytes : kKStride);
    // K and V of one piece.
    static constexpr int kStageBytes = kVOffset + kPieceTokens * (kByBlocks ? kRowBytes : kVStride);
    // 64 to 80 KB for each of two CTAs an SM: four times what the latency of HBM at its bandwidth asks for, and still
    // under the 99 KB of the small sm_8x chips.
    static constexpr int kDepth = 2;
    static constexpr int kCtasPerSm = 2;
    static constexpr int kRingBytes = kWarps * kDepth * kStageBytes;
    // Rows of the merge buffer are staggered over the banks.
    static constexpr int kMergeStride = kHeadDim + 8;
    static constexpr int kMergeRows = kHeads * kJobRows;
    static constexpr int kMergeBytes = kWarps * kMergeRows * kMergeStride * 4;
    // What a CTA of a cluster receives: four elements with their (maximum, sum), of every unit of its share from every
    // CTA. A job's units are a multiple of the 8 CTAs of the largest cluster.
    static constexpr int kClusterUnits = kMergeRows * kHeadDim / 4;
    static constexpr int kClusterBytes = kClusterUnits * 24;

    __device__ static Rows k_rows(uint32_t stage) {
        if constexpr (kByBlocks) return {stage};
        else return {stage, kKStride};
    }

    __device__ static Rows v_rows(uint32_t stage) {
        if constexpr (kByBlocks) return {stage + kVOffset};
        else return {stage + kVOffset, kVStride};
    }

    // What every launch has; behind it come the cluster bytes, where work may go to clusters.
    static constexpr int kSharedBytes = kRingBytes + kMergeBytes;
};

}  // namespace msgl
