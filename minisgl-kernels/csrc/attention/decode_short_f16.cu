// f16 instances of the decode kernel for short contexts (decode_short.cuh).
#include "decode_short_launch.cuh"

namespace msgl {
int decode_short_f16(const msgl_rope_attention_params& params, cudaStream_t stream) {
    return launch_decode_short_dtype<__half>(params, stream);
}
}  // namespace msgl
