// Sampling: one token from each row of logits, without a sort of the vocabulary and without the host.
//
// A draw is Gumbel-max: the arg max of logit / temperature + noise is a sample of the softmax, so the plain cases
// (greedy, temperature) need one pass and no normaliser, and noise that is a function of (seed, position, token)
// makes the draw independent of the batch. Parameters are read from the device, so a captured graph serves any
// mixture of them.
//
//   scan    one block a chunk of a row: best score of the chunk, or where the draw is restricted its largest logit;
//           where asked for, the denominator of the log probabilities
//   finish  one block a row: merges the chunks; where top_k, top_p or min_p restrict the draw, finds a band of
//           logits around their threshold (sample/histogram.cuh, top_k_bound), draws from what is above it
//           (sample/candidates.cuh), finds the threshold (sample/filter.cuh) and draws from the rest; stores the
//           token where the next step reads it, counts it for the penalties, reports log probabilities
//           (sample/top_logprobs.cuh)
//
// Bound by bandwidth for greedy rows (two bytes a token), by the noise (ten rounds of Philox for four tokens, two
// logarithms each) for the others: a token that cannot win even with the largest noise is passed over. The two
// launches exist because one row alone must be spread over many SMs.
#include "launch.cuh"
#include "ptx/grid.cuh"
#include "sample/filter.cuh"
#include "sample/histogram.cuh"
#include "sample/row.cuh"
#include "sample/top_logprobs.cuh"

namespace msgl {
namespace {

constexpr uint32_t kScanThreads = 256;
constexpr int kScanBlocks = 5;  // of an SM
constexpr int kScanAhead = 1;   // groups of a thread that are on their way at once
constexpr uint32_t kMaxChunks = 64;

// Tokens of a chunk: four groups a thread, more where the vocabulary would need too many chunks.
uint32_t chunk_tokens(uint32_t vocab) {
  constexpr uint32_t kLeast = 4 * kGroup * kScanThreads;
  const uint32_t needed = ceil_div(ceil_div(vocab, kMaxChunks), kGroup) * kGroup;
  return needed > kLeast ? needed : kLeast;
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) scan_kernel(msgl_sample_params p, uint32_t chunk) {
  __shared__ Partial shared[kScanThreads / kWarpSize];
  grid_wait();
  grid_launch_next();
  const uint32_t sample = blockIdx.y;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);
  const Kind kind(spec, p.vocab);
  const bool filtered = kind.is_filtered(), wants_logprobs = spec.num_logprobs >= 0;

  const bool by_logit = kind.is_greedy || kind.is_filtered();

  Partial mine = Partial::none();
  typename Row<T>::Group winner;
  uint32_t winner_first = 0;
  float winner_top = -INFINITY;
  const uint32_t begin = blockIdx.x * chunk;
  const uint32_t end = begin + chunk < p.vocab ? begin + chunk : p.vocab;
  each_group<kScanAhead>(row, begin, end, [&](uint32_t first, const auto &group) {
    float x[kGroup];
    if (wants_logprobs) {
      row.raw_values(group, x);
      mine.raw.take(x, 1.f);
    }
    if (by_logit && row.counts == nullptr) {
      // Only the group is found here, and the token in it at the end; of equal ones the first counts.
      const float top = row.template raw_top<0, kGroup>(group);
      if (top > winner_top) {
        winner_top = top;
        winner = group;
        winner_first = first;
      }
      return;
    }
    row.values(group, x);
    if (by_logit) {
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) mine.best.take(x[e], x[e] == -INFINITY ? ~0u : first + e);
    } else {
      take_noisy(mine.best, x, first, row.inv_temperature, spec);
    }
  });
  if (winner_top != -INFINITY) {
    float x[kGroup];
    row.raw_values(winner, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) mine.best.take(x[e], winner_first + e);
  }
  const Partial all = block_merge(mine, wants_logprobs, shared);
  if (threadIdx.x == 0) {
    static_cast<Partial *>(p.scratch)[static_cast<uint64_t>(sample) * kMaxChunks + blockIdx.x] = all;
  }
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(msgl_sample_params p, uint32_t num_chunks) {
  __shared__ union {
    Histogram histogram;
    CandidateList list;
  } large;
  __shared__ union {
    Partial partials[kFinishThreads / kWarpSize];
    SplitShared split;
    FilterShared filter;
    uint64_t ranks[kWarpSize];
  } shared;
  __shared__ Partial whole;
  grid_wait();
  grid_launch_next();
  const uint32_t sample = blockIdx.x;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);

  const Kind kind(spec, p.vocab);
  const bool wants_logprobs = spec.num_logprobs >= 0;
  const Partial *chunks = static_cast<const Partial *>(p.scratch) + static_cast<uint64_t>(sample) * kMaxChunks;
  const Partial chunk = threadIdx.x < num_chunks ? chunks[threadIdx.x] : Partial::none();
  Partial all = block_merge(chunk, wants_logprobs, shared.partials);
  if (threadIdx.x == 0) whole = all;
  __syncthreads();
  all = whole;

  if (kind.is_filtered() && all.best.score != -INFINITY) {
    SoftmaxSum tempered = {all.best.score, 0.f};
    float least = -FLT_MAX;  // of min-p
    if (kind.has_min_p) least = fminf(tempered.max + logf(spec.min_p) / row.inv_temperature, tempered.max);
    Band band = Band::from(least);
    if (kind.has_top_k) {
      band = Band::from(top_k_bound(row, spec.top_k));
    } else if (kind.has_top_p) {
      band = top_p_band(row, spec.top_p, tempered, large.histogram);
    }
    Partial mine = Partial::none();
    const Split split = split_row(row, spec, band, tempered.max, least, mine.best, large.list, shared.split);
    const auto keeps_from = [&](const auto &tokens, float above) {
      const int shift = row.counts != nullptr ? 0 : kUnusedBits<T>;
      const uint32_t threshold =
          filter_threshold(tokens, spec, kind, shift, split.low, split.high, tempered, above, shared.filter);
      return min(max(threshold, float_key(least)), float_key(tempered.max));
    };
    if (!split.is_overflow) {
      const uint32_t threshold = keeps_from(Candidates{large.list.values, row.inv_temperature}, split.mass);
      for (uint32_t i = threadIdx.x; i < kMaxCandidates; i += kFinishThreads) {
        const float x = large.list.values[i];
        if (x == -INFINITY || float_key(x) < threshold) continue;
        const uint32_t token = large.list.tokens[i];
        mine.best.take(x * row.inv_temperature + gumbel(spec, token), token);
      }
    } else {
      const uint32_t threshold = keeps_from(row, 0.f);
      each_group<kFinishAhead>(row, 0, row.vocab, [&](uint32_t first, const auto &group) {
        float x[kGroup];
        row.values(group, x);
#pragma unroll
        for (uint32_t e = 0; e < kGroup; e++) {
          if (float_key(x[e]) < threshold) x[e] = -INFINITY;
        }
        take_noisy(mine.best, x, first, row.inv_temperature, spec);
      });
    }
    mine = block_merge(mine, false, shared.partials);
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
    launch_overlapped(scan_kernel<T>, grid, kScanThreads, 0, as_stream(stream), *params, chunk);
    launch_overlapped(finish_kernel<T>, params->num_samples, kFinishThreads, 0, as_stream(stream), *params,
                      num_chunks);
  })
  return launch_status();
}
