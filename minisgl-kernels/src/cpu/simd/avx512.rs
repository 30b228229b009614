//! AVX-512: a vector is one register of 32.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Kernel, KernelBf16, LANES, Simd, SimdBf16};

/// Proof of AVX-512 F, BW, DQ and VL, and of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof of AVX-512 BF16 besides.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512 {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and VL, and AVX2, FMA and F16C.
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

impl Avx512Bf16 {
    /// # Safety
    /// The CPU has AVX-512 BF16, and all that [`Avx512`] needs.
    pub(super) unsafe fn new() -> Self {
        Self(Avx512(()))
    }

    /// [`Simd::call`] for kernels that need the dot product.
    pub(super) fn call<K: KernelBf16>(self, kernel: K) {
        #[inline(never)]
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn call<K: KernelBf16>(kernel: K, simd: Avx512Bf16) {
            kernel.run(simd);
        }
        // SAFETY: `self` exists only on a CPU with these features (see `new`).
        unsafe { call(kernel, self) }
    }
}

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

impl Simd for Avx512 {
    type F = __m512;
    type U = __m512i;
    type M = __mmask16;
    const WIDE: bool = true;

    #[inline(always)]
    fn mask_bits(self, mask: __mmask16) -> u32 {
        u32::from(mask)
    }

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn call<K: Kernel>(kernel: K, simd: Avx512) -> K::Output {
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
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load_f32(src: &[f32; LANES]) -> __m512 { _mm512_loadu_ps(src.as_ptr()) }
        fn load_bf16(src: &[bf16; LANES]) -> __m512 {
            let half = _mm256_loadu_si256(src.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        }
        fn load_f16(src: &[f16; LANES]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(src.as_ptr().cast())) }
        fn store_f32(x: __m512, dst: &mut [f32; LANES]) { _mm512_storeu_ps(dst.as_mut_ptr(), x) }
        fn store_bf16(x: __m512, dst: &mut [bf16; LANES]) {
            // By integers: the bf16 instruction flushes subnormals.
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let top = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(is_nan, rounded, quiet));
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(top));
        }
        fn store_f16(x: __m512, dst: &mut [f16; LANES]) {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(dst.as_mut_ptr().cast(), half);
        }

        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn ldexp(x: __m512, n: __m512) -> __m512 { _mm512_scalef_ps(x, n) }
        fn lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn select(mask: __mmask16, if_set: __m512, if_clear: __m512) -> __m512 {
            _mm512_mask_blend_ps(mask, if_clear, if_set)
        }
        fn reduce_add(x: __m512) -> f32 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn reduce_add4(x: [__m512; 4]) -> [f32; 4] {
            // Halves of two vectors side by side, so that each addition does the tree's step for both.
            let a = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(x[0], x[1]),
                _mm512_shuffle_f32x4::<0xee>(x[0], x[1]),
            );
            let b = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>(x[2], x[3]),
                _mm512_shuffle_f32x4::<0xee>(x[2], x[3]),
            );
            let c = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            let two = _mm512_add_ps(c, _mm512_shuffle_ps::<0x4e>(c, c));
            let one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
            let firsts = _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, one));
            let mut out = [0.0; 4];
            _mm_storeu_ps(out.as_mut_ptr(), firsts);
            out
        }
        fn reduce_max(x: __m512) -> f32 { _mm512_reduce_max_ps(x) }

        fn splat_u32(x: u32) -> __m512i { _mm512_set1_epi32(x.cast_signed()) }
        fn load_u32(src: &[u32; LANES]) -> __m512i { _mm512_loadu_si512(src.as_ptr().cast()) }
        fn store_u32(x: __m512i, dst: &mut [u32; LANES]) { _mm512_storeu_si512(dst.as_mut_ptr().cast(), x) }
        fn f32_to_bits(x: __m512) -> __m512i { _mm512_castps_si512(x) }
        fn bits_to_f32(x: __m512i) -> __m512 { _mm512_castsi512_ps(x) }
        fn add_u32(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub_u32(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn xor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn shl<const BITS: u32>(x: __m512i) -> __m512i { _mm512_slli_epi32::<BITS>(x) }
        fn shr<const BITS: u32>(x: __m512i) -> __m512i { _mm512_srli_epi32::<BITS>(x) }
        fn sar<const BITS: u32>(x: __m512i) -> __m512i { _mm512_srai_epi32::<BITS>(x) }
        fn i32_to_f32(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
        fn mul_wide(a: __m512i, b: __m512i) -> (__m512i, __m512i) {
            let even = _mm512_mul_epu32(a, b);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            let high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64::<32>(even), odd);
            let low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64::<32>(odd));
            (high, low)
        }
        fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
            // Pairs of rows, then pairs of pairs, inside 128-bit quarters; then the quarters.
            let mut quads = rows;
            for i in 0..4 {
                let r = &rows[4 * i..4 * i + 4];
                let lo01 = _mm512_unpacklo_ps(r[0], r[1]);
                let hi01 = _mm512_unpackhi_ps(r[0], r[1]);
                let lo23 = _mm512_unpacklo_ps(r[2], r[3]);
                let hi23 = _mm512_unpackhi_ps(r[2], r[3]);
                quads[4 * i] = _mm512_shuffle_ps::<0x44>(lo01, lo23);
                quads[4 * i + 1] = _mm512_shuffle_ps::<0xee>(lo01, lo23);
                quads[4 * i + 2] = _mm512_shuffle_ps::<0x44>(hi01, hi23);
                quads[4 * i + 3] = _mm512_shuffle_ps::<0xee>(hi01, hi23);
            }
            let mut out = rows;
            for j in 0..4 {
                let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                out[j] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
                out[4 + j] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
                out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
            }
            out
        }
    }
}

impl SimdBf16 for Avx512Bf16 {
    type Base = Avx512;
    type B = __m512bh;

    #[inline(always)]
    fn base(self) -> Avx512 {
        self.0
    }

    intrinsics! {
        fn load_pairs(src: &[bf16; 2 * LANES]) -> __m512bh {
            std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(src.as_ptr().cast()))
        }
        fn dot_pairs(acc: __m512, a: __m512bh, b: __m512bh) -> __m512 { _mm512_dpbf16_ps(acc, a, b) }
    }
}
