// How a product is cut up over clusters: which CTA computes what, and what lies where in its shared memory.
#pragma once
#include "common.cuh"

namespace msgl {

// A tile is the 64 rows of weights that a wgmma takes: 64 features, or 32 gates and the 32 ups that belong to them.
constexpr uint32_t kTileRows = 64, kHalfTile = kTileRows / 2;
// Columns of a stage: one swizzle of 128 bytes.
constexpr uint32_t kChunk = 64;
constexpr uint32_t kTileBytes = kTileRows * kChunk * 2;
// Two warpgroups compute, and one warp copies.
constexpr uint32_t kClusterGroups = 2, kGroupThreads = 128;
constexpr uint32_t kClusterWarps = kClusterGroups * kGroupThreads / 32;
constexpr uint32_t kClusterThreads = 32 * (kClusterWarps + 1);
// Sums of a row of tokens are staggered over the banks.
__host__ __device__ constexpr uint32_t sums_stride(uint32_t tokens) { return tokens + (tokens == 8 ? 2 : 4); }

// What may be chosen about a product: see cluster.cuh.
struct ClusterChoice {
  uint32_t log_size;  // CTAs of a cluster, of which each takes a part of k: 1, 2, 4 or 8
  uint32_t tiles;     // of a CTA at a time: 2, one for each warpgroup, or 1, of which each takes every other chunk
  uint32_t per_sm;    // most CTAs for each SM
  uint32_t room;      // CTAs, of this grid or the next, that an SM has room for
};

struct ClusterShape {
  uint32_t log_size;
  uint32_t blocks;    // of the choice's tiles, in the whole product
  uint32_t clusters;  // block b is computed by cluster b % clusters
  uint32_t chunks;    // of k
  uint32_t depth;     // stages of the ring
  uint32_t launch_at;  // stage with which the next grid may start
  uint32_t refills;    // whether the ring's stages are used again
  float inverse_k;
  uint32_t x_offset;
  uint32_t sums_offset;
  uint32_t sums_bytes;  // of one of two buffers
  uint32_t squares_offset;
  uint32_t barriers_offset;
  uint32_t shared_bytes;
};

// Tokens of the instance for a number of rows.
__host__ __device__ constexpr uint32_t cluster_tokens(uint32_t rows) {
  return rows <= 32 ? (rows + 7) / 8 * 8 : rows <= 48 ? 48 : 64;
}

// The depth is 0 where the kernel cannot take the sizes.
inline ClusterShape cluster_shape(const ClusterChoice &choice, uint32_t rows, uint32_t n, uint32_t k, bool is_gated,
                                  uint32_t num_sms) {
  ClusterShape s = {};
  const uint32_t size = 1 << choice.log_size, tokens = cluster_tokens(rows);
  s.log_size = choice.log_size;
  s.blocks = ceil_div(is_gated ? n / 2 : n, choice.tiles * (is_gated ? kHalfTile : kTileRows));
  // Clusters lie in groups of SMs whose numbers are no multiples of 4.
  const uint32_t sms = size <= 2 ? num_sms / 2 * 2 : num_sms / 8 * 8, most = sms * choice.per_sm >> choice.log_size;
  s.chunks = ceil_div(k, kChunk);
  s.inverse_k = 1.f / static_cast<float>(k);
  if (most == 0 || s.chunks < size * (kClusterGroups / choice.tiles)) return s;
  const uint32_t turns = ceil_div(s.blocks, most);
  s.clusters = ceil_div(s.blocks, turns);
  const uint32_t stage_bytes = choice.tiles * kTileBytes, most_chunks = ceil_div(s.chunks, size);
  const uint32_t x_bytes = most_chunks * tokens * kChunk * 2;
  s.sums_bytes = kClusterGroups * kTileRows * sums_stride(tokens) * 4;
  const uint32_t all_sums = (turns > 1 ? 2 : 1) * s.sums_bytes, squares_bytes = size * tokens * 4;
  // An SM has 228 KB, of which the chip takes 1 KB for each CTA.
  const uint32_t budget = 228 * 1024 / choice.room - 1024;
  const uint32_t fixed = x_bytes + all_sums + squares_bytes + 5 * 8, stage = stage_bytes + 2 * 8;
  const uint32_t stages = most_chunks * turns;
  uint32_t depth = fixed + 2 * stage > budget ? 0 : (budget - fixed) / stage;
  // With fewer the memory would wait.
  if (depth < stages && depth * stage_bytes < 32 * 1024) return s;
  if (depth > stages) depth = stages;
  s.refills = depth < stages;
  // The next grid's weights would compete with those that are still to come here, where these are many.
  s.launch_at = stages < 2 * depth ? depth : stages;
  s.x_offset = depth * stage_bytes;
  s.sums_offset = s.x_offset + x_bytes;
  s.squares_offset = s.sums_offset + all_sums;
  s.barriers_offset = s.squares_offset + squares_bytes;
  s.shared_bytes = s.barriers_offset + 2 * 8 * depth + 5 * 8;
  s.depth = depth;
  return s;
}

}  // namespace msgl
