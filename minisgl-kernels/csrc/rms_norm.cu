// RMSNorm, with or without the residual sum before it (Zhang, Sennrich 2019).
//
//   residual += x, rounded to its dtype      (add_rms_norm only)
//   out = y / sqrt(mean(y^2) + eps) * weight, y the residual, or x itself
//
// Fused because the sum is read again at once: apart they would read and write the residual stream twice more.
// Bound by latency at decode sizes, by bandwidth at prefill sizes. One block a row, or one warp where there are many
// short ones; a row stays in registers between the two passes, 16 bytes a thread and access. Rows whose length does not
// allow that go through global memory again, element by element.
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

constexpr uint32_t kMaxThreads = 1024;
// Of the kernel for many rows. Longer rows than these gain nothing from it, nor do fewer rows.
constexpr uint32_t kRowsPerBlock = 4, kManyRows = 2048;
constexpr int kRowVecs = 4, kWideVecs = 2;

template <typename T, bool kAdd, int kVecs>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(msgl_rms_norm_params p) {
  using V = Vec<T>;
  grid_wait();
  grid_launch_next();
  __shared__ float shared[kWarpSize];
  const uint32_t vecs = p.cols / V::kSize;
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * vecs;
  const V *x = static_cast<const V *>(p.x) + row;
  V *residual = static_cast<V *>(p.residual) + row;
  float y[kVecs][V::kSize];
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < kVecs; j++) {
    const uint32_t i = threadIdx.x + j * blockDim.x;
    if (i < vecs) {
      const V in = x[i];
      if constexpr (kAdd) {
        V r = residual[i];
#pragma unroll
        for (int e = 0; e < V::kSize; e++) {
          r.elems[e] = from_float<T>(to_float(r.elems[e]) + to_float(in.elems[e]));
          y[j][e] = to_float(r.elems[e]);
        }
        residual[i] = r;
      } else {
#pragma unroll
        for (int e = 0; e < V::kSize; e++) y[j][e] = to_float(in.elems[e]);
      }
#pragma unroll
      for (int e = 0; e < V::kSize; e++) sum += y[j][e] * y[j][e];
    }
  }
  const float scale = rsqrtf(block_sum(sum, shared) / p.cols + p.eps);
  const V *weight = static_cast<const V *>(p.weight);
  V *out = static_cast<V *>(p.out) + row;
#pragma unroll
  for (int j = 0; j < kVecs; j++) {
    const uint32_t i = threadIdx.x + j * blockDim.x;
    if (i < vecs) {
      const V w = weight[i];
      V o;
#pragma unroll
      for (int e = 0; e < V::kSize; e++) o.elems[e] = from_float<T>(y[j][e] * scale * to_float(w.elems[e]));
      out[i] = o;
    }
  }
}

// The sum of squares of what a warp's lanes have: each its own from the left, then over the lanes.
template <typename V>
__device__ __forceinline__ float warp_squares(const V &y) {
  float sum = 0.f;
#pragma unroll
  for (int e = 0; e < V::kSize; e++) sum += to_float(y.elems[e]) * to_float(y.elems[e]);
  return warp_sum(sum);
}

// RMSNorm alone of many rows, one warp a row, so that no warp waits for another and all of a row is asked for at once.
// A lane sums for the lanes that the kernel above would have in kRowVecs warps, in their order: the same bits.
template <typename T>
__global__ void __launch_bounds__(kRowsPerBlock *kWarpSize) rms_norm_rows_kernel(msgl_rms_norm_params p) {
  using V = Vec<T>;
  grid_wait();
  grid_launch_next();
  const uint32_t row_idx = blockIdx.x * kRowsPerBlock + threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (row_idx >= p.rows) return;
  const uint32_t vecs = p.cols / V::kSize;
  const uint64_t row = static_cast<uint64_t>(row_idx) * vecs;
  const V *x = static_cast<const V *>(p.x) + row;
  V y[kRowVecs];
#pragma unroll
  for (int w = 0; w < kRowVecs; w++) {
    const uint32_t i = w * kWarpSize + lane;
    y[w] = {};
    if (i < vecs) y[w] = x[i];
  }
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < kRowVecs; w++) {
    sum += warp_squares(y[w]);
  }
  const float scale = rsqrtf(sum / p.cols + p.eps);
  const V *weight = static_cast<const V *>(p.weight);
  V *out = static_cast<V *>(p.out) + row;
#pragma unroll
  for (int w = 0; w < kRowVecs; w++) {
    const uint32_t i = w * kWarpSize + lane;
    if (i >= vecs) continue;
    const V weights = weight[i];
    V o;
#pragma unroll
    for (int e = 0; e < V::kSize; e++) {
      o.elems[e] = from_float<T>(to_float(y[w].elems[e]) * scale * to_float(weights.elems[e]));
    }
    out[i] = o;
  }
}

// RMSNorm alone of many longer rows: kVecs vectors a thread, so that more of them are asked for at once. A warp sums for the
// warps that the first kernel would have there, in their order: the same bits.
template <typename T, int kVecs>
__global__ void __launch_bounds__(kMaxThreads / kVecs) rms_norm_wide_kernel(msgl_rms_norm_params p) {
  using V = Vec<T>;
  grid_wait();
  grid_launch_next();
  __shared__ float shared[kWarpSize];
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * blockDim.x * kVecs;
  const V *x = static_cast<const V *>(p.x) + row;
  const uint32_t warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  V y[kVecs];
#pragma unroll
  for (int j = 0; j < kVecs; j++) y[j] = x[j * blockDim.x + threadIdx.x];
#pragma unroll
  for (int j = 0; j < kVecs; j++) {
    const float part = warp_squares(y[j]);
    if (threadIdx.x % kWarpSize == 0) shared[j * warps + warp] = part;
  }
  __syncthreads();
  float sum = 0.f;
  for (uint32_t i = 0; i < warps * kVecs; i++) sum += shared[i];
  const float scale = rsqrtf(sum / p.cols + p.eps);
  const V *weight = static_cast<const V *>(p.weight);
  V *out = static_cast<V *>(p.out) + row;
#pragma unroll
  for (int j = 0; j < kVecs; j++) {
    const V weights = weight[j * blockDim.x + threadIdx.x];
    V o;
#pragma unroll
    for (int e = 0; e < V::kSize; e++) {
      o.elems[e] = from_float<T>(to_float(y[j].elems[e]) * scale * to_float(weights.elems[e]));
    }
    out[j * blockDim.x + threadIdx.x] = o;
  }
}

template <typename T, bool kAdd>
__global__ void rms_norm_any_kernel(msgl_rms_norm_params p) {
  grid_wait();
  grid_launch_next();
  __shared__ float shared[kWarpSize];
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * p.cols;
  const T *x = static_cast<const T *>(p.x) + row;
  T *residual = static_cast<T *>(p.residual) + row;
  float sum = 0.f;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    float y = to_float(x[i]);
    if constexpr (kAdd) {
      residual[i] = from_float<T>(to_float(residual[i]) + y);
      y = to_float(residual[i]);
    }
    sum += y * y;
  }
  const float scale = rsqrtf(block_sum(sum, shared) / p.cols + p.eps);
  const T *weight = static_cast<const T *>(p.weight);
  T *out = static_cast<T *>(p.out) + row;
  for (uint32_t i = threadIdx.x; i < p.cols; i += blockDim.x) {
    const float y = to_float(kAdd ? residual[i] : x[i]);
    out[i] = from_float<T>(y * scale * to_float(weight[i]));
  }
}

template <typename T, bool kAdd>
void launch(const msgl_rms_norm_params &p, cudaStream_t stream) {
  constexpr uint32_t kSize = Vec<T>::kSize;
  const uint32_t vecs = p.cols / kSize;
  if (p.cols % kSize != 0 || vecs > 4 * kMaxThreads) {
    launch_waiting(rms_norm_any_kernel<T, kAdd>, p.rows, 256, 0, stream, p);
    return;
  }
  if constexpr (sizeof(T) == 2 && !kAdd) {
    if (p.rows >= kManyRows && vecs <= kRowVecs * kWarpSize) {
      const uint32_t blocks = ceil_div(p.rows, kRowsPerBlock);
      launch_waiting(rms_norm_rows_kernel<T>, blocks, kRowsPerBlock * kWarpSize, 0, stream, p);
      return;
    }
    if (p.rows >= kManyRows && vecs <= kMaxThreads && vecs % (kWideVecs * kWarpSize) == 0) {
      launch_waiting(rms_norm_wide_kernel<T, kWideVecs>, p.rows, vecs / kWideVecs, 0, stream, p);
      return;
    }
  }
  // Chosen by the length of a row alone, so that a row's bits do not depend on how many others there are.
  const uint32_t per_thread = ceil_div(vecs, kMaxThreads);
  const uint32_t vecs_per_thread = per_thread <= 2 ? per_thread : 4;
  const uint32_t threads = ceil_div(ceil_div(vecs, vecs_per_thread), kWarpSize) * kWarpSize;
  if (vecs_per_thread == 1) {
    launch_waiting(rms_norm_kernel<T, kAdd, 1>, p.rows, threads, 0, stream, p);
  } else if (vecs_per_thread == 2) {
    launch_waiting(rms_norm_kernel<T, kAdd, 2>, p.rows, threads, 0, stream, p);
  } else {
    launch_waiting(rms_norm_kernel<T, kAdd, 4>, p.rows, threads, 0, stream, p);
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_rms_norm(const msgl_rms_norm_params *params, msgl_stream stream) {
  if (params->rows == 0 || params->cols == 0) return 0;
  MSGL_DISPATCH_DTYPE(params->dtype, {
    if (params->residual != nullptr) {
      msgl::launch<T, true>(*params, msgl::as_stream(stream));
    } else {
      msgl::launch<T, false>(*params, msgl::as_stream(stream));
    }
  })
  return msgl::launch_status();
}
