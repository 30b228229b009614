// What happens to a step's integers: unpacking the upload, page-table and penalty-count changes, page copies,
// and the way of the sampled tokens back to the host. All of it is bound by latency.
#include "common.cuh"

namespace msgl {
namespace {

constexpr uint32_t kThreads = 256;

// The sections go from the staging buffer, which the copy stream filled while the step before was running, to
// the place that captured graphs read; the page-table changes ride along in the same launch.
__global__ void begin_step_kernel(msgl_begin_step_params p) {
  const uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x;
  const uint64_t units = p.inputs_bytes / sizeof(uint4);
  if (i < units) {
    static_cast<uint4 *>(p.inputs)[i] = static_cast<const uint4 *>(p.staging)[i];
  } else if (i - units < p.num_page_updates) {
    const uint32_t *update = p.page_updates + 3 * (i - units);
    const uint32_t row = update[0], idx = update[1];
    if (row < p.max_rows && idx < p.max_pages) {
      p.page_table[static_cast<uint64_t>(row) * p.max_pages + idx] = update[2];
    }
  }
}

__global__ void clear_counts_kernel(msgl_reset_counts_params p) {
  const uint32_t row = p.resets[4 * blockIdx.y];
  const uint32_t token = blockIdx.x * kThreads + threadIdx.x;
  if (row < p.max_rows && token < p.vocab) p.token_counts[static_cast<uint64_t>(row) * p.vocab + token] = 0;
}

// Counts by compare-and-swap: integer, so that the order does not matter, and saturating, so that it has to be
// a loop.
__global__ void recount_kernel(msgl_reset_counts_params p) {
  const uint32_t *reset = p.resets + 4 * blockIdx.y;
  const uint32_t row = reset[0], num_prompt = reset[1], first = reset[2], num_tokens = reset[3];
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (row >= p.max_rows || i >= num_tokens) return;
  const uint32_t token = p.tokens[first + i];
  if (token >= p.vocab) return;
  uint16_t *count = p.token_counts + static_cast<uint64_t>(row) * p.vocab + token;
  unsigned short seen = *count, expected;
  do {
    expected = seen;
    const unsigned short wanted = i < num_prompt                    ? expected | 0x8000u
                                  : (expected & 0x7fffu) == 0x7fffu ? expected
                                                                    : expected + 1u;
    if (wanted == expected) return;
    seen = atomicCAS(reinterpret_cast<unsigned short *>(count), expected, wanted);
  } while (seen != expected);
}

template <typename Unit>
__global__ void copy_pages_kernel(msgl_copy_pages_params p, uint64_t units) {
  const uint32_t from = p.pairs[2 * blockIdx.y], to = p.pairs[2 * blockIdx.y + 1];
  const uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x;
  if (from >= p.num_pages || to >= p.num_pages || i >= units) return;
  Unit *storage = static_cast<Unit *>(blockIdx.z == 0 ? p.k : p.v);
  storage[to * units + i] = storage[from * units + i];
}

// Stores straight to pinned host memory: no copy engine to wait for, and the next step may overwrite the
// sources as soon as this kernel has run.
__global__ void read_back_kernel(msgl_read_back_params p) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  const uint32_t n = p.num_samples, tops = n * MSGL_MAX_LOGPROBS;
  if (i < n) {
    p.dst[i] = p.tokens[i];
    if (p.logprobs != nullptr) p.dst[n + i] = p.logprobs[i];
  }
  if (p.logprobs != nullptr && i < tops) {
    p.dst[2 * n + i] = p.top_tokens[i];
    p.dst[2 * n + tops + i] = p.top_logprobs[i];
  }
}

}  // namespace
}  // namespace msgl

extern "C" int msgl_begin_step(const msgl_begin_step_params *params, msgl_stream stream) {
  using namespace msgl;
  const uint64_t work = params->inputs_bytes / 16 + params->num_page_updates;
  if (work == 0) return 0;
  begin_step_kernel<<<static_cast<uint32_t>(ceil_div64(work, kThreads)), kThreads, 0, as_stream(stream)>>>(
      *params);
  return launch_status();
}

extern "C" int msgl_reset_counts(const msgl_reset_counts_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_resets == 0) return 0;
  const dim3 clear(ceil_div(params->vocab, kThreads), params->num_resets);
  clear_counts_kernel<<<clear, kThreads, 0, as_stream(stream)>>>(*params);
  if (params->max_tokens > 0) {
    const dim3 count(ceil_div(params->max_tokens, kThreads), params->num_resets);
    recount_kernel<<<count, kThreads, 0, as_stream(stream)>>>(*params);
  }
  return launch_status();
}

extern "C" int msgl_copy_pages(const msgl_copy_pages_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_pairs == 0 || params->page_bytes == 0) return 0;
  const bool wide = params->page_bytes % sizeof(uint4) == 0;
  const uint64_t units = params->page_bytes / (wide ? sizeof(uint4) : sizeof(uint16_t));
  const dim3 grid(static_cast<uint32_t>(ceil_div64(units, kThreads)), params->num_pairs, 2);
  if (wide) {
    copy_pages_kernel<uint4><<<grid, kThreads, 0, as_stream(stream)>>>(*params, units);
  } else {
    copy_pages_kernel<uint16_t><<<grid, kThreads, 0, as_stream(stream)>>>(*params, units);
  }
  return launch_status();
}

extern "C" int msgl_read_back(const msgl_read_back_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_samples == 0) return 0;
  const uint32_t per_sample = params->logprobs == nullptr ? 1 : MSGL_MAX_LOGPROBS;
  const uint32_t blocks = ceil_div(params->num_samples * per_sample, kThreads);
  read_back_kernel<<<blocks, kThreads, 0, as_stream(stream)>>>(*params);
  return launch_status();
}
