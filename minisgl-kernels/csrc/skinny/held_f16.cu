// Products with held weights in f16.
#include "skinny/held_launch.cuh"

namespace msgl {

int held_f16(const msgl_skinny_params &params, cudaStream_t stream) { return launch_held<__half>(params, stream); }

}  // namespace msgl
