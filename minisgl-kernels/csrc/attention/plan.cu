// Cuts a step's attention into work for every layer's kernels, on the device, so that it can sit inside a CUDA graph.
//
// Decode: the sequences' jobs (one group of KV heads x one tile of query rows) are laid end to end as pieces of 16
// KV positions and cut into ranges of equal cost, one for each CTA of a grid that never changes size: a prefix sum over
// the sequences, then a binary search for each CTA. Padding sequences have no pieces. A job that a cut goes through is
// put together out of its CTAs' parts (shared_job.cuh), so where cuts fall, and with them the last bits of a result,
// depends on the batch; the same batch gives the same bits.
//
// Prefill: tiles of query rows. Sequences are sorted by length, longest first, by counting; within a length class the
// order is that of the atomics, which moves work in time and changes no result. A sequence's tiles follow each other,
// the last and longest first, so that those that run together read the same K and V, out of L2; sorting the tiles of
// all sequences by length instead would have each SM read another sequence, at up to the whole bandwidth of the memory.
//
// One CTA: a few microseconds once a step.
#include "plan.cuh"
#include "ptx/grid.cuh"

namespace msgl {
namespace {

constexpr uint32_t kThreads = 1024;
constexpr uint32_t kClassTokens = 128;
constexpr uint32_t kClusterSlack = 16;

struct Counts {
    uint32_t decode_seqs, cost, pieces, prefill_seqs, tiles, jobs;
};

__device__ Counts operator+(const Counts& a, const Counts& b) {
    return {a.decode_seqs + b.decode_seqs, a.cost + b.cost, a.pieces + b.pieces, a.prefill_seqs + b.prefill_seqs,
            a.tiles + b.tiles, a.jobs + b.jobs};
}

__device__ Counts shuffle_up(const Counts& a, int delta) {
    return {__shfl_up_sync(~0u, a.decode_seqs, delta), __shfl_up_sync(~0u, a.cost, delta),
            __shfl_up_sync(~0u, a.pieces, delta), __shfl_up_sync(~0u, a.prefill_seqs, delta),
            __shfl_up_sync(~0u, a.tiles, delta), __shfl_up_sync(~0u, a.jobs, delta)};
}

// Sum over the lanes up to this one.
__device__ Counts scan_warp(Counts sum) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
        const Counts other = shuffle_up(sum, delta);
        if (lane >= delta) sum = sum + other;
    }
    return sum;
}

// Sum over the threads before this one; `total` gets the sum over all.
__device__ Counts exclusive_scan(const Counts& own, Counts& total) {
    constexpr int kWarps = kThreads / 32;
    static_assert(kWarps == 32, "one warp adds up the sums of all");
    __shared__ Counts warp_sums[kWarps];  // of each warp, then of the warps up to each
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Counts sum = scan_warp(own);
    __syncthreads();
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    if (warp == 0) warp_sums[lane] = scan_warp(warp_sums[lane]);
    __syncthreads();
    total = warp_sums[kWarps - 1];
    const Counts inclusive = warp == 0 ? sum : warp_sums[warp - 1] + sum;
    return {inclusive.decode_seqs - own.decode_seqs, inclusive.cost - own.cost,
            inclusive.pieces - own.pieces, inclusive.prefill_seqs - own.prefill_seqs, inclusive.tiles - own.tiles,
            inclusive.jobs - own.jobs};
}

// The decode sequences and what comes before each of them: in shared memory where a batch fits it, since the searches
// are chains of loads.
struct DecodeSeqs {
    PlanSeq* seqs;
    uint32_t* costs;
    uint32_t* pieces;
    uint32_t* jobs;
};

// Largest index whose prefix is at most `value`; the prefixes start with 0 and grow strictly.
__device__ uint32_t find_prefix(const uint32_t* prefix, uint32_t count, uint32_t value) {
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (prefix[middle] <= value) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// What lies at a cost.
struct Cut {
    uint32_t seq_idx;
    uint32_t job;             // of the sequence
    uint32_t job_cost;        // of all jobs before
    uint32_t piece;           // of the job
    uint32_t pieces_per_job;
    uint32_t pieces_before;   // of all jobs before, and of this one
};

__device__ Cut cut_at(const DecodeSeqs& of, const PlanHeader& header, const msgl_attention_sizes& sizes,
                      uint32_t cost) {
    Cut cut;
    cut.seq_idx = find_prefix(of.costs, header.num_decode_seqs, cost);
    cut.pieces_per_job = pieces_per_job(of.seqs[cut.seq_idx], sizes.window);
    const uint32_t of_job = kJobCost + cut.pieces_per_job, offset = cost - of.costs[cut.seq_idx];
    cut.job = offset / of_job;
    cut.job_cost = cost - offset % of_job;
    cut.piece = max(offset % of_job, kJobCost) - kJobCost;
    cut.pieces_before = of.pieces[cut.seq_idx] + cut.job * cut.pieces_per_job + cut.piece;
    return cut;
}

// Whether each cluster takes a job of its own: there are enough, and the longest job keeps its cluster at most
// kClusterSlack pieces a CTA longer than an even cut keeps every CTA. Clusters save the partial results' way through
// memory, which takes as long as the pieces of this slack.
__device__ bool fits_clusters(const msgl_attention_sizes& sizes, const Counts& all, uint32_t longest) {
    return sizes.cluster_ctas != 0 && all.jobs != 0 && all.jobs * sizes.cluster_ctas <= sizes.grid_ctas &&
           div_up(longest, sizes.cluster_ctas) <= all.pieces / sizes.grid_ctas + kClusterSlack;
}

// The part of a cluster's job that one of its CTAs has, an even share; short jobs leave CTAs without a piece.
__device__ PlanBucket cluster_bucket(const DecodeSeqs& of, const PlanHeader& header, const msgl_attention_sizes& sizes,
                                     uint32_t cta) {
    const uint32_t job = cta / sizes.cluster_ctas, rank = cta % sizes.cluster_ctas;
    const uint32_t seq_idx = find_prefix(of.jobs, header.num_decode_seqs, job);
    const PlanSeq seq = of.seqs[seq_idx];
    const uint32_t pieces = pieces_per_job(seq, sizes.window);
    const uint32_t start = pieces * rank / sizes.cluster_ctas, end = pieces * (rank + 1) / sizes.cluster_ctas;
    return {seq, seq_idx, job - of.jobs[seq_idx], start, end - start, cta, cta, {}};
}

// Lets the next kernel start. Some read the plan without waiting for the end of this grid (decode.cuh), so the plan has
// to be in L2, where they read it, before any of them starts.
__device__ void release_plan() {
    __threadfence();
    __syncthreads();
    grid_launch_next();
}

__device__ PlanTile tile_at(const PlanView& view, uint32_t num_seqs, const msgl_attention_sizes& sizes,
                            uint32_t idx) {
    const uint32_t at = find_prefix(view.seq_tiles, num_seqs, idx);
    const PlanSeq seq = view.tile_seqs[at];
    const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
    const uint32_t last_tile = div_up(seq.q_len * group, sizes.tile_rows) - 1;
    return {seq, (last_tile - (idx - view.seq_tiles[at])) * sizes.tile_rows, {}};
}

// Longer sequences have a lower class.
__device__ uint32_t length_class(const PlanSeq& seq) {
    return kThreads - 1 - min(seq.kv_len / kClassTokens, kThreads - 1);
}

__global__ void __launch_bounds__(kThreads) plan_kernel(const msgl_attention_plan_params params) {
    const msgl_attention_sizes& sizes = params.sizes;
    const PlanView view = plan_view(sizes, params.plan);
    const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
    const uint32_t tid = threadIdx.x;

    __shared__ uint32_t longest;  // pieces of the longest job
    __shared__ PlanSeq near_seqs[kThreads];
    __shared__ uint32_t near_costs[kThreads], near_pieces[kThreads], near_jobs[kThreads];
    const DecodeSeqs decode = params.num_seqs <= kThreads
                                  ? DecodeSeqs{near_seqs, near_costs, near_pieces, near_jobs}
                                  : DecodeSeqs{view.seqs, view.seq_costs, view.seq_pieces, view.seq_jobs};
    if (tid == 0) longest = 0;
    __syncthreads();
    Counts done = {};
    for (uint32_t base = 0; base < params.num_seqs; base += kThreads) {
        PlanSeq seq = {};
        Counts own = {};
        if (base + tid < params.num_seqs) {
            const uint32_t idx = base + tid;
            seq = {params.cu_q_lens[idx], params.cu_q_lens[idx + 1] - params.cu_q_lens[idx], params.kv_lens[idx],
                   params.seq_rows[idx]};
            if (seq.q_len != 0 && seq.kv_len >= seq.q_len) {
                if (uint64_t{seq.q_len} * group <= sizes.decode_rows) {
                    const uint32_t pieces = pieces_per_job(seq, sizes.window), jobs = jobs_per_seq(seq, sizes);
                    own = {1, (kJobCost + pieces) * jobs, pieces * jobs, 0, 0, jobs};
                    atomicMax(&longest, pieces);
                } else {
                    own = {0, 0, 0, 1, div_up(seq.q_len * group, sizes.tile_rows), 0};
                }
            }
        }
        Counts total;
        const Counts at = done + exclusive_scan(own, total);
        if (own.decode_seqs != 0) {
            view.seqs[at.decode_seqs] = seq;
            decode.seqs[at.decode_seqs] = seq;
            decode.costs[at.decode_seqs] = at.cost;
            decode.pieces[at.decode_seqs] = at.pieces;
            decode.jobs[at.decode_seqs] = at.jobs;
        }
        if (own.prefill_seqs != 0) {
            view.prefill_seqs[at.prefill_seqs] = seq;
        }
        done = done + total;
    }
    done.tiles = min(done.tiles, sizes.max_tiles);
    __syncthreads();
    const bool is_clustered = fits_clusters(sizes, done, longest);
    const uint32_t active_ctas = is_clustered ? done.jobs * sizes.cluster_ctas
                                              : min(sizes.grid_ctas, div_up(done.cost, kMinCostPerCta));
    const PlanHeader header = {done.decode_seqs, done.cost, active_ctas, is_clustered, done.tiles, 0};
    if (tid == 0) *view.header = header;

    for (uint32_t cta = tid; cta <= active_ctas; cta += kThreads) {
        if (cta == active_ctas) {
            view.buckets[cta] = {};
            continue;
        }
        if (is_clustered) {
            view.buckets[cta] = cluster_bucket(decode, header, sizes, cta);
            continue;
        }
        const Cut cut = cut_at(decode, header, sizes, bucket_start(header, cta));
        const uint32_t end = cta + 1 == active_ctas
                                 ? done.pieces
                                 : cut_at(decode, header, sizes, bucket_start(header, cta + 1)).pieces_before;
        PlanBucket bucket = {decode.seqs[cut.seq_idx], cut.seq_idx, cut.job, cut.piece, end - cut.pieces_before, cta,
                             cta, {}};
        if (cut.piece != 0) {
            bucket.first_cta = bucket_of(header, cut.job_cost + kJobCost);
            bucket.last_cta = bucket_of(header, cut.job_cost + kJobCost + cut.pieces_per_job - 1);
        }
        view.buckets[cta] = bucket;
    }

    if (done.tiles == 0) {
        release_plan();
        return;
    }
    __shared__ uint32_t class_next[kThreads];
    class_next[tid] = 0;
    __syncthreads();
    for (uint32_t idx = tid; idx < done.prefill_seqs; idx += kThreads) {
        atomicAdd(&class_next[length_class(view.prefill_seqs[idx])], 1u);
    }
    __syncthreads();
    Counts unused;
    class_next[tid] = exclusive_scan({0, 0, 0, class_next[tid], 0, 0}, unused).prefill_seqs;
    __syncthreads();
    for (uint32_t idx = tid; idx < done.prefill_seqs; idx += kThreads) {
        const PlanSeq seq = view.prefill_seqs[idx];
        view.tile_seqs[atomicAdd(&class_next[length_class(seq)], 1u)] = seq;
    }
    __syncthreads();
    uint32_t tiles = 0;
    for (uint32_t base = 0; base < done.prefill_seqs; base += kThreads) {
        const bool is_seq = base + tid < done.prefill_seqs;
        const uint32_t own = is_seq ? div_up(view.tile_seqs[base + tid].q_len * group, sizes.tile_rows) : 0;
        Counts total;
        const uint32_t before = tiles + exclusive_scan({0, 0, 0, 0, own}, total).tiles;
        if (is_seq) view.seq_tiles[base + tid] = before;
        tiles += total.tiles;
    }
    __syncthreads();
    for (uint32_t idx = tid; idx < done.tiles; idx += kThreads) {
        view.tiles[idx] = tile_at(view, done.prefill_seqs, sizes, idx);
    }
    release_plan();
}

}  // namespace
}  // namespace msgl

extern "C" size_t msgl_attention_plan_bytes(const msgl_attention_sizes* sizes) {
    return msgl::plan_view(*sizes, nullptr).bytes;
}

extern "C" int msgl_attention_plan(const msgl_attention_plan_params* params, msgl_stream stream) {
    msgl::plan_kernel<<<1, msgl::kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(*params);
    return cudaGetLastError();
}
