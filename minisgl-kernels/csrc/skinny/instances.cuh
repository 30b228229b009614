// Picks the instance of the skinny kernel for the sizes and launches it.
#pragma once
#include "launch.cuh"
#include "skinny/skinny.cuh"

namespace msgl {

template <typename T, int kTokenTiles, int kRowTiles>
int launch_skinny_tiles(const msgl_skinny_params &p, const SkinnyShape &s, cudaStream_t stream) {
  const auto kernel = skinny_kernel<T, kTokenTiles, kRowTiles>;
  // Always the most of any shape: other engines' threads set it too.
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedMost);
  if (status != cudaSuccess) return status;
  launch_overlapped(kernel, s.ctas, kSkinnyThreads, s.shared_bytes, stream, p, s);
  return launch_status();
}

template <typename T, int kTokenTiles>
int launch_skinny_tokens(const msgl_skinny_params &p, cudaStream_t stream) {
  const SkinnyShape s = skinny_shape(p.rows, p.n, p.k, p.is_gated != 0, p.norm != nullptr, p.num_sms);
  if (s.row_tiles == 1) return launch_skinny_tiles<T, kTokenTiles, 1>(p, s, stream);
  return launch_skinny_tiles<T, kTokenTiles, 2>(p, s, stream);
}

template <typename T>
int launch_skinny(const msgl_skinny_params &p, cudaStream_t stream) {
  if (p.rows <= 8) return launch_skinny_tokens<T, 1>(p, stream);
  if (p.rows <= 16) return launch_skinny_tokens<T, 2>(p, stream);
  if (p.rows <= 32) return launch_skinny_tokens<T, 4>(p, stream);
  return launch_skinny_tokens<T, 8>(p, stream);
}

}  // namespace msgl
