// What the CTAs of a cluster that share a decode job send each other: each adds up its warps and pushes its rows, in
// equal shares, into the shared memory of the CTAs of the cluster, which add up theirs in the order of the ranks. What is
// sent is counted on a barrier of its receiver, so nobody waits for a fence, nor to leave: a CTA leaves when all that
// it waited for, which is all that others write to it, has come.
#pragma once
#include "decode_shape.cuh"
#include "job.cuh"
#include "ptx/cluster.cuh"
#include "ptx/keep.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared.cuh"

namespace msgl {

// Adds up `count` rows, at most `kMost`: their common maximum first, so that no step of the chain but a multiplication
// waits for the one before. `load_stats` gives a row's (maximum, sum), `load_row` four of its elements.
template <int kMost, typename LoadStats, typename LoadRow>
__device__ __forceinline__ RowSum add_rows(uint32_t count, const LoadStats& load_stats, const LoadRow& load_row) {
    float2 stats[kMost];
    float4 rows[kMost];
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        stats[i] = make_float2(kNoMaximum, 0.0f);
        rows[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i < count) {
            stats[i] = load_stats(i);
            rows[i] = load_row(i);
        }
    }
    RowSum total;
#pragma unroll
    for (int i = 0; i < kMost; ++i) total.maximum = fmaxf(total.maximum, stats[i].x);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        const float factor = exp2_approx(stats[i].x - total.maximum);
        total.sum += stats[i].y * factor;
        total.out.x += rows[i].x * factor;
        total.out.y += rows[i].y * factor;
        total.out.z += rows[i].z * factor;
        total.out.w += rows[i].w * factor;
    }
    return total;
}

// A job's results are counted in units of four neighbouring elements of a query row: `units` in all, `share` for each
// CTA but the last ones, which may have fewer.
template <typename T, int kHeadDim>
struct ShortExchange {
    using Decode = DecodeShape<kHeadDim>;
    static constexpr uint32_t kParts = kHeadDim / 4;
    // Rows that warps have left, and what others have sent.
    static constexpr uint32_t kRowBytes = Decode::kMergeStride * sizeof(float);
    static constexpr uint32_t kReceivedRows = Decode::kClusterUnits * sizeof(float4);

    uint32_t num_ctas, rank;
    uint32_t rows;  // query rows of each KV head of the job
    uint32_t units, share, own_units;

    __device__ ShortExchange(uint32_t num_ctas, uint32_t rank, uint32_t num_heads, uint32_t rows)
        : num_ctas(num_ctas), rank(rank), rows(rows), units(num_heads * rows * kParts), share(div_up(units, num_ctas)) {
        const uint32_t first = min(rank * share, units);
        own_units = min(units - first, share);
    }

    // Bytes that this CTA receives.
    __device__ uint32_t received_bytes() const { return own_units * num_ctas * (sizeof(float4) + sizeof(float2)); }

    // Where a unit lies, of the first warp, and where it goes.
    struct Sent {
        uint32_t row, stats, to_row, to_stats, barrier;

        __device__ void compute_now() {
            keep(row);
            keep(stats);
            keep(to_row);
            keep(to_stats);
            keep(barrier);
        }
    };

    __device__ Sent sent(uint32_t unit, uint32_t warp_rows, uint32_t warp_stats, uint32_t received,
                         uint32_t barrier) const {
        const uint32_t row = merge_row(unit), owner = unit / share, at = rank * share + unit % share;
        return {warp_rows + row * kRowBytes + unit % kParts * 16, warp_stats + row * 8,
                cluster_address(received + at * 16, owner), cluster_address(received + kReceivedRows + at * 8, owner),
                cluster_address(barrier, owner)};
    }

    // Adds up the rows of `kWarps` warps and sends them. `warp_bytes`: from the rows of a warp to those of the next one.
    template <int kWarps>
    __device__ void send(const Sent& unit, uint32_t warp_bytes) const {
        const RowSum sum = add_rows<kWarps>(
            kWarps, [&](uint32_t w) { return load_shared_float2(unit.stats + w * Decode::kMergeRows * 8); },
            [&](uint32_t w) { return load_shared_float4(unit.row + w * warp_bytes); });
        store_async(unit.to_row, sum.out, unit.barrier);
        store_async(unit.to_stats, sum.maximum, sum.sum, unit.barrier);
    }

    // Where a unit of this CTA's share was received, of the first rank, and where its result goes.
    struct Stored {
        uint32_t from_row, from_stats;
        T* to;

        __device__ void compute_now() {
            keep(from_row);
            keep(from_stats);
            keep(to);
        }
    };

    // `out`: the query row of the job's first head and first row; `group`: query heads of a KV head.
    __device__ Stored stored(uint32_t i, uint32_t received, T* out, uint32_t group) const {
        const uint32_t unit = rank * share + i, row = unit / kParts;
        return {received + i * 16, received + kReceivedRows + i * 8,
                out + (row / rows * group + row % rows) * kHeadDim + unit % kParts * 4};
    }

    __device__ void store(const Stored& unit) const {
        const RowSum sum = add_rows<8>(
            num_ctas, [&](uint32_t from) { return load_shared_float2(unit.from_stats + from * share * 8); },
            [&](uint32_t from) { return load_shared_float4(unit.from_row + from * share * 16); });
        store_row4(unit.to, sum.out, __fdividef(1.0f, sum.sum));
    }

  private:
    // Of a unit, among the rows that a warp has left.
    __device__ uint32_t merge_row(uint32_t unit) const {
        const uint32_t row = unit / kParts;
        return row / rows * kJobRows + row % rows;
    }
};

}  // namespace msgl
