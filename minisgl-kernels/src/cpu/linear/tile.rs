//! The innermost loop: a few rows of `x` against a few rows of weights, everything in registers.

use super::dot::{Dot, F};
use crate::cpu::simd::{Element, Simd};

/// Weights that a tile reads: `rows` rows, `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Weights<W> {
    pub(super) start: *const W,
    pub(super) stride: usize,
    /// Whole steps, then elements of a last partial step.
    pub(super) steps: usize,
    pub(super) tail: usize,
    /// Elements ahead of the current step to prefetch, or 0.
    pub(super) prefetch: usize,
}

/// Adds the products of `M` packed rows and `N` rows of weights to `acc`.
///
/// # Safety
/// `x` points to `M` rows packed in steps (`pack.rs`), as many as the weights have, the partial one included;
/// the weights' rows are readable.
#[inline(always)]
pub(super) unsafe fn accumulate<D: Dot, const M: usize, const N: usize>(
    d: D,
    x: *const D::X,
    w: Weights<D::W>,
    acc: &mut [[F<D>; N]; M],
) {
    let mut sums = *acc;
    for step in 0..w.steps {
        // SAFETY: `step` is inside of both by the caller's promise. The prefetched address is not accessed.
        unsafe {
            let w_step = w.start.add(step * D::STEP);
            let mut ws = [d.load_w(w_step); N];
            for j in 1..N {
                ws[j] = d.load_w(w_step.add(j * w.stride));
            }
            if w.prefetch > 0 {
                for j in 0..N {
                    d.simd().prefetch(w_step.wrapping_add(j * w.stride + w.prefetch));
                }
            }
            for i in 0..M {
                let x = d.load_x(x.add((step * M + i) * D::STEP));
                for j in 0..N {
                    sums[i][j] = d.dot(sums[i][j], x, ws[j]);
                }
            }
        }
    }
    if w.tail > 0 {
        for j in 0..N {
            // 32 is the longest step.
            let mut padded = [D::W::ZERO; 32];
            // SAFETY: the last `tail` elements of the row, fewer than a step; the packed step is whole.
            unsafe {
                let row = w.start.add(w.steps * D::STEP + j * w.stride);
                padded[..w.tail].copy_from_slice(std::slice::from_raw_parts(row, w.tail));
                let w_tail = d.load_w(padded.as_ptr());
                for i in 0..M {
                    let x = d.load_x(x.add((w.steps * M + i) * D::STEP));
                    sums[i][j] = d.dot(sums[i][j], x, w_tail);
                }
            }
        }
    }
    *acc = sums;
}
