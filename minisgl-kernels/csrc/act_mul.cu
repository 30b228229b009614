// The gated activation of a feed-forward layer: out = act(gate) * up (Shazeer 2020).
//
// `gate_up` is the output of one merged projection, so a row holds the gates, then the ups. Bound by latency at
// decode sizes, by bandwidth at prefill sizes: three elements moved for each one computed. 16 bytes an access.
#include "activation.cuh"
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

template <typename T, int kElems, msgl_activation kActivation>
__global__ void act_mul_kernel(msgl_act_mul_params p) {
  using V = Vec<T, kElems>;
  grid_wait();
  grid_launch_next();
  const uint32_t vecs = p.ffn / kElems;
  const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= vecs) return;
  const uint64_t row = blockIdx.x;
  const V *in = static_cast<const V *>(p.gate_up) + row * 2 * vecs;
  const V gate = in[i], up = in[vecs + i];
  V out;
#pragma unroll
  for (int e = 0; e < kElems; e++) {
    out.elems[e] = from_float<T>(activate<kActivation>(to_float(gate.elems[e])) * to_float(up.elems[e]));
  }
  static_cast<V *>(p.out)[row * vecs + i] = out;
}

template <typename T, int kElems>
int launch(const msgl_act_mul_params &p, cudaStream_t stream) {
  const uint32_t vecs = p.ffn / kElems;
  const uint32_t threads = vecs < 256 ? ceil_div(vecs, kWarpSize) * kWarpSize : 256;
  const dim3 grid(p.rows, ceil_div(vecs, threads));
  switch (p.activation) {
    case MSGL_SILU:
      launch_waiting(act_mul_kernel<T, kElems, MSGL_SILU>, grid, threads, 0, stream, p);
      break;
    case MSGL_GELU:
      launch_waiting(act_mul_kernel<T, kElems, MSGL_GELU>, grid, threads, 0, stream, p);
      break;
    case MSGL_GELU_TANH:
      launch_waiting(act_mul_kernel<T, kElems, MSGL_GELU_TANH>, grid, threads, 0, stream, p);
      break;
    default:
      return MSGL_ERROR_UNSUPPORTED;
  }
  return launch_status();
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_act_mul(const msgl_act_mul_params *params, msgl_stream stream) {
  if (params->rows == 0 || params->ffn == 0) return 0;
  MSGL_DISPATCH_DTYPE(params->dtype, {
    if (params->ffn % msgl::Vec<T>::kSize == 0) {
      return msgl::launch<T, msgl::Vec<T>::kSize>(*params, msgl::as_stream(stream));
    }
    return msgl::launch<T, 1>(*params, msgl::as_stream(stream));
  })
  return 0;
}
