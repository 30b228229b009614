// Products of a few tokens with a large matrix by clusters: out = epilogue(prologue(x) * weight^T), up to 64 tokens
// (sm_90a).
//
// The CTAs of a cluster share blocks of rows of the weights: each takes a part of k, all of these rows, so that it needs
// that part of x alone, which it keeps. Weights are A of wgmma and tokens its columns; the tensor copy engine brings
// weights as they have to lie. Each warpgroup sends its sums to those CTAs that store them, which add what they got in
// the order of k. Nothing is summed in memory, and a row's bits do not depend on the other rows.
//
// Weights come before the grid before this one has ended, all of them where they fit, and then the next grid may start
// at once.
#pragma once
#include <cuda.h>

#include "activation.cuh"
#include "ptx/bulk.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/grid.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/tensor_copy.cuh"
#include "ptx/wgmma.cuh"
#include "skinny/cluster_shape.cuh"
#include "skinny/pairs.cuh"

namespace msgl {

// The barriers of a CTA, behind one another. Of sums there are two.
struct ClusterBarriers {
  uint32_t full, empty, sums_full, sums_free, squares_full;

  __device__ ClusterBarriers(uint32_t base, uint32_t depth)
      : full(base), empty(base + depth * 8), sums_full(empty + depth * 8), sums_free(sums_full + 16),
        squares_full(sums_free + 16) {}
};

// The chunks of k of this CTA.
struct ClusterSlice {
  uint32_t rank, first, count;

  __device__ explicit ClusterSlice(const ClusterShape &s) : rank(cluster_rank()) {
    first = s.chunks * rank >> s.log_size;
    count = (s.chunks * (rank + 1) >> s.log_size) - first;
  }
};

// A place in the ring.
struct ClusterSlot {
  uint32_t slot, parity;

  __device__ __forceinline__ void advance(uint32_t depth) {
    if (++slot == depth) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// The copying thread.
template <int kRowTiles>
__device__ __forceinline__ void cluster_copy(const msgl_skinny_params &p, const ClusterShape &s,
                                             const ClusterSlice &slice, const CUtensorMap &map, uint32_t ring,
                                             const ClusterBarriers &barriers) {
  ClusterSlot at = {0, 1};
  uint32_t stage = 0;
  const uint32_t tile_rows = p.is_gated ? kHalfTile : kTileRows, other_half = p.is_gated ? p.n / 2 : kHalfTile;
  for (uint32_t block = blockIdx.x >> s.log_size; block < s.blocks; block += s.clusters) {
    for (uint32_t chunk = 0; chunk < slice.count; chunk++) {
      const uint32_t barrier = barriers.full + at.slot * 8, column = (slice.first + chunk) * kChunk;
      if (stage == s.launch_at) grid_launch_next();
      if (stage >= s.depth) mbarrier_wait(barriers.empty + at.slot * 8, at.parity);
      mbarrier_arrive_expect(barrier, kRowTiles * kTileBytes);
#pragma unroll
      for (uint32_t tile = 0; tile < kRowTiles; tile++) {
        const uint32_t dst = ring + (at.slot * kRowTiles + tile) * kTileBytes;
        const uint32_t row = (block * kRowTiles + tile) * tile_rows;
        tensor_copy(dst, map, barrier, column, row, kEvictFirst);
        tensor_copy(dst + kTileBytes / 2, map, barrier, column, row + other_half, kEvictFirst);
      }
      stage++;
      at.advance(s.depth);
    }
  }
  grid_launch_next();
}

// Brings this CTA's columns of x to shared memory as wgmma's B, times the norm's weight where there is a norm. A warp
// takes every eighth token, and leaves each lane's sums of their squares.
template <typename T, int kTiles, bool kHasNorm>
__device__ __forceinline__ void cluster_load_x(const msgl_skinny_params &p, const ClusterSlice &slice, uint32_t warp,
                                               char *x_shared, float (&square)[kTiles]) {
  constexpr int kTokens = kTiles < 4 ? kTiles : kTiles % 4 == 0 ? 4 : 3, kPieces = 2;
  static_assert(kTiles % kTokens == 0, "whole batches");
  const uint32_t lane = threadIdx.x % 32, first_column = slice.first * kChunk;
  const T *x = static_cast<const T *>(p.x), *norm = static_cast<const T *>(p.norm);
  const uint32_t pieces = slice.count * (kChunk / 8);
  const uint4 zeros = make_uint4(0, 0, 0, 0);
  for (uint32_t first = lane; first < pieces; first += kPieces * 32) {
    uint4 w[kPieces];
    bool exists[kPieces];
#pragma unroll
    for (int j = 0; j < kPieces; j++) {
      const uint32_t column = first_column + (first + j * 32) * 8;
      exists[j] = first + j * 32 < pieces && column < p.k;
      w[j] = kHasNorm && exists[j] ? *reinterpret_cast<const uint4 *>(norm + column) : zeros;
    }
#pragma unroll
    for (int i0 = 0; i0 < kTiles; i0 += kTokens) {
      uint4 v[kTokens][kPieces];
#pragma unroll
      for (int i = 0; i < kTokens; i++) {
        const uint32_t token = warp + 8 * (i0 + i);
        const T *row = x + static_cast<uint64_t>(token) * p.k + first_column + first * 8;
#pragma unroll
        for (int j = 0; j < kPieces; j++) {
          v[i][j] = token < p.rows && exists[j] ? *reinterpret_cast<const uint4 *>(row + j * 256) : zeros;
        }
      }
#pragma unroll
      for (int i = 0; i < kTokens; i++) {
        const uint32_t token = warp + 8 * (i0 + i);
        if (token >= p.rows) continue;
#pragma unroll
        for (int j = 0; j < kPieces; j++) {
          const uint32_t piece = first + j * 32;
          if (piece >= pieces) continue;
          uint4 value = v[i][j];
          if constexpr (kHasNorm) {
            square[i0 + i] += sum_squares<T>(value);
            value.x = multiply_pairs<T>(value.x, w[j].x);
            value.y = multiply_pairs<T>(value.y, w[j].y);
            value.z = multiply_pairs<T>(value.z, w[j].z);
            value.w = multiply_pairs<T>(value.w, w[j].w);
          }
          const uint32_t at = piece / 8 * (kTiles * 8 * kChunk * 2) + SwizzledMatrix<kChunk>::chunk(token, piece % 8);
          *reinterpret_cast<uint4 *>(x_shared + at) = value;
        }
      }
    }
  }
}

// Sends the sums of squares of this CTA's part of each token to every CTA of the cluster.
template <int kTiles>
__device__ __forceinline__ void cluster_send_squares(const msgl_skinny_params &p, const ClusterShape &s, uint32_t rank,
                                                     uint32_t warp, float (&square)[kTiles], uint32_t squares,
                                                     const ClusterBarriers &barriers) {
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kTiles; i++) {
    const uint32_t token = warp + 8 * i;
    if (token >= p.rows) break;
    for (int offset = 16; offset > 0; offset /= 2) square[i] += __shfl_xor_sync(~0u, square[i], offset);
    if (lane < 1u << s.log_size) {
      store_async(cluster_address(squares + (rank * kTiles * 8 + token) * 4, lane), square[i],
                  cluster_address(barriers.squares_full, lane));
    }
  }
}

// One block of a warpgroup: its tile, or its chunks of the tile. Sums go to those that store them.
template <typename T, int kTiles, int kRowTiles>
struct ClusterProduct {
  static constexpr uint32_t kTokens = kTiles * 8, kStride = sums_stride(kTokens);
  float acc[kTiles][4];

  // `ring` and `x` are descriptors of the first 16 columns.
  __device__ __forceinline__ void multiply(const ClusterShape &s, uint32_t count, uint32_t group, uint64_t ring,
                                           uint64_t x, ClusterSlot &at, const ClusterBarriers &barriers) {
    const bool releases = s.refills != 0 && threadIdx.x % 32 == 0;
    uint32_t before = s.depth;
#pragma unroll
    for (int m = 0; m < kTiles; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) acc[m][e] = 0.f;
    }
    for (uint32_t chunk = 0; chunk < count; chunk++, at.advance(s.depth)) {
      if (kRowTiles == 1 && chunk % 2 != group) continue;
      mbarrier_wait(barriers.full + at.slot * 8, at.parity);
      const uint64_t a = ring + at.slot * (kRowTiles * kTileBytes / 16), b = x + chunk * (kTokens * kChunk * 2 / 16);
      fence_registers(acc);
      wgmma_fence();
#pragma unroll
      for (uint32_t step = 0; step < kChunk / 16; step++) Wgmma<T, kTiles>::shared_a(acc, a + step * 2, b + step * 2, 1);
      wgmma_commit();
      fence_registers(acc);
      if (s.refills != 0) {
        wgmma_wait<1>();
        if (releases && before < s.depth) mbarrier_arrive(barriers.empty + before * 8);
        before = at.slot;
      }
    }
    last_slot = before;
  }

  __device__ __forceinline__ void finish(const ClusterShape &s, const ClusterBarriers &barriers) {
    wgmma_wait<0>();
    fence_registers(acc);
    if (s.refills != 0 && threadIdx.x % 32 == 0) mbarrier_arrive(barriers.empty + last_slot * 8);
  }

  __device__ __forceinline__ void send(const ClusterShape &s, uint32_t rank, uint32_t group, bool is_gated,
                                       uint32_t sums, uint32_t barrier) {
    const uint32_t lane = threadIdx.x % 32, log_share = 6 - s.log_size, log_half = log_share - 1;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const uint32_t row = threadIdx.x % kGroupThreads / 32 * 16 + h * 8 + lane / 4;
      // An equal share of a tile's rows each; with gates, of gates and their ups.
      const uint32_t in_half = row % kHalfTile;
      const uint32_t owner = is_gated ? in_half >> log_half : row >> log_share;
      const uint32_t local = is_gated ? (row / kHalfTile << log_half) + (in_half & ((1u << log_half) - 1))
                                      : row & ((1u << log_share) - 1);
      const uint32_t at = ((rank * kClusterGroups + group) << log_share) + local;
      const uint32_t dst = cluster_address(sums + (at * kStride + lane % 4 * 2) * 4, owner);
      const uint32_t full = cluster_address(barrier, owner);
#pragma unroll
      for (int m = 0; m < kTiles; m++) store_async(dst + m * 32, acc[m][2 * h], acc[m][2 * h + 1], full);
    }
  }

  uint32_t last_slot;
};

// What a lane stores of a block: two neighbouring features of a token. A warp has a run of tokens and features, and goes
// on with every eighth such item.
template <typename T, int kRowTiles>
struct ClusterOutput {
  uint32_t pair, tile, token, feature;
  uint64_t at;
  bool exists, has_second, is_aligned;

  // How items count: bits of a feature pair and a token within a warp, then pairs, tiles and tokens.
  struct Counts {
    uint32_t log_rows, pair_bits, token_bits, log_turns, items, n_out;

    __device__ Counts(const msgl_skinny_params &p, const ClusterShape &s) {
      log_rows = 6 - s.log_size - (p.is_gated ? 1 : 0);
      pair_bits = min(log_rows - 1, 2u);
      token_bits = 5 - pair_bits;
      log_turns = log_rows - 1 - pair_bits;
      items = ((p.rows + (1u << token_bits) - 1) >> token_bits) << (log_turns + kRowTiles - 1);
      n_out = p.is_gated ? p.n / 2 : p.n;
    }
  };

  __device__ ClusterOutput(const msgl_skinny_params &p, const Counts &c, uint32_t rank, uint32_t block, uint32_t item) {
    const uint32_t lane = threadIdx.x % 32;
    pair = ((item & ((1u << c.log_turns) - 1)) << c.pair_bits) + (lane & ((1u << c.pair_bits) - 1));
    tile = item >> c.log_turns & (kRowTiles - 1);
    token = (item >> (c.log_turns + kRowTiles - 1) << c.token_bits) + (lane >> c.pair_bits);
    feature = (block * kRowTiles + tile) * (p.is_gated ? kHalfTile : kTileRows) + (rank << c.log_rows) + 2 * pair;
    exists = item < c.items && token < p.rows && feature < c.n_out;
    has_second = feature + 1 < c.n_out;
    is_aligned = has_second && c.n_out % 2 == 0;
    at = static_cast<uint64_t>(token) * c.n_out + feature;
  }

  // What is added to, as it lies there.
  __device__ uint32_t before(const msgl_skinny_params &p) const {
    if (!exists || !p.adds_to_out) return 0;
    const T *out = static_cast<const T *>(p.out) + at;
    if (is_aligned) return *reinterpret_cast<const uint32_t *>(out);
    const uint16_t *words = reinterpret_cast<const uint16_t *>(out);
    return words[0] | (has_second ? uint32_t{words[1]} << 16 : 0);
  }

  __device__ void store(const msgl_skinny_params &p, float first, float second) const {
    if (p.out_dtype == MSGL_F32) {
      float *out = static_cast<float *>(p.out) + at;
      out[0] = first;
      if (has_second) out[1] = second;
      return;
    }
    T *out = static_cast<T *>(p.out) + at;
    if (is_aligned) {
      *reinterpret_cast<uint32_t *>(out) = pack_pair<T>(first, second);
    } else {
      out[0] = from_float<T>(first);
      if (has_second) out[1] = from_float<T>(second);
    }
  }
};

// Adds up what a CTA was sent of a block, in the order of k, and stores what the epilogue makes of it. `first_before`
// is what the warp's first item adds to, where it was read already.
template <typename T, int kTiles, int kRowTiles>
__device__ __forceinline__ void cluster_store(const msgl_skinny_params &p, const ClusterShape &s, uint32_t rank,
                                              uint32_t block, const float *sums, const float *squares, bool is_first,
                                              uint32_t first_before, uint32_t sums_full, uint32_t parity,
                                              uint32_t squares_full) {
  using Output = ClusterOutput<T, kRowTiles>;
  constexpr uint32_t kTokens = kTiles * 8, kStride = sums_stride(kTokens), kParts = kClusterGroups / kRowTiles;
  const typename Output::Counts counts(p, s);
  const uint32_t size = 1 << s.log_size, log_share = 6 - s.log_size, warp = threadIdx.x / 32;
  const T *bias = static_cast<const T *>(p.bias);
  bool has_waited = false;
  for (uint32_t item = warp; item < counts.items || !has_waited; item += kClusterWarps) {
    const Output out(p, counts, rank, block, item);
    const uint32_t raw_before = is_first && item == warp ? first_before : out.before(p);
    float scale = 1.f;
    if (p.norm != nullptr) {
      if (!has_waited && is_first) mbarrier_wait(squares_full, 0);
      float square = 0.f;
      for (uint32_t r = 0; r < size && out.exists; r++) square += squares[r * kTokens + out.token];
      scale = rsqrtf(square * s.inverse_k + p.eps);
    }
    if (!has_waited) mbarrier_wait(sums_full, parity);
    has_waited = true;
    if (!out.exists) continue;
    const float *mine = sums + ((out.tile << log_share) + 2 * out.pair) * kStride + out.token;
    float value[2] = {0.f, 0.f}, up[2] = {0.f, 0.f};
#pragma unroll 2
    for (uint32_t r = 0; r < size; r++) {
#pragma unroll
      for (uint32_t part = 0; part < kParts; part++) {
        const float *set = mine + ((r * kClusterGroups + part) << log_share) * kStride;
        value[0] += set[0];
        value[1] += set[kStride];
        if (p.is_gated) {
          const float *ups = set + (kStride << counts.log_rows);
          up[0] += ups[0];
          up[1] += ups[kStride];
        }
      }
    }
    const float2 before = Pair<T>::to_floats(reinterpret_cast<const typename Pair<T>::Type &>(raw_before));
#pragma unroll
    for (int e = 0; e < 2; e++) {
      value[e] *= scale;
      const bool has_bias = bias != nullptr && (e == 0 || out.has_second);
      if (has_bias) value[e] += to_float(bias[out.feature + e]);
      if (p.is_gated) {
        up[e] *= scale;
        if (has_bias) up[e] += to_float(bias[counts.n_out + out.feature + e]);
        value[e] = activate(p.activation, value[e]) * up[e];
      }
      value[e] += e == 0 ? before.x : before.y;
    }
    out.store(p, value[0], value[1]);
  }
}

template <typename T, int kTiles, int kRowTiles>
__global__ void __launch_bounds__(kClusterThreads, kTiles <= 4 ? 3 : 2)
    cluster_kernel(const __grid_constant__ msgl_skinny_params p, const __grid_constant__ ClusterShape s,
                   const __grid_constant__ CUtensorMap map) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  constexpr uint32_t kTokens = kTiles * 8, kSumBytes = kClusterGroups * kTileRows * kTokens * 4;
  extern __shared__ __align__(1024) char dynamic_shared[];
  const uint32_t ring = shared_address(dynamic_shared), warp = threadIdx.x / 32;
  const ClusterBarriers barriers(ring + s.barriers_offset, s.depth);
  const ClusterSlice slice(s);
  if (threadIdx.x == 32 * kClusterWarps) {
    for (uint32_t i = 0; i < s.depth; i++) {
      mbarrier_init(barriers.full + i * 8, 1);
      mbarrier_init(barriers.empty + i * 8, kRowTiles * kGroupThreads / 32);
    }
    for (uint32_t i = 0; i < 2; i++) {
      mbarrier_init(barriers.sums_full + i * 8, 1);
      mbarrier_init(barriers.sums_free + i * 8, kClusterWarps << s.log_size);
    }
    mbarrier_init(barriers.squares_full, 1);
    mbarrier_init_fence();
    for (uint32_t i = 0; i < 2; i++) mbarrier_arrive_expect(barriers.sums_full + i * 8, kSumBytes);
    mbarrier_arrive_expect(barriers.squares_full, p.rows * 4 << s.log_size);
  }
  __syncthreads();
  cluster_arrive_relaxed();
  if (warp == kClusterWarps) {
    if (threadIdx.x % 32 == 0) cluster_copy<kRowTiles>(p, s, slice, map, ring, barriers);
    __syncwarp();
    cluster_wait();
    return;
  }
  using Matrix = SwizzledMatrix<kChunk>;
  using Output = ClusterOutput<T, kRowTiles>;
  // The same in all lanes, which the compiler shall know.
  const uint32_t group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  const uint32_t x = ring + s.x_offset, sums = ring + s.sums_offset, squares = ring + s.squares_offset;
  const uint64_t ring_matrix = Matrix::columns(ring + (kRowTiles == 1 ? 0 : group * kTileBytes), 0);
  const uint64_t x_matrix = Matrix::columns(x, 0);
  const float *sums_here = reinterpret_cast<const float *>(dynamic_shared + s.sums_offset);
  const float *squares_here = reinterpret_cast<const float *>(dynamic_shared + s.squares_offset);
  uint32_t block = blockIdx.x >> s.log_size;
  // Clusters begin with different tokens: all at once would ask the same lines of L2.
  const uint32_t first_token = (warp + block) % kClusterWarps;
  const Output first_output(p, typename Output::Counts(p, s), slice.rank, block, warp);
  float square[kTiles] = {};
  cluster_wait();
  grid_wait();
  // Here it need not wait for anything else, as it would behind the product.
  const uint32_t first_before = first_output.before(p);
  if (p.norm != nullptr) {
    cluster_load_x<T, kTiles, true>(p, slice, first_token, dynamic_shared + s.x_offset, square);
  } else {
    cluster_load_x<T, kTiles, false>(p, slice, first_token, dynamic_shared + s.x_offset, square);
  }
  fence_async_proxy();
  named_barrier_sync(1, 32 * kClusterWarps);

  ClusterSlot at = {0, 0};
  ClusterProduct<T, kTiles, kRowTiles> product;
  // A block is stored one turn late, so that the sums are there; the last turn only stores.
  for (uint32_t turn = 0; turn == 0 || block < s.blocks + s.clusters; turn++, block += s.clusters) {
    if (block < s.blocks) {
      const uint32_t buffer = turn % 2;
      product.multiply(s, slice.count, group, ring_matrix, x_matrix, at, barriers);
      if (turn == 0 && p.norm != nullptr) {
        cluster_send_squares<kTiles>(p, s, slice.rank, first_token, square, squares, barriers);
      }
      product.finish(s, barriers);
      if (turn >= 2) mbarrier_wait(barriers.sums_free + buffer * 8, (turn / 2 - 1) & 1);
      product.send(s, slice.rank, group, p.is_gated != 0, sums + buffer * s.sums_bytes, barriers.sums_full + buffer * 8);
    }
    if (turn == 0) continue;
    const uint32_t buffer = (turn - 1) % 2, sums_full = barriers.sums_full + buffer * 8, stored = block - s.clusters;
    cluster_store<T, kTiles, kRowTiles>(p, s, slice.rank, stored, sums_here + buffer * (s.sums_bytes / 4), squares_here,
                                        turn == 1, first_before, sums_full, (turn - 1) / 2 & 1, barriers.squares_full);
    // Where the buffer is used again, its readers say so to all that write to it.
    if (stored + 2 * s.clusters < s.blocks) {
      __syncwarp();
      if (threadIdx.x == 0) mbarrier_arrive_expect(sums_full, kSumBytes);
      __syncwarp();
      if (threadIdx.x % 32 < 1u << s.log_size) {
        cluster_barrier_arrive(cluster_address(barriers.sums_free + buffer * 8, threadIdx.x % 32));
      }
    }
  }
#endif
}

}  // namespace msgl
