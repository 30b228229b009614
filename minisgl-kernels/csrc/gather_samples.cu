// Gathers the rows whose logits are wanted: the last token of each sequence, out of a packed prefill.
//
// Bound by latency: a few hundred rows of a few KiB. An index past the end marks a padding sample, whose row is
// left as it is.
#include "copy_row.cuh"
#include "launch.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

template <typename Unit>
__global__ void gather_samples_kernel(msgl_gather_samples_params p, uint32_t units) {
  grid_wait();
  grid_launch_next();
  const uint32_t s = blockIdx.x;
  const uint32_t t = p.sample_tokens[s];
  if (t >= p.x_rows) return;
  copy_row(static_cast<Unit *>(p.out) + static_cast<uint64_t>(s) * units,
           static_cast<const Unit *>(p.x) + static_cast<uint64_t>(t) * units, units);
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_gather_samples(const msgl_gather_samples_params *params, msgl_stream stream) {
  using namespace msgl;
  const uint32_t row_bytes = params->cols * dtype_bytes(params->dtype);
  if (params->num_samples == 0 || row_bytes == 0) return 0;
  MSGL_DISPATCH_UNIT(row_bytes, {
    const uint32_t units = row_bytes / sizeof(Unit);
    launch_waiting(gather_samples_kernel<Unit>, params->num_samples, row_threads(units), 0, as_stream(stream),
                      *params, units);
  })
  return launch_status();
}
