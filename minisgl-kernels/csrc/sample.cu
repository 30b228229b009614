// Sampling: one token from each row of logits, without a sort of the vocabulary and without the host.
//
// A draw is Gumbel-max: the arg max of logit / temperature + noise is a sample of the softmax, so the plain cases
// (greedy, temperature) need one pass and no normaliser, and noise that is a function of (seed, position, token)
// makes the draw independent of the batch. Parameters are read from the device, so a captured graph serves any
// mixture of them.
//
//   scan    one block a chunk of a row: best score of the chunk; where asked for, the softmax denominators
//   finish  one block a row: merges the chunks; where top_k, top_p or min_p restrict the draw, finds the
//           threshold (sample/filter.cuh) and draws again above it; stores the token where the next step reads
//           it, counts it for the penalties, reports log probabilities (sample/top_logprobs.cuh)
//
// Bound by bandwidth for greedy rows (two bytes a token), by the noise (ten rounds of Philox for four tokens, two
// logarithms each) for the others: a token that cannot win even with the largest noise is passed over. The two
// launches exist because one row alone must be spread over many SMs.
#include "sample/candidates.cuh"
#include "sample/filter.cuh"
#include "sample/row.cuh"
#include "sample/top_logprobs.cuh"

namespace msgl {
namespace {

constexpr uint32_t kScanThreads = 256;
constexpr uint32_t kFinishThreads = 1024;
constexpr uint32_t kMaxChunks = 64;

// Tokens of a chunk: four groups a thread, more where the vocabulary would need too many chunks.
uint32_t chunk_tokens(uint32_t vocab) {
  constexpr uint32_t kLeast = 4 * kGroup * kScanThreads;
  const uint32_t needed = ceil_div(ceil_div(vocab, kMaxChunks), kGroup) * kGroup;
  return needed > kLeast ? needed : kLeast;
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads) scan_kernel(msgl_sample_params p, uint32_t chunk) {
  __shared__ Partial shared[kScanThreads / kWarpSize];
  const uint32_t sample = blockIdx.y;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);
  const bool greedy = is_greedy(spec), filtered = is_filtered(spec, p.vocab);
  const bool wants_logprobs = spec.num_logprobs >= 0;

  Partial mine = Partial::none();
  const uint32_t begin = blockIdx.x * chunk;
  const uint32_t end = begin + chunk < p.vocab ? begin + chunk : p.vocab;
#pragma unroll 1
  for (uint32_t base = begin; base < end; base += kScanThreads * kGroup) {
    const uint32_t first = base + threadIdx.x * kGroup;
    float x[kGroup];
    if (wants_logprobs) {
      row.load_raw(first, end, x);
      mine.raw.take(x, 1.f);
    }
    row.load(first, end, x);
    if (filtered) {
      mine.tempered.take(x, row.inv_temperature);
    } else if (greedy) {
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) mine.best.take(x[e], x[e] == -INFINITY ? ~0u : first + e);
    } else {
      take_noisy(mine.best, x, first, row.inv_temperature, spec);
    }
  }
  const Partial all = block_merge(mine, row.inv_temperature, filtered, wants_logprobs, shared);
  if (threadIdx.x == 0) {
    static_cast<Partial *>(p.scratch)[static_cast<uint64_t>(sample) * kMaxChunks + blockIdx.x] = all;
  }
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(msgl_sample_params p, uint32_t num_chunks) {
  __shared__ union {
    Partial partials[kFinishThreads / kWarpSize];
    FilterShared filter;
    uint64_t ranks[kWarpSize];
  } shared;
  __shared__ Partial whole;
  __shared__ CandidateShared candidates;
  const uint32_t sample = blockIdx.x;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);

  const bool filtered = is_filtered(spec, p.vocab), wants_logprobs = spec.num_logprobs >= 0;
  const Partial *chunks = static_cast<const Partial *>(p.scratch) + static_cast<uint64_t>(sample) * kMaxChunks;
  const Partial chunk = threadIdx.x < num_chunks ? chunks[threadIdx.x] : Partial::none();
  Partial all = block_merge(chunk, row.inv_temperature, filtered, wants_logprobs, shared.partials);
  if (threadIdx.x == 0) whole = all;
  __syncthreads();
  all = whole;

  if (filtered && all.tempered.max != -INFINITY) {
    const int shift = row.counts != nullptr ? 0 : kUnusedBits<T>;
    const uint32_t bound = lower_bound(row, spec, all.tempered);
    const uint32_t count = collect(row, bound, candidates);
    Partial mine = Partial::none();
    if (count <= kMaxCandidates) {
      const CandidateList list{candidates.values, count, row.inv_temperature};
      const uint32_t threshold =
          filter_threshold(list, spec, p.vocab, shift, bound, all.tempered, shared.filter);
      for (uint32_t i = threadIdx.x; i < count; i += kFinishThreads) {
        if (float_key(candidates.values[i]) < threshold) continue;
        const uint32_t token = candidates.tokens[i];
        mine.best.take(candidates.values[i] * row.inv_temperature + gumbel(spec, token), token);
      }
    } else {
      const uint32_t threshold =
          filter_threshold(row, spec, p.vocab, shift, bound, all.tempered, shared.filter);
      for (uint32_t base = 0; base < p.vocab; base += kFinishThreads * kGroup) {
        const uint32_t first = base + threadIdx.x * kGroup;
        float x[kGroup];
        row.load(first, p.vocab, x);
#pragma unroll
        for (uint32_t e = 0; e < kGroup; e++) {
          if (float_key(x[e]) < threshold) x[e] = -INFINITY;
        }
        take_noisy(mine.best, x, first, row.inv_temperature, spec);
      }
    }
    mine = block_merge(mine, row.inv_temperature, false, false, shared.partials);
    if (threadIdx.x == 0) whole.best = mine.best;
    __syncthreads();
    all.best = whole.best;
  }

  const uint32_t token = all.best.token;
  const float log_sum = all.raw.max + logf(all.raw.sum);
  if (threadIdx.x == 0) {
    p.tokens[sample] = token;
    p.last_tokens[spec.seq_row] = token;
    if (row.counts != nullptr && token < p.vocab) {
      uint16_t *count = p.token_counts + static_cast<uint64_t>(spec.seq_row) * p.vocab + token;
      if ((*count & 0x7fffu) != 0x7fffu) *count += 1;
    }
    if (wants_logprobs) {
      p.logprobs[sample] = token < p.vocab ? clean(to_float(row.logits[token])) - log_sum : -INFINITY;
    }
  }
  if (spec.num_logprobs > 0) {
    const uint64_t at = static_cast<uint64_t>(sample) * MSGL_MAX_LOGPROBS;
    const uint32_t count = spec.num_logprobs < MSGL_MAX_LOGPROBS ? spec.num_logprobs : MSGL_MAX_LOGPROBS;
    top_logprobs(row, count, log_sum, p.top_tokens + at, p.top_logprobs + at, shared.ranks);
  }
}

}  // namespace
}  // namespace msgl

extern "C" size_t msgl_sample_scratch_bytes(void) { return msgl::kMaxChunks * sizeof(msgl::Partial); }

extern "C" int msgl_sample(const msgl_sample_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_samples == 0 || params->vocab == 0) return 0;
  const uint32_t chunk = chunk_tokens(params->vocab);
  const uint32_t num_chunks = ceil_div(params->vocab, chunk);
  const dim3 grid(num_chunks, params->num_samples);
  MSGL_DISPATCH_DTYPE(params->dtype, {
    scan_kernel<T><<<grid, kScanThreads, 0, as_stream(stream)>>>(*params, chunk);
    finish_kernel<T><<<params->num_samples, kFinishThreads, 0, as_stream(stream)>>>(*params, num_chunks);
  })
  return launch_status();
}
