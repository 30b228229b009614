// Skinny products in f16.
#include "skinny/instances.cuh"

namespace msgl {

int skinny_f16(const msgl_skinny_params &params, cudaStream_t stream) {
  return launch_skinny<__half>(params, stream);
}

}  // namespace msgl
