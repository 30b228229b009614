// Launches of the decode kernel for short contexts: which instance a head size has, and how many clusters a device holds.
#pragma once
#include "decode_launch.cuh"
#include "decode_short.cuh"

namespace msgl {

template <typename T, int kHeadDim>
int launch_decode_short_head(const msgl_rope_attention_params& params, cudaStream_t stream) {
    using Shape = ShortShape<kHeadDim>;
    const auto kernel = decode_short_kernel<T, kHeadDim>;
    const cudaError_t status = allow_decode_shared(kernel, Shape::kSharedBytes);
    if (status != cudaSuccess) return status;
    const msgl_attention_sizes& sizes = params.attention.sizes;
    const uint32_t jobs = div_up(sizes.num_kv_heads, sizes.heads_per_job) *
                          div_up(sizes.num_heads / sizes.num_kv_heads, kJobRows) * params.attention.num_seqs;
    launch_overlapped_clusters(kernel, jobs * sizes.cluster_ctas, sizes.cluster_ctas, Shape::kThreads,
                               Shape::kSharedBytes, stream, params);
    return cudaGetLastError();
}

template <typename T>
int launch_decode_short_dtype(const msgl_rope_attention_params& params, cudaStream_t stream) {
    if (params.attention.sizes.cluster_ctas < 2) return MSGL_ERROR_UNSUPPORTED;
    switch (params.attention.sizes.head_dim) {
        case 64: return launch_decode_short_head<T, 64>(params, stream);
        case 128: return launch_decode_short_head<T, 128>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

template <typename T>
uint32_t decode_short_clusters_dtype(uint32_t head_dim, uint32_t cluster_ctas) {
    const auto clusters = [&](auto kernel, auto shape) {
        using Shape = decltype(shape);
        return resident_clusters(kernel, Shape::kThreads, Shape::kSharedBytes, cluster_ctas);
    };
    switch (head_dim) {
        case 64: return clusters(decode_short_kernel<T, 64>, ShortShape<64>{});
        case 128: return clusters(decode_short_kernel<T, 128>, ShortShape<128>{});
        default: return 0;
    }
}

}  // namespace msgl
