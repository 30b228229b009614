// Launches the Hopper GEMM (gemm.cuh) with the maps that the copy engine needs.
#pragma once
#include "gemm.cuh"
#include "launch.cuh"
#include "tensor_map.cuh"

namespace msgl {

template <typename T>
bool encode_x_map(EncodeTiled encode, CUtensorMap* map, const msgl_gemm_params& p) {
    return encode_map<T, 2>(encode, map, p.x, {p.k, p.rows}, {uint64_t{p.k} * 2}, {kGemmDepth, kGemmRows});
}

// Row 8 t + 2 j + b of a group of 32, with t and j below 4 and b below 2, goes to row 8 j + 2 t + b: thread t of four
// has accumulators of columns 2 t and 2 t + 1 of tiles j.
template <typename T>
bool encode_weight_map(EncodeTiled encode, CUtensorMap* map, const msgl_gemm_params& p) {
    const uint64_t row_bytes = uint64_t{p.k} * 2;
    return encode_map<T, 5>(encode, map, p.weight, {p.k, 2, 4, 4, p.n / kGemmGroup},
                                 {row_bytes, 8 * row_bytes, 2 * row_bytes, kGemmGroup * row_bytes},
                                 {kGemmDepth, 2, 4, 4, kGemmHalf / kGemmGroup});
}

template <typename T, GemmEpilogue kEpilogue>
int launch_gemm_epilogue(const msgl_gemm_params& p, cudaStream_t stream) {
    const auto kernel = gemm_kernel<T, kEpilogue>;
    GemmMaps maps;
    const EncodeTiled encode = encode_tiled();
    if (encode == nullptr || !encode_x_map<T>(encode, &maps.x, p) || !encode_weight_map<T>(encode, &maps.weight, p)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kGemmSharedBytes);
    if (status != cudaSuccess) return status;
    const GemmTiles tiles = {ceil_div(p.rows, kGemmRows * kGemmCluster), ceil_div(p.n, kGemmCols)};
    const uint32_t clusters = p.num_sms / kGemmCluster;
    const uint32_t ctas = (tiles.count() < clusters ? tiles.count() : clusters) * kGemmCluster;
    launch_waiting_clusters(kernel, ctas, kGemmCluster, kGemmThreads, kGemmSharedBytes, stream, p, maps, tiles);
    return launch_status();
}

// Whether this program has the kernel's code for sm_90a on the current device. Compiled for anything else the kernel
// is an empty stub, which shows in its registers.
template <typename T>
bool has_gemm() {
    cudaFuncAttributes attributes;
    const auto kernel = gemm_kernel<T, GemmEpilogue::kNone>;
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.numRegs > 64;
}

template <typename T>
int launch_gemm(const msgl_gemm_params& p, cudaStream_t stream) {
    if (p.is_gated == 0) return launch_gemm_epilogue<T, GemmEpilogue::kNone>(p, stream);
    switch (p.activation) {
        case MSGL_SILU: return launch_gemm_epilogue<T, GemmEpilogue::kSilu>(p, stream);
        case MSGL_GELU: return launch_gemm_epilogue<T, GemmEpilogue::kGelu>(p, stream);
        default: return launch_gemm_epilogue<T, GemmEpilogue::kGeluTanh>(p, stream);
    }
}

}  // namespace msgl
