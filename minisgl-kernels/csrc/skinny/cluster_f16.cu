// Products by clusters in f16.
#include "skinny/cluster_launch.cuh"

namespace msgl {

int cluster_f16(const msgl_skinny_params &params, const ClusterChoice &choice, cudaStream_t stream) {
  return launch_cluster<__half>(params, choice, stream);
}

bool has_cluster_f16() { return has_cluster<__half>(); }

}  // namespace msgl
