// Products of a few tokens with a large matrix: out = epilogue(prologue(x) * weight^T), up to 64 tokens (sm_90).
//
// Bound by reading the weights once, so everything serves that. A CTA owns a run of rows of the weights, for all of k,
// and is the only one to read them; the rows are cut evenly over all SMs, in units of 8. One warp copies: whole row
// segments, one bulk copy each, into a ring of stages that also hold the same columns of x. Eight warps multiply: the
// weights are the 16-row side of the MMA, the tokens its 8-column side, and each warp takes its own columns of every
// stage, so that no byte of a stage is read twice. Their sums are added in the warps' order at the end of a pass over k.
//
// The copies of weights do not wait for the grid before this one, only those of x do: the ring fills while that grid
// ends. RMSNorm of x costs no pass of its own: the warps sum the squares of what they multiply anyway, x is multiplied
// by the norm's weight on its way into the MMA, and the sums by the row's scale at the end.
//
// k is permuted within each 32: a lane takes 8 neighbours of its row, 16 bytes, as the 2 x 4 elements of two MMAs. A sum
// does not care as long as both sides agree, and it saves the matrix loads.
#pragma once
#include "activation.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "ptx/named_barrier.cuh"
#include "skinny/shape.cuh"

namespace msgl {

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}

template <typename T>
struct Pair;
template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  __device__ static float2 to_floats(Type p) { return __bfloat1622float2(p); }
};
template <>
struct Pair<__half> {
  using Type = __half2;
  __device__ static float2 to_floats(Type p) { return __half22float2(p); }
};

template <typename T>
__device__ __forceinline__ float sum_squares(uint4 v) {
  using P = Pair<T>;
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  float sum = 0.f;
#pragma unroll
  for (uint32_t word : words) {
    const float2 f = P::to_floats(reinterpret_cast<const typename P::Type &>(word));
    sum += f.x * f.x;
    sum += f.y * f.y;
  }
  return sum;
}

template <typename T>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  using Type = typename Pair<T>::Type;
  const Type product = __hmul2(reinterpret_cast<const Type &>(a), reinterpret_cast<const Type &>(b));
  return reinterpret_cast<const uint32_t &>(product);
}

// The rows of one pass of a CTA.
struct SkinnyPass {
  uint32_t first_unit, units;

  __device__ SkinnyPass(const SkinnyShape &s, uint32_t pass) {
    const uint32_t start = static_cast<uint64_t>(s.units) * blockIdx.x / s.ctas;
    const uint32_t end = static_cast<uint64_t>(s.units) * (blockIdx.x + 1) / s.ctas;
    first_unit = start + pass * s.pass_units;
    units = first_unit >= end ? 0 : min(s.pass_units, end - first_unit);
  }

  // The weight's row that is number `local` of the stage: all features, or the gates and then the ups.
  __device__ uint32_t row(uint32_t local, bool is_gated, uint32_t n) const {
    const uint32_t half = units * kUnit;
    if (!is_gated || local < half) return first_unit * kUnit + local;
    return n / 2 + first_unit * kUnit + local - half;
  }
};

// The copying warps. Rows go to them in turn.
template <typename T>
__device__ void skinny_copy(const msgl_skinny_params &p, const SkinnyShape &s, uint32_t ring, uint32_t full,
                            uint32_t empty, uint32_t x_full) {
  const uint32_t copy_warps = blockDim.x / 32 - kSkinnyWarps;
  const uint32_t copier = threadIdx.x % 32 * copy_warps + threadIdx.x / 32 - kSkinnyWarps;
  const uint32_t copiers = 32 * copy_warps;
  const uint32_t chunks = ceil_div(p.k, s.chunk);
  const uint32_t unit_rows = p.is_gated ? 2 * kUnit : kUnit;
  const T *weight = static_cast<const T *>(p.weight), *x = static_cast<const T *>(p.x);
  const uint32_t row_bytes = p.k * sizeof(T);

  if (copier == 0) {
    const uint32_t bytes = (s.is_resident ? p.rows * row_bytes : 0) + (p.norm != nullptr ? row_bytes : 0);
    mbarrier_arrive_expect(x_full, bytes);
    if (p.norm != nullptr) bulk_copy(ring + s.norm_offset, p.norm, row_bytes, x_full, kEvictLast);
  }
  const auto copy_x = [&](uint32_t slot, uint32_t chunk, uint32_t bytes) {
    const uint32_t base = ring + slot * s.stage_bytes + s.stage_x;
    for (uint32_t m = copier; m < p.rows; m += copiers) {
      bulk_copy(base + m * s.x_stride, x + static_cast<uint64_t>(m) * p.k + chunk * s.chunk, bytes, full + slot * 8,
                kEvictLast);
    }
  };
  bool has_waited = false;
  const auto wait_for_grid = [&](uint32_t stages) {
    grid_wait();
    has_waited = true;
    if (s.is_resident) {
      for (uint32_t m = copier; m < p.rows; m += copiers) {
        bulk_copy(ring + s.x_offset + m * s.x_stride, x + static_cast<uint64_t>(m) * p.k, row_bytes, x_full,
                  kEvictLast);
      }
    } else {
      for (uint32_t i = 0; i < stages; i++) {
        const uint32_t chunk = i % chunks;
        copy_x(i, chunk, min(s.chunk, p.k - chunk * s.chunk) * sizeof(T));
      }
    }
  };
  uint32_t slot = 0, parity = 1, stage = 0;
  for (uint32_t pass = 0;; pass++) {
    const SkinnyPass rows(s, pass);
    if (rows.units == 0) break;
    const uint32_t num_rows = rows.units * unit_rows;
    // Only the last unit of all may be part of one.
    const uint32_t real_rows = p.is_gated ? num_rows : min(num_rows, p.n - rows.first_unit * kUnit);
    for (uint32_t chunk = 0; chunk < chunks; chunk++, stage++) {
      if (!has_waited && stage == s.depth) wait_for_grid(stage);
      if (has_waited) mbarrier_wait(empty + slot * 8, parity);
      const uint32_t bytes = min(s.chunk, p.k - chunk * s.chunk) * sizeof(T);
      const uint32_t base = ring + slot * s.stage_bytes, barrier = full + slot * 8;
      if (copier == 0) mbarrier_arrive_expect(barrier, (real_rows + (s.is_resident ? 0 : p.rows)) * bytes);
      __syncwarp();
      for (uint32_t r = copier; r < real_rows; r += copiers) {
        const uint64_t row = rows.row(r, p.is_gated, p.n);
        bulk_copy(base + r * s.row_stride, weight + row * p.k + chunk * s.chunk, bytes, barrier, kEvictFirst);
      }
      if (has_waited && !s.is_resident) copy_x(slot, chunk, bytes);
      if (++slot == s.depth) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
  if (!has_waited) wait_for_grid(stage);
}

// Adds the warps' sums of up to 8 tokens in the warps' order and stores what the epilogue makes of them.
template <typename T, uint32_t kPartialStride>
__device__ void skinny_store(const msgl_skinny_params &p, const SkinnyPass &rows, const float *partial,
                             const float *squares, uint32_t first_token, uint32_t round_tokens) {
  const uint32_t features = rows.units * kUnit, n_out = p.is_gated ? p.n / 2 : p.n;
  const uint32_t tokens = min(round_tokens, p.rows - first_token);
  const T *bias = static_cast<const T *>(p.bias);
  for (uint32_t i = threadIdx.x; i < features * tokens; i += 32 * kSkinnyWarps) {
    const uint32_t r = i % features, m = i / features, token = first_token + m;
    const uint32_t feature = rows.first_unit * kUnit + r;
    if (feature >= n_out) continue;
    float value = 0.f, up = 0.f, square = 0.f;
#pragma unroll
    for (uint32_t w = 0; w < kSkinnyWarps; w++) {
      const float *sums = partial + (w * round_tokens + m) * kPartialStride;
      value += sums[r];
      if (p.is_gated) up += sums[features + r];
      if (p.norm != nullptr) square += squares[w * p.rows + token];
    }
    if (p.norm != nullptr) {
      const float scale = rsqrtf(square / p.k + p.eps);
      value *= scale;
      up *= scale;
    }
    if (bias != nullptr) {
      value += to_float(bias[feature]);
      if (p.is_gated) up += to_float(bias[n_out + feature]);
    }
    if (p.is_gated) value = activate(p.activation, value) * up;
    const uint64_t at = static_cast<uint64_t>(token) * n_out + feature;
    if (p.adds_to_out) value += to_float(static_cast<const T *>(p.out)[at]);
    if (p.out_dtype == MSGL_F32) {
      static_cast<float *>(p.out)[at] = value;
    } else {
      static_cast<T *>(p.out)[at] = from_float<T>(value);
    }
  }
}

template <typename T, int kTokenTiles, int kRowTiles>
__global__ void __launch_bounds__(kSkinnyThreads, kTokenTiles * kRowTiles <= 4 ? 2 : 1)
    skinny_kernel(const __grid_constant__ msgl_skinny_params p, const __grid_constant__ SkinnyShape s) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char dynamic_shared[];
  __shared__ uint64_t barriers[2 * kSkinnyMaxDepth + 1];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(dynamic_shared);
  const uint32_t full = shared_address(barriers), empty = full + kSkinnyMaxDepth * 8;
  const uint32_t x_full = empty + kSkinnyMaxDepth * 8;
  float *partials = reinterpret_cast<float *>(dynamic_shared + s.partial_offset);
  float *squares = reinterpret_cast<float *>(dynamic_shared + s.squares_offset);

  grid_launch_next();
  if (threadIdx.x < s.depth) {
    mbarrier_init(full + threadIdx.x * 8, 1);
    mbarrier_init(empty + threadIdx.x * 8, kSkinnyWarps);
  }
  if (threadIdx.x == 0) mbarrier_init(x_full, 1);
  mbarrier_init_fence();
  __syncthreads();
  if (warp >= kSkinnyWarps) {
    skinny_copy<T>(p, s, ring, full, empty, x_full);
    return;
  }
  // Also keeps these warps from polling while the grid before is at work.
  grid_wait();

  const uint32_t quad = lane / 4, in_quad = lane % 4;
  const uint32_t chunks = ceil_div(p.k, s.chunk), groups = s.chunk / (kGroup * kSkinnyWarps);
  constexpr uint32_t kPartialStride = kRowTiles * 16 + kPartialPad;
  const uint32_t round_tokens = min(p.rows, 8u);
  // Resident x and the norm have a stride of chunks, x in a stage has none.
  const uint32_t x_start = s.is_resident ? ring + s.x_offset : ring + s.stage_x;
  uint32_t slot = 0, parity = 0, round = 0;
  mbarrier_wait(x_full, 0);
  for (uint32_t pass = 0;; pass++) {
    const SkinnyPass rows(s, pass);
    if (rows.units == 0) break;
    const uint32_t num_rows = rows.units * (p.is_gated ? 2 * kUnit : kUnit);
    float sums[kRowTiles][kTokenTiles][4] = {};
    float square[kTokenTiles] = {};
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
      mbarrier_wait(full + slot * 8, parity);
      const uint32_t stage = ring + slot * s.stage_bytes;
      for (uint32_t group = 0; group < groups; group++) {
        const uint32_t in_chunk = (group * kSkinnyWarps + warp) * kGroup;
        if (chunk * s.chunk + in_chunk >= p.k) break;
        const uint32_t column = (in_chunk + in_quad * 8) * 2;
        const uint32_t x_column = x_start + (s.is_resident ? chunk * s.chunk * 2 : slot * s.stage_bytes) + column;
        uint4 b[kTokenTiles];
#pragma unroll
        for (int m = 0; m < kTokenTiles; m++) {
          // Columns past the last token are computed from it and not stored.
          const uint32_t token = min(m * 8 + quad, p.rows - 1);
          b[m] = load_shared_16(x_column + token * s.x_stride);
        }
        if (p.norm != nullptr) {
          const uint4 w = load_shared_16(ring + s.norm_offset + chunk * s.chunk * 2 + column);
#pragma unroll
          for (int m = 0; m < kTokenTiles; m++) {
            square[m] += sum_squares<T>(b[m]);
            b[m].x = multiply_pairs<T>(b[m].x, w.x);
            b[m].y = multiply_pairs<T>(b[m].y, w.y);
            b[m].z = multiply_pairs<T>(b[m].z, w.z);
            b[m].w = multiply_pairs<T>(b[m].w, w.w);
          }
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; r++) {
          if (r * 16 >= num_rows) break;
          const uint4 lo = load_shared_16(stage + column + (r * 16 + quad) * s.row_stride);
          const uint32_t upper = r * 16 + 8 < num_rows ? r * 16 + 8 + quad : r * 16 + quad;
          const uint4 hi = load_shared_16(stage + column + upper * s.row_stride);
#pragma unroll
          for (int m = 0; m < kTokenTiles; m++) {
            mma_m16n8k16<T>(sums[r][m], lo.x, hi.x, lo.y, hi.y, b[m].x, b[m].y);
            mma_m16n8k16<T>(sums[r][m], lo.z, hi.z, lo.w, hi.w, b[m].z, b[m].w);
          }
        }
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(empty + slot * 8);
      if (++slot == s.depth) {
        slot = 0;
        parity ^= 1;
      }
    }

    if (p.norm != nullptr && pass == 0) {
#pragma unroll
      for (int m = 0; m < kTokenTiles; m++) {
        square[m] += __shfl_xor_sync(~0u, square[m], 1);
        square[m] += __shfl_xor_sync(~0u, square[m], 2);
        if (in_quad == 0 && m * 8 + quad < p.rows) squares[warp * p.rows + m * 8 + quad] = square[m];
      }
    }
#pragma unroll
    for (int m = 0; m < kTokenTiles; m++) {
      if (m * 8 >= p.rows) break;
      float *partial = partials + (round & 1) * (s.partial_bytes / 4);
      round++;
#pragma unroll
      for (int r = 0; r < kRowTiles; r++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const uint32_t token = in_quad * 2 + (e & 1), row = r * 16 + quad + (e & 2) * 4;
          if (token < round_tokens) partial[(warp * round_tokens + token) * kPartialStride + row] = sums[r][m][e];
        }
      }
      named_barrier_sync(1, 32 * kSkinnyWarps);
      skinny_store<T, kPartialStride>(p, rows, partial, squares, m * 8, round_tokens);
    }
  }
#endif
}

}  // namespace msgl
