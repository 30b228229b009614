// bf16 instances of the Hopper prefill kernel (prefill_wgmma.cuh).
#include "prefill_wgmma_launch.cuh"

namespace msgl {
bool has_prefill_wgmma_bf16() { return has_prefill_wgmma<__nv_bfloat16>(); }

int prefill_wgmma_bf16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_prefill_wgmma_dtype<__nv_bfloat16>(params, stream);
}
}  // namespace msgl
