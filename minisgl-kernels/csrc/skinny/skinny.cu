// The launcher of products of few tokens.
#include "common.cuh"

namespace msgl {

int skinny_bf16(const msgl_skinny_params &params, cudaStream_t stream);
int skinny_f16(const msgl_skinny_params &params, cudaStream_t stream);

}  // namespace msgl

extern "C" int msgl_skinny(const msgl_skinny_params *params, msgl_stream stream) {
  if (params->rows == 0 || params->n == 0) return 0;
  if (params->rows > 64 || params->k == 0 || params->k % 32 != 0) return MSGL_ERROR_UNSUPPORTED;
  if (params->is_gated && params->n % 16 != 0) return MSGL_ERROR_UNSUPPORTED;
  switch (params->dtype) {
    case MSGL_BF16: return msgl::skinny_bf16(*params, msgl::as_stream(stream));
    // Before its row's scale, x times the norm's weight may be more than f16 holds.
    case MSGL_F16:
      return params->norm != nullptr ? MSGL_ERROR_UNSUPPORTED : msgl::skinny_f16(*params, msgl::as_stream(stream));
    default: return MSGL_ERROR_UNSUPPORTED;
  }
}
