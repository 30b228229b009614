// Skinny products in bf16.
#include "skinny/instances.cuh"

namespace msgl {

int skinny_bf16(const msgl_skinny_params &params, cudaStream_t stream) {
  return launch_skinny<__nv_bfloat16>(params, stream);
}

}  // namespace msgl
