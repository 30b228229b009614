// Paged attention without tensor cores: f32, and head sizes that the MMA kernels have no instance of.
//
// One warp for each query token and head, an online softmax over four KV positions at a time, the head's elements
// spread over the lanes. Sums are kept in two levels, 64 positions and all: added one by one, the rounding errors of a
// long context would be several times those of a matrix product. Bound by instruction issue; it is here to be right
// for every dtype and size. Needs no plan: the warp finds its sequence by binary search in the prefix sums of query
// lengths.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plan.cuh"

namespace msgl {
namespace {

constexpr int kWarps = 4;
constexpr int kBatch = 4;
constexpr uint32_t kBlock = 64;

template <typename T>
__device__ float to_float(T x) {
    return static_cast<float>(x);
}

// kElems elements a lane: heads of up to 32 * kElems.
template <typename T, int kElems>
__global__ void __launch_bounds__(32 * kWarps) plain_kernel(const __grid_constant__ msgl_attention_params params) {
    const msgl_attention_sizes& sizes = params.sizes;
    const uint32_t token = blockIdx.x, lane = threadIdx.x % 32;
    const uint32_t head = blockIdx.y * kWarps + threadIdx.x / 32;
    if (head >= sizes.num_heads || token >= params.cu_q_lens[params.num_seqs]) return;

    // The last sequence that starts at or before the token: of several with the same start, the others are empty.
    uint32_t low = 0, high = params.num_seqs;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (params.cu_q_lens[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const uint32_t q_start = params.cu_q_lens[low], q_len = params.cu_q_lens[low + 1] - q_start;
    const uint32_t kv_len = params.kv_lens[low];
    if (kv_len < q_len) return;
    const uint32_t* pages = params.page_table + size_t{params.seq_rows[low]} * params.max_pages;
    const uint32_t last = kv_len - q_len + (token - q_start);
    const uint32_t head_dim = sizes.head_dim, kv_head = head / (sizes.num_heads / sizes.num_kv_heads);
    const uint32_t page_shift = __ffs(params.page_size) - 1;

    float q[kElems], out[kElems] = {}, block_out[kElems] = {};
    float maximum = -INFINITY, sum = 0.0f, block_sum = 0.0f;
    const T* q_row = static_cast<const T*>(params.qkv) + int64_t{token} * params.qkv_stride + head * head_dim;
#pragma unroll
    for (int e = 0; e < kElems; ++e) {
        q[e] = lane + 32 * e < head_dim ? to_float(q_row[lane + 32 * e]) * params.scale : 0.0f;
    }

    const uint32_t first = first_visible(last, sizes.window);
    for (uint32_t base = first; base <= last; base += kBatch) {
        const T* v_rows[kBatch];
        float scores[kBatch];
        float raised = maximum;
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
            const uint32_t position = min(base + b, last);
            const uint32_t page = pages[position >> page_shift];
            const size_t slot =
                limit_slot(params, (page << page_shift) | (position & (params.page_size - 1)));
            const size_t row = (slot * sizes.num_kv_heads + kv_head) * head_dim;
            const T* k_row = static_cast<const T*>(params.k) + row;
            v_rows[b] = static_cast<const T*>(params.v) + row;
            float dot = 0.0f;
#pragma unroll
            for (int e = 0; e < kElems; ++e) {
                if (lane + 32 * e < head_dim) dot += q[e] * to_float(k_row[lane + 32 * e]);
            }
            for (int mask = 16; mask != 0; mask /= 2) dot += __shfl_xor_sync(~0u, dot, mask);
            scores[b] = base + b <= last ? dot : -INFINITY;
            raised = fmaxf(raised, scores[b]);
        }
        const float factor = expf(maximum - raised);
        maximum = raised;
        sum *= factor;
        block_sum *= factor;
#pragma unroll
        for (int e = 0; e < kElems; ++e) {
            out[e] *= factor;
            block_out[e] *= factor;
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
            const float weight = expf(scores[b] - maximum);
            block_sum += weight;
#pragma unroll
            for (int e = 0; e < kElems; ++e) {
                if (lane + 32 * e < head_dim) block_out[e] += weight * to_float(v_rows[b][lane + 32 * e]);
            }
        }
        if ((base - first + kBatch) % kBlock == 0 || base + kBatch > last) {
            sum += block_sum;
            block_sum = 0.0f;
#pragma unroll
            for (int e = 0; e < kElems; ++e) {
                out[e] += block_out[e];
                block_out[e] = 0.0f;
            }
        }
    }
    T* out_row = static_cast<T*>(params.out) + (size_t{token} * sizes.num_heads + head) * head_dim;
#pragma unroll
    for (int e = 0; e < kElems; ++e) {
        if (lane + 32 * e < head_dim) out_row[lane + 32 * e] = static_cast<T>(out[e] / sum);
    }
}

template <typename T>
int launch_plain(const msgl_attention_params& params, cudaStream_t stream) {
    const dim3 grid(params.num_tokens, div_up(params.sizes.num_heads, kWarps));
    if (params.num_tokens == 0) return cudaSuccess;
    if (params.sizes.head_dim <= 64) {
        plain_kernel<T, 2><<<grid, 32 * kWarps, 0, stream>>>(params);
    } else if (params.sizes.head_dim <= 128) {
        plain_kernel<T, 4><<<grid, 32 * kWarps, 0, stream>>>(params);
    } else if (params.sizes.head_dim <= 256) {
        plain_kernel<T, 8><<<grid, 32 * kWarps, 0, stream>>>(params);
    } else if (params.sizes.head_dim <= 512) {
        plain_kernel<T, 16><<<grid, 32 * kWarps, 0, stream>>>(params);
    } else {
        return MSGL_ERROR_UNSUPPORTED;
    }
    return cudaGetLastError();
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_attention_plain(const msgl_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    switch (params->dtype) {
        case MSGL_BF16: return msgl::launch_plain<__nv_bfloat16>(*params, cuda_stream);
        case MSGL_F16: return msgl::launch_plain<__half>(*params, cuda_stream);
        case MSGL_F32: return msgl::launch_plain<float>(*params, cuda_stream);
    }
    return MSGL_ERROR_UNSUPPORTED;
}
