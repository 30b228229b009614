// The launcher of products of many tokens.
#include "gemm/epilogue.cuh"

namespace msgl {

bool has_gemm_bf16();
bool has_gemm_f16();
int gemm_bf16(const msgl_gemm_params &params, cudaStream_t stream);
int gemm_f16(const msgl_gemm_params &params, cudaStream_t stream);

namespace {

// Columns of x that tiles of this width need: no number will do where there are none.
uint32_t min_k(uint32_t tile_cols) {
  switch (tile_cols) {
    case GemmWide::kCols: return GemmWide::kMinK;
    case GemmNarrow::kCols: return GemmNarrow::kMinK;
    default: return UINT32_MAX;
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_gemm_is_supported(const msgl_gemm_params *params, uint32_t sm) {
  using namespace msgl;
  const msgl_gemm_params &p = *params;
  if (sm != 90 || p.rows == 0 || p.n == 0) return 0;
  // Rows of whole 16 bytes for the copy engine; and a tile is stored under the first stages of the next one.
  if (p.k % 8 != 0 || p.k < min_k(p.tile_cols)) return 0;
  // Whole groups of output columns.
  if (p.n % (p.is_gated != 0 ? 2 * GemmWide::kGroup : GemmWide::kGroup) != 0) return 0;
  switch (p.dtype) {
    case MSGL_BF16: return has_gemm_bf16();
    case MSGL_F16: return has_gemm_f16();
    default: return 0;
  }
}

extern "C" int msgl_gemm(const msgl_gemm_params *params, msgl_stream stream) {
  switch (params->dtype) {
    case MSGL_BF16: return msgl::gemm_bf16(*params, msgl::as_stream(stream));
    case MSGL_F16: return msgl::gemm_f16(*params, msgl::as_stream(stream));
    default: return MSGL_ERROR_UNSUPPORTED;
  }
}
