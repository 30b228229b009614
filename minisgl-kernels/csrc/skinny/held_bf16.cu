// Products with held weights in bf16.
#include "skinny/held_launch.cuh"

namespace msgl {

int held_bf16(const msgl_skinny_params &params, cudaStream_t stream) { return launch_held<__nv_bfloat16>(params, stream); }

}  // namespace msgl
