// Copies of boxes out of matrices by a map of them (PTX ISA, cp.async.bulk.tensor; sm_90), to one CTA or to several of
// a cluster. They complete on barriers (mbarrier.cuh); what lies outside of the matrix arrives as zeros.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace msgl {

// Copies the box at column `col` and row `row` of a matrix that is mapped as such.
__device__ __forceinline__ void matrix_copy(uint32_t dst, const CUtensorMap& map, uint32_t barrier, int col, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            dst),
        "l"(&map), "r"(barrier), "r"(col), "r"(row)
        : "memory");
}

// Copies the box at (col, 0, 0, 0, group) to the same place in every CTA of `ctas`, a bit for each rank, and counts its
// bytes on the barrier in the same place there.
__device__ __forceinline__ void tensor_multicast(uint32_t dst, const CUtensorMap& map, uint32_t barrier, uint16_t ctas,
                                                 int col, int group) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%4, %6, %6, %6, %5}], [%2], %3;" ::"r"(dst),
        "l"(&map), "r"(barrier), "h"(ctas), "r"(col), "r"(group), "r"(0)
        : "memory");
}

}  // namespace msgl
