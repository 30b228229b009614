// f16 instances of the Hopper GEMM (gemm.cuh).
#include "gemm/instances.cuh"

namespace msgl {

bool has_gemm_f16() { return has_gemm<__half>(); }

int gemm_f16(const msgl_gemm_params& params, cudaStream_t stream) { return launch_gemm<__half>(params, stream); }

}  // namespace msgl
