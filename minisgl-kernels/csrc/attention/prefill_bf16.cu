// bf16 instances of the mma.sync prefill kernel (prefill.cuh); a file for each dtype so that they compile side by side.
#include "prefill.cuh"

namespace msgl {
int prefill_bf16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_prefill_dtype<__nv_bfloat16>(params, stream);
}
}  // namespace msgl
