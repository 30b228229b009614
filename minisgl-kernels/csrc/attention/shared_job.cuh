// Jobs that several CTAs share: each leaves its part's rows in memory, and the CTA with the last part adds them up.
//
// A place in memory whose value has not come yet holds +0: so it is when the plan's memory is made, and so the one who takes
// a value leaves it. A value of +0 travels as -0. The value then says itself that it is there: a count of the parts that
// have come took a fence, an atomic and another round trip to L2, 1.5 us at the end of every launch.
//
// A CTA waits only at the end of its own work, and only for CTAs before it: they have started before, or else, since
// the device holds the whole grid at once, start without waiting for this one to leave.
#pragma once
#include "job.cuh"
#include "ptx/relaxed.cuh"

namespace msgl {

// Row of the partial results, of (head of the job, query row of the job). A CTA has at most two parts: of the job that
// began before its range, and of the one that begins in its range and does not end there.
__device__ inline size_t partial_row(uint32_t cta, bool begins, uint32_t head, uint32_t row, const JobSizes& sizes) {
    return (size_t{2 * cta + begins} * sizes.heads_per_job + head) * kJobRows + row;
}

__device__ __forceinline__ float marked(float x) { return __float_as_uint(x) == 0 ? -0.0f : x; }

__device__ __forceinline__ bool has_come(float x) { return __float_as_uint(x) != 0; }

__device__ __forceinline__ bool has_come(const float2& x) { return has_come(x.x) && has_come(x.y); }

__device__ __forceinline__ bool has_come(const float4& x) {
    return has_come(x.x) && has_come(x.y) && has_come(x.z) && has_come(x.w);
}

__device__ __forceinline__ void leave_part(float4* place, const float4& x) {
    store_relaxed(place, make_float4(marked(x.x), marked(x.y), marked(x.z), marked(x.w)));
}

__device__ __forceinline__ void leave_part(float2* place, const float2& x) {
    store_relaxed(place, make_float2(marked(x.x), marked(x.y)));
}

// Adds up the parts of the job that the start of the CTA's range has cut, in the order of their CTAs, where the range has
// its end. All threads call it once, after the CTA's work.
template <typename T, int kHeadDim>
__device__ void finish_shared_job(const msgl_attention_params& params, const PlanView& view, const JobSizes& sizes,
                                  const PlanBucket& bucket) {
    if (bucket.piece == 0 || bucket.last_cta != blockIdx.x) return;
    const JobCursor cursor(view, bucket, sizes);
    const uint32_t first = bucket.first_cta, last = bucket.last_cta;
    const uint32_t num_rows = cursor.num_rows(sizes), num_heads = cursor.num_heads(sizes);
    constexpr uint32_t kParts = kHeadDim / 4, kAhead = 4;
    for (uint32_t i = threadIdx.x; i < num_heads * num_rows * kParts; i += blockDim.x) {
        const uint32_t dim = i % kParts * 4, row = i / kParts % num_rows, head = i / kParts / num_rows;
        RowSum total;
        for (uint32_t base = first; base <= last; base += kAhead) {
            float4* places[kAhead];
            float2* stats_places[kAhead];
            float4 part[kAhead];
            float2 stats[kAhead];
#pragma unroll
            for (uint32_t j = 0; j < kAhead; ++j) {
                const uint32_t cta = min(base + j, last);
                const size_t at = partial_row(cta, cta == first, head, row, sizes);
                places[j] = reinterpret_cast<float4*>(view.partial_out + at * kHeadDim + dim);
                stats_places[j] = view.partial_stats + at;
                part[j] = load_relaxed(places[j]);
                stats[j] = load_relaxed(stats_places[j]);
            }
#pragma unroll
            for (uint32_t j = 0; j < kAhead; ++j) {
                if (base + j > last) break;
                while (!has_come(part[j])) part[j] = load_relaxed(places[j]);
                while (!has_come(stats[j])) stats[j] = load_relaxed(stats_places[j]);
                store_relaxed(places[j], float4{});
                total.add(part[j], stats[j]);
            }
        }
        store_row4(out_row<T, kHeadDim>(params, cursor, sizes, head, row) + dim, total.out, 1.0f / total.sum);
    }
    // All threads of a row have read its (maximum, sum).
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < (last - first + 1) * num_heads * num_rows; i += blockDim.x) {
        const uint32_t row = i % num_rows, head = i / num_rows % num_heads, cta = first + i / num_rows / num_heads;
        store_relaxed(view.partial_stats + partial_row(cta, cta == first, head, row, sizes), float2{});
    }
}

}  // namespace msgl
