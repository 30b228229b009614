// Picks the instance of the cluster kernel for the number of tokens and launches it.
#pragma once
#include "launch.cuh"
#include "skinny/cluster.cuh"
#include "tensor_map.cuh"

namespace msgl {

// The most dynamic shared memory of a CTA on sm_90, of which every shape takes no more.
constexpr uint32_t kClusterSharedMost = 227 * 1024;

// Encodes the weights, to be copied in boxes of half a tile of rows by one chunk of k.
template <typename T>
bool encode_weight_map(CUtensorMap *map, const msgl_skinny_params &p) {
  const EncodeTiled encode = encode_tiled();
  return encode != nullptr && encode_map<T, 2>(encode, map, p.weight, {p.k, p.n}, {uint64_t{p.k} * 2}, {kChunk, kHalfTile});
}

template <typename T, int kTiles, int kRowTiles>
int launch_cluster_tiles(const msgl_skinny_params &p, const ClusterShape &s, cudaStream_t stream) {
  const auto kernel = cluster_kernel<T, kTiles, kRowTiles>;
  CUtensorMap map;
  if (!encode_weight_map<T>(&map, p)) return cudaErrorInvalidValue;
  // Always the most of any shape: other engines' threads set it too.
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kClusterSharedMost);
  if (status != cudaSuccess) return status;
  launch_overlapped_clusters(kernel, s.clusters << s.log_size, 1 << s.log_size, kClusterThreads, s.shared_bytes, stream,
                             p, s, map);
  return launch_status();
}

template <typename T>
bool has_cluster() {
  return has_code(cluster_kernel<T, 1, 1>);
}

template <typename T, int kRowTiles>
int launch_cluster(const msgl_skinny_params &p, const ClusterShape &s, cudaStream_t stream) {
  switch (cluster_tokens(p.rows)) {
    case 8: return launch_cluster_tiles<T, 1, kRowTiles>(p, s, stream);
    case 16: return launch_cluster_tiles<T, 2, kRowTiles>(p, s, stream);
    case 24: return launch_cluster_tiles<T, 3, kRowTiles>(p, s, stream);
    case 32: return launch_cluster_tiles<T, 4, kRowTiles>(p, s, stream);
    case 48: return launch_cluster_tiles<T, 6, kRowTiles>(p, s, stream);
    default: return launch_cluster_tiles<T, 8, kRowTiles>(p, s, stream);
  }
}

template <typename T>
int launch_cluster(const msgl_skinny_params &p, const ClusterChoice &choice, cudaStream_t stream) {
  const ClusterShape s = cluster_shape(choice, p.rows, p.n, p.k, p.is_gated != 0, p.num_sms);
  return choice.tiles == 1 ? launch_cluster<T, 1>(p, s, stream) : launch_cluster<T, 2>(p, s, stream);
}

}  // namespace msgl
