// A decode job that the CTAs of a cluster share: each merges its warps' rows and pushes them, in equal shares, into the
// shared memory of the CTAs of the cluster, which each add up their share in the order of the ranks. Through global
// memory the same costs a fence, an atomic count and a second pass over what was just written, which is most of the
// time of a short sequence's attention.
#pragma once
#include "decode_shape.cuh"
#include "job.cuh"
#include "ptx/cluster.cuh"
#include "ptx/cp_async.cuh"

namespace msgl {

// The results of a job in units of four neighbouring elements of a query row.
struct ClusterUnits {
    uint32_t rows;   // query rows of the job
    uint32_t total;  // of all KV heads of the job
    uint32_t share;  // of each CTA; the last one's may be smaller

    __device__ ClusterUnits(const JobCursor& cursor, const JobSizes& sizes, uint32_t head_dim, uint32_t cluster_ctas)
        : rows(cursor.num_rows(sizes)),
          total(cursor.num_heads(sizes) * rows * (head_dim / 4)),
          share(div_up(total, cluster_ctas)) {}
};

// All threads of all CTAs of the cluster call it once, after an arrival on the cluster's barrier at their start. `rows`
// and `stats` are what the CTA's warps have left; `received` is kClusterBytes of shared memory.
template <typename T, int kHeadDim>
__device__ void finish_in_cluster(const msgl_attention_params& params, const JobSizes& sizes, const JobCursor& cursor,
                                  const float* rows, const float2* stats, char* received) {
    using Shape = DecodeShape<kHeadDim>;
    constexpr uint32_t kParts = kHeadDim / 4;
    const uint32_t num_ctas = params.sizes.cluster_ctas, rank = cluster_rank();
    const ClusterUnits units(cursor, sizes, kHeadDim, num_ctas);
    float4* received_rows = reinterpret_cast<float4*>(received);
    float2* received_stats = reinterpret_cast<float2*>(received + Shape::kClusterUnits * sizeof(float4));
    __syncthreads();
    // The others have started: their shared memory may be written.
    cluster_wait();
    for (uint32_t unit = threadIdx.x; unit < units.total; unit += Shape::kThreads) {
        const uint32_t dim = unit % kParts * 4, row = unit / kParts % units.rows, head = unit / kParts / units.rows;
        RowSum sum;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
            const uint32_t at = w * Shape::kMergeRows + head * kJobRows + row;
            sum.add(*reinterpret_cast<const float4*>(rows + at * Shape::kMergeStride + dim), stats[at]);
        }
        const uint32_t owner = unit / units.share, at = rank * units.share + unit % units.share;
        cluster_store_16(cluster_address(shared_address(received_rows + at), owner), sum.out);
        cluster_store_8(cluster_address(shared_address(received_stats + at), owner),
                        make_float2(sum.maximum, sum.sum));
    }
    cluster_arrive();
    cluster_wait();
    for (uint32_t i = threadIdx.x; i < units.share; i += Shape::kThreads) {
        const uint32_t unit = rank * units.share + i;
        if (unit >= units.total) break;
        const uint32_t dim = unit % kParts * 4, row = unit / kParts % units.rows, head = unit / kParts / units.rows;
        RowSum sum;
        for (uint32_t from = 0; from < num_ctas; ++from) {
            sum.add(received_rows[from * units.share + i], received_stats[from * units.share + i]);
        }
        store_row4(out_row<T, kHeadDim>(params, cursor, sizes, head, row) + dim, sum.out, 1.0f / sum.sum);
    }
}

}  // namespace msgl
