//! RMSNorm, alone and with the residual addition before it (Zhang, Sennrich 2019), and that addition alone.

use super::buf::Buf;
use super::check::{Disjoint, dtype, names, rows, rows_mut};
use super::simd::{Element, Kernel, LANES, Simd, dispatch, load_partial, store_partial};
use super::{Cpu, with_element};
use crate::{Result, Tensor};

pub(super) fn rms_norm(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    x: &Tensor<Buf>,
    weight: &Tensor<Buf>,
    eps: f32,
    num_rows: usize,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let (cols, isa) = (x.cols, cpu.isa);
    dtype(names!(OP, "out"), x.dtype, out)?;
    dtype(names!(OP, "weight"), x.dtype, weight)?;
    with_element!(x.dtype, E => {
        let x = rows::<E>(names!(OP, "x"), x, num_rows, cols)?;
        let weight = rows::<E>(names!(OP, "weight"), weight, 1, cols)?;
        let out = Disjoint::new(rows_mut::<E>(names!(OP, "out"), out, num_rows, cols)?);
        cpu.for_items(num_rows, cols, &|range| {
            for row in range {
                // SAFETY: each row of the output belongs to one item, and an item to one thread.
                let out = unsafe { out.get(row * cols, cols) };
                dispatch(isa, RmsNorm { x: &x[row * cols..][..cols], weight, eps, out });
            }
        });
        Ok(())
    })
}

pub(super) fn add_rms_norm(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    residual: &mut Tensor<Buf>,
    x: &Tensor<Buf>,
    weight: &Tensor<Buf>,
    eps: f32,
    num_rows: usize,
) -> Result<()> {
    const OP: &str = "add_rms_norm";
    let (cols, isa) = (x.cols, cpu.isa);
    dtype(names!(OP, "out"), x.dtype, out)?;
    dtype(names!(OP, "residual"), x.dtype, residual)?;
    dtype(names!(OP, "weight"), x.dtype, weight)?;
    with_element!(x.dtype, E => {
        let x = rows::<E>(names!(OP, "x"), x, num_rows, cols)?;
        let weight = rows::<E>(names!(OP, "weight"), weight, 1, cols)?;
        let residual = Disjoint::new(rows_mut::<E>(names!(OP, "residual"), residual, num_rows, cols)?);
        let out = Disjoint::new(rows_mut::<E>(names!(OP, "out"), out, num_rows, cols)?);
        cpu.for_items(num_rows, cols, &|range| {
            for row in range {
                // SAFETY: each row of both outputs belongs to one item, and an item to one thread.
                let (residual, out) = unsafe { (residual.get(row * cols, cols), out.get(row * cols, cols)) };
                dispatch(isa, Add { sum: residual, x: &x[row * cols..][..cols] });
                dispatch(isa, RmsNorm { x: residual, weight, eps, out });
            }
        });
        Ok(())
    })
}

pub(super) fn add(cpu: &Cpu, residual: &mut Tensor<Buf>, x: &Tensor<Buf>, num_rows: usize) -> Result<()> {
    const OP: &str = "add";
    let (cols, isa) = (x.cols, cpu.isa);
    dtype(names!(OP, "residual"), x.dtype, residual)?;
    with_element!(x.dtype, E => {
        let x = rows::<E>(names!(OP, "x"), x, num_rows, cols)?;
        let residual = Disjoint::new(rows_mut::<E>(names!(OP, "residual"), residual, num_rows, cols)?);
        cpu.for_items(num_rows, cols, &|range| {
            for row in range {
                // SAFETY: each row of the sum belongs to one item, and an item to one thread.
                let sum = unsafe { residual.get(row * cols, cols) };
                dispatch(isa, Add { sum, x: &x[row * cols..][..cols] });
            }
        });
        Ok(())
    })
}

struct Add<'a, E> {
    sum: &'a mut [E],
    x: &'a [E],
}

impl<E: Element> Kernel for Add<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (sums, sum_tail) = self.sum.as_chunks_mut::<LANES>();
        let (xs, x_tail) = self.x.as_chunks::<LANES>();
        for (sum, x) in sums.iter_mut().zip(xs) {
            E::store(s, s.add(E::load(s, sum), E::load(s, x)), sum);
        }
        store_partial(s, s.add(load_partial(s, sum_tail), load_partial(s, x_tail)), sum_tail);
    }
}

struct RmsNorm<'a, E> {
    x: &'a [E],
    weight: &'a [E],
    eps: f32,
    out: &'a mut [E],
}

impl<E: Element> Kernel for RmsNorm<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(inverse_rms(s, self.x, self.eps));
        let (xs, x_tail) = self.x.as_chunks::<LANES>();
        let (weights, weight_tail) = self.weight.as_chunks::<LANES>();
        let (outs, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((x, weight), out) in xs.iter().zip(weights).zip(outs) {
            E::store(s, s.mul(s.mul(E::load(s, x), scale), E::load(s, weight)), out);
        }
        let tail = s.mul(s.mul(load_partial(s, x_tail), scale), load_partial(s, weight_tail));
        store_partial(s, tail, out_tail);
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn inverse_rms<S: Simd, E: Element>(s: S, x: &[E], eps: f32) -> f32 {
    // Four sums hide the latency of the addition.
    let mut sums = [s.splat(0.0); 4];
    let (quads, rest) = x.as_chunks::<{ 4 * LANES }>();
    for quad in quads {
        for (sum, x) in sums.iter_mut().zip(quad.as_chunks::<LANES>().0) {
            let x = E::load(s, x);
            *sum = s.fma(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(LANES)) {
        let x = load_partial(s, x);
        *sum = s.fma(x, x, *sum);
    }
    let sum = s.reduce_add(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}
