// What a decode CTA has in shared memory, for the kernels of decode.cuh.
#pragma once
#include "decode_head.cuh"

namespace msgl {

template <int kHeadDim>
struct DecodeShape {
    static constexpr int kWarps = kHeadDim == 96 ? 3 : kHeadDim <= 128 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kHeads = kHeadDim < 128 ? 2 : 1;
    static constexpr int kHeadBytes = kHeadDim * 2;
    static constexpr int kRowBytes = kHeads * kHeadBytes;
    static constexpr int kKStride = k_row_stride(kRowBytes);
    static constexpr int kVStride = v_row_stride(kRowBytes);
    static constexpr int kVOffset = kPieceTokens * kKStride;
    // K and V of one piece.
    static constexpr int kStageBytes = kPieceTokens * (kKStride + kVStride);
    // 70 to 80 KB for each of two CTAs an SM: four times what the latency of HBM at its bandwidth asks for, and still
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
    // What every launch has; behind it come the cluster bytes, where work may go to clusters.
    static constexpr int kSharedBytes = kRingBytes + kMergeBytes;
};

}  // namespace msgl
