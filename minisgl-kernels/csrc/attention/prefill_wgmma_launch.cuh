// Launches the Hopper prefill kernel (prefill_wgmma.cuh): its shape for a head size, how K and V are fetched, and the
// maps that the copy engine needs for that.
#pragma once
#include "launch.cuh"
#include "prefill_wgmma.cuh"
#include "tensor_map.cuh"

namespace msgl {

// Encodes K or V, [num_slots, num_kv_heads, head_dim], as [num_slots / 8, num_kv_heads, head_dim / 64, 8, 64], to be
// copied in boxes of `rows` slots of one head: then a box is laid out as a SwizzledMatrix.
template <typename Shape>
bool encode_kv_map(EncodeTiled encode, CUtensorMap* map, const msgl_attention_params& params, const void* kv,
                   uint32_t rows) {
    using Matrix = typename Shape::Matrix;
    static_assert(Matrix::kBlockCols == 64, "the swizzle below");
    const uint64_t head_bytes = Shape::kHeadDim * 2, slot_bytes = params.sizes.num_kv_heads * head_bytes;
    return encode_map<typename Shape::Element, 5>(
        encode, map, kv, {64, 8, Matrix::kBlocks, params.sizes.num_kv_heads, params.num_slots / 8},
        {slot_bytes, Matrix::kRowBytes, head_bytes, 8 * slot_bytes}, {64, 8, Matrix::kBlocks, 1, rows / 8});
}

template <typename Shape, template <typename> class Fetch>
int launch_prefill_wgmma(const msgl_attention_params& params, const KvMaps& maps, cudaStream_t stream) {
    const auto kernel = prefill_wgmma_kernel<Shape, Fetch>;
    int num_sms = 0;
    cudaError_t status = device_attribute(cudaDevAttrMultiProcessorCount, &num_sms);
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
            const EncodeTiled encode = encode_tiled();
            if (encode == nullptr || !encode_kv_map<Shape>(encode, &maps.k, params, params.k, rows) ||
                !encode_kv_map<Shape>(encode, &maps.v, params, params.v, rows)) {
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

template <typename T>
bool has_prefill_wgmma() {
    return has_code(prefill_wgmma_kernel<PrefillWgmmaShape<T, 128>, RowFetch>);
}

}  // namespace msgl
