//! One step of a dot product, over f32 or over pairs of bf16.

use std::marker::PhantomData;

use half::bf16;

use crate::cpu::simd::{Element, LANES, Simd, SimdBf16};

/// How elements of `x` and of the weights are multiplied and added to sixteen lanes.
pub(super) trait Dot: Copy {
    /// The instruction set.
    type S: Simd;
    /// Elements of the packed rows of `x`.
    type X: Element;
    /// Elements of the weights.
    type W: Element;
    /// A register of either.
    type V: Copy;
    /// Elements of K in a step.
    const STEP: usize;

    fn simd(self) -> Self::S;
    /// # Safety
    /// `src` points to `STEP` elements.
    unsafe fn load_x(self, src: *const Self::X) -> Self::V;
    /// # Safety
    /// `src` points to `STEP` elements.
    unsafe fn load_w(self, src: *const Self::W) -> Self::V;
    fn dot(self, acc: F<Self>, x: Self::V, w: Self::V) -> F<Self>;
}

/// Sixteen sums.
pub(super) type F<D> = <<D as Dot>::S as Simd>::F;

/// Sixteen products of f32 a step, whatever the weights are stored as.
#[derive(Clone, Copy)]
pub(super) struct DotF32<S, W>(pub(super) S, pub(super) PhantomData<W>);

impl<S: Simd, W: Element> Dot for DotF32<S, W> {
    type S = S;
    type X = f32;
    type W = W;
    type V = S::F;
    const STEP: usize = LANES;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    unsafe fn load_x(self, src: *const f32) -> S::F {
        // SAFETY: 16 elements by the caller's promise; an array needs no more alignment than its elements.
        self.0.load_f32(unsafe { &*src.cast() })
    }
    #[inline(always)]
    unsafe fn load_w(self, src: *const W) -> S::F {
        // SAFETY: as above.
        W::load(self.0, unsafe { &*src.cast() })
    }
    #[inline(always)]
    fn dot(self, acc: S::F, x: S::F, w: S::F) -> S::F {
        self.0.fma(x, w, acc)
    }
}

/// Thirty-two products of bf16 a step, in pairs.
#[derive(Clone, Copy)]
pub(super) struct DotPairs<S>(pub(super) S);

impl<S: SimdBf16> Dot for DotPairs<S> {
    type S = S::Base;
    type X = bf16;
    type W = bf16;
    type V = S::B;
    const STEP: usize = 2 * LANES;

    #[inline(always)]
    fn simd(self) -> S::Base {
        self.0.base()
    }
    #[inline(always)]
    unsafe fn load_x(self, src: *const bf16) -> S::B {
        // SAFETY: 32 elements by the caller's promise; an array needs no more alignment than its elements.
        self.0.load_pairs(unsafe { &*src.cast() })
    }
    #[inline(always)]
    unsafe fn load_w(self, src: *const bf16) -> S::B {
        // SAFETY: as above.
        self.0.load_pairs(unsafe { &*src.cast() })
    }
    #[inline(always)]
    fn dot(self, acc: F<Self>, x: S::B, w: S::B) -> F<Self> {
        self.0.dot_pairs(acc, x, w)
    }
}
