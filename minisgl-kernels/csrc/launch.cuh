// Launching a kernel so that it may overlap the end of the one before it.
#pragma once
#include "common.cuh"

namespace msgl {

// What the runtime says of the current device; `value` stays as it is where it says nothing.
inline cudaError_t device_attribute(cudaDeviceAttr attribute, int *value) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  return status == cudaSuccess ? cudaDeviceGetAttribute(value, attribute, device) : status;
}

inline bool has_overlapped_launches() {
  int major = 0;
  device_attribute(cudaDevAttrComputeCapabilityMajor, &major);
  return major >= 9;
}

// Whether this program has a kernel's code for sm_90a on the current device. Compiled for anything else such a kernel is
// an empty stub, which shows in its registers.
template <typename... Params>
bool has_code(void (*kernel)(Params...)) {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.numRegs > 32;
}

// Whether a launch on `stream` of a kernel that reads ahead of grid_wait() should carry the attribute for programmatic
// dependent launch. While a graph is recorded, because there the boundary between two kernels is most of what a small one
// costs, and because nothing but ops can be recorded: a kernel may then read its weights before the kernel before it has
// ended.
inline bool overlaps_launches(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess || status != cudaStreamCaptureStatusActive) return false;
  return has_overlapped_launches();
}

// Enqueues `kernel` in clusters of `cluster_ctas` CTAs along the first dimension of the grid (more than one: sm_90).
template <typename... Params, typename... Args>
void launch_clusters(void (*kernel)(Params...), dim3 grid, uint32_t cluster_ctas, dim3 block, size_t shared_bytes,
                     cudaStream_t stream, bool overlaps, Args &&...args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (cluster_ctas > 1) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster_ctas;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  if (overlaps) {
    cudaLaunchAttribute &attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  // The error, if any, is the one that launch_status() reads.
  cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

// Enqueues `kernel`, which must call grid_wait() before it touches anything that a kernel before it in a step writes or
// reads.
template <typename... Params, typename... Args>
void launch_overlapped_clusters(void (*kernel)(Params...), dim3 grid, uint32_t cluster_ctas, dim3 block,
                                size_t shared_bytes, cudaStream_t stream, Args &&...args) {
  launch_clusters(kernel, grid, cluster_ctas, block, shared_bytes, stream, overlaps_launches(stream),
                  static_cast<Args &&>(args)...);
}

// The same without clusters.
template <typename... Params, typename... Args>
void launch_overlapped(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                       Args &&...args) {
  launch_overlapped_clusters(kernel, grid, 1, block, shared_bytes, stream, static_cast<Args &&>(args)...);
}

// Enqueues `kernel`, which must call grid_wait() before it touches any memory but its own: it overlaps in every stream,
// recorded or not.
template <typename... Params, typename... Args>
void launch_waiting_clusters(void (*kernel)(Params...), dim3 grid, uint32_t cluster_ctas, dim3 block,
                             size_t shared_bytes, cudaStream_t stream, Args &&...args) {
  launch_clusters(kernel, grid, cluster_ctas, block, shared_bytes, stream, has_overlapped_launches(),
                  static_cast<Args &&>(args)...);
}

// The same without clusters.
template <typename... Params, typename... Args>
void launch_waiting(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    Args &&...args) {
  launch_waiting_clusters(kernel, grid, 1, block, shared_bytes, stream, static_cast<Args &&>(args)...);
}

}  // namespace msgl
