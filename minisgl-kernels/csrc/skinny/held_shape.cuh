// How a product is cut up where each CTA holds its rows of the weights in registers.
#pragma once
#include "common.cuh"

namespace msgl {

constexpr uint32_t kHeldWarps = 8, kHeldThreads = 32 * kHeldWarps;
// Most tokens: the columns of an MMA.
constexpr uint32_t kHeldMaxRows = 8;
// Columns of a warp's load, in which each lane of a quad has 16 bytes.
constexpr uint32_t kHeldColumns = 32;
// 8 rows of weights: the features that a CTA is given at a time, or their gates, or their ups.
constexpr uint32_t kHeldUnit = 8;

// An instance of the kernel: 8-row halves of MMA tiles of a CTA, and loads that a warp's part of k takes for each.
struct HeldSize {
  uint32_t halves, loads;
};

// Those that hold small products of the models in docs/kernels/linear.md, and what lies between. More than 64 KB of an
// SM's 256 KB of registers are no gain: then no other CTA fits beside, and nothing overlaps.
#define MSGL_HELD_SIZES(X) X(1, 4) X(1, 8) X(1, 12) X(2, 4) X(2, 8) X(4, 4)

struct HeldShape {
  HeldSize size;
  uint32_t units;  // of the whole product
  uint32_t ctas;   // 0 where no instance is large enough
  uint32_t warp_columns;
  float inverse_k;
};

inline HeldShape held_shape(uint32_t rows, uint32_t n, uint32_t k, bool is_gated, uint32_t num_sms) {
  HeldShape s = {};
  const uint32_t unit_rows = is_gated ? 2 * kHeldUnit : kHeldUnit;
  s.units = ceil_div(n, unit_rows);
  const uint32_t ctas = s.units < num_sms ? s.units : num_sms;
  const uint32_t halves = ceil_div(s.units, ctas) * (is_gated ? 2 : 1);
  const uint32_t loads = ceil_div(k, kHeldColumns * kHeldWarps);
  s.warp_columns = loads * kHeldColumns;
  s.inverse_k = 1.f / static_cast<float>(k);
  if (rows > kHeldMaxRows) return s;
  const HeldSize sizes[] = {
#define MSGL_HELD_SIZE(halves, loads) {halves, loads},
      MSGL_HELD_SIZES(MSGL_HELD_SIZE)
#undef MSGL_HELD_SIZE
  };
  uint32_t least = ~0u;
  for (const HeldSize &size : sizes) {
    if (size.halves < halves || size.loads < loads || size.halves * size.loads >= least) continue;
    least = size.halves * size.loads;
    s.size = size;
    s.ctas = ctas;
  }
  return s;
}

}  // namespace msgl
