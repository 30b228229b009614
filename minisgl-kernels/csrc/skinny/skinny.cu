// The launcher of products of few tokens.
#include "skinny/cluster_shape.cuh"
#include "skinny/held_shape.cuh"
#include "skinny/shape.cuh"

namespace msgl {

int skinny_bf16(const msgl_skinny_params &params, cudaStream_t stream);
int skinny_f16(const msgl_skinny_params &params, cudaStream_t stream);
int cluster_bf16(const msgl_skinny_params &params, const ClusterChoice &choice, cudaStream_t stream);
int cluster_f16(const msgl_skinny_params &params, const ClusterChoice &choice, cudaStream_t stream);
int held_bf16(const msgl_skinny_params &params, cudaStream_t stream);
int held_f16(const msgl_skinny_params &params, cudaStream_t stream);
bool has_cluster_bf16();
bool has_cluster_f16();

namespace {

// Variant 0 streams the weights of whole rows (skinny.cuh), the last one holds them in registers (held.cuh); the others
// are these: of 32 that were measured, those that win a shape of docs/kernels/linear.md in its step by more than noise.
constexpr ClusterChoice kClusterChoices[] = {
    {2, 2, 1, 1}, {1, 2, 1, 1}, {3, 2, 1, 1}, {1, 1, 1, 1},
};
static_assert(sizeof(kClusterChoices) / sizeof(kClusterChoices[0]) + 2 == MSGL_SKINNY_VARIANTS, "all of them");
constexpr uint32_t kHeldVariant = MSGL_SKINNY_VARIANTS - 1;

const ClusterChoice &choice_of(const msgl_skinny_params &p) { return kClusterChoices[p.variant - 1]; }

}  // namespace

}  // namespace msgl

extern "C" int msgl_skinny_is_supported(const msgl_skinny_params *params, uint32_t sm) {
  using namespace msgl;
  const bool is_gated = params->is_gated != 0, has_norm = params->norm != nullptr;
  // In f16, x times the norm's weight may be more than the dtype holds: it is scaled only at the end.
  const bool has_dtype = params->dtype == MSGL_BF16 || (params->dtype == MSGL_F16 && !has_norm);
  if (sm < 90 || !has_dtype || params->rows == 0 || params->rows > kSkinnyMaxRows || params->n == 0) return 0;
  if (params->k == 0 || params->k % kGroup != 0 || (is_gated && params->n % (2 * kUnit) != 0)) return 0;
  if (params->variant == 0) {
    return skinny_shape(params->rows, params->n, params->k, is_gated, has_norm, params->num_sms).depth > 0;
  }
  if (params->variant == kHeldVariant) {
    return held_shape(params->rows, params->n, params->k, is_gated, params->num_sms).ctas > 0;
  }
  if (params->variant >= MSGL_SKINNY_VARIANTS || sm != 90) return 0;
  const ClusterShape shape =
      cluster_shape(choice_of(*params), params->rows, params->n, params->k, is_gated, params->num_sms);
  if (shape.depth == 0) return 0;
  return params->dtype == MSGL_BF16 ? has_cluster_bf16() : has_cluster_f16();
}

extern "C" int msgl_skinny(const msgl_skinny_params *params, msgl_stream stream) {
  using namespace msgl;
  const cudaStream_t on = as_stream(stream);
  if (params->dtype != MSGL_BF16 && params->dtype != MSGL_F16) return MSGL_ERROR_UNSUPPORTED;
  const bool is_bf16 = params->dtype == MSGL_BF16;
  switch (params->variant) {
    case 0: return is_bf16 ? skinny_bf16(*params, on) : skinny_f16(*params, on);
    case kHeldVariant: return is_bf16 ? held_bf16(*params, on) : held_f16(*params, on);
    default: {
      const ClusterChoice &choice = choice_of(*params);
      return is_bf16 ? cluster_bf16(*params, choice, on) : cluster_f16(*params, choice, on);
    }
  }
}
