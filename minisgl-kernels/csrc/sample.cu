// Sampling: one token from each row of logits, without a sort of the vocabulary and without the host.
//
// A draw is Gumbel-max: the arg max of logit / temperature + noise is a sample of the softmax, so the plain cases
// (greedy, temperature) need one pass and no normaliser, and noise that is a function of (seed, position, token)
// makes the draw independent of the batch. Parameters are read from the device, so a captured graph serves any
// mixture of them.
//
//   scan    one block a part of a row: its best score, or where the draw is restricted its largest logit; where asked
//           for, the denominator of the log probabilities
//   finish  one block a row: merges the parts; where top_k, top_p or min_p restrict the draw, finds a band of
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
constexpr int kScanBlocks = 4;  // of an SM
constexpr uint32_t kScanStride = kScanThreads * kGroup;  // tokens that a block takes at a time
constexpr uint32_t kMaxChunks = 64;

// A row in chunks, of which a block takes several one after the other.
struct Chunks {
  uint32_t tokens;  // of a chunk
  uint32_t count;
  uint32_t of_block;

  // Two groups a thread, more where the vocabulary would need too many chunks: a function of the vocabulary alone, and
  // with it the bits of a row's sums. Blocks take so many that the device holds all of them at once, if it can: each
  // block costs its start and its end, and finds the bound of its draw anew.
  Chunks(uint32_t vocab, uint32_t num_rows) {
    const uint32_t strides = ceil_div(vocab, kMaxChunks * kScanStride);
    tokens = (strides > 2 ? strides : 2) * kScanStride;
    count = ceil_div(vocab, tokens);
    int num_sms = 1;
    device_attribute(cudaDevAttrMultiProcessorCount, &num_sms);
    const uint32_t blocks_of_row = kScanBlocks * static_cast<uint32_t>(num_sms) / num_rows;
    of_block = ceil_div(count, blocks_of_row > 1 ? blocks_of_row : 1);
  }

  __host__ __device__ uint32_t num_blocks() const { return ceil_div(count, of_block); }
};

// What the scan leaves of a row: the best of each block, and the sum of each chunk where log probabilities are asked
// for.
struct Parts {
  Best best[kMaxChunks];
  SoftmaxSum raw[kMaxChunks];
};

template <typename T>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks) scan_kernel(msgl_sample_params p, Chunks chunks) {
  __shared__ Partial shared[kScanThreads / kWarpSize];
  __shared__ uint32_t bound_key;
  const DrawBound bound{&bound_key};
  grid_wait();
  grid_launch_next();
  const uint32_t sample = blockIdx.y;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);
  const Kind kind(spec, p.vocab);
  const bool wants_logprobs = spec.num_logprobs >= 0;
  const bool by_logit = kind.is_greedy || kind.is_filtered();
  Parts &parts = static_cast<Parts *>(p.scratch)[sample];
  if (!by_logit) bound.reset();

  Partial mine = Partial::none();
  typename Row<T>::Group winner;
  uint32_t winner_first = 0;
  float winner_top = -INFINITY;
  const auto visit = [&](uint32_t first, const auto &group) {
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
    if (row.counts == nullptr) {
      take_noisy(mine.best, RawLogits<T>{group}, first, row.inv_temperature, spec, bound);
      return;
    }
    row.values(group, x);
    if (by_logit) {
#pragma unroll
      for (uint32_t e = 0; e < kGroup; e++) mine.best.take(x[e], x[e] == -INFINITY ? ~0u : first + e);
    } else {
      take_noisy(mine.best, Logits{x}, first, row.inv_temperature, spec, bound);
    }
  };
  const uint32_t begin = blockIdx.x * chunks.of_block * chunks.tokens;
  const uint32_t end = min(begin + chunks.of_block * chunks.tokens, p.vocab);
#pragma unroll 1
  for (uint32_t base = begin; base < end; base += kScanStride) {
    const uint32_t first = base + threadIdx.x * kGroup, next = base + kScanStride;
    visit(first, row.fetch(first, end));
    if (wants_logprobs && (next >= end || next % chunks.tokens == 0)) {
      const Partial all = block_merge({Best::none(), mine.raw}, true, shared);
      if (threadIdx.x == 0) parts.raw[base / chunks.tokens] = all.raw;
      mine.raw = SoftmaxSum::none();
    }
  }
  if (winner_top != -INFINITY) {
    float x[kGroup];
    row.raw_values(winner, x);
#pragma unroll
    for (uint32_t e = 0; e < kGroup; e++) mine.best.take(x[e], winner_first + e);
  }
  const Partial all = block_merge(mine, false, shared);
  if (threadIdx.x == 0) parts.best[blockIdx.x] = all.best;
}

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(msgl_sample_params p, Chunks chunks) {
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
  __shared__ uint32_t bound_key;
  const DrawBound bound{&bound_key};
  bound.reset();
  grid_wait();
  grid_launch_next();
  const uint32_t sample = blockIdx.x;
  const msgl_sample_spec spec = p.samples[sample];
  if (spec.seq_row >= p.max_rows) return;
  const Row<T> row(p, spec, sample);

  const Kind kind(spec, p.vocab);
  const bool wants_logprobs = spec.num_logprobs >= 0;
  const Parts &parts = static_cast<const Parts *>(p.scratch)[sample];
  Partial part = Partial::none();
  if (threadIdx.x < chunks.num_blocks()) part.best = parts.best[threadIdx.x];
  if (wants_logprobs && threadIdx.x < chunks.count) part.raw = parts.raw[threadIdx.x];
  Partial all = block_merge(part, wants_logprobs, shared.partials);
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
    const Split split = split_row(row, spec, band, tempered.max, least, mine.best, bound, large.list, shared.split);
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
        mine.best.take(noisy_score(x, row.inv_temperature, spec, token), token);
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
        take_noisy(mine.best, Logits{x}, first, row.inv_temperature, spec, bound);
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

extern "C" size_t msgl_sample_scratch_bytes(void) { return sizeof(msgl::Parts); }

extern "C" int msgl_sample(const msgl_sample_params *params, msgl_stream stream) {
  using namespace msgl;
  if (params->num_samples == 0 || params->vocab == 0) return 0;
  const Chunks chunks(params->vocab, params->num_samples);
  const dim3 grid(chunks.num_blocks(), params->num_samples);
  MSGL_DISPATCH_DTYPE(params->dtype, {
    launch_overlapped(scan_kernel<T>, grid, kScanThreads, 0, as_stream(stream), *params, chunks);
    launch_overlapped(finish_kernel<T>, params->num_samples, kFinishThreads, 0, as_stream(stream), *params, chunks);
  })
  return launch_status();
}
