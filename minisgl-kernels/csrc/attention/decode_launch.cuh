// Launches of the decode kernels: which instance a head size has, and how many clusters a device holds.
#pragma once
#include "decode.cuh"
#include "launch.cuh"
#include "tensor_map.cuh"

namespace msgl {

// Allows a decode kernel what it needs at most. The same for all launches on a device: the limit belongs to the
// process, and other threads set it too.
template <typename... Params>
cudaError_t allow_decode_shared(void (*kernel)(Params...), uint32_t bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <typename... Params>
int launch_decode(void (*kernel)(Params...), uint32_t threads, uint32_t alone_bytes, uint32_t cluster_bytes,
                  const msgl_attention_sizes& sizes, cudaStream_t stream, const Params&... params) {
    const uint32_t shared_bytes = alone_bytes + (sizes.cluster_ctas > 1 ? cluster_bytes : 0);
    const cudaError_t status = allow_decode_shared(kernel, shared_bytes);
    if (status != cudaSuccess) return status;
    if (sizes.cluster_ctas > 1) {
        launch_overlapped_clusters(kernel, sizes.grid_ctas, sizes.cluster_ctas, threads, shared_bytes, stream,
                                   params...);
    } else {
        launch_overlapped(kernel, sizes.grid_ctas, threads, shared_bytes, stream, params...);
    }
    return cudaGetLastError();
}

// How many clusters of a kernel the current device holds at once; 0 where it has no clusters.
template <typename... Params>
uint32_t resident_clusters(void (*kernel)(Params...), uint32_t threads, uint32_t shared_bytes, uint32_t cluster_ctas) {
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = cluster_ctas;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = cluster_ctas;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    if (allow_decode_shared(kernel, shared_bytes) != cudaSuccess ||
        cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

template <typename T, int kHeadDim>
bool encode_decode_map(EncodeTiled encode, CUtensorMap* map, const msgl_attention_params& params, const void* kv) {
    const uint64_t slot_elements = uint64_t{params.sizes.num_kv_heads} * kHeadDim;
    return encode_map<T, 3>(encode, map, kv, {64, params.num_slots, slot_elements / 64}, {slot_elements * 2, 128},
                            {64, kPieceTokens, DecodeShape<kHeadDim>::kRowBytes / 128});
}

template <typename T, int kHeadDim, bool kByBlocks>
int launch_decode_head(const msgl_attention_params& params, const DecodeMaps& maps, cudaStream_t stream) {
    using Shape = DecodeShape<kHeadDim, kByBlocks>;
    return launch_decode(decode_kernel<T, kHeadDim, kByBlocks>, Shape::kThreads, Shape::kSharedBytes,
                         Shape::kClusterBytes, params.sizes, stream, params, maps);
}

template <typename T, int kHeadDim>
int launch_decode_head(const msgl_attention_params& params, cudaStream_t stream) {
    DecodeMaps maps = {};
    if constexpr (has_block_rows(kHeadDim)) {
        // Clusters have short jobs, and would leave no room for a second CTA.
        if (params.page_size >= kMinBlockPage && params.sizes.cluster_ctas <= 1 &&
            has_code(decode_kernel<T, kHeadDim, true>)) {
            const EncodeTiled encode = encode_tiled();
            if (encode == nullptr || !encode_decode_map<T, kHeadDim>(encode, &maps.k, params, params.k) ||
                !encode_decode_map<T, kHeadDim>(encode, &maps.v, params, params.v)) {
                return cudaErrorInvalidValue;
            }
            return launch_decode_head<T, kHeadDim, true>(params, maps, stream);
        }
    }
    return launch_decode_head<T, kHeadDim, false>(params, maps, stream);
}

template <typename T>
int launch_decode_dtype(const msgl_attention_params& params, cudaStream_t stream) {
    switch (params.sizes.head_dim) {
        case 64: return launch_decode_head<T, 64>(params, stream);
        case 96: return launch_decode_head<T, 96>(params, stream);
        case 128: return launch_decode_head<T, 128>(params, stream);
        case 256: return launch_decode_head<T, 256>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

// Of head sizes without a kernel of decode_short.cuh.
template <typename T>
uint32_t decode_clusters_dtype(uint32_t head_dim, uint32_t cluster_ctas) {
    const auto clusters = [&](auto kernel, auto shape) {
        using Shape = decltype(shape);
        return resident_clusters(kernel, Shape::kThreads, Shape::kSharedBytes + Shape::kClusterBytes, cluster_ctas);
    };
    switch (head_dim) {
        case 96: return clusters(decode_kernel<T, 96, false>, DecodeShape<96>{});
        case 256: return clusters(decode_kernel<T, 256, false>, DecodeShape<256>{});
        default: return 0;
    }
}

}  // namespace msgl
