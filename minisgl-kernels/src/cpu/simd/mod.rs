//! Sixteen lanes of f32 on every instruction set.
//!
//! A kernel is written once, generic over [`Simd`], with `#[inline(always)]` on everything it calls, and is
//! compiled once for each instruction set by [`dispatch`]. The width is the same everywhere, so that the order of
//! every reduction, and with FMA every bit of the result, is too.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::{Avx512, Avx512Bf16};
pub(crate) use portable::Portable;

use super::buf::Plain;
use super::isa::Isa;

/// f32 lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Proof that the CPU has an instruction set, and the operations on vectors of [`LANES`] f32 or u32 that it has.
///
/// `min` and `max` return their second operand when either is NaN. Shifts are logical unless they say otherwise.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 lanes.
    type F: Copy;
    /// u32 lanes.
    type U: Copy;
    /// One flag a lane.
    type M: Copy;
    /// Whether a vector is one register of 32, so that tiles of 24 accumulators fit.
    const WIDE: bool;

    /// Runs a kernel as a function of its own: a border for what is inlined.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::F;
    fn load_f32(self, src: &[f32; LANES]) -> Self::F;
    fn load_bf16(self, src: &[bf16; LANES]) -> Self::F;
    fn load_f16(self, src: &[f16; LANES]) -> Self::F;
    fn store_f32(self, x: Self::F, dst: &mut [f32; LANES]);
    /// Rounds to nearest even; NaN stays NaN.
    fn store_bf16(self, x: Self::F, dst: &mut [bf16; LANES]);
    /// Rounds to nearest even.
    fn store_f16(self, x: Self::F, dst: &mut [f16; LANES]);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the instruction set has FMA.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `x * 2^n` for integral `n` in [-300, 300], also where that is subnormal or infinite.
    fn ldexp(self, x: Self::F, n: Self::F) -> Self::F;
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    fn le(self, a: Self::F, b: Self::F) -> Self::M;
    fn select(self, mask: Self::M, if_set: Self::F, if_clear: Self::F) -> Self::F;
    /// Bit `i` is the flag of lane `i`.
    fn mask_bits(self, mask: Self::M) -> u32;
    /// The sum in the order of a binary tree: lanes `i` and `i + 8`, then `i` and `i + 4`, and so on.
    fn reduce_add(self, x: Self::F) -> f32;
    /// [`reduce_add`](Self::reduce_add) of four vectors, bit for bit.
    #[inline(always)]
    fn reduce_add4(self, x: [Self::F; 4]) -> [f32; 4] {
        [self.reduce_add(x[0]), self.reduce_add(x[1]), self.reduce_add(x[2]), self.reduce_add(x[3])]
    }
    /// The largest lane; unspecified if one is NaN.
    fn reduce_max(self, x: Self::F) -> f32;
    /// Hints that the cache line at `address` will be read soon. Any address will do.
    fn prefetch<T>(self, address: *const T);
    /// Transposes a 16 x 16 block given by rows.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];

    fn splat_u32(self, x: u32) -> Self::U;
    fn load_u32(self, src: &[u32; LANES]) -> Self::U;
    fn store_u32(self, x: Self::U, dst: &mut [u32; LANES]);
    fn f32_to_bits(self, x: Self::F) -> Self::U;
    fn bits_to_f32(self, x: Self::U) -> Self::F;
    fn add_u32(self, a: Self::U, b: Self::U) -> Self::U;
    fn sub_u32(self, a: Self::U, b: Self::U) -> Self::U;
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    fn xor(self, a: Self::U, b: Self::U) -> Self::U;
    fn shl<const BITS: u32>(self, x: Self::U) -> Self::U;
    fn shr<const BITS: u32>(self, x: Self::U) -> Self::U;
    /// Shift that copies the sign bit.
    fn sar<const BITS: u32>(self, x: Self::U) -> Self::U;
    /// Nearest f32 of a signed number.
    fn i32_to_f32(self, x: Self::U) -> Self::F;
    /// High and low halves of the products.
    fn mul_wide(self, a: Self::U, b: Self::U) -> (Self::U, Self::U);
}

/// Proof of an instruction set with a dot product of bf16 pairs.
pub(crate) trait SimdBf16: Copy + Send + Sync + 'static {
    /// Everything else that it has.
    type Base: Simd;
    /// 32 bf16 lanes.
    type B: Copy;
    fn base(self) -> Self::Base;
    fn load_pairs(self, src: &[bf16; 2 * LANES]) -> Self::B;
    /// `acc[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1]`, in f32.
    fn dot_pairs(self, acc: <Self::Base as Simd>::F, a: Self::B, b: Self::B) -> <Self::Base as Simd>::F;
}

/// An element type of tensors.
pub(crate) trait Element: Plain {
    const ZERO: Self;
    fn load<S: Simd>(simd: S, src: &[Self; LANES]) -> S::F;
    fn store<S: Simd>(simd: S, x: S::F, dst: &mut [Self; LANES]);
    fn to_f32(self) -> f32;
    /// The same elements, if the type is bf16.
    fn as_bf16(_: &[Self]) -> Option<&[bf16]> {
        None
    }
}

macro_rules! element {
    ($ty:ty, $zero:expr, $load:ident, $store:ident, $to:expr $(, $as_bf16:item)?) => {
        impl Element for $ty {
            const ZERO: Self = $zero;
            #[inline(always)]
            fn load<S: Simd>(simd: S, src: &[Self; LANES]) -> S::F {
                simd.$load(src)
            }
            #[inline(always)]
            fn store<S: Simd>(simd: S, x: S::F, dst: &mut [Self; LANES]) {
                simd.$store(x, dst);
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
            $($as_bf16)?
        }
    };
}

element!(f32, 0.0, load_f32, store_f32, std::convert::identity);
element!(
    bf16,
    bf16::ZERO,
    load_bf16,
    store_bf16,
    bf16::to_f32,
    fn as_bf16(slice: &[Self]) -> Option<&[bf16]> {
        Some(slice)
    }
);
element!(f16, f16::ZERO, load_f16, store_f16, f16::to_f32);

/// Loads up to [`LANES`] elements; lanes beyond `src` are zero.
#[inline(always)]
pub(crate) fn load_partial<S: Simd, E: Element>(simd: S, src: &[E]) -> S::F {
    let mut full = [E::ZERO; LANES];
    full[..src.len()].copy_from_slice(src);
    E::load(simd, &full)
}

/// Stores the first `dst.len()` lanes, at most [`LANES`].
#[inline(always)]
pub(crate) fn store_partial<S: Simd, E: Element>(simd: S, x: S::F, dst: &mut [E]) {
    let mut full = [E::ZERO; LANES];
    E::store(simd, x, &mut full);
    dst.copy_from_slice(&full[..dst.len()]);
}

/// [`load_partial`] with the usual case, a whole vector, made quick.
#[inline(always)]
pub(crate) fn load_any<S: Simd, E: Element>(s: S, src: &[E]) -> S::F {
    match src.as_array() {
        Some(full) => E::load(s, full),
        None => load_partial(s, src),
    }
}

/// [`store_partial`] with the usual case, a whole vector, made quick.
#[inline(always)]
pub(crate) fn store_any<S: Simd, E: Element>(s: S, x: S::F, dst: &mut [E]) {
    match dst.as_mut_array() {
        Some(full) => E::store(s, x, full),
        None => store_partial(s, x, dst),
    }
}

/// A kernel that can be compiled for any instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Runs it. Implementations must be `#[inline(always)]`, or they miss the caller's instruction set.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A kernel that needs the bf16 dot product.
pub(crate) trait KernelBf16 {
    /// Runs it. Implementations must be `#[inline(always)]`, or they miss the caller's instruction set.
    fn run<S: SimdBf16>(self, simd: S);
}

/// An instruction set that this machine was found to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DetectedIsa(Isa);

impl DetectedIsa {
    /// `None` where the machine lacks it.
    pub(crate) fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self(isa))
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// Whether [`dispatch_bf16`] runs kernels.
    pub(crate) fn has_bf16_dot(self) -> bool {
        self.0 == Isa::Avx512Bf16
    }

    /// [`Simd::WIDE`] of the instruction set.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self.0, Isa::Avx512Bf16 | Isa::Avx512)
    }
}

/// Runs `kernel` compiled for `isa`.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: DetectedIsa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        match isa.0 {
            // SAFETY: `DetectedIsa` exists only where `Isa::is_available` found every feature that this needs.
            Isa::Avx512Bf16 | Isa::Avx512 => unsafe { Avx512::new() }.call(kernel),
            // SAFETY: as above.
            Isa::Avx2 => unsafe { Avx2::new() }.call(kernel),
            Isa::Portable => Portable.call(kernel),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        Portable.call(kernel)
    }
}

/// Runs `kernel` where `isa` has the bf16 dot product, and hands it back elsewhere.
#[inline]
pub(crate) fn dispatch_bf16<K: KernelBf16>(isa: DetectedIsa, kernel: K) -> Result<(), K> {
    #[cfg(target_arch = "x86_64")]
    {
        if isa.0 == Isa::Avx512Bf16 {
            // SAFETY: `DetectedIsa` exists only where `Isa::is_available` found every feature that this needs.
            unsafe { Avx512Bf16::new() }.call(kernel);
            return Ok(());
        }
    }
    let _ = isa;
    Err(kernel)
}

#[cfg(test)]
pub(crate) mod tests;
