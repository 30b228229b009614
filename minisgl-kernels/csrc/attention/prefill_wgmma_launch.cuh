// Launches the Hopper prefill kernel (prefill_wgmma.cuh): its shape for a head size, how K and V are fetched, and the
// maps that the copy engine needs for that.
#pragma once
#include <type_traits>

#include "launch.cuh"
#include "prefill_wgmma.cuh"

namespace msgl {

// Encodes K or V, [num_slots, num_kv_heads, head_dim], as [num_slots / 8, num_kv_heads, head_dim / 64, 8, 64], to be
// copied in boxes of `rows` slots of one head: then a box is laid out as a SwizzledMatrix. A map is made anew for each
// launch: that is a few hundred nanoseconds on the host, and nothing has to be kept.
template <typename Shape>
bool encode_kv_map(CUtensorMap* map, const msgl_attention_params& params, const void* kv, uint32_t rows) {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        return false;
    }
    using Matrix = typename Shape::Matrix;
    static_assert(Matrix::kBlockCols == 64, "the swizzle below");
    const uint64_t head_bytes = Shape::kHeadDim * 2, slot_bytes = params.sizes.num_kv_heads * head_bytes;
    const uint64_t sizes[5] = {64, 8, Matrix::kBlocks, params.sizes.num_kv_heads, params.num_slots / 8};
    const uint64_t strides[4] = {slot_bytes, Matrix::kRowBytes, head_bytes, 8 * slot_bytes};
    const uint32_t box[5] = {64, 8, Matrix::kBlocks, 1, rows / 8}, steps[5] = {1, 1, 1, 1, 1};
    const bool is_f16 = std::is_same_v<typename Shape::Element, __half>;
    const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
    return encode(map, is_f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
                  const_cast<void*>(kv), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                  CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename Shape, template <typename> class Fetch>
int launch_prefill_wgmma(const msgl_attention_params& params, const KvMaps& maps, cudaStream_t stream) {
    const auto kernel = prefill_wgmma_kernel<Shape, Fetch>;
    int device = 0, num_sms = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess) {
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
    }
    if (status != cudaSuccess) return status;
    const uint32_t tiles = params.num_tiles * params.sizes.num_kv_heads;
    const uint32_t ctas = tiles < static_cast<uint32_t>(num_sms) ? tiles : num_sms;
    launch_waiting(kernel, ctas, Shape::kThreads, Shape::kSharedBytes, stream, params, maps);
    return launch_status();
}

// Smaller pages, and heads whose rows are not whole swizzles of 128 bytes, are fetched by rows.
constexpr uint32_t kMinPageRows = 16;

template <typename Shape>
int launch_prefill_shape(const msgl_attention_params& params, cudaStream_t stream) {
    KvMaps maps = {};
    if constexpr (Shape::Matrix::kBlockCols == 64) {
        if (params.page_size >= kMinPageRows) {
            const uint32_t rows = params.page_size < Shape::kCols ? params.page_size : Shape::kCols;
            if (!encode_kv_map<Shape>(&maps.k, params, params.k, rows) ||
                !encode_kv_map<Shape>(&maps.v, params, params.v, rows)) {
                return cudaErrorInvalidValue;
            }
            return launch_prefill_wgmma<Shape, PageFetch>(params, maps, stream);
        }
    }
    return launch_prefill_wgmma<Shape, RowFetch>(params, maps, stream);
}

template <typename T>
int launch_prefill_wgmma_dtype(const msgl_attention_params& params, cudaStream_t stream) {
    if (params.num_tiles == 0) return cudaSuccess;
    switch (params.sizes.head_dim) {
        case 64: return launch_prefill_shape<PrefillWgmmaShape<T, 64>>(params, stream);
        case 96: return launch_prefill_shape<PrefillWgmmaShape<T, 96>>(params, stream);
        case 128: return launch_prefill_shape<PrefillWgmmaShape<T, 128>>(params, stream);
        case 256: return launch_prefill_shape<PrefillWgmmaShape<T, 256>>(params, stream);
        default: return MSGL_ERROR_UNSUPPORTED;
    }
}

// Whether this program has the kernel's code for sm_90a on the current device. Compiled for anything else the kernel
// is an empty stub, which shows in its registers.
template <typename T>
bool has_prefill_wgmma() {
    cudaFuncAttributes attributes;
    const auto kernel = prefill_wgmma_kernel<PrefillWgmmaShape<T, 128>, RowFetch>;
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.numRegs > 64;
}

}  // namespace msgl
