// The launcher of products of few tokens.
#include "skinny/shape.cuh"

namespace msgl {

int skinny_bf16(const msgl_skinny_params &params, cudaStream_t stream);
int skinny_f16(const msgl_skinny_params &params, cudaStream_t stream);

}  // namespace msgl

extern "C" int msgl_skinny_is_supported(const msgl_skinny_params *params, uint32_t sm) {
  using namespace msgl;
  const bool is_gated = params->is_gated != 0, has_norm = params->norm != nullptr;
  // In f16, x times the norm's weight may be more than the dtype holds: it is scaled only at the end.
  const bool has_dtype = params->dtype == MSGL_BF16 || (params->dtype == MSGL_F16 && !has_norm);
  if (sm < 90 || !has_dtype || params->rows == 0 || params->rows > kSkinnyMaxRows || params->n == 0) return 0;
  if (params->k == 0 || params->k % kGroup != 0 || (is_gated && params->n % (2 * kUnit) != 0)) return 0;
  return skinny_shape(params->rows, params->n, params->k, is_gated, has_norm, params->num_sms).depth > 0;
}

extern "C" int msgl_skinny(const msgl_skinny_params *params, msgl_stream stream) {
  switch (params->dtype) {
    case MSGL_BF16: return msgl::skinny_bf16(*params, msgl::as_stream(stream));
    case MSGL_F16: return msgl::skinny_f16(*params, msgl::as_stream(stream));
    default: return MSGL_ERROR_UNSUPPORTED;
  }
}
