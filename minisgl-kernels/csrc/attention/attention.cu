// The attention launchers: which kernel runs for a family, dtype, head size and chip. The Rust side asks the queries
// before it plans, so this file is the one place that knows.
#include "decode_pages.cuh"

namespace msgl {

int decode_bf16(const msgl_attention_params& params, cudaStream_t stream);
int decode_f16(const msgl_attention_params& params, cudaStream_t stream);
int decode_short_bf16(const msgl_rope_attention_params& params, cudaStream_t stream);
int decode_short_f16(const msgl_rope_attention_params& params, cudaStream_t stream);
int decode_pages_bf16(const msgl_attention_params& params, cudaStream_t stream);
int decode_pages_f16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_bf16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_f16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_wgmma_bf16(const msgl_attention_params& params, cudaStream_t stream);
int prefill_wgmma_f16(const msgl_attention_params& params, cudaStream_t stream);
uint32_t decode_clusters(uint32_t head_dim, uint32_t cluster_ctas);
uint32_t decode_short_clusters(uint32_t head_dim, uint32_t cluster_ctas);
bool has_prefill_wgmma_bf16();
bool has_prefill_wgmma_f16();

namespace {

bool has_mma(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim, uint32_t sm) {
    return sm >= (kernel == MSGL_ATTENTION_TRTLLM ? 90u : 80u) && (dtype == MSGL_BF16 || dtype == MSGL_F16) &&
           (head_dim == 64 || head_dim == 96 || head_dim == 128 || head_dim == 256);
}

bool has_wgmma(msgl_dtype dtype, uint32_t head_dim, uint32_t sm) {
    if (sm != 90 || !has_mma(MSGL_ATTENTION_FA, dtype, head_dim, sm)) return false;
    return dtype == MSGL_BF16 ? has_prefill_wgmma_bf16() : has_prefill_wgmma_f16();
}

}  // namespace
}  // namespace msgl

extern "C" uint32_t msgl_attention_tile_rows(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim,
                                             uint32_t sm) {
    if (kernel == MSGL_ATTENTION_WGMMA) {
        if (!msgl::has_wgmma(dtype, head_dim, sm)) return 0;
        return head_dim == 64 ? 192 : 128;
    }
    if (kernel != MSGL_ATTENTION_FA && kernel != MSGL_ATTENTION_TRTLLM) return 0;
    if (!msgl::has_mma(kernel, dtype, head_dim, sm)) return 0;
    return head_dim <= 128 ? 128 : 64;
}

extern "C" uint32_t msgl_attention_heads_per_job(msgl_attention_kernel kernel, uint32_t head_dim,
                                                 uint32_t num_kv_heads) {
    if (kernel == MSGL_ATTENTION_TRTLLM) return msgl::PageShape::heads_per_job(head_dim, num_kv_heads);
    return head_dim < 128 ? 2 : 1;
}

extern "C" uint32_t msgl_attention_ctas_per_sm(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim,
                                               uint32_t num_kv_heads, uint32_t sm) {
    if (kernel != MSGL_ATTENTION_FI && kernel != MSGL_ATTENTION_TRTLLM) return 0;
    if (!msgl::has_mma(kernel, dtype, head_dim, sm)) return 0;
    if (kernel == MSGL_ATTENTION_FI) return 2;
    // As many as the 227 KB of shared memory and the 64 K registers of an SM hold.
    const uint32_t heads = msgl::PageShape::heads_per_job(head_dim, num_kv_heads);
    const uint32_t by_shared = 227 * 1024 / (msgl::PageShape(heads, head_dim).shared_bytes + 2048);
    const uint32_t by_registers = 65536 / (32 * (heads + 1) * (head_dim <= 128 ? 168 : 224));
    const uint32_t fit = by_shared < by_registers ? by_shared : by_registers;
    return fit < 1 ? 1 : fit;
}

extern "C" uint32_t msgl_attention_clusters(uint32_t head_dim, uint32_t sm, uint32_t cluster_ctas) {
    if (sm < 90 || !msgl::has_mma(MSGL_ATTENTION_FI, MSGL_BF16, head_dim, sm)) return 0;
    return (msgl_has_rope_attention(MSGL_BF16, head_dim, sm) ? msgl::decode_short_clusters : msgl::decode_clusters)(
        head_dim, cluster_ctas);
}

extern "C" int msgl_attention_prefill(const msgl_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    const bool is_bf16 = params->dtype == MSGL_BF16;
    if (!is_bf16 && params->dtype != MSGL_F16) return MSGL_ERROR_UNSUPPORTED;
    switch (params->kernel) {
        case MSGL_ATTENTION_FA:
        case MSGL_ATTENTION_TRTLLM:
            return (is_bf16 ? msgl::prefill_bf16 : msgl::prefill_f16)(*params, cuda_stream);
        case MSGL_ATTENTION_WGMMA:
            return (is_bf16 ? msgl::prefill_wgmma_bf16 : msgl::prefill_wgmma_f16)(*params, cuda_stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

extern "C" int msgl_attention_decode(const msgl_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    const bool is_bf16 = params->dtype == MSGL_BF16;
    if (!is_bf16 && params->dtype != MSGL_F16) return MSGL_ERROR_UNSUPPORTED;
    switch (params->kernel) {
        case MSGL_ATTENTION_FI: return (is_bf16 ? msgl::decode_bf16 : msgl::decode_f16)(*params, cuda_stream);
        case MSGL_ATTENTION_TRTLLM:
            return (is_bf16 ? msgl::decode_pages_bf16 : msgl::decode_pages_f16)(*params, cuda_stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

extern "C" uint32_t msgl_has_rope_attention(msgl_dtype dtype, uint32_t head_dim, uint32_t sm) {
    return sm >= 90 && (dtype == MSGL_BF16 || dtype == MSGL_F16) && (head_dim == 64 || head_dim == 128);
}

extern "C" int msgl_rope_attention(const msgl_rope_attention_params* params, msgl_stream stream) {
    const cudaStream_t cuda_stream = reinterpret_cast<cudaStream_t>(stream);
    switch (params->attention.dtype) {
        case MSGL_BF16: return msgl::decode_short_bf16(*params, cuda_stream);
        case MSGL_F16: return msgl::decode_short_f16(*params, cuda_stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}
