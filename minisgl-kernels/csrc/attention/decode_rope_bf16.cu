// bf16 instances of the decode kernel with rotation (decode.cuh).
#include "decode_launch.cuh"

namespace msgl {
int decode_rope_bf16(const msgl_rope_attention_params& params, cudaStream_t stream) {
    return launch_decode_rope_dtype<__nv_bfloat16>(params, stream);
}

uint32_t decode_rope_clusters(uint32_t head_dim, uint32_t cluster_ctas) {
    return decode_rope_clusters_dtype<__nv_bfloat16>(head_dim, cluster_ctas);
}
}  // namespace msgl
