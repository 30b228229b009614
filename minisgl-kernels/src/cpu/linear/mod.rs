//! The linear layer: `out[r][n] = sum_k x[r][k] * weight[n][k] + bias[n]`.
//!
//! Weights stay as they are stored, row after row of K elements, so one product is a dot product of two rows:
//! sixteen lanes run along K, one accumulator for each output element, and the sixteen partial sums are added
//! in a fixed order at the end. Splitting the work by rows, weight rows or blocks of K changes none of that,
//! which makes a row's result independent of all other rows, bit for bit.
//!
//! Bound by memory for a few rows (each weight is read once, weights of 16 bits as 16 bits), by arithmetic for
//! many (a tile of 6 x 4 accumulators loads 10 vectors for 24 products).

mod dot;
mod pack;
mod panel;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;

use super::buf::Buf;
use super::check::{Disjoint, dtype, equal, names, rows, rows_mut};
use super::scratch::{Scratch, ThreadScratch, lock};
use super::simd::{
    Element, Kernel, KernelBf16, LANES, Simd, SimdBf16, dispatch, dispatch_bf16, load_any, store_any,
};
use super::{Cpu, with_element};
use crate::{DType, KernelError, Result, Tensor};
use dot::{DotF32, DotPairs};
use pack::{Layout, Pack};
use panel::{PANEL, Panel, SUMS_LEN, group_rows};

const OP: &str = "linear";

/// Multiplications that one thread does in the time that it takes to wake another.
const MIN_PRODUCTS_PER_THREAD: usize = 1 << 15;

/// Groups of rows from which on it pays to convert weights of 16 bits once for all of them, through the cache,
/// rather than on the way to each tile.
const MIN_GROUPS_TO_CONVERT: usize = 8;

/// Results that are kept before they are rounded.
const MAX_RESULTS: usize = 1 << 12;

pub(super) fn linear(
    cpu: &mut Cpu,
    out: &mut Tensor<Buf>,
    x: &Tensor<Buf>,
    weight: &Tensor<Buf>,
    bias: Option<&Tensor<Buf>>,
    num_rows: usize,
) -> Result<()> {
    dtype(names!(OP, "weight"), x.dtype, weight)?;
    if out.dtype != DType::F32 {
        dtype(names!(OP, "out"), x.dtype, out)?;
    }
    equal(OP, "out.cols", weight.rows, out.cols)?;
    let (n, k, x_dtype) = (weight.rows, weight.cols, x.dtype);
    if k == 0 {
        return Err(KernelError::Shape { op: OP, what: "x.cols", expected: 1, found: 0 });
    }
    if num_rows == 0 || n == 0 {
        return Ok(());
    }
    with_element!(x.dtype, E => {
        let x = rows::<E>(names!(OP, "x"), x, num_rows, k)?;
        let weight = rows::<E>(names!(OP, "weight"), weight, n, k)?;
        let bias = match bias {
            Some(bias) => {
                dtype(names!(OP, "bias"), x_dtype, bias)?;
                Some(rows::<E>(names!(OP, "bias"), bias, 1, n)?)
            }
            None => None,
        };
        let call = Call { x, weight, bias, rows: num_rows, n, k };
        if out.dtype == DType::F32 {
            call.run(cpu, rows_mut::<f32>(names!(OP, "out"), out, num_rows, n)?);
        } else {
            call.run(cpu, rows_mut::<E>(names!(OP, "out"), out, num_rows, n)?);
        }
    });
    Ok(())
}

/// Computes some columns: which, their results, working memory.
type PanelBody<'a> = dyn Fn(Range<usize>, &mut [f32], &mut Scratch) + Sync + 'a;

/// A checked call: every slice has the length that the sizes say.
#[derive(Clone, Copy)]
struct Call<'a, E> {
    x: &'a [E],
    weight: &'a [E],
    bias: Option<&'a [E]>,
    rows: usize,
    n: usize,
    k: usize,
}

impl<E: Element> Call<'_, E> {
    fn run<O: Element>(self, cpu: &mut Cpu, out: &mut [O]) {
        // Taken out so that the rest of `cpu` can be shared with the threads meanwhile.
        let mut packed = std::mem::take(&mut cpu.packed);
        let (out, isa, rows, k) = (Disjoint::new(out), cpu.isa, self.rows, self.k);
        match (E::as_bf16(self.x), E::as_bf16(self.weight)) {
            (Some(x), Some(weight)) if isa.has_bf16_dot() => {
                let layout = Layout::new(rows, k, group_rows(true), 2 * LANES);
                let x = pack::<bf16, bf16>(cpu, x, layout, packed.get(layout.len()));
                self.for_panels(cpu, out, &|cols, out, scratch| {
                    let weight = &weight[cols.start * k..cols.end * k];
                    let sums = scratch.get(SUMS_LEN);
                    // The guard above found the dot product.
                    let _ = dispatch_bf16(isa, PanelOfPairs(Panel { x, layout, weight, out, sums }));
                });
            }
            _ => {
                let layout = Layout::new(rows, k, group_rows(isa.is_wide()), LANES);
                let x = pack::<E, f32>(cpu, self.x, layout, packed.get(layout.len()));
                self.for_panels(cpu, out, &|cols, out, scratch| {
                    let weight = &self.weight[cols.start * k..cols.end * k];
                    // Weights of 16 bits that meet several groups of rows are converted once for all of them.
                    if size_of::<E>() == size_of::<f32>() || layout.num_groups() < MIN_GROUPS_TO_CONVERT {
                        let sums = scratch.get(SUMS_LEN);
                        dispatch(isa, PanelOfF32(Panel { x, layout, weight, out, sums }));
                    } else {
                        let (sums, converted) = scratch.get(SUMS_LEN + weight.len()).split_at_mut(SUMS_LEN);
                        dispatch(isa, Widen { src: weight, dst: converted });
                        dispatch(isa, PanelOfF32(Panel { x, layout, weight: &*converted, out, sums }));
                    }
                });
            }
        }
        cpu.packed = packed;
    }

    /// Calls `body(columns, results, working memory)` for panels that together are all columns, where `body` fills
    /// the results, `[rows, columns]`, which then go to `out` with the bias.
    fn for_panels<O: Element>(&self, cpu: &Cpu, out: Disjoint<'_, O>, body: &PanelBody<'_>) {
        let (isa, rows, n) = (cpu.isa, self.rows, self.n);
        let grain = MIN_PRODUCTS_PER_THREAD.div_ceil(rows * self.k).next_multiple_of(4);
        // For a few rows the weights stream by, and longer runs of them are better.
        let most = (MAX_RESULTS / rows).clamp(PANEL, 4 * PANEL) / PANEL * PANEL;
        let scratch = &cpu.thread_scratch;
        cpu.pool.for_chunks(n, grain, &|thread, range| {
            let mut scratch = lock(&scratch[thread]);
            let ThreadScratch { results, work } = &mut *scratch;
            for start in range.clone().step_by(most) {
                let cols = start..range.end.min(start + most);
                let results = results.get(rows * cols.len());
                body(cols.clone(), results, work);
                for (row, results) in results.chunks_exact(cols.len()).enumerate() {
                    // SAFETY: a column belongs to one panel, and a panel to one thread.
                    let out = unsafe { out.get(row * n + cols.start, cols.len()) };
                    let bias = self.bias.map(|bias| &bias[cols.clone()]);
                    dispatch(isa, Finish { results, bias, out });
                }
            }
        });
    }
}

fn pack<'a, E: Element, X: Element>(cpu: &Cpu, x: &[E], layout: Layout, packed: &'a mut [X]) -> &'a [X] {
    let (out, isa) = (Disjoint::new(packed), cpu.isa);
    cpu.for_items(layout.num_groups(), layout.rows(0).len() * layout.k(), &|groups| {
        dispatch(isa, Pack { x, packed: out, layout, groups });
    });
    packed
}

struct PanelOfPairs<'a>(Panel<'a, bf16, bf16>);

impl KernelBf16 for PanelOfPairs<'_> {
    #[inline(always)]
    fn run<S: SimdBf16>(self, s: S) {
        self.0.run(DotPairs(s));
    }
}

struct PanelOfF32<'a, W>(Panel<'a, f32, W>);

impl<W: Element> Kernel for PanelOfF32<'_, W> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.0.run(DotF32(s, PhantomData::<W>));
    }
}

/// Conversion to f32.
struct Widen<'a, E> {
    src: &'a [E],
    dst: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (src, dst) in self.src.chunks(LANES).zip(self.dst.chunks_mut(LANES)) {
            store_any(s, load_any(s, src), dst);
        }
    }
}

/// Some columns of one row: bias and conversion.
struct Finish<'a, E, O> {
    results: &'a [f32],
    bias: Option<&'a [E]>,
    out: &'a mut [O],
}

impl<E: Element, O: Element> Kernel for Finish<'_, E, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, (result, out)) in self.results.chunks(LANES).zip(self.out.chunks_mut(LANES)).enumerate() {
            let mut x = load_any(s, result);
            if let Some(bias) = self.bias {
                x = s.add(x, load_any(s, &bias[i * LANES..][..out.len()]));
            }
            store_any(s, x, out);
        }
    }
}

#[cfg(test)]
mod tests;
