// f16 instances of the Hopper prefill kernel (prefill_wgmma.cuh).
#include "prefill_wgmma_launch.cuh"

namespace msgl {
bool has_prefill_wgmma_f16() { return has_prefill_wgmma<__half>(); }

int prefill_wgmma_f16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_prefill_wgmma_dtype<__half>(params, stream);
}
}  // namespace msgl
