// bf16 instances of the `trtllm` decode kernel (decode_pages.cuh).
#include "decode_pages.cuh"

namespace msgl {
int decode_pages_bf16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_decode_pages_dtype<__nv_bfloat16>(params, stream);
}
}  // namespace msgl
