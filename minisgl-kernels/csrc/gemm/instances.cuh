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

// Of a group, row 2 J t + 2 j + b, with t below 4, j below J = kPairs and b below 2, goes to row 8 j + 2 t + b: thread t
// of four has accumulators of columns 2 t and 2 t + 1 of tiles j.
template <typename T, typename Tile>
bool encode_weight_map(EncodeTiled encode, CUtensorMap* map, const msgl_gemm_params& p) {
    const uint64_t row_bytes = uint64_t{p.k} * 2;
    return encode_map<T, 5>(encode, map, p.weight, {p.k, 2, 4, Tile::kPairs, p.n / Tile::kGroup},
                            {row_bytes, 2 * Tile::kPairs * row_bytes, 2 * row_bytes, Tile::kGroup * row_bytes},
                            {kGemmDepth, 2, 4, Tile::kPairs, Tile::kHalf / Tile::kGroup});
}

template <typename Tile>
GemmTiles gemm_tiles(const msgl_gemm_params& p) {
    return {ceil_div(p.rows, kGemmRows * kGemmCluster), ceil_div(p.n, Tile::kCols)};
}

template <typename T, typename Tile, GemmEpilogue kEpilogue>
int launch_gemm_tile(const msgl_gemm_params& p, cudaStream_t stream) {
    const auto kernel = gemm_kernel<T, Tile, kEpilogue>;
    GemmMaps maps;
    const EncodeTiled encode = encode_tiled();
    if (encode == nullptr || !encode_x_map<T>(encode, &maps.x, p) || !encode_weight_map<T, Tile>(encode, &maps.weight, p)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
    if (status != cudaSuccess) return status;
    const GemmTiles tiles = gemm_tiles<Tile>(p);
    const uint32_t clusters = p.num_sms / kGemmCluster;
    const uint32_t ctas = (tiles.count() < clusters ? tiles.count() : clusters) * kGemmCluster;
    launch_waiting_clusters(kernel, ctas, kGemmCluster, kGemmThreads, Tile::kSharedBytes, stream, p, maps, tiles);
    return launch_status();
}

template <typename T, GemmEpilogue kEpilogue>
int launch_gemm_epilogue(const msgl_gemm_params& p, cudaStream_t stream) {
    switch (p.tile_cols) {
        case GemmWide::kCols: return launch_gemm_tile<T, GemmWide, kEpilogue>(p, stream);
        case GemmNarrow::kCols: return launch_gemm_tile<T, GemmNarrow, kEpilogue>(p, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

template <typename T>
bool has_gemm() {
    return has_code(gemm_kernel<T, GemmWide, GemmEpilogue::kNone>);
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
