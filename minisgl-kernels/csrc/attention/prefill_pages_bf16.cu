// bf16 instances of the `trtllm` prefill kernel (prefill.cuh).
#include "prefill.cuh"

namespace msgl {
int prefill_pages_bf16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_prefill_dtype<__nv_bfloat16, PageLoader>(params, stream);
}
}  // namespace msgl
