// Maps of tensors in memory for the copy engine (CUDA driver API, cuTensorMapEncodeTiled; sm_90). A map is made anew for
// each launch: that is a few hundred nanoseconds on the host, and nothing has to be kept.
#pragma once
#include <cuda.h>

#include <type_traits>

#include "common.cuh"

namespace msgl {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function, or null.
inline EncodeTiled encode_tiled() {
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        return nullptr;
    }
    return reinterpret_cast<EncodeTiled>(entry);
}

// A tensor whose boxes go to shared memory swizzled by 128 bytes: sizes in elements, strides in bytes, innermost first.
template <typename T, int kDims>
bool encode_map(EncodeTiled encode, CUtensorMap *map, const void *tensor, const uint64_t (&sizes)[kDims],
                const uint64_t (&strides)[kDims - 1], const uint32_t (&box)[kDims]) {
    const uint32_t steps[5] = {1, 1, 1, 1, 1};
    const auto dtype =
        std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    return encode(map, dtype, kDims, const_cast<void *>(tensor), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace msgl
