// bf16 instances of the `fi` decode kernel (decode.cuh); a file for each dtype so that they compile side by side.
#include "decode_launch.cuh"

namespace msgl {
int decode_bf16(const msgl_attention_params& params, cudaStream_t stream) {
    return launch_decode_dtype<__nv_bfloat16>(params, stream);
}

uint32_t decode_clusters(uint32_t head_dim, uint32_t cluster_ctas) {
    return decode_clusters_dtype<__nv_bfloat16>(head_dim, cluster_ctas);
}
}  // namespace msgl
