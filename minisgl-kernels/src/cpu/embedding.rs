//! Rows of the embedding table.

use super::buf::Buf;
use super::check::{Disjoint, below, names, numbers, rows, rows_mut};
use super::inputs::device_row;
use super::simd::Element;
use super::{Cpu, CpuInputs, check, with_element};
use crate::{PADDING, Result, SeqState, Tensor};

const OP: &str = "embedding";

pub(super) fn embedding(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    table: &Tensor<Buf>,
    inputs: &CpuInputs,
    state: &SeqState<Buf>,
) -> Result<()> {
    check::dtype(names!(OP, "table"), out.dtype, table)?;
    let last_tokens = numbers::<u32>(OP, "state.last_tokens", &state.last_tokens, state.max_rows)?;
    for (&token, &slot) in inputs.token_ids.iter().zip(&inputs.slots) {
        if token >= 0 && slot != PADDING {
            below(OP, "token_ids", table.rows, token as usize)?;
        }
    }
    with_element!(out.dtype, E => gather::<E>(cpu, out, table, inputs, last_tokens))
}

fn gather<E: Element>(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    table: &Tensor<Buf>,
    inputs: &CpuInputs,
    last_tokens: &[u32],
) -> Result<()> {
    let cols = table.cols;
    let table = rows::<E>(names!(OP, "table"), table, table.rows, cols)?;
    let out = Disjoint::new(rows_mut::<E>(names!(OP, "out"), out, inputs.num_tokens(), cols)?);
    cpu.for_items(inputs.num_tokens(), cols, &|range| {
        for i in range {
            // SAFETY: each row of the output belongs to one item, and an item to one thread.
            let dst = unsafe { out.get(i * cols, cols) };
            let token = match inputs.token_ids[i] {
                token if token >= 0 => Some(token as usize),
                token => last_tokens.get(device_row(token)).map(|&token| token as usize),
            };
            // A token that could not be sampled (u32::MAX), or that belongs to padding, has no row: its
            // sequence ends, and the others in the batch must not notice.
            match token.and_then(|token| table.get(token * cols..(token + 1) * cols)) {
                Some(src) => dst.copy_from_slice(src),
                None => dst.fill(E::ZERO),
            }
        }
    });
    Ok(())
}

pub(super) fn gather_samples(
    cpu: &Cpu,
    out: &mut Tensor<Buf>,
    x: &Tensor<Buf>,
    inputs: &CpuInputs,
) -> Result<()> {
    check::dtype(names!("gather_samples", "x"), out.dtype, x)?;
    with_element!(out.dtype, E => {
        let cols = x.cols;
        let x = rows::<E>(names!("gather_samples", "x"), x, inputs.num_tokens(), cols)?;
        let out = rows_mut::<E>(names!("gather_samples", "out"), out, inputs.num_samples(), cols)?;
        let out = Disjoint::new(out);
        cpu.for_items(inputs.num_samples(), cols, &|range| {
            for i in range {
                if inputs.samples[i].seq_row == PADDING {
                    continue;
                }
                // SAFETY: each row of the output belongs to one item, and an item to one thread.
                let dst = unsafe { out.get(i * cols, cols) };
                dst.copy_from_slice(&x[inputs.sample_tokens[i] as usize * cols..][..cols]);
            }
        });
        Ok(())
    })
}
