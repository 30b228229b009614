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
#include "ptx/shared.cuh"
#include "skinny/pairs.cuh"
#include "skinny/shape.cuh"

namespace msgl {

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
                            uint32_t empty) {
  const uint32_t copier = threadIdx.x % 32 * kSkinnyCopyWarps + threadIdx.x / 32 - kSkinnyWarps;
  constexpr uint32_t kCopiers = 32 * kSkinnyCopyWarps;
  const uint32_t chunks = ceil_div(p.k, s.chunk);
  const uint32_t unit_rows = p.is_gated ? 2 * kUnit : kUnit;
  const T *weight = static_cast<const T *>(p.weight), *x = static_cast<const T *>(p.x);
  const auto copy_x = [&](uint32_t slot, uint32_t chunk, uint32_t bytes) {
    const uint32_t base = ring + slot * s.stage_bytes + s.stage_x;
    for (uint32_t m = copier; m < p.rows; m += kCopiers) {
      bulk_copy(base + m * s.x_stride, x + static_cast<uint64_t>(m) * p.k + chunk * s.chunk, bytes, full + slot * 8,
                kEvictLast);
    }
  };
  bool has_waited = false;
  // Where x comes in stages, those in flight still lack theirs.
  const auto wait_for_grid = [&](uint32_t stages) {
    grid_wait();
    has_waited = true;
    if (s.is_resident) return;
    for (uint32_t i = 0; i < stages; i++) {
      const uint32_t chunk = i % chunks;
      copy_x(i, chunk, min(s.chunk, p.k - chunk * s.chunk) * sizeof(T));
    }
  };
  uint32_t slot = 0, parity = 1, stage = 0;
  for (uint32_t pass = 0;; pass++) {
    const SkinnyPass rows(s, pass);
    if (rows.units == 0) break;
    const uint32_t num_rows = rows.units * unit_rows;
    // Only the last unit of all may be part of one.
    const uint32_t real_rows = p.is_gated ? num_rows : min(num_rows, p.n - rows.first_unit * kUnit);
    const T *row = copier < real_rows ? weight + static_cast<uint64_t>(rows.row(copier, p.is_gated, p.n)) * p.k : weight;
    for (uint32_t chunk = 0; chunk < chunks; chunk++, stage++) {
      if (!has_waited && stage == s.depth) wait_for_grid(stage);
      if (stage >= s.depth) mbarrier_wait(empty + slot * 8, parity);
      const uint32_t bytes = min(s.chunk, p.k - chunk * s.chunk) * sizeof(T);
      const uint32_t base = ring + slot * s.stage_bytes, barrier = full + slot * 8;
      if (copier == 0) mbarrier_arrive_expect(barrier, (real_rows + (s.is_resident ? 0 : p.rows)) * bytes);
      __syncwarp();
      static_assert(kCopiers >= 32, "a lane for each row of a stage");
      if (copier < real_rows) bulk_copy(base + copier * s.row_stride, row + chunk * s.chunk, bytes, barrier, kEvictFirst);
      if (has_waited && !s.is_resident) copy_x(slot, chunk, bytes);
      if (++slot == s.depth) {
        slot = 0;
        parity ^= 1;
      }
    }
  }
  // Not earlier: the next grid's weights would compete with those that are still to come here.
  grid_launch_next();
  if (!has_waited) wait_for_grid(stage);
}

// Brings the columns of x that this warp multiplies to shared memory, times the norm's weight where there is a norm,
// and leaves the sums of their squares. Loads go out in batches: one after the other would each cost the latency of L2.
template <typename T, int kTokenTiles, bool kHasNorm>
__device__ void skinny_load_x(const msgl_skinny_params &p, const SkinnyShape &s, char *x_shared, float *squares) {
  constexpr uint32_t kBatch = kTokenTiles > 2 ? 1 : (kHasNorm ? 4 : 8) / kTokenTiles;
  const uint32_t warp = threadIdx.x / 32, quad = threadIdx.x % 32 / 4, in_quad = threadIdx.x % 4;
  const T *x = static_cast<const T *>(p.x), *norm = static_cast<const T *>(p.norm);
  const uint32_t groups = p.k / kGroup;
  // A single token leaves seven quads without one: they take other groups of it.
  const bool is_single = kTokenTiles == 1 && p.rows == 1;
  const uint32_t step = (is_single ? 8 : 1) * kSkinnyWarps;
  // What there is of a batch: its groups, and this lane's token in each tile.
  const auto each = [&](uint32_t first, auto &&use) {
#pragma unroll
    for (uint32_t b = 0; b < kBatch; b++) {
      const uint32_t group = first + b * step, column = group * kGroup + in_quad * 8;
      if (group >= groups) return;
#pragma unroll
      for (int m = 0; m < kTokenTiles; m++) {
        const uint32_t token = is_single ? 0 : m * 8 + quad;
        if (token < p.rows) use(b, m, token, column);
      }
    }
  };
  float square[kTokenTiles] = {};
  for (uint32_t first = warp + (is_single ? quad * kSkinnyWarps : 0); first < groups; first += kBatch * step) {
    uint4 v[kBatch][kTokenTiles], w[kBatch];
    each(first, [&](uint32_t b, int m, uint32_t token, uint32_t column) {
      v[b][m] = *reinterpret_cast<const uint4 *>(x + static_cast<uint64_t>(token) * p.k + column);
      if constexpr (kHasNorm) {
        if (m == 0) w[b] = *reinterpret_cast<const uint4 *>(norm + column);
      }
    });
    each(first, [&](uint32_t b, int m, uint32_t token, uint32_t column) {
      uint4 value = v[b][m];
      if constexpr (kHasNorm) {
        square[m] += sum_squares<T>(value);
        value.x = multiply_pairs<T>(value.x, w[b].x);
        value.y = multiply_pairs<T>(value.y, w[b].y);
        value.z = multiply_pairs<T>(value.z, w[b].z);
        value.w = multiply_pairs<T>(value.w, w[b].w);
      }
      *reinterpret_cast<uint4 *>(x_shared + token * s.x_stride + column * sizeof(T)) = value;
    });
  }
  if constexpr (kHasNorm) {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < kTokenTiles; m++) {
      square[m] += __shfl_xor_sync(~0u, square[m], 1);
      square[m] += __shfl_xor_sync(~0u, square[m], 2);
      if (is_single) {
        for (int offset = 4; offset < kWarpSize; offset *= 2) square[m] += __shfl_xor_sync(~0u, square[m], offset);
      }
      const uint32_t token = m * 8 + quad;
      if (in_quad == 0 && token < p.rows) squares[warp * p.rows + token] = square[m];
    }
  }
  __syncwarp();
}

// One output: a lane's row of the token that its warp has in a round.
template <typename T>
struct SkinnyOutput {
  uint32_t token, feature;
  bool exists;
  float before;

  // Reads early what the product is added to, so that it is there when the sums are.
  __device__ SkinnyOutput(const msgl_skinny_params &p, const SkinnyPass &rows, uint32_t first_token, uint32_t round) {
    const uint32_t lane = threadIdx.x % 32, n_out = p.is_gated ? p.n / 2 : p.n;
    // Tokens go to the warps in turn: with a single one, no warp has all of the work.
    token = first_token + (threadIdx.x / 32 + round) % kSkinnyWarps;
    feature = rows.first_unit * kUnit + lane;
    exists = token < p.rows && lane < rows.units * kUnit && feature < n_out;
    before = exists && p.adds_to_out ? to_float(static_cast<const T *>(p.out)[at(n_out)]) : 0.f;
  }

  __device__ uint64_t at(uint32_t n_out) const { return static_cast<uint64_t>(token) * n_out + feature; }

  // Adds the warps' sums in the warps' order and stores what the epilogue makes of them.
  __device__ void store(const msgl_skinny_params &p, const SkinnyPass &rows, const float *partial, const float *squares,
                        uint32_t first_token, uint32_t round_tokens, uint32_t stride) const {
    if (!exists) return;
    const uint32_t lane = threadIdx.x % 32, n_out = p.is_gated ? p.n / 2 : p.n;
    const T *bias = static_cast<const T *>(p.bias);
    const float *sums = partial + (token - first_token) * stride + lane;
    const uint32_t step = round_tokens * stride;
    float value = 0.f, up = 0.f, scale = 1.f;
#pragma unroll
    for (uint32_t w = 0; w < kSkinnyWarps; w++) value += sums[w * step];
    if (p.is_gated) {
      const float *ups = sums + rows.units * kUnit;
#pragma unroll
      for (uint32_t w = 0; w < kSkinnyWarps; w++) up += ups[w * step];
    }
    if (p.norm != nullptr) {
      float square = 0.f;
#pragma unroll
      for (uint32_t w = 0; w < kSkinnyWarps; w++) square += squares[w * p.rows + token];
      scale = rsqrtf(square / p.k + p.eps);
    }
    value *= scale;
    up *= scale;
    if (bias != nullptr) {
      value += to_float(bias[feature]);
      if (p.is_gated) up += to_float(bias[n_out + feature]);
    }
    if (p.is_gated) value = activate(p.activation, value) * up;
    value += before;
    if (p.out_dtype == MSGL_F32) {
      static_cast<float *>(p.out)[at(n_out)] = value;
    } else {
      static_cast<T *>(p.out)[at(n_out)] = from_float<T>(value);
    }
  }
};

template <typename T, int kTokenTiles, int kRowTiles>
__global__ void __launch_bounds__(kSkinnyThreads, kTokenTiles <= 2 ? 2 : 1)
    skinny_kernel(const __grid_constant__ msgl_skinny_params p, const __grid_constant__ SkinnyShape s) {
#if __CUDA_ARCH__ >= 900
  constexpr uint32_t kGroups = groups_of_stage(kRowTiles);
  constexpr uint32_t kChunk = kGroups * kGroupOfAll;
  constexpr uint32_t kRowStride = staggered(kChunk * 2);
  constexpr uint32_t kPartialStride = kRowTiles * 16 + kPartialPad;
  extern __shared__ __align__(128) char dynamic_shared[];
  __shared__ uint64_t barriers[2 * kSkinnyMaxDepth];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(dynamic_shared);
  const uint32_t full = shared_address(barriers), empty = full + kSkinnyMaxDepth * 8;
  float *partials = reinterpret_cast<float *>(dynamic_shared + s.partial_offset);
  float *squares = reinterpret_cast<float *>(dynamic_shared + s.squares_offset);

  if (threadIdx.x < s.depth) {
    mbarrier_init(full + threadIdx.x * 8, 1);
    mbarrier_init(empty + threadIdx.x * 8, kSkinnyWarps);
  }
  mbarrier_init_fence();
  __syncthreads();
  if (warp >= kSkinnyWarps) {
    skinny_copy<T>(p, s, ring, full, empty);
    return;
  }
  // Also keeps these warps from polling while the grid before is at work.
  grid_wait();
  if (s.is_resident) {
    char *x_shared = dynamic_shared + s.x_offset;
    if (p.norm != nullptr) {
      skinny_load_x<T, kTokenTiles, true>(p, s, x_shared, squares);
    } else {
      skinny_load_x<T, kTokenTiles, false>(p, s, x_shared, squares);
    }
  }

  const uint32_t quad = lane / 4, in_quad = lane % 4;
  const uint32_t chunks = ceil_div(p.k, kChunk);
  const uint32_t round_tokens = min(p.rows, 8u);
  // Of this lane in the warp's first group.
  const uint32_t column = (warp * kGroup + in_quad * 8) * 2;
  const uint32_t x_start = ring + (s.is_resident ? s.x_offset : s.stage_x) + column;
  uint32_t x_row[kTokenTiles];
  // Columns past the last token are computed from it and not stored.
#pragma unroll
  for (int m = 0; m < kTokenTiles; m++) x_row[m] = x_start + min(m * 8 + quad, p.rows - 1) * s.x_stride;
  const uint32_t weight_row = ring + column + quad * kRowStride;
  uint32_t slot = 0, parity = 0, round = 0;
  for (uint32_t pass = 0;; pass++) {
    const SkinnyPass rows(s, pass);
    if (rows.units == 0) break;
    const uint32_t num_rows = rows.units * (p.is_gated ? 2 * kUnit : kUnit);
    SkinnyOutput<T> first_output(p, rows, 0, round);
    float sums[kRowTiles][kTokenTiles][4] = {};
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
      mbarrier_wait(full + slot * 8, parity);
      const uint32_t stage = slot * s.stage_bytes;
      const uint32_t x_offset = s.is_resident ? chunk * kChunk * 2 : stage;
      const uint32_t left = p.k - chunk * kChunk;
#pragma unroll
      for (uint32_t group = 0; group < kGroups; group++) {
        if (group * kGroupOfAll + warp * kGroup >= left) break;
        const uint32_t offset = group * kGroupOfAll * 2;
        uint4 b[kTokenTiles];
#pragma unroll
        for (int m = 0; m < kTokenTiles; m++) b[m] = load_shared_16_unordered(x_row[m] + x_offset + offset);
#pragma unroll
        for (int r = 0; r < kRowTiles; r++) {
          if (r * 16 >= num_rows) break;
          const uint32_t at = weight_row + stage + offset + r * 16 * kRowStride;
          const uint4 lo = load_shared_16_unordered(at);
          const uint4 hi = r * 16 + 8 < num_rows ? load_shared_16_unordered(at + 8 * kRowStride) : lo;
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

#pragma unroll
    for (int m = 0; m < kTokenTiles; m++) {
      if (m * 8 >= p.rows) break;
      const SkinnyOutput<T> output = m == 0 ? first_output : SkinnyOutput<T>(p, rows, m * 8, round);
      float *partial = partials + (round & 1) * (s.partial_bytes / 4);
      round++;
      float *mine = partial + (warp * round_tokens + in_quad * 2) * kPartialStride + quad;
#pragma unroll
      for (int e = 0; e < 2; e++) {
        if (in_quad * 2 + e >= round_tokens) continue;
#pragma unroll
        for (int r = 0; r < kRowTiles; r++) {
          mine[e * kPartialStride + r * 16] = sums[r][m][e];
          mine[e * kPartialStride + r * 16 + 8] = sums[r][m][e + 2];
        }
      }
      named_barrier_sync(1, 32 * kSkinnyWarps);
      output.store(p, rows, partial, squares, m * 8, round_tokens, kPartialStride);
    }
  }
#endif
}

}  // namespace msgl
