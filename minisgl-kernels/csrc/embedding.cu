// Embedding: one table row a token.
//
// The token of a running sequence may have been sampled a moment ago and never have left the device: an id of
// -1 - row asks for the token last sampled for that page-table row, so that the host can plan a step before it
// knows the tokens of the one before. A token outside of the table (0xffffffff stands for 'no finite logit')
// gives a row of NaN, which ends as the same 0xffffffff again instead of as plausible text.
//
// Bound by latency at decode sizes, by bandwidth (each row read and written once) at prefill sizes. One block a
// token, 16-byte accesses.
#include "copy_row.cuh"
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

template <typename Unit>
__global__ void embedding_kernel(msgl_embedding_params p, uint32_t units) {
  grid_wait();
  grid_launch_next();
  const uint32_t t = blockIdx.x;
  const int32_t id = p.token_ids[t];
  uint32_t token = static_cast<uint32_t>(id);
  if (id < 0) {
    const uint32_t row = static_cast<uint32_t>(-1 - id);
    token = row < p.max_rows ? p.last_tokens[row] : 0xffffffffu;
  }
  Unit *dst = static_cast<Unit *>(p.out) + static_cast<uint64_t>(t) * units;
  if (token < p.table_rows) {
    copy_row(dst, static_cast<const Unit *>(p.table) + static_cast<uint64_t>(token) * units, units);
  } else {
    poison_row(dst, units);
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_embedding(const msgl_embedding_params *params, msgl_stream stream) {
  using namespace msgl;
  const uint32_t row_bytes = params->cols * dtype_bytes(params->dtype);
  if (params->num_tokens == 0 || row_bytes == 0) return 0;
  MSGL_DISPATCH_UNIT(row_bytes, {
    const uint32_t units = row_bytes / sizeof(Unit);
    launch_waiting(embedding_kernel<Unit>, params->num_tokens, row_threads(units), 0, as_stream(stream), *params,
                      units);
  })
  return launch_status();
}
