// The producer warpgroup of the Hopper prefill kernel (prefill_wgmma.cuh). There are two ways to fetch K and V: by
// rows, for pages of any size, and by pages, with the copy engine. A stream of K and one of V have warps of their own.
#pragma once
#include "prefill_shape.cuh"
#include "ptx/elect.cuh"
#include "ptx/tensor_copy.cuh"
#include "ptx/warpgroup.cuh"

namespace msgl {

// K and V of a layer as tensors of [num_slots, num_kv_heads, head_dim].
struct KvMaps {
    CUtensorMap k;
    CUtensorMap v;
};

__device__ __forceinline__ uint32_t log2_of(uint32_t power) { return __ffs(power) - 1; }

// The slot of a position of a sequence, not checked.
__device__ __forceinline__ uint32_t page_slot(const msgl_attention_params& params, uint32_t seq_row,
                                              uint32_t position) {
    const uint32_t page_shift = log2_of(params.page_size);
    const uint32_t page = __ldg(params.page_table + size_t{seq_row} * params.max_pages + (position >> page_shift));
    return (page << page_shift) | (position & (params.page_size - 1));
}

// Fetches K or V with cp.async, 16 bytes at a time. The arrival of a tile is announced one tile late, or when there
// would be nothing else to do but wait.
template <typename Shape>
struct RowFetch {
    using T = typename Shape::Element;
    using Matrix = typename Shape::Matrix;
    static constexpr uint32_t kWarps = 2;  // of a stream
    static constexpr uint32_t kArrivals = 32 * kWarps;
    static constexpr uint32_t kWarpRows = Shape::kCols / kWarps, kSlots = kWarpRows / 32;

    const msgl_attention_params& params;
    const void* const kv;
    uint32_t next_slots[kSlots];  // of the warp's row 32 i + lane of the next tile
    uint32_t announced = 0;       // barrier of the copies under way

    __device__ RowFetch(const msgl_attention_params& params, const KvMaps&, PrefillShared<Shape>, uint32_t which)
        : params(params), kv(which == 0 ? params.k : params.v) {}

    __device__ static uint32_t first_row() { return threadIdx.x / 32 % kWarps * kWarpRows; }

    // Looks up the slots of the KV tile at `base`. Rows that no query sees may lie in pages that were given away, and
    // 0 * NaN is NaN: the nearest that is seen stands in for them.
    __device__ __forceinline__ void locate(const PrefillTile& tile, uint32_t base) {
#pragma unroll
        for (uint32_t i = 0; i < kSlots; ++i) {
            const uint32_t position = base + first_row() + i * 32 + threadIdx.x % 32;
            const uint32_t seen = min(max(position, tile.visible), tile.end - 1);
            next_slots[i] = limit_slot(params, page_slot(params, tile.seq.row, seen));
        }
    }

    __device__ __forceinline__ void flush() {
        if (announced == 0) return;
        cp_async_wait<0>();
        fence_async_proxy();
        mbarrier_arrive(announced);
        announced = 0;
    }

    __device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
        if (!mbarrier_test(barrier, parity)) flush();
        mbarrier_wait(barrier, parity);
    }

    // Ends a group of copies that `barrier` waits for.
    __device__ __forceinline__ void announce(uint32_t barrier) {
        cp_async_commit();
        if (announced != 0) {
            cp_async_wait<1>();
            fence_async_proxy();
            mbarrier_arrive(announced);
        }
        announced = barrier;
    }

    // Copies the tile at `base`, whose slots were looked up last. Four lanes share a row, and a warp copies eight rows at
    // once, after which the swizzle repeats; rows 4 apart are neighbours, which keeps them in different banks.
    __device__ __forceinline__ void copy(uint32_t dst, const PrefillTile& tile, uint32_t base, uint32_t full) {
        const uint32_t lane = threadIdx.x % 32, row = lane / 8 + lane / 4 % 2 * 4;
        const uint32_t stride = params.sizes.num_kv_heads * Shape::kHeadDim;
        const T* first = static_cast<const T*>(kv) + tile.head * Shape::kHeadDim + lane % 4 * 8;
        uint32_t slots[kSlots];
#pragma unroll
        for (uint32_t i = 0; i < kSlots; ++i) slots[i] = next_slots[i];
        if (base + Shape::kCols < tile.end) locate(tile, base + Shape::kCols);
#pragma unroll
        for (uint32_t i = 0; i < kWarpRows; i += 8) {
            const T* src = first + uint64_t{__shfl_sync(~0u, slots[i / 32], i % 32 + row)} * stride;
            const uint32_t eight = dst + (first_row() + i) / 8 * Matrix::kEightRowsBytes;
#pragma unroll
            for (uint32_t chunk = 0; chunk < Shape::kHeadDim / 8; chunk += 4) {
                cp_async_16(eight + Matrix::chunk(row, chunk + lane % 4), src + chunk * 8, true);
            }
        }
        announce(full);
    }
};

// Fetches K or V in boxes: pages of a multiple of 8 positions, or those parts of a page that fit a tile.
template <typename Shape>
struct PageFetch {
    using Matrix = typename Shape::Matrix;
    static constexpr uint32_t kWarps = 1;  // of a stream
    static constexpr uint32_t kArrivals = 1;

    const msgl_attention_params& params;
    const CUtensorMap& map;
    const PrefillShared<Shape> shared;
    const uint32_t which;
    const uint32_t box_shift;  // log2 of the rows of a box
    uint32_t next_slot;  // of box `lane` of the next tile
    uint32_t partial_parity = 0;

    __device__ PageFetch(const msgl_attention_params& params, const KvMaps& maps, PrefillShared<Shape> shared,
                         uint32_t which)
        : params(params),
          map(which == 0 ? maps.k : maps.v),
          shared(shared),
          which(which),
          box_shift(log2_of(min(params.page_size, uint32_t{Shape::kCols}))) {}

    // Looks up the slots of those boxes of the KV tile at `base` that hold a position that is seen.
    __device__ __forceinline__ void locate(const PrefillTile& tile, uint32_t base) {
        const uint32_t position = base + (threadIdx.x % 32 << box_shift), next = position + (1 << box_shift);
        const bool is_seen = position < min(base + Shape::kCols, tile.end) && next > tile.visible;
        next_slot = is_seen ? page_slot(params, tile.seq.row, position) : 0;
    }

    __device__ __forceinline__ void flush() {}

    __device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) { mbarrier_wait(barrier, parity); }

    // Copies the tile at `base`, whose slots were looked up last. Rows of V that no query sees have weight 0, but
    // 0 * NaN is NaN: they become zeros.
    __device__ __forceinline__ void copy(uint32_t dst, const PrefillTile& tile, uint32_t base, uint32_t full) {
        const uint32_t first_row = (max(base, tile.visible) - base) >> box_shift << box_shift;
        const uint32_t seen_rows = min(base + Shape::kCols, tile.end) - base;
        const uint32_t end_row = ((seen_rows - 1 >> box_shift) + 1) << box_shift;
        const uint32_t bytes = (end_row - first_row) * Shape::kHeadDim * 2, slot = next_slot;
        const bool clears = which == 1 && (base < tile.visible || seen_rows < Shape::kCols);
        if (base + Shape::kCols < tile.end) locate(tile, base + Shape::kCols);
        if (!clears) {
            if (threadIdx.x % 32 == 0) mbarrier_arrive_expect(full, bytes);
            copy_boxes(dst, tile, first_row, end_row, slot, full);
            return;
        }
        // A box of which some rows are seen has to arrive before the others can be cleared.
        const bool is_cut = base + first_row < tile.visible || end_row > seen_rows;
        const uint32_t barrier = is_cut ? shared.partial_v() : full;
        copy_boxes(dst, tile, first_row, end_row, slot, barrier);
        clear_blocks(dst, 0, first_row);
        clear_blocks(dst, end_row, Shape::kCols);
        if (!is_cut) fence_async_proxy();
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive_expect(barrier, bytes);
        if (!is_cut) return;
        mbarrier_wait(barrier, partial_parity);
        partial_parity ^= 1;
        clear_rows(dst, first_row, max(base, tile.visible) - base);
        clear_rows(dst, seen_rows, end_row);
        fence_async_proxy();
        arrive_warp(full);
    }

    __device__ __forceinline__ void copy_boxes(uint32_t dst, const PrefillTile& tile, uint32_t first_row,
                                               uint32_t end_row, uint32_t slot, uint32_t barrier) {
        for (uint32_t row = first_row; row < end_row; row += 1 << box_shift) {
            const uint32_t box_slot = __shfl_sync(~0u, slot, row >> box_shift);
            if (elect_one()) {
                tensor_copy(dst + row / 8 * Matrix::kEightRowsBytes, map, barrier, tile.head, box_slot / 8);
            }
        }
    }

    // Zeros for rows whose numbers are multiples of 8: they lie in one piece.
    __device__ __forceinline__ void clear_blocks(uint32_t dst, uint32_t first_row, uint32_t end_row) {
        const uint32_t end = end_row / 8 * Matrix::kEightRowsBytes;
        for (uint32_t offset = first_row / 8 * Matrix::kEightRowsBytes + threadIdx.x % 32 * 16; offset < end;
             offset += 32 * 16) {
            store_shared_zeros(dst + offset);
        }
    }

    // Zeros for any rows.
    __device__ __forceinline__ void clear_rows(uint32_t dst, uint32_t first_row, uint32_t end_row) {
        constexpr uint32_t kChunks = Shape::kHeadDim / 8;
        for (uint32_t idx = first_row * kChunks + threadIdx.x % 32; idx < end_row * kChunks; idx += 32) {
            store_shared_zeros(dst + Matrix::chunk(idx / kChunks, idx % kChunks));
        }
    }
};

// Two warps write down the tiles and fetch their queries, one tile ahead of their use. With one warp a stream those
// are warps of their own; with two, they are the warps of the stream of K.
template <typename Shape, template <typename> class Fetch_>
struct PrefillProducer {
    using T = typename Shape::Element;
    using Fetch = Fetch_<Shape>;

    const msgl_attention_params& params;
    const KvMaps& maps;
    const PrefillShared<Shape> shared;
    PrefillTile* const tiles;

    __device__ void run() {
        const uint32_t stream = threadIdx.x / (32 * Fetch::kWarps);
        if constexpr (Fetch::kWarps == 1) {
            if (stream < 2) {
                run_stream<false>(stream);
            } else {
                run_queries();
            }
        } else {
            if (stream == 0) {
                run_stream<true>(0);
            } else {
                run_stream<false>(1);
            }
        }
    }

    // Fetches K or V, and queries too.
    template <bool kQueries>
    __device__ __forceinline__ void run_stream(uint32_t which) {
        Fetch fetch(params, maps, shared, which);
        TileSource source(params);
        RingCursor<Shape::kQStages> at_tile;
        RingCursor<Shape::kStages> at;
        for (;; ++at_tile.count) {
            if constexpr (kQueries) {
                fetch.wait(shared.empty_q(at_tile.stage()), at_tile.parity() ^ 1);
                write_tile(source, at_tile.stage(), threadIdx.x == 0);
            }
            fetch.wait(shared.full_tile(at_tile.stage()), at_tile.parity());
            const PrefillTile tile = tiles[at_tile.stage()];
            if constexpr (kQueries) {
                copy_queries(tile, shared.q(at_tile.stage()), threadIdx.x);
                fetch.announce(shared.full_q(at_tile.stage()));
            } else {
                arrive_warp(shared.empty_q(at_tile.stage()));
            }
            if (tile.end == 0) break;
            fetch.locate(tile, tile.begin);
            for (uint32_t base = tile.begin; base < tile.end; base += Shape::kCols, ++at.count) {
                fetch.wait(shared.empty_kv(which, at.stage()), at.parity() ^ 1);
                fetch.copy(shared.kv(which, at.stage()), tile, base, shared.full_kv(which, at.stage()));
            }
        }
        fetch.flush();
    }

    __device__ __forceinline__ void run_queries() {
        const uint32_t thread = threadIdx.x % kQueryThreads;
        TileSource source(params);
        RingCursor<Shape::kQStages> at;
        for (;; ++at.count) {
            mbarrier_wait(shared.empty_q(at.stage()), at.parity() ^ 1);
            write_tile(source, at.stage(), thread == 0);
            mbarrier_wait(shared.full_tile(at.stage()), at.parity());
            const PrefillTile tile = tiles[at.stage()];
            copy_queries(tile, shared.q(at.stage()), thread);
            cp_async_commit();
            cp_async_wait<0>();
            fence_async_proxy();
            mbarrier_arrive(shared.full_q(at.stage()));
            if (tile.end == 0) return;
        }
    }

    __device__ __forceinline__ void write_tile(TileSource& source, uint32_t stage, bool is_writer) {
        if (!is_writer) return;
        tiles[stage] = source.take(Shape::kRows, Shape::kCols);
        mbarrier_arrive(shared.full_tile(stage));
    }

    // Rows that do not exist become zeros.
    __device__ __forceinline__ void copy_queries(const PrefillTile& tile, uint32_t dst, uint32_t thread) {
        const uint32_t lane = thread % 32;
#pragma unroll 1
        for (uint32_t first = thread / 32 * 8; first < Shape::kRows; first += kQueryThreads / 4) {
            const uint32_t row = first + lane / 8 + lane / 4 % 2 * 4;
            const bool is_row = row < tile.rows;
            const T* src = static_cast<const T*>(params.qkv) + lane % 4 * 8 +
                           (is_row ? tile.query(params.sizes, row, params.qkv_stride) : 0);
#pragma unroll
            for (uint32_t chunk = 0; chunk < Shape::kHeadDim / 8; chunk += 4) {
                cp_async_16(dst + Shape::Matrix::chunk(row, chunk + lane % 4), src + chunk * 8, is_row);
            }
        }
    }
};

}  // namespace msgl
