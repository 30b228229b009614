//! Scalar code over arrays: right everywhere, as fast as the compiler's vectoriser on the baseline target.

use half::{bf16, f16};

use super::{Kernel, LANES, Simd};

/// Needs nothing of the CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map<T: Copy, U: Copy + Default>(a: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

#[inline(always)]
fn zip<T: Copy, V: Copy, U: Copy + Default>(
    a: [T; LANES],
    b: [V; LANES],
    f: impl Fn(T, V) -> U,
) -> [U; LANES] {
    let mut out = [U::default(); LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// The tree of [`Simd::reduce_add`].
#[inline(always)]
fn reduce(mut x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
        half /= 2;
    }
    x[0]
}

impl Simd for Portable {
    type F = [f32; LANES];
    type U = [u32; LANES];
    type M = [bool; LANES];
    const WIDE: bool = false;

    #[inline(never)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load_f32(self, src: &[f32; LANES]) -> Self::F {
        *src
    }
    #[inline(always)]
    fn load_bf16(self, src: &[bf16; LANES]) -> Self::F {
        map(*src, |x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    fn load_f16(self, src: &[f16; LANES]) -> Self::F {
        map(*src, f16::to_f32)
    }
    #[inline(always)]
    fn store_f32(self, x: Self::F, dst: &mut [f32; LANES]) {
        *dst = x;
    }
    #[inline(always)]
    fn store_bf16(self, x: Self::F, dst: &mut [bf16; LANES]) {
        *dst = map(x, bf16::from_f32);
    }
    #[inline(always)]
    fn store_f16(self, x: Self::F, dst: &mut [f16; LANES]) {
        *dst = map(x, f16::from_f32);
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // `f32::mul_add` is a library call where the target has no FMA.
        self.add(self.mul(a, b), c)
    }
    #[inline(always)]
    fn ldexp(self, x: Self::F, n: Self::F) -> Self::F {
        // In three factors, each a normal number.
        zip(x, n, |x, n| {
            let n = n as i32;
            let third = n / 3;
            let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
            x * power(third) * power(third) * power(n - 2 * third)
        })
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn le(self, a: Self::F, b: Self::F) -> Self::M {
        zip(a, b, |a, b| a <= b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, if_set: Self::F, if_clear: Self::F) -> Self::F {
        let mut out = if_clear;
        for i in 0..LANES {
            if mask[i] {
                out[i] = if_set[i];
            }
        }
        out
    }
    #[inline(always)]
    fn mask_bits(self, mask: Self::M) -> u32 {
        let mut bits = 0;
        for i in 0..LANES {
            bits |= u32::from(mask[i]) << i;
        }
        bits
    }
    #[inline(always)]
    fn reduce_add(self, x: Self::F) -> f32 {
        reduce(x, |a, b| a + b)
    }
    #[inline(always)]
    fn reduce_max(self, x: Self::F) -> f32 {
        reduce(x, f32::max)
    }
    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        let mut out = [[0.0; LANES]; LANES];
        for i in 0..LANES {
            for j in 0..LANES {
                out[j][i] = rows[i][j];
            }
        }
        out
    }

    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::U {
        [x; LANES]
    }
    #[inline(always)]
    fn load_u32(self, src: &[u32; LANES]) -> Self::U {
        *src
    }
    #[inline(always)]
    fn store_u32(self, x: Self::U, dst: &mut [u32; LANES]) {
        *dst = x;
    }
    #[inline(always)]
    fn f32_to_bits(self, x: Self::F) -> Self::U {
        map(x, f32::to_bits)
    }
    #[inline(always)]
    fn bits_to_f32(self, x: Self::U) -> Self::F {
        map(x, f32::from_bits)
    }
    #[inline(always)]
    fn add_u32(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn sub_u32(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, u32::wrapping_sub)
    }
    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl<const BITS: u32>(self, x: Self::U) -> Self::U {
        map(x, |x| x << BITS)
    }
    #[inline(always)]
    fn shr<const BITS: u32>(self, x: Self::U) -> Self::U {
        map(x, |x| x >> BITS)
    }
    #[inline(always)]
    fn sar<const BITS: u32>(self, x: Self::U) -> Self::U {
        map(x, |x| (x.cast_signed() >> BITS).cast_unsigned())
    }
    #[inline(always)]
    fn i32_to_f32(self, x: Self::U) -> Self::F {
        map(x, |x| x.cast_signed() as f32)
    }
    #[inline(always)]
    fn mul_wide(self, a: Self::U, b: Self::U) -> (Self::U, Self::U) {
        let wide = zip(a, b, |a, b| u64::from(a) * u64::from(b));
        (map(wide, |x| (x >> 32) as u32), map(wide, |x| x as u32))
    }
}
