// The attention launchers: which kernel runs for a family, dtype, head size and chip. The table below is the one
// place that knows; the Rust side asks it before it plans.
#include "plan.cuh"

namespace msgl {

int decode_bf16(const msgl_attention_params& params, cudaStream_t stream);
int decode_f16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_bf16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_f16(const msgl_attention_params& params, cudaStream_t stream);

namespace {

bool has_mma(msgl_dtype dtype, uint32_t head_dim, uint32_t sm) {
    return sm >= 80 && (dtype == MSGL_BF16 || dtype == MSGL_F16) &&
           (head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256);
}

}  // namespace
}  // namespace msgl

extern "C" uint32_t msgl_attention_tile_rows(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim,
                                             uint32_t sm) {
    if (kernel == MSGL_ATTENTION_FA && msgl::has_mma(dtype, head_dim, sm)) return head_dim <= 128 ? 128 : 64;
    return 0;
}

extern "C" uint32_t msgl_attention_ctas_per_sm(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim,
                                               uint32_t sm) {
    if (kernel == MSGL_ATTENTION_FI && msgl::has_mma(dtype, head_dim, sm)) return head_dim <= 64 ? 3 : 2;
    return 0;
}

extern "C" int msgl_attention_prefill(const msgl_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    if (params->kernel == MSGL_ATTENTION_FA) {
        if (params->dtype == MSGL_BF16) return msgl::prefill_bf16(*params, cuda_stream);
        if (params->dtype == MSGL_F16) return msgl::prefill_f16(*params, cuda_stream);
    }
    return MSGL_ERROR_UNSUPPORTED;
}

extern "C" int msgl_attention_decode(const msgl_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    if (params->kernel == MSGL_ATTENTION_FI) {
        if (params->dtype == MSGL_BF16) return msgl::decode_bf16(*params, cuda_stream);
        if (params->dtype == MSGL_F16) return msgl::decode_f16(*params, cuda_stream);
    }
    return MSGL_ERROR_UNSUPPORTED;
}
