// bf16 instances of the Hopper GEMM (gemm.cuh).
#include "gemm/instances.cuh"

namespace msgl {

bool has_gemm_bf16() { return has_gemm<__nv_bfloat16>(); }

int gemm_bf16(const msgl_gemm_params& params, cudaStream_t stream) {
    return launch_gemm<__nv_bfloat16>(params, stream);
}

}  // namespace msgl
