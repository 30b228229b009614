// Copies of boxes out of tensors by a map of them (PTX ISA, cp.async.bulk.tensor; sm_90). They complete on barriers
// (mbarrier.cuh); what lies outside of the tensor arrives as zeros.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace msgl {

// Copies the box at (0, 0, 0, x, y), y counting along the outermost dimension.
__device__ __forceinline__ void tensor_copy(uint32_t dst, const CUtensorMap& map, uint32_t barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%5, %5, %5, %3, %4}], "
        "[%2];" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(0)
        : "memory");
}

// Copies the box at (x, y) of a matrix, x counting along its rows.
__device__ __forceinline__ void tensor_copy(uint32_t dst, const CUtensorMap& map, uint32_t barrier, uint32_t x,
                                            uint32_t y, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], "
        "[%2], %5;" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(x), "r"(y), "l"(policy)
        : "memory");
}

// Copies the box at (0, row, block), where a map has blocks of columns as its outermost dimension.
__device__ __forceinline__ void block_copy(uint32_t dst, const CUtensorMap& map, uint32_t barrier, uint32_t row,
                                           uint32_t block, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
        "[%1, {%5, %3, %4}], [%2], %6;" ::"r"(dst),
        "l"(&map), "r"(barrier), "r"(row), "r"(block), "r"(0), "l"(policy)
        : "memory");
}

}  // namespace msgl
