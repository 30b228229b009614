// Products by clusters in bf16.
#include "skinny/cluster_launch.cuh"

namespace msgl {

int cluster_bf16(const msgl_skinny_params &params, const ClusterChoice &choice, cudaStream_t stream) {
  return launch_cluster<__nv_bfloat16>(params, choice, stream);
}

bool has_cluster_bf16() { return has_cluster<__nv_bfloat16>(); }

}  // namespace msgl
