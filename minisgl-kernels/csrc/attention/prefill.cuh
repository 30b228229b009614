// Prefill over pages in the manner of FlashAttention-2 (Dao 2023), on mma.sync for sm_80 and later: `fa`, and `trtllm`
// too. Hopper has a kernel of its own, prefill_wgmma.cuh.
//
// Bound by the tensor cores on long prompts. A CTA of 4 warps owns a tile of query rows and walks the KV positions
// that they see. Rows are (token, head of the group) pairs, so a group reads each K and V once, and a chunk of few
// tokens still fills a tile. K and V have one buffer each: V arrives under Q K^T, the next K under softmax and P V.
// Each row of a buffer is padded by 16 bytes, which makes its length an odd number of bank groups: ldmatrix without
// conflicts for every head size. Tiles come in the plan's order, all KV heads of a tile together.
#pragma once
#include <climits>

#include "job.cuh"
#include "ptx/cp_async.cuh"

namespace msgl {

template <int kHeadDim>
struct PrefillShape {
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    // Rows of 16 for each warp: with two, each fragment of K and V is used twice, while O still fits in registers.
    static constexpr int kRowTiles = kHeadDim <= 128 ? 2 : 1;
    static constexpr int kRows = 16 * kRowTiles * kWarps;
    static constexpr int kCols = kHeadDim <= 128 ? 64 : 32;
    static constexpr int kStride = kHeadDim + 8;
    static constexpr int kSharedBytes = (kRows + 2 * kCols) * kStride * 2;
    static constexpr int kCtasPerSm = kHeadDim <= 128 ? 2 : 1;
    static constexpr int kChunks = kHeadDim / 8;
    static constexpr bool kKeepQ = kHeadDim <= 64;
};

// Starts copying K or V of kCols positions: every thread copies 16-byte pieces of rows.
template <typename T, int kHeadDim>
__device__ __forceinline__ void copy_rows(uint32_t dst, const void* kv, const uint32_t* slots, uint32_t head,
                                          uint32_t num_kv_heads) {
    using Shape = PrefillShape<kHeadDim>;
    static_assert(Shape::kCols * Shape::kChunks % Shape::kThreads == 0, "every thread copies as much");
#pragma unroll
    for (int i = 0; i < Shape::kCols * Shape::kChunks / Shape::kThreads; ++i) {
        const uint32_t idx = i * Shape::kThreads + threadIdx.x;
        const uint32_t row = idx / Shape::kChunks, chunk = idx % Shape::kChunks;
        const T* src = static_cast<const T*>(kv) + (size_t{slots[row]} * num_kv_heads + head) * kHeadDim + chunk * 8;
        cp_async_16(dst + (row * Shape::kStride + chunk * 8) * 2, src, true);
    }
    cp_async_commit();
}

// The slot of a position of the sequence. Positions from `end` on are masked, but 0 * NaN is NaN: in their place the
// last one is read.
__device__ __forceinline__ uint32_t slot_of(const msgl_attention_params& params, uint32_t seq_row, uint32_t position,
                                            uint32_t end) {
    position = min(position, end - 1);
    const uint32_t page_shift = __ffs(params.page_size) - 1;
    const uint32_t page = __ldg(params.page_table + size_t{seq_row} * params.max_pages + (position >> page_shift));
    return limit_slot(params, (page << page_shift) | (position & (params.page_size - 1)));
}

template <typename T, int kHeadDim>
__global__ void __launch_bounds__(PrefillShape<kHeadDim>::kThreads, PrefillShape<kHeadDim>::kCtasPerSm)
    prefill_kernel(const __grid_constant__ msgl_attention_params params) {
    using Shape = PrefillShape<kHeadDim>;
    constexpr int kRowTiles = Shape::kRowTiles, kColTiles = Shape::kCols / 8, kSteps = kHeadDim / 16;
    constexpr int kStride = Shape::kStride;
    extern __shared__ __align__(16) char shared[];
    __shared__ uint32_t slots[2][Shape::kCols];

    const msgl_attention_sizes& sizes = params.sizes;
    const PlanView view = plan_view(sizes, params.plan);
    const uint32_t tile_idx = blockIdx.x / sizes.num_kv_heads, head = blockIdx.x % sizes.num_kv_heads;
    if (tile_idx >= view.header->num_tiles) return;
    const PlanTile tile = view.tiles[tile_idx];
    const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
    const uint32_t rows = tile.seq.q_len * group;
    const uint32_t past = tile.seq.kv_len - tile.seq.q_len;
    const uint32_t first_position = past + tile.first_row / group;
    const uint32_t last_position = past + (min(tile.first_row + Shape::kRows, rows) - 1) / group;
    const uint32_t begin = first_visible(first_position, sizes.window), end = last_position + 1;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

    const uint32_t q_tile = shared_address(shared);
    const uint32_t k_tile = q_tile + Shape::kRows * kStride * 2;
    const uint32_t v_tile = k_tile + Shape::kCols * kStride * 2;

    // Offset of a query row in qkv (or, with the stride of the output, in out).
    const auto row_at = [&](uint32_t row, int64_t stride) {
        return int64_t{tile.seq.q_start + row / group} * stride + (head * group + row % group) * kHeadDim;
    };

    if (threadIdx.x < Shape::kCols) {
        slots[0][threadIdx.x] = slot_of(params, tile.seq.row, begin + threadIdx.x, end);
    }
    for (uint32_t idx = threadIdx.x; idx < Shape::kRows * Shape::kChunks; idx += Shape::kThreads) {
        const uint32_t row = idx / Shape::kChunks, chunk = idx % Shape::kChunks;
        const bool is_row = tile.first_row + row < rows;
        const T* src = static_cast<const T*>(params.qkv) +
                       (is_row ? row_at(tile.first_row + row, params.qkv_stride) : 0) + chunk * 8;
        cp_async_16(q_tile + (row * kStride + chunk * 8) * 2, src, is_row);
    }
    cp_async_commit();
    __syncthreads();
    copy_rows<T, kHeadDim>(k_tile, params.k, slots[0], head, sizes.num_kv_heads);

    // Rows g and g + 8 of each of the warp's row tiles: index 2 * m + h.
    const uint32_t warp_row = warp * 16 * kRowTiles;
    int last_visible[2 * kRowTiles];
    float maximum[2 * kRowTiles], sum[2 * kRowTiles];
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
        const uint32_t row = min(tile.first_row + warp_row + i / 2 * 16 + i % 2 * 8 + g, rows - 1);
        last_visible[i] = past + row / group;
        maximum[i] = kNoMaximum;
        sum[i] = 0.0f;
    }
    float out[kRowTiles][kHeadDim / 8][4] = {};
    uint32_t q[kRowTiles][Shape::kKeepQ ? kSteps : 1][4];
    const float scale_log2 = params.scale * kLog2E;
    const int window = sizes.window == 0 || sizes.window > INT_MAX ? INT_MAX : sizes.window;

    const auto load_q = [&](int m, int step, uint32_t (&fragment)[4]) {
        ldmatrix_x4(fragment,
                    q_tile + ((warp_row + m * 16 + lane % 16) * kStride + step * 16 + lane / 16 * 8) * 2);
    };

    uint32_t buffer = 0;
    for (uint32_t base = begin; base < end; base += Shape::kCols, buffer ^= 1) {
        // K is there, and every warp is done with the last V.
        cp_async_wait<0>();
        __syncthreads();
        copy_rows<T, kHeadDim>(v_tile, params.v, slots[buffer], head, sizes.num_kv_heads);
        const uint32_t next_base = base + Shape::kCols;
        uint32_t next_slot = 0;
        if (threadIdx.x < Shape::kCols) {
            next_slot = slot_of(params, tile.seq.row, next_base + threadIdx.x, end);
        }
        if constexpr (Shape::kKeepQ) {
            if (base == begin) {
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
                    for (int step = 0; step < kSteps; ++step) load_q(m, step, q[m][step]);
                }
            }
        }

        float s[kRowTiles][kColTiles][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            if constexpr (!Shape::kKeepQ) {
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) load_q(m, step, q[m][0]);
            }
#pragma unroll
            for (int n = 0; n < kColTiles; n += 2) {
                uint32_t b[4];
                ldmatrix_x4(b, k_tile + ((n * 8 + lane % 8 + lane / 16 * 8) * kStride + step * 16 +
                                         lane / 8 % 2 * 8) * 2);
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
                    const uint32_t(&a)[4] = q[m][Shape::kKeepQ ? step : 0];
                    mma_m16n8k16<T>(s[m][n], a[0], a[1], a[2], a[3], b[0], b[1]);
                    mma_m16n8k16<T>(s[m][n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
                }
            }
        }
        if (threadIdx.x < Shape::kCols) slots[buffer ^ 1][threadIdx.x] = next_slot;

        // V is there, every warp is done with K, and the next slots are written.
        cp_async_wait<0>();
        __syncthreads();
        if (next_base < end) {
            copy_rows<T, kHeadDim>(k_tile, params.k, slots[buffer ^ 1], head, sizes.num_kv_heads);
        }

        const bool is_masked = next_base > first_position + 1 || base < first_visible(last_position, sizes.window);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
            if (is_masked) {
#pragma unroll
                for (int n = 0; n < kColTiles; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int position = base + n * 8 + 2 * t + i % 2, r = 2 * m + i / 2;
                        const bool is_visible = position <= last_visible[r] && position > last_visible[r] - window;
                        if (!is_visible) s[m][n][i] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = 2 * m + h;
                float largest = -INFINITY;
#pragma unroll
                for (int n = 0; n < kColTiles; ++n) {
                    largest = fmaxf(largest, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
                const float raised = fmaxf(maximum[r], largest * scale_log2);
                const float factor = exp2_approx(maximum[r] - raised);
                maximum[r] = raised;
                float added = 0.0f;
#pragma unroll
                for (int n = 0; n < kColTiles; ++n) {
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; ++i) {
                        s[m][n][i] = exp2_approx(s[m][n][i] * scale_log2 - raised);
                        added += s[m][n][i];
                    }
                }
                sum[r] = sum[r] * factor + added;
#pragma unroll
                for (int n = 0; n < kHeadDim / 8; ++n) {
                    out[m][n][2 * h] *= factor;
                    out[m][n][2 * h + 1] *= factor;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < Shape::kCols / 16; ++step) {
            uint32_t p[kRowTiles][4];
#pragma unroll
            for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float(&pair)[4] = s[m][2 * step + i / 2];
                    p[m][i] = pack_pair<T>(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, v_tile + ((step * 16 + lane % 16) * kStride + n * 8 + lane / 16 * 8) * 2);
#pragma unroll
                for (int m = 0; m < kRowTiles; ++m) {
                    mma_m16n8k16<T>(out[m][n], p[m][0], p[m][1], p[m][2], p[m][3], b[0], b[1]);
                    mma_m16n8k16<T>(out[m][n + 1], p[m][0], p[m][1], p[m][2], p[m][3], b[2], b[3]);
                }
            }
        }
    }

    // Through the warp's own rows of the Q buffer, so that rows are written 16 bytes a thread.
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float total = sum[2 * m + h];
            total += __shfl_xor_sync(~0u, total, 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float factor = 1.0f / total;
            T* row = reinterpret_cast<T*>(shared) + (warp_row + m * 16 + h * 8 + g) * kStride + 2 * t;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                *reinterpret_cast<uint32_t*>(row + n * 8) =
                    pack_pair<T>(out[m][n][2 * h] * factor, out[m][n][2 * h + 1] * factor);
            }
        }
    }
    __syncwarp();
    for (uint32_t idx = lane; idx < 16 * kRowTiles * Shape::kChunks; idx += 32) {
        const uint32_t row = warp_row + idx / Shape::kChunks, chunk = idx % Shape::kChunks;
        if (tile.first_row + row >= rows) break;
        T* dst = static_cast<T*>(params.out) + row_at(tile.first_row + row, int64_t{sizes.num_heads} * kHeadDim);
        *reinterpret_cast<uint4*>(dst + chunk * 8) =
            *reinterpret_cast<const uint4*>(reinterpret_cast<T*>(shared) + row * kStride + chunk * 8);
    }
}

template <typename T, int kHeadDim>
int launch_prefill(const msgl_attention_params& params, cudaStream_t stream) {
    using Shape = PrefillShape<kHeadDim>;
    if (params.num_tiles == 0) return cudaSuccess;
    const auto kernel = prefill_kernel<T, kHeadDim>;
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
    if (status != cudaSuccess) return status;
    kernel<<<params.num_tiles * params.sizes.num_kv_heads, Shape::kThreads, Shape::kSharedBytes, stream>>>(params);
    return cudaGetLastError();
}

template <typename T>
int launch_prefill_dtype(const msgl_attention_params& params, cudaStream_t stream) {
    switch (params.sizes.head_dim) {
        case 64: return launch_prefill<T, 64>(params, stream);
        case 96: return launch_prefill<T, 96>(params, stream);
        case 128: return launch_prefill<T, 128>(params, stream);
        case 256: return launch_prefill<T, 256>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

}  // namespace msgl
