// Products of up to 8 tokens with a matrix that the SMs' registers hold: out = epilogue(prologue(x) * weight^T) (sm_90).
//
// Where all weights of a CTA fit its registers nothing is left to do but a chain of latencies, and this kernel has the
// shortest: every weight is asked for before the grid before has ended, as operands of the MMA that need no shared
// memory; then x, by each lane for itself; then the MMAs, one barrier, the sum over the warps in their order, the store.
//
// A CTA owns a run of rows for all of k, cut evenly over all SMs in units of 8 (8 features, or 8 gates and their 8 ups),
// and each of its 8 warps a part of k. Weights are the 16-row side of m16n8k16 and tokens its 8 columns. k is permuted
// within each 32: a lane takes 8 neighbours of its row, 16 bytes, as the 2 x 4 elements of two MMAs.
#pragma once
#include "activation.cuh"
#include "ptx/bulk.cuh"
#include "ptx/grid.cuh"
#include "ptx/load_once.cuh"
#include "ptx/mma.cuh"
#include "skinny/held_shape.cuh"
#include "skinny/pairs.cuh"

namespace msgl {

template <typename T, uint32_t kHalves, uint32_t kLoads>
struct HeldWeights {
  static constexpr uint32_t kTiles = (kHalves + 1) / 2;
  // Sums that do not wait for one another.
  static constexpr uint32_t kChains = kTiles == 1 ? 4 : 2;
  uint4 held[kLoads][kHalves];

  // `column` is this lane's in the warp's first load; of rows past the last one, which nothing is stored of, the last.
  __device__ __forceinline__ void load(const msgl_skinny_params &p, uint32_t first_unit, uint32_t halves, uint32_t loads,
                                       uint32_t column) {
    const uint32_t quad = threadIdx.x % 32 / 4;
    const T *rows[kHalves];
#pragma unroll
    for (uint32_t h = 0; h < kHalves; h++) {
      const uint32_t feature = (first_unit + (p.is_gated ? h / 2 : h)) * kHeldUnit + quad;
      const uint32_t row = p.is_gated && h % 2 ? p.n / 2 + feature : feature;
      rows[h] = static_cast<const T *>(p.weight) + static_cast<uint64_t>(min(row, p.n - 1)) * p.k + column;
    }
#pragma unroll
    for (uint32_t l = 0; l < kLoads; l++) {
#pragma unroll
      for (uint32_t h = 0; h < kHalves; h++) {
        const bool exists = l < loads && h < halves;
        held[l][h] = exists ? load_once_16(rows[h] + l * kHeldColumns, kEvictFirst) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ void multiply(const uint4 (&x)[kLoads], float (&sums)[kTiles][4]) const {
    float chains[kChains][kTiles][4] = {};
#pragma unroll
    for (uint32_t l = 0; l < kLoads; l++) {
#pragma unroll
      for (uint32_t t = 0; t < kTiles; t++) {
        const uint4 &lo = held[l][2 * t], &hi = held[l][2 * t + 1 < kHalves ? 2 * t + 1 : 2 * t];
        mma_m16n8k16<T>(chains[2 * l % kChains][t], lo.x, hi.x, lo.y, hi.y, x[l].x, x[l].y);
        mma_m16n8k16<T>(chains[(2 * l + 1) % kChains][t], lo.z, hi.z, lo.w, hi.w, x[l].z, x[l].w);
      }
    }
#pragma unroll
    for (uint32_t t = 0; t < kTiles; t++) {
#pragma unroll
      for (uint32_t e = 0; e < 4; e++) {
        float sum = chains[0][t][e];
#pragma unroll
        for (uint32_t c = 1; c < kChains; c++) sum += chains[c][t][e];
        sums[t][e] = sum;
      }
    }
  }
};

// The output of a thread: the features of a token go to neighbouring threads, those of the next token behind them.
template <typename T>
struct HeldOutput {
  uint32_t token, local, feature;
  uint64_t at;
  bool exists;

  __device__ __forceinline__ HeldOutput(const msgl_skinny_params &p, uint32_t first_feature, uint32_t features,
                                        uint32_t n_out)
      : token(threadIdx.x / features), local(threadIdx.x % features), feature(first_feature + local) {
    at = static_cast<uint64_t>(token) * n_out + feature;
    exists = token < p.rows && feature < n_out;
  }

  // What is added to, read early so that it is there when the sums are.
  __device__ __forceinline__ float before(const msgl_skinny_params &p) const {
    return exists && p.adds_to_out ? to_float(static_cast<const T *>(p.out)[at]) : 0.f;
  }

  __device__ __forceinline__ void store(const msgl_skinny_params &p, uint32_t n_out, float value, float up,
                                        float before) const {
    if (p.bias != nullptr) {
      const T *bias = static_cast<const T *>(p.bias);
      value += to_float(bias[feature]);
      if (p.is_gated) up += to_float(bias[n_out + feature]);
    }
    if (p.is_gated) value = activate(p.activation, value) * up;
    value += before;
    if (p.out_dtype == MSGL_F32) {
      static_cast<float *>(p.out)[at] = value;
    } else {
      static_cast<T *>(p.out)[at] = from_float<T>(value);
    }
  }
};

template <typename T, uint32_t kHalves, uint32_t kLoads>
__global__ void __launch_bounds__(kHeldThreads, 2)
    held_kernel(const __grid_constant__ msgl_skinny_params p, const __grid_constant__ HeldShape s) {
#if __CUDA_ARCH__ >= 900
  using Weights = HeldWeights<T, kHalves, kLoads>;
  static_assert(kHalves * kHeldUnit * kHeldMaxRows <= kHeldThreads, "an output for each thread at most");
  // Staggered over the banks.
  constexpr uint32_t kStride = Weights::kTiles * 16 + 4;
  __shared__ float partials[kHeldWarps][kHeldMaxRows][kStride];
  __shared__ float squares[kHeldWarps][kHeldMaxRows];
  __shared__ uint4 norms[kHeldWarps][kLoads][4];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, in_quad = lane % 4;
  const uint32_t first_unit = static_cast<uint64_t>(s.units) * blockIdx.x / gridDim.x;
  const uint32_t units = static_cast<uint64_t>(s.units) * (blockIdx.x + 1) / gridDim.x - first_unit;
  const uint32_t first_column = warp * s.warp_columns, column = first_column + in_quad * 8;
  const uint32_t loads = first_column >= p.k ? 0 : min(s.warp_columns, p.k - first_column) / kHeldColumns;
  const uint4 zeros = make_uint4(0, 0, 0, 0);

  Weights weights;
  weights.load(p, first_unit, p.is_gated ? 2 * units : units, loads, column);
  grid_launch_next();
  // From memory too, where x will come from L2.
  const T *norm = static_cast<const T *>(p.norm);
  if (norm != nullptr) {
#pragma unroll
    for (uint32_t i = lane; i < kLoads * 4; i += 32) {
      const T *from = norm + first_column + i * 8;
      norms[warp][i / 4][i % 4] = i < loads * 4 ? *reinterpret_cast<const uint4 *>(from) : zeros;
    }
    __syncwarp();
  }
  const uint32_t n_out = p.is_gated ? p.n / 2 : p.n;
  const HeldOutput<T> output(p, first_unit * kHeldUnit, units * kHeldUnit, n_out);
  const T *x_row = static_cast<const T *>(p.x) + static_cast<uint64_t>(quad) * p.k + column;
  grid_wait();

  uint4 x[kLoads];
#pragma unroll
  for (uint32_t l = 0; l < kLoads; l++) {
    const bool exists = l < loads && quad < p.rows;
    x[l] = exists ? *reinterpret_cast<const uint4 *>(x_row + l * kHeldColumns) : zeros;
  }
  const float before = output.before(p);
  if (norm != nullptr) {
    float square = 0.f;
#pragma unroll
    for (uint32_t l = 0; l < kLoads; l++) {
      const uint4 w = norms[warp][l][in_quad];
      square += sum_squares<T>(x[l]);
      x[l].x = multiply_pairs<T>(x[l].x, w.x);
      x[l].y = multiply_pairs<T>(x[l].y, w.y);
      x[l].z = multiply_pairs<T>(x[l].z, w.z);
      x[l].w = multiply_pairs<T>(x[l].w, w.w);
    }
    square += __shfl_xor_sync(~0u, square, 1);
    square += __shfl_xor_sync(~0u, square, 2);
    if (in_quad == 0) squares[warp][quad] = square;
  }
  float sums[Weights::kTiles][4];
  weights.multiply(x, sums);
#pragma unroll
  for (uint32_t e = 0; e < 2; e++) {
    const uint32_t token = in_quad * 2 + e;
    if (token >= p.rows) break;
#pragma unroll
    for (uint32_t t = 0; t < Weights::kTiles; t++) {
      partials[warp][token][t * 16 + quad] = sums[t][e];
      partials[warp][token][t * 16 + 8 + quad] = sums[t][e + 2];
    }
  }
  __syncthreads();

  if (!output.exists) return;
  const uint32_t row = p.is_gated ? output.local / kHeldUnit * 16 + output.local % kHeldUnit : output.local;
  float value = 0.f, up = 0.f, scale = 1.f;
#pragma unroll
  for (uint32_t w = 0; w < kHeldWarps; w++) value += partials[w][output.token][row];
  if (p.is_gated) {
#pragma unroll
    for (uint32_t w = 0; w < kHeldWarps; w++) up += partials[w][output.token][row + kHeldUnit];
  }
  if (norm != nullptr) {
    float square = 0.f;
#pragma unroll
    for (uint32_t w = 0; w < kHeldWarps; w++) square += squares[w][output.token];
    scale = rsqrtf(square * s.inverse_k + p.eps);
  }
  output.store(p, n_out, value * scale, up * scale, before);
#endif
}

}  // namespace msgl
