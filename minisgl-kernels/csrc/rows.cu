// Small elementwise helpers outside of the decoder's hot path: a bias row under a GEMM, dtype conversion while
// weights are loaded, noise for dummy weights. Each is bound by bandwidth (conversion by the bus that its
// source lies behind).
#include "common.cuh"
#include "philox.cuh"

namespace msgl {
namespace {

constexpr uint32_t kThreads = 256;

// Blocks for a grid-stride loop: enough to fill the largest chip, no more than there is work.
uint32_t grid_stride_blocks(uint64_t work) {
  const uint64_t blocks = ceil_div64(work, kThreads);
  return blocks < 2048 ? static_cast<uint32_t>(blocks) : 2048;
}

template <typename Out, typename In>
__global__ void broadcast_row_kernel(Out *out, const In *row, uint64_t rows, uint32_t cols) {
  const uint64_t num_elems = rows * cols;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x; i < num_elems;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    out[i] = from_float<Out>(to_float(row[i % cols]));
  }
}

template <typename Out, typename In>
__global__ void convert_kernel(Out *out, const In *src, uint64_t num_elems) {
  constexpr int kElems = 16 / sizeof(In);
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
  const uint64_t first = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x;
  // Only the source, which may lie behind the bus, needs wide accesses; the destination may start at any row.
  const uint64_t vecs = num_elems / kElems;
  for (uint64_t i = first; i < vecs; i += step) {
    const Vec<In> in = reinterpret_cast<const Vec<In> *>(src)[i];
#pragma unroll
    for (int e = 0; e < kElems; e++) out[i * kElems + e] = from_float<Out>(to_float(in.elems[e]));
  }
  for (uint64_t i = vecs * kElems + first; i < num_elems; i += step) out[i] = from_float<Out>(to_float(src[i]));
}

template <typename T>
__global__ void fill_random_kernel(T *out, uint64_t num_elems, uint2 key, float mean, float half_width) {
  const uint64_t blocks = ceil_div64(num_elems, 4);
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x; i < blocks;
       i += static_cast<uint64_t>(gridDim.x) * kThreads) {
    const uint4 bits =
        philox4x32_10(make_uint4(static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), 0, 0), key);
    const uint32_t lanes[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (i * 4 + e < num_elems) {
        out[i * 4 + e] = from_float<T>(mean + (2.f * unit_open(lanes[e]) - 1.f) * half_width);
      }
    }
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_broadcast_row(const msgl_broadcast_row_params *params, msgl_stream stream) {
  using namespace msgl;
  const uint64_t work = static_cast<uint64_t>(params->rows) * params->cols;
  if (work == 0) return 0;
  MSGL_DISPATCH_DTYPE(params->out_dtype, {
    using Out = T;
    MSGL_DISPATCH_DTYPE(params->row_dtype, {
      broadcast_row_kernel<<<grid_stride_blocks(work), kThreads, 0, as_stream(stream)>>>(
          static_cast<Out *>(params->out), static_cast<const T *>(params->row), params->rows, params->cols);
    })
  })
  return launch_status();
}

extern "C" int msgl_convert(const msgl_convert_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_elems == 0) return 0;
  MSGL_DISPATCH_DTYPE(params->out_dtype, {
    using Out = T;
    MSGL_DISPATCH_DTYPE(params->src_dtype, {
      convert_kernel<<<grid_stride_blocks(ceil_div64(params->num_elems, 4)), kThreads, 0, as_stream(stream)>>>(
          static_cast<Out *>(params->out), static_cast<const T *>(params->src), params->num_elems);
    })
  })
  return launch_status();
}

extern "C" int msgl_fill_random(const msgl_fill_random_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_elems == 0) return 0;
  const uint2 key =
      make_uint2(static_cast<uint32_t>(params->seed), static_cast<uint32_t>(params->seed >> 32));
  // A uniform number in (-1, 1) has the standard deviation 1 / sqrt(3).
  const float half_width = 1.7320508075688772f * params->std;
  MSGL_DISPATCH_DTYPE(params->dtype, {
    fill_random_kernel<<<grid_stride_blocks(ceil_div64(params->num_elems, 4)), kThreads, 0, as_stream(stream)>>>(
        static_cast<T *>(params->out), params->num_elems, key, params->mean, half_width);
  })
  return launch_status();
}
