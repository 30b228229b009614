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

use half::bf16;

use super::buf::Buf;
use super::check::{Disjoint, dtype, equal, names, rows, rows_mut};
use super::scratch::{Scratch, lock};
use super::simd::{
    Element, Kernel, KernelBf16, LANES, Simd, SimdBf16, dispatch, dispatch_bf16, load_any, store_any,
};
use super::{Cpu, with_element};
use crate::{DType, Result, Tensor};
use dot::{DotF32, DotPairs};
use pack::{Layout, Pack};
use panel::Panel;

const OP: &str = "linear";

/// Multiplications that one thread does in the time that it takes to wake another.
const MIN_PRODUCTS_PER_THREAD: usize = 1 << 15;

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
        if out.is_empty() {
            return;
        }
        // Taken out so that the rest of `cpu` can be shared with the threads meanwhile.
        let mut packed = std::mem::take(&mut cpu.packed);
        let (out, isa) = (Disjoint::new(out), cpu.isa);
        match self.as_bf16() {
            Some(call) if cpu.isa.has_bf16_dot() => {
                let layout = Layout { rows: self.rows, k: self.k, group: 6, step: 2 * LANES };
                let x = pack::<bf16, bf16>(cpu, call.x, layout, packed.get(layout.len()));
                call.for_panels(cpu, &|weight, first_col, scratch| {
                    let sums = scratch.get(panel::SUMS_LEN);
                    let panel = Panel { x, layout, weight, bias: call.bias, out, n: self.n, first_col, sums };
                    // The match above found the dot product.
                    let _ = dispatch_bf16(isa, PanelOfPairs(panel));
                });
            }
            _ => {
                let group = if cpu.isa.is_wide() { 6 } else { 3 };
                let layout = Layout { rows: self.rows, k: self.k, group, step: LANES };
                let x = pack::<E, f32>(cpu, self.x, layout, packed.get(layout.len()));
                self.for_panels(cpu, &|weight, first_col, scratch| {
                    let call = Panel {
                        x,
                        layout,
                        weight,
                        bias: self.bias,
                        out,
                        n: self.n,
                        first_col,
                        sums: &mut [],
                    };
                    dispatch(isa, PanelOfF32 { panel: call, scratch });
                });
            }
        }
        cpu.packed = packed;
    }

    /// The same call, if its elements are bf16.
    fn as_bf16(&self) -> Option<Call<'_, bf16>> {
        let (x, weight) = (E::as_bf16(self.x)?, E::as_bf16(self.weight)?);
        Some(Call { x, weight, bias: self.bias.and_then(E::as_bf16), rows: self.rows, n: self.n, k: self.k })
    }

    /// Calls `body(weight rows, first column, working memory)` for panels that together are all weights.
    fn for_panels(&self, cpu: &Cpu, body: &(dyn Fn(&[E], usize, &mut Scratch) + Sync)) {
        let products = self.rows * self.k;
        let grain = MIN_PRODUCTS_PER_THREAD.div_ceil(products.max(1)).next_multiple_of(tile::NR);
        let scratch = &cpu.thread_scratch;
        cpu.pool.for_chunks(self.n, grain, &|thread, range| {
            let mut scratch = lock(&scratch[thread]);
            body(&self.weight[range.start * self.k..range.end * self.k], range.start, &mut scratch);
        });
    }
}

fn pack<'a, E: Element, X: Element>(cpu: &Cpu, x: &[E], layout: Layout, packed: &'a mut [X]) -> &'a [X] {
    let (out, isa) = (Disjoint::new(packed), cpu.isa);
    cpu.for_items(layout.num_groups(), layout.group * layout.k, &|groups| {
        dispatch(isa, Pack { x, packed: out, layout, groups });
    });
    packed
}

struct PanelOfPairs<'a, O>(Panel<'a, bf16, bf16, bf16, O>);

impl<O: Element> KernelBf16 for PanelOfPairs<'_, O> {
    #[inline(always)]
    fn run<S: SimdBf16>(self, s: S) {
        self.0.run(DotPairs(s));
    }
}

/// Weights converted to f32 at a time, in elements: 512 KiB.
const CONVERTED: usize = 1 << 17;

struct PanelOfF32<'a, E, O> {
    /// Without its sums.
    panel: Panel<'a, f32, E, E, O>,
    scratch: &'a mut Scratch,
}

impl<E: Element, O: Element> Kernel for PanelOfF32<'_, E, O> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Panel { x, layout, weight, bias, out, n, first_col, .. } = self.panel;
        // Weights of 16 bits that meet several groups of rows are converted once for all of them.
        if size_of::<E>() == size_of::<f32>() || layout.num_groups() <= 2 {
            let sums = self.scratch.get(panel::SUMS_LEN);
            return Panel { x, layout, weight, bias, out, n, first_col, sums }
                .run(DotF32(s, PhantomData::<E>));
        }
        let cols = (CONVERTED / layout.k).max(tile::NR);
        let (sums, converted) =
            self.scratch.get(panel::SUMS_LEN + cols * layout.k).split_at_mut(panel::SUMS_LEN);
        for (i, weight) in weight.chunks(cols * layout.k).enumerate() {
            for (src, dst) in weight.chunks(LANES).zip(converted.chunks_mut(LANES)) {
                store_any(s, load_any(s, src), &mut dst[..src.len()]);
            }
            let weight = &converted[..weight.len()];
            let first_col = first_col + i * cols;
            let panel = Panel { x, layout, weight, bias, out, n, first_col, sums: &mut *sums };
            panel.run(DotF32(s, PhantomData::<f32>));
        }
    }
}
