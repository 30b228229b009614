//! The gated activation of the feed-forward layer (Shazeer 2020).

use super::buf::Buf;
use super::check::{Disjoint, dtype, names, rows, rows_mut};
use super::simd::{Element, Kernel, LANES, Simd, dispatch, load_partial, store_partial};
use super::{Cpu, math, with_element};
use crate::{Activation, Result, Tensor};

/// Columns that one thread takes at a time, so that a single row can be shared.
const COLS: usize = 512;

/// What an exponential and a division cost, in elements of simple arithmetic.
const COST: usize = 4;

pub(super) fn act_mul(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    gate_up: &Tensor<Buf>,
    activation: Activation,
    num_rows: usize,
) -> Result<()> {
    const OP: &str = "act_mul";
    let (ffn, isa) = (out.cols, cpu.isa);
    dtype(names!(OP, "out"), gate_up.dtype, out)?;
    with_element!(gate_up.dtype, E => {
        let gate_up = rows::<E>(names!(OP, "gate_up"), gate_up, num_rows, 2 * ffn)?;
        let out = Disjoint::new(rows_mut::<E>(names!(OP, "out"), out, num_rows, ffn)?);
        let blocks = ffn.div_ceil(COLS);
        cpu.for_items(num_rows * blocks, COLS * COST, &|range| {
            for item in range {
                let (row, start) = (item / blocks, item % blocks * COLS);
                let len = COLS.min(ffn - start);
                let (gate, up) = gate_up[row * 2 * ffn..][..2 * ffn].split_at(ffn);
                let (gate, up) = (&gate[start..start + len], &up[start..start + len]);
                // SAFETY: each block of the output belongs to one item, and an item to one thread.
                let out = unsafe { out.get(row * ffn + start, len) };
                match activation {
                    Activation::Silu => dispatch(isa, ActMul::<E, SILU> { gate, up, out }),
                    Activation::Gelu => dispatch(isa, ActMul::<E, GELU> { gate, up, out }),
                    Activation::GeluTanh => dispatch(isa, ActMul::<E, GELU_TANH> { gate, up, out }),
                }
            }
        });
        Ok(())
    })
}

const SILU: u8 = 0;
const GELU: u8 = 1;
const GELU_TANH: u8 = 2;

struct ActMul<'a, E, const ACT: u8> {
    gate: &'a [E],
    up: &'a [E],
    out: &'a mut [E],
}

#[inline(always)]
fn act<S: Simd, const ACT: u8>(s: S, x: S::F) -> S::F {
    match ACT {
        SILU => math::silu(s, x),
        GELU => math::gelu(s, x),
        _ => math::gelu_tanh(s, x),
    }
}

impl<E: Element, const ACT: u8> Kernel for ActMul<'_, E, ACT> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (gates, gate_tail) = self.gate.as_chunks::<LANES>();
        let (ups, up_tail) = self.up.as_chunks::<LANES>();
        let (outs, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            E::store(s, s.mul(act::<S, ACT>(s, E::load(s, gate)), E::load(s, up)), out);
        }
        if !out_tail.is_empty() {
            let tail = s.mul(act::<S, ACT>(s, load_partial(s, gate_tail)), load_partial(s, up_tail));
            store_partial(s, tail, out_tail);
        }
    }
}
