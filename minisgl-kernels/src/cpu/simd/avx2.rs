//! AVX2 with FMA and F16C: a vector is two registers of 16.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has AVX2, FMA and F16C.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

type F = [__m256; 2];
type U = [__m256i; 2];

/// Methods whose bodies are intrinsics.
macro_rules! intrinsics {
    ($(fn $name:ident $(<const $c:ident: u32>)? ($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {$(
        #[inline(always)]
        fn $name $(<const $c: u32>)? (self, $($arg: $ty),*) $(-> $ret)? {
            // SAFETY: `self` exists only on a CPU with these instructions (see `new`), and loads and stores go
            // through references to arrays of the vector's size, with instructions that need no alignment.
            unsafe { $body }
        }
    )*};
}

/// Methods that do the same to both halves.
macro_rules! halves {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $op:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: `self` exists only on a CPU with these instructions (see `new`).
            unsafe { [$op($($arg[0]),*), $op($($arg[1]),*)] }
        }
    )*};
}

/// Methods that shift both halves by a constant.
macro_rules! shifts {
    ($(fn $name:ident = $op:ident;)*) => {$(
        #[inline(always)]
        fn $name<const BITS: u32>(self, x: U) -> U {
            // SAFETY: `self` exists only on a CPU with these instructions (see `new`).
            unsafe { [$op(x[0], _mm_cvtsi32_si128(BITS.cast_signed())), $op(x[1], _mm_cvtsi32_si128(BITS.cast_signed()))] }
        }
    )*};
}

/// High and low halves of the products of eight lanes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn mul_wide8(a: __m256i, b: __m256i) -> (__m256i, __m256i) {
    // SAFETY: register operations, available by the caller's promise.
    unsafe {
        let even = _mm256_mul_epu32(a, b);
        let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
        let high = _mm256_blend_epi32::<0xaa>(_mm256_srli_epi64::<32>(even), odd);
        let low = _mm256_blend_epi32::<0xaa>(even, _mm256_slli_epi64::<32>(odd));
        (high, low)
    }
}

/// Transposes an 8 x 8 block given by rows.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: register operations, available by the caller's promise.
    unsafe {
        let mut quads = r;
        for i in 0..2 {
            let lo01 = _mm256_unpacklo_ps(r[4 * i], r[4 * i + 1]);
            let hi01 = _mm256_unpackhi_ps(r[4 * i], r[4 * i + 1]);
            let lo23 = _mm256_unpacklo_ps(r[4 * i + 2], r[4 * i + 3]);
            let hi23 = _mm256_unpackhi_ps(r[4 * i + 2], r[4 * i + 3]);
            quads[4 * i] = _mm256_shuffle_ps::<0x44>(lo01, lo23);
            quads[4 * i + 1] = _mm256_shuffle_ps::<0xee>(lo01, lo23);
            quads[4 * i + 2] = _mm256_shuffle_ps::<0x44>(hi01, hi23);
            quads[4 * i + 3] = _mm256_shuffle_ps::<0xee>(hi01, hi23);
        }
        let mut out = r;
        for j in 0..4 {
            out[j] = _mm256_permute2f128_ps::<0x20>(quads[j], quads[4 + j]);
            out[4 + j] = _mm256_permute2f128_ps::<0x31>(quads[j], quads[4 + j]);
        }
        out
    }
}

impl Simd for Avx2 {
    type F = F;
    type U = U;
    type M = U;
    const WIDE: bool = false;

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn call<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: `self` exists only on a CPU with these features (see `new`).
        unsafe { call(kernel, self) }
    }

    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        // SAFETY: a prefetch has no effect but on caches and does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    intrinsics! {
        fn splat(x: f32) -> F { [_mm256_set1_ps(x); 2] }
        fn load_f32(src: &[f32; LANES]) -> F {
            [_mm256_loadu_ps(src.as_ptr()), _mm256_loadu_ps(src.as_ptr().add(8))]
        }
        fn load_bf16(src: &[bf16; LANES]) -> F {
            let lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.as_ptr().cast()));
            let hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(src.as_ptr().add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(lo)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(hi)),
            ]
        }
        fn load_f16(src: &[f16; LANES]) -> F {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(src.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(src.as_ptr().add(8).cast())),
            ]
        }
        fn store_f32(x: F, dst: &mut [f32; LANES]) {
            _mm256_storeu_ps(dst.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(dst.as_mut_ptr().add(8), x[1]);
        }
        fn store_bf16(x: F, dst: &mut [bf16; LANES]) {
            let mut top = [_mm256_setzero_si256(); 2];
            for i in 0..2 {
                let bits = _mm256_castps_si256(x[i]);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x[i], x[i]));
                top[i] = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, is_nan));
            }
            // The pack works within 128-bit halves; the permutation puts its quarters in order.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(top[0], top[1]));
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), packed);
        }
        fn store_f16(x: F, dst: &mut [f16; LANES]) {
            _mm_storeu_si128(dst.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(dst.as_mut_ptr().add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        }
        fn mask_bits(mask: U) -> u32 {
            let lo = _mm256_movemask_ps(_mm256_castsi256_ps(mask[0])).cast_unsigned();
            let hi = _mm256_movemask_ps(_mm256_castsi256_ps(mask[1])).cast_unsigned();
            lo | hi << 8
        }
        fn reduce_add(x: F) -> f32 {
            let eight = _mm256_add_ps(x[0], x[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn reduce_max(x: F) -> f32 {
            let eight = _mm256_max_ps(x[0], x[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose(rows: [F; LANES]) -> [F; LANES] {
            let mut out = rows;
            for i in 0..2 {
                for j in 0..2 {
                    let mut block = [rows[0][0]; 8];
                    for k in 0..8 {
                        block[k] = rows[8 * i + k][j];
                    }
                    let block = transpose8(block);
                    for k in 0..8 {
                        out[8 * j + k][i] = block[k];
                    }
                }
            }
            out
        }
        fn splat_u32(x: u32) -> U { [_mm256_set1_epi32(x.cast_signed()); 2] }
        fn load_u32(src: &[u32; LANES]) -> U {
            [_mm256_loadu_si256(src.as_ptr().cast()), _mm256_loadu_si256(src.as_ptr().add(8).cast())]
        }
        fn store_u32(x: U, dst: &mut [u32; LANES]) {
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(dst.as_mut_ptr().add(8).cast(), x[1]);
        }
        fn f32_to_bits(x: F) -> U { [_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1])] }
        fn bits_to_f32(x: U) -> F { [_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])] }
        fn ldexp(x: F, n: F) -> F {
            // In three factors, each a normal number.
            let mut out = x;
            for i in 0..2 {
                let n = _mm256_cvtps_epi32(n[i]);
                let third = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(n), _mm256_set1_ps(1.0 / 3.0)));
                let rest = _mm256_sub_epi32(n, _mm256_add_epi32(third, third));
                let bias = _mm256_set1_epi32(127);
                let power = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(third, bias)));
                let last = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
                out[i] = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(x[i], power), power), last);
            }
            out
        }
        fn mul_wide(a: U, b: U) -> (U, U) {
            let (high0, low0) = mul_wide8(a[0], b[0]);
            let (high1, low1) = mul_wide8(a[1], b[1]);
            ([high0, high1], [low0, low1])
        }
        fn lt(a: F, b: F) -> U {
            [
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
        fn le(a: F, b: F) -> U {
            [
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LE_OQ>(a[0], b[0])),
                _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LE_OQ>(a[1], b[1])),
            ]
        }
        fn select(mask: U, if_set: F, if_clear: F) -> F {
            [
                _mm256_blendv_ps(if_clear[0], if_set[0], _mm256_castsi256_ps(mask[0])),
                _mm256_blendv_ps(if_clear[1], if_set[1], _mm256_castsi256_ps(mask[1])),
            ]
        }
        fn i32_to_f32(x: U) -> F { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }

    halves! {
        fn add(a: F, b: F) -> F = _mm256_add_ps;
        fn sub(a: F, b: F) -> F = _mm256_sub_ps;
        fn mul(a: F, b: F) -> F = _mm256_mul_ps;
        fn div(a: F, b: F) -> F = _mm256_div_ps;
        fn min(a: F, b: F) -> F = _mm256_min_ps;
        fn max(a: F, b: F) -> F = _mm256_max_ps;
        fn fma(a: F, b: F, c: F) -> F = _mm256_fmadd_ps;
        fn add_u32(a: U, b: U) -> U = _mm256_add_epi32;
        fn sub_u32(a: U, b: U) -> U = _mm256_sub_epi32;
        fn and(a: U, b: U) -> U = _mm256_and_si256;
        fn xor(a: U, b: U) -> U = _mm256_xor_si256;
    }

    shifts! {
        fn shl = _mm256_sll_epi32;
        fn shr = _mm256_srl_epi32;
        fn sar = _mm256_sra_epi32;
    }
}
