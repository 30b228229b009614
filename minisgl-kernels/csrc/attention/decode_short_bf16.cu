// bf16 instances of the decode kernel for short contexts (decode_short.cuh).
#include "decode_short_launch.cuh"

namespace msgl {
int decode_short_bf16(const msgl_rope_attention_params& params, cudaStream_t stream) {
    return launch_decode_short_dtype<__nv_bfloat16>(params, stream);
}

uint32_t decode_short_clusters(uint32_t head_dim, uint32_t cluster_ctas) {
    return decode_short_clusters_dtype<__nv_bfloat16>(head_dim, cluster_ctas);
}
}  // namespace msgl
