// f16 instances of the decode kernel with rotation (decode.cuh).
#include "decode_launch.cuh"

namespace msgl {
int decode_rope_f16(const msgl_rope_attention_params& params, cudaStream_t stream) {
    return launch_decode_rope_dtype<__half>(params, stream);
}
}  // namespace msgl
