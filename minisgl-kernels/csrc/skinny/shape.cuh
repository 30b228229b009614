// How a skinny product is cut up: which CTA computes which rows of the weights, and what lies where in shared memory.
// Host and device compute the same numbers from the same sizes.
#pragma once
#include "common.cuh"

namespace msgl {

// A unit is the 8 rows of an 8 x 8 matrix: 8 output features, or 8 gates and the 8 ups that belong to them.
constexpr uint32_t kUnit = 8;
// Warps that multiply, and warps that copy: one of these issues a bulk copy every 40 ns, an SM has to every 20.
constexpr uint32_t kSkinnyWarps = 8;
constexpr uint32_t kSkinnyCopyWarps = 4;
constexpr uint32_t kSkinnyThreads = 32 * (kSkinnyWarps + kSkinnyCopyWarps);
constexpr uint32_t kSkinnyMaxDepth = 16;
// Tokens of the largest instance: 8 tiles of 8.
constexpr uint32_t kSkinnyMaxRows = 64;
// Elements of k that a warp takes at once: 16 bytes for each lane of a quad. All warps together take 256.
constexpr uint32_t kGroup = 32;
constexpr uint32_t kGroupOfAll = kGroup * kSkinnyWarps;
// Partial sums of a row of tokens are staggered over the banks.
constexpr uint32_t kPartialPad = 4;

// Two CTAs of consecutive grids, each with this much and the 1 KB that the chip takes, fit the 228 KB of an SM: the
// weights of the second stream in while the first ends.
constexpr uint32_t kSharedBudget = 112 * 1024;
// Alone in its SM.
constexpr uint32_t kSharedMost = 224 * 1024;
// Most of x that is kept for the whole kernel: beside another CTA, and alone where there is a norm. Without one more of
// it comes faster in stages.
constexpr uint32_t kResidentBudget = 40 * 1024;
constexpr uint32_t kResidentMost = 136 * 1024;

// Bytes of weights of a CTA beyond which a deeper ring is worth more than the overlap.
constexpr uint32_t kLongCta = 192 * 1024;

// Groups that a warp takes of a stage: the fewer rows, the longer. Many short stages would cost their barriers.
__host__ __device__ constexpr uint32_t groups_of_stage(uint32_t row_tiles) { return row_tiles == 1 ? 4 : 2; }

struct SkinnyShape {
  uint32_t row_tiles;   // tiles of 16 rows of weights that a CTA computes at once: 1 or 2
  uint32_t chunk;       // elements of k in a stage
  uint32_t pass_units;  // most units that a CTA computes at once
  uint32_t units;       // of the whole product
  uint32_t ctas;
  uint32_t row_stride;   // bytes between two rows of a stage
  uint32_t stage_x;      // offset of x in a stage, where it is not resident
  uint32_t stage_bytes;
  uint32_t depth;        // stages of the ring
  uint32_t is_resident;  // x is copied once, before the first stage
  uint32_t x_stride;     // bytes between two rows of x
  uint32_t x_offset;     // of resident x behind the ring
  uint32_t partial_offset;
  uint32_t partial_bytes;  // of one of two buffers
  uint32_t squares_offset;
  uint32_t shared_bytes;
};

// Bytes between two rows so that the 16-byte accesses of two neighbouring rows by four lanes each fill the 32 banks.
__host__ __device__ constexpr uint32_t staggered(uint32_t bytes) { return bytes % 128 == 0 ? bytes + 64 : bytes; }

// The depth is 0 where the kernel cannot take the sizes.
inline SkinnyShape skinny_shape(uint32_t rows, uint32_t n, uint32_t k, bool is_gated, bool has_norm, uint32_t num_sms) {
  SkinnyShape s = {};
  const uint32_t unit_rows = is_gated ? 2 * kUnit : kUnit;
  s.units = ceil_div(n, unit_rows);
  s.ctas = s.units < num_sms ? s.units : num_sms;
  const uint32_t cta_units = ceil_div(s.units, s.ctas);
  s.row_tiles = cta_units * unit_rows <= 16 ? 1 : 2;
  const uint32_t fit = s.row_tiles * 16 / unit_rows;
  s.pass_units = cta_units < fit ? cta_units : fit;
  s.chunk = groups_of_stage(s.row_tiles) * kGroupOfAll;
  s.row_stride = staggered(s.chunk * 2);

  s.x_stride = staggered(k * 2);
  const uint64_t resident_bytes = static_cast<uint64_t>(rows) * s.x_stride;
  s.is_resident = resident_bytes <= (has_norm ? kResidentMost : kResidentBudget);
  if (has_norm && !s.is_resident) return s;
  if (!s.is_resident) s.x_stride = s.row_stride;
  const uint32_t x_bytes = s.is_resident ? rows * s.x_stride : 0;
  s.stage_x = s.pass_units * unit_rows * s.row_stride;
  s.stage_bytes = s.stage_x + (s.is_resident ? 0 : rows * s.row_stride);
  const uint32_t round_tokens = rows < 8 ? rows : 8;
  s.partial_bytes = kSkinnyWarps * round_tokens * (s.row_tiles * 16 + kPartialPad) * 4;
  const uint32_t squares_bytes = has_norm ? kSkinnyWarps * rows * 4 : 0;
  const uint32_t fixed = x_bytes + 2 * s.partial_bytes + squares_bytes;
  const uint32_t stages = ceil_div(k, s.chunk) * ceil_div(cta_units, s.pass_units);
  const uint32_t beside = (kSharedBudget - (fixed < kSharedBudget ? fixed : kSharedBudget)) / s.stage_bytes;
  const bool is_long = static_cast<uint64_t>(cta_units) * unit_rows * k * 2 > kLongCta;
  const bool fits_beside = !is_long && x_bytes <= kResidentBudget && beside >= (stages < 2 ? stages : 2);
  s.depth = fits_beside ? beside : (kSharedMost - fixed) / s.stage_bytes;
  if (s.depth > stages) s.depth = stages;
  if (s.depth > kSkinnyMaxDepth) s.depth = kSkinnyMaxDepth;
  s.x_offset = s.depth * s.stage_bytes;
  s.partial_offset = s.x_offset + x_bytes;
  s.squares_offset = s.partial_offset + 2 * s.partial_bytes;
  s.shared_bytes = s.squares_offset + squares_bytes;
  return s;
}

}  // namespace msgl
