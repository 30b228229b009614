// bf16 instances of the decode kernel with rotation (decode.cuh).
#include "decode.cuh"

namespace msgl {
int decode_rope_bf16(const msgl_rope_attention_params& params, cudaStream_t stream) {
    return launch_decode_rope_dtype<__nv_bfloat16>(params, stream);
}
}  // namespace msgl
