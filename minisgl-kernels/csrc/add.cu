// The residual sum where nothing can be fused with it: residual += x.
//
// Bound by latency at decode sizes, by bandwidth at prefill sizes: three elements moved for each one computed. 16
// bytes an access; the rest of the last vector element by element.
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

constexpr uint32_t kThreads = 256;

template <typename T>
__global__ void add_kernel(msgl_add_params p) {
  using V = Vec<T>;
  grid_wait();
  grid_launch_next();
  const uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x;
  const uint64_t first = i * V::kSize;
  T *residual = static_cast<T *>(p.residual) + first;
  const T *x = static_cast<const T *>(p.x) + first;
  if (first + V::kSize <= p.num_elems) {
    V r = *reinterpret_cast<V *>(residual);
    const V in = *reinterpret_cast<const V *>(x);
#pragma unroll
    for (int e = 0; e < V::kSize; e++) r.elems[e] = from_float<T>(to_float(r.elems[e]) + to_float(in.elems[e]));
    *reinterpret_cast<V *>(residual) = r;
  } else if (first < p.num_elems) {
    for (uint64_t e = 0; e < p.num_elems - first; e++) {
      residual[e] = from_float<T>(to_float(residual[e]) + to_float(x[e]));
    }
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_add(const msgl_add_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_elems == 0) return 0;
  MSGL_DISPATCH_DTYPE(params->dtype, {
    const uint64_t vecs = ceil_div64(params->num_elems, Vec<T>::kSize);
    const uint32_t blocks = static_cast<uint32_t>(ceil_div64(vecs, kThreads));
    launch_waiting(add_kernel<T>, blocks, kThreads, 0, as_stream(stream), *params);
  })
  return launch_status();
}
