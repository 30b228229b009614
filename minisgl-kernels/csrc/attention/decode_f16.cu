// f16 instances of the `fi` decode kernel (decode.cuh); a file for each dtype so that they compile side by side.
#include "decode_launch.cuh"

namespace msgl {
int decode_f16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_decode_dtype<__half>(params, stream);
}
}  // namespace msgl
