// The plan of a step's attention: what every layer's kernel reads to find its work. See plan.cu.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "minisgl_kernels.h"

namespace msgl {

// Decode's work is counted in pieces: 16 KV positions of one job, the M side of one MMA.
constexpr uint32_t kPieceTokens = 16;
// Query rows of a job: the N side of that MMA.
constexpr uint32_t kJobRows = 8;
// What the change from one job to the next costs, in pieces. Work is cut by cost.
constexpr uint32_t kJobCost = 6;
// A CTA with less work than this spends more on starting and combining than on reading.
constexpr uint32_t kMinCostPerCta = 8 + kJobCost;
// So that every range, of at least half of that, has a piece.
static_assert((kMinCostPerCta + 1) / 2 > kJobCost, "a range may lie within the cost of one change");

struct PlanHeader {
    uint32_t num_decode_seqs;
    uint32_t cost;         // of all jobs of all decode sequences
    uint32_t active_ctas;  // CTAs that have decode work
    uint32_t is_clustered;  // every cluster has one decode job
    uint32_t num_tiles;    // prefill tiles
    uint32_t draws;        // tiles drawn in the launch under way (prefill_load.cuh)
};

struct alignas(16) PlanSeq {
    uint32_t q_start;  // first packed token
    uint32_t q_len;
    uint32_t kv_len;
    uint32_t row;  // of the page table
};

// Where a decode CTA's range of pieces starts. The entry behind the last range cuts no job and is empty.
struct alignas(16) PlanBucket {
    PlanSeq seq;
    uint32_t seq_idx;     // of `seq` in PlanView::seqs
    uint32_t job;         // of the sequence: KV head group major, query tile minor
    uint32_t piece;       // of the job; 0: the start cuts no job
    uint32_t num_pieces;  // of the range
    uint32_t first_cta;   // that has a part of the job
    uint32_t last_cta;    // that has a part of the job
    uint32_t unused[2];
};

struct PlanTile {
    PlanSeq seq;
    uint32_t first_row;  // query row of the sequence
    uint32_t unused[3];
};

struct PlanView {
    PlanHeader* header;
    PlanSeq* seqs;          // [max_seqs + 1] decode sequences, and one that is read ahead and never used
    uint32_t* seq_costs;    // [max_seqs] cost of the decode sequences before each
    uint32_t* seq_pieces;   // [max_seqs] pieces before each decode sequence
    uint32_t* seq_jobs;     // [max_seqs] jobs before each decode sequence
    PlanSeq* prefill_seqs;  // [max_seqs] prefill sequences, in the order of the batch
    PlanSeq* tile_seqs;     // [max_seqs] the same, longest first
    uint32_t* seq_tiles;    // [max_seqs] tiles before each prefill sequence
    PlanBucket* buckets;    // [decode_ctas + 1]
    PlanTile* tiles;        // [max_tiles] in the order of tile_seqs, a sequence's last tile first
    // Zeros between launches (shared_job.cuh).
    float2* partial_stats;  // [2 * decode_ctas, heads_per_job, kJobRows] (maximum, sum)
    float* partial_out;     // [2 * decode_ctas, heads_per_job, kJobRows, head_dim]
    size_t bytes;
};

__host__ __device__ inline PlanView plan_view(const msgl_attention_sizes& sizes, void* plan) {
    char* base = static_cast<char*>(plan);
    size_t offset = 0;
    const auto take = [&](size_t bytes) {
        char* start = base + offset;
        offset += (bytes + 255) / 256 * 256;
        return start;
    };
    const size_t partial_rows = size_t{2} * sizes.decode_ctas * sizes.heads_per_job * kJobRows;
    PlanView view;
    view.header = reinterpret_cast<PlanHeader*>(take(sizeof(PlanHeader)));
    view.seqs = reinterpret_cast<PlanSeq*>(take(sizeof(PlanSeq) * (size_t{sizes.max_seqs} + 1)));
    view.seq_costs = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * sizes.max_seqs));
    view.seq_pieces = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * sizes.max_seqs));
    view.seq_jobs = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * sizes.max_seqs));
    view.prefill_seqs = reinterpret_cast<PlanSeq*>(take(sizeof(PlanSeq) * sizes.max_seqs));
    view.tile_seqs = reinterpret_cast<PlanSeq*>(take(sizeof(PlanSeq) * sizes.max_seqs));
    view.seq_tiles = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t) * sizes.max_seqs));
    view.buckets = reinterpret_cast<PlanBucket*>(take(sizeof(PlanBucket) * (size_t{sizes.decode_ctas} + 1)));
    view.tiles = reinterpret_cast<PlanTile*>(take(sizeof(PlanTile) * sizes.max_tiles));
    view.partial_stats = reinterpret_cast<float2*>(take(sizeof(float2) * partial_rows));
    view.partial_out = reinterpret_cast<float*>(take(sizeof(float) * partial_rows * sizes.head_dim));
    view.bytes = offset;
    return view;
}

__host__ __device__ inline uint32_t div_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Keeps a slot inside of the KV storage, whatever the page table holds.
__device__ inline uint32_t limit_slot(const msgl_attention_params& params, uint32_t slot) {
    return slot < params.num_slots ? slot : static_cast<uint32_t>(params.num_slots) - 1;
}

// First KV position that the query at position `position` of its sequence sees.
__host__ __device__ inline uint32_t first_visible(uint32_t position, uint32_t window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

// A job's pieces are those of the positions that any query of its sequence sees.
__host__ __device__ inline uint32_t first_piece(const PlanSeq& seq, uint32_t window) {
    return first_visible(seq.kv_len - seq.q_len, window) / kPieceTokens;
}

__host__ __device__ inline uint32_t pieces_per_job(const PlanSeq& seq, uint32_t window) {
    return div_up(seq.kv_len, kPieceTokens) - first_piece(seq, window);
}

__host__ __device__ inline uint32_t query_tiles(const PlanSeq& seq, const msgl_attention_sizes& sizes) {
    return div_up(seq.q_len * (sizes.num_heads / sizes.num_kv_heads), kJobRows);
}

__host__ __device__ inline uint32_t jobs_per_seq(const PlanSeq& seq, const msgl_attention_sizes& sizes) {
    return div_up(sizes.num_kv_heads, sizes.heads_per_job) * query_tiles(seq, sizes);
}

// A job's cost is kJobCost and then 1 for each of its pieces. CTA `cta` has the pieces whose cost lies from
// bucket_start(cta) to bucket_start(cta + 1); bucket_of is the inverse.
__device__ inline uint32_t bucket_start(const PlanHeader& header, uint32_t cta) {
    return static_cast<uint32_t>(uint64_t{cta} * header.cost / header.active_ctas);
}

__device__ inline uint32_t bucket_of(const PlanHeader& header, uint32_t cost) {
    return static_cast<uint32_t>(((uint64_t{cost} + 1) * header.active_ctas - 1) / header.cost);
}

}  // namespace msgl
