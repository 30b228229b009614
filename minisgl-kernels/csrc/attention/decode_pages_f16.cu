// f16 instances of the `trtllm` decode kernel (decode_pages.cuh).
#include "decode_pages.cuh"

namespace msgl {
int decode_pages_f16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_decode_pages_dtype<__half>(params, stream);
}
}  // namespace msgl
