// Matrix instructions of a warpgroup, four warps that begin at a multiple of four (PTX ISA, wgmma; sm_90a).
//
// One instruction multiplies 64 x 16 by 16 x N into f32 accumulators. B comes from shared memory, A from there or from
// registers. Accumulators and A in registers are those of m16n8k16 (mma.cuh): warp w has rows 16 w to 16 w + 15, and
// N / 8 column tiles of four.
//
// Instructions run behind the program's back: their registers must not be touched between the first of them and the
// wait, hence the fences below, which tell the compiler that registers change there.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "proxy.cuh"

namespace msgl {

// A matrix of kCols columns in shared memory: blocks of 8 rows by kBlockCols columns,
// [rows / 8][kBlocks][8][kBlockCols]. A row of a block is one swizzle wide (128 bytes, or 64 where the columns ask for it): its 16-byte chunks are permuted
// by the row. Matrices start at multiples of 1024 bytes.
template <int kCols>
struct SwizzledMatrix {
    static constexpr uint32_t kBlockCols = kCols % 64 == 0 ? 64 : 32, kBlocks = kCols / kBlockCols;
    static constexpr uint32_t kRowBytes = kBlockCols * 2, kBlockBytes = 8 * kRowBytes;
    static constexpr uint32_t kEightRowsBytes = kBlocks * kBlockBytes;
    static_assert(kCols % kBlockCols == 0, "whole blocks");

    // Offset of a 16-byte chunk (8 columns) of a row. Address bits 4.. are exclusive-ored with the bits from 7 on.
    __host__ __device__ static constexpr uint32_t chunk(uint32_t row, uint32_t chunk) {
        constexpr uint32_t kChunks = kBlockCols / 8;
        const uint32_t offset = row % 8 * kRowBytes + chunk % kChunks * 16;
        return row / 8 * kEightRowsBytes + chunk / kChunks * kBlockBytes +
               (offset ^ ((offset >> 7 & (kChunks - 1)) << 4));
    }

    // Descriptor of 16 columns from column 16 * step on, all rows from `address` on: an operand whose rows are its m or
    // n, and whose columns are k (PTX ISA, matrix descriptor, K-major).
    __device__ static uint64_t columns(uint32_t address, uint32_t step) {
        constexpr uint32_t kSteps = kBlockCols / 16;
        return descriptor(address + step / kSteps * kBlockBytes + step % kSteps * 32, 0);
    }

    // Descriptor of 16 rows from row 16 * step on, all columns: B, with its rows as k (MN-major).
    __device__ static uint64_t rows(uint32_t address, uint32_t step) {
        return descriptor(address + step * 2 * kEightRowsBytes, kBlockBytes);
    }

private:
    // `next_block`: bytes between blocks along the major dimension, which K-major operands do not use.
    __device__ static uint64_t descriptor(uint32_t address, uint32_t next_block) {
        constexpr uint64_t kSwizzle = kBlockCols == 64 ? 1 : 2;
        return (address >> 4 & 0x3FFF) | uint64_t{next_block >> 4} << 16 | uint64_t{kEightRowsBytes >> 4} << 32 |
               kSwizzle << 62;
    }
};

// Writes 16 zeros.
__device__ __forceinline__ void store_shared_zeros(uint32_t dst) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(dst), "r"(0) : "memory");
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` of the newest groups run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kTiles>
__device__ __forceinline__ void fence_registers(float (&d)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
    }
}

template <int kTiles>
__device__ __forceinline__ void fence_registers(uint32_t (&a)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[n][i])::"memory");
    }
}

// d = a b (+ d if `add`), for N = 8 * kTiles columns.
template <typename T, int kTiles>
struct Wgmma;

// Operand lists: the accumulators of 4, 8, .. column tiles, and their names in the instruction.
#define MSGL_TILE(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define MSGL_TILES_4(n) MSGL_TILE(n), MSGL_TILE(n + 1), MSGL_TILE(n + 2), MSGL_TILE(n + 3)
#define MSGL_TILES_8(n) MSGL_TILES_4(n), MSGL_TILES_4(n + 4)
#define MSGL_TILES_16(n) MSGL_TILES_8(n), MSGL_TILES_8(n + 8)
#define MSGL_NAMES_32                                                                                                  \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"       \
    "%29,%30,%31"
#define MSGL_NAMES_48 MSGL_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define MSGL_NAMES_64                                                                                                  \
    MSGL_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define MSGL_NAMES_112                                                                                                 \
    MSGL_NAMES_64                                                                                                      \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,"        \
    "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define MSGL_NAMES_128                                                                                                 \
    MSGL_NAMES_112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// The operands after the accumulators are numbered by hand: r0.. are those behind the last of them.
#define MSGL_WGMMA_SHARED(ptx_type, columns, tiles, names, r0, r1, r2, ...)                                            \
    /* A and B as rows along k. */                                                                                     \
    __device__ static __forceinline__ void shared_a(float (&d)[tiles][4], uint64_t a, uint64_t b, int add) {           \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" r2 ", 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." ptx_type "." ptx_type " {" names           \
                     "}, %" r0 ", %" r1 ", p, 1, 1, 0, 0;\n}\n"                                                        \
                     : __VA_ARGS__                                                                                     \
                     : "l"(a), "l"(b), "r"(add));                                                                      \
    }

#define MSGL_WGMMA(type, ptx_type, columns, tiles, names, outputs, r0, r1, r2, r3, r4, r5)                             \
    template <>                                                                                                        \
    struct Wgmma<type, tiles> {                                                                                        \
        MSGL_WGMMA_SHARED(ptx_type, columns, tiles, names, r0, r1, r2, outputs)                                        \
        /* A from registers, B as rows along n. */                                                                     \
        __device__ static __forceinline__ void register_a(float (&d)[tiles][4], const uint32_t (&a)[4],                \
                                                          uint64_t b, int add) {                                       \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" r5 ", 0;\n"                                              \
                         "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." ptx_type "." ptx_type " {" names       \
                         "}, {%" r0 ", %" r1 ", %" r2 ", %" r3 "}, %" r4 ", p, 1, 1, 1;\n}\n"                          \
                         : outputs                                                                                     \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                              \
        }                                                                                                              \
    };

#define MSGL_WGMMA_SIZES(type, ptx_type)                                                                               \
    MSGL_WGMMA(type, ptx_type, "64", 8, MSGL_NAMES_32, MSGL_TILES_8(0), "32", "33", "34", "35", "36", "37")            \
    MSGL_WGMMA(type, ptx_type, "96", 12, MSGL_NAMES_48, MSGL_TILES_8(0) COMMA MSGL_TILES_4(8), "48", "49", "50",       \
               "51", "52", "53")                                                                                       \
    MSGL_WGMMA(type, ptx_type, "128", 16, MSGL_NAMES_64, MSGL_TILES_16(0), "64", "65", "66", "67", "68", "69")         \
    MSGL_WGMMA(type, ptx_type, "256", 32, MSGL_NAMES_128, MSGL_TILES_16(0) COMMA MSGL_TILES_16(16), "128", "129",      \
               "130", "131", "132", "133")

#define COMMA ,
MSGL_WGMMA_SIZES(__nv_bfloat16, "bf16")
MSGL_WGMMA_SIZES(__half, "f16")

// Other numbers of columns: A and B as rows along k.
#define MSGL_WGMMA_ALONG_K(type, ptx_type, columns, tiles, names, outputs, r0, r1, r2)                                 \
    template <>                                                                                                        \
    struct Wgmma<type, tiles> {                                                                                        \
        MSGL_WGMMA_SHARED(ptx_type, columns, tiles, names, r0, r1, r2, outputs)                                        \
    };

#define MSGL_NAMES_4 "%0,%1,%2,%3"
#define MSGL_NAMES_8 MSGL_NAMES_4 ",%4,%5,%6,%7"
#define MSGL_NAMES_12 MSGL_NAMES_8 ",%8,%9,%10,%11"
#define MSGL_NAMES_16 MSGL_NAMES_12 ",%12,%13,%14,%15"
#define MSGL_NAMES_24 MSGL_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define MSGL_WGMMA_ALONG_K_SIZES(type, ptx_type)                                                                       \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "8", 1, MSGL_NAMES_4, MSGL_TILE(0), "4", "5", "6")                              \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "16", 2, MSGL_NAMES_8, MSGL_TILE(0) COMMA MSGL_TILE(1), "8", "9", "10")         \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "24", 3, MSGL_NAMES_12, MSGL_TILE(0) COMMA MSGL_TILE(1) COMMA MSGL_TILE(2),     \
                   "12", "13", "14")                                                                                   \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "32", 4, MSGL_NAMES_16, MSGL_TILES_4(0), "16", "17", "18")                      \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "48", 6, MSGL_NAMES_24, MSGL_TILES_4(0) COMMA MSGL_TILE(4) COMMA MSGL_TILE(5),  \
                   "24", "25", "26")                                                                                   \
    MSGL_WGMMA_ALONG_K(type, ptx_type, "224", 28, MSGL_NAMES_112,                                                      \
                       MSGL_TILES_16(0) COMMA MSGL_TILES_8(16) COMMA MSGL_TILES_4(24), "112", "113", "114")

MSGL_WGMMA_ALONG_K_SIZES(__nv_bfloat16, "bf16")
MSGL_WGMMA_ALONG_K_SIZES(__half, "f16")
#undef COMMA

}  // namespace msgl
