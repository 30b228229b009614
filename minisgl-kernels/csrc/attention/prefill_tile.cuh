// The work of a CTA of the Hopper prefill kernel (prefill_wgmma.cuh): tiles of the plan, and which comes next.
#pragma once
#include "job.cuh"

namespace msgl {

// Query rows of one KV head of a sequence, and the KV positions that they read.
struct PrefillTile {
    PlanSeq seq;
    uint32_t head;
    uint32_t first_row;       // of the sequence
    uint32_t rows;            // of this tile that exist
    uint32_t first_position;  // of its first row
    uint32_t last_position;   // of its last row
    uint32_t visible;         // first position that any row sees
    uint32_t begin;           // `visible`, down to a multiple of the KV tile
    uint32_t end;             // after the last position that any row sees; 0: no tile, the work is done

    // KV position of a row; rows that do not exist have that of the last.
    __device__ uint32_t position(const msgl_attention_sizes& sizes, uint32_t row) const {
        const uint32_t group = sizes.num_heads / sizes.num_kv_heads;
        return seq.kv_len - seq.q_len + (first_row + min(row, rows - 1)) / group;
    }

    // Row of an array of [num_tokens * num_heads, head_dim].
    __device__ uint32_t out_row(const msgl_attention_sizes& sizes, uint32_t row) const {
        const uint32_t group = sizes.num_heads / sizes.num_kv_heads, idx = first_row + row;
        return (seq.q_start + idx / group) * sizes.num_heads + head * group + idx % group;
    }

    // First element of a query in an array of [num_tokens, stride] that begins with [num_heads, head_dim].
    __device__ int64_t query(const msgl_attention_sizes& sizes, uint32_t row, int64_t stride) const {
        const uint32_t group = sizes.num_heads / sizes.num_kv_heads, idx = first_row + row;
        return int64_t{seq.q_start + idx / group} * stride + (head * group + idx % group) * sizes.head_dim;
    }
};

// Draws tiles for a CTA, in the plan's order: its own index first, then what no CTA has drawn yet. For one thread.
struct TileSource {
    const msgl_attention_params& params;
    const PlanView view;
    const uint32_t num_tickets;  // tiles of all KV heads
    uint32_t ticket;

    __device__ explicit TileSource(const msgl_attention_params& params)
        : params(params),
          view(plan_view(params.sizes, params.plan)),
          num_tickets(view.header->num_tiles * params.sizes.num_kv_heads),
          ticket(blockIdx.x) {}

    // The next tile of at most `tile_rows` rows, to be read in KV tiles of `cols` positions.
    __device__ PrefillTile take(uint32_t tile_rows, uint32_t cols) {
        PrefillTile tile = {};
        if (ticket >= num_tickets) return tile;
        const uint32_t draws = atomicAdd(&view.header->draws, 1u);
        const msgl_attention_sizes& sizes = params.sizes;
        const PlanTile& planned = view.tiles[ticket / sizes.num_kv_heads];
        tile.seq = planned.seq;
        tile.first_row = planned.first_row;
        tile.head = ticket % sizes.num_kv_heads;
        tile.rows = min(tile_rows, tile.seq.q_len * (sizes.num_heads / sizes.num_kv_heads) - tile.first_row);
        tile.first_position = tile.position(sizes, 0);
        tile.last_position = tile.position(sizes, tile.rows - 1);
        tile.visible = first_visible(tile.first_position, sizes.window);
        tile.begin = tile.visible / cols * cols;
        tile.end = tile.last_position + 1;
        ticket = gridDim.x + draws;
        // Each tile makes one draw, for the next: so the last draw of a launch is known, and it clears the count.
        if (draws + 1 == num_tickets) view.header->draws = 0;
        return tile;
    }
};

}  // namespace msgl
