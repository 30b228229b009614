//! The shape checks of [`super::Null`].

use super::NullInputs;
use crate::{KernelError, KvLayer, PADDING, Result, SeqState, StepInputs, Tensor};

/// Fails unless `found` is `expected`.
pub(super) fn equal(op: &'static str, what: &'static str, found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(KernelError::Shape { op, what, expected, found }),
    }
}

/// Fails unless `found`, an amount of something, is at most `limit`.
pub(super) fn at_most(op: &'static str, what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found <= limit {
        true => Ok(()),
        false => Err(KernelError::Index { op, what, found, limit: limit + 1 }),
    }
}

/// Fails unless `found`, an index, is below `limit`.
pub(super) fn below(op: &'static str, what: &'static str, found: usize, limit: usize) -> Result<()> {
    match found < limit {
        true => Ok(()),
        false => Err(KernelError::Index { op, what, found, limit }),
    }
}

/// Fails unless `tensor` has `cols` columns, at least `rows` rows, and memory for all of its rows.
pub(super) fn tensor(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor<Vec<u8>>,
    rows: usize,
    cols: usize,
) -> Result<()> {
    equal(op, what, tensor.cols, cols)?;
    at_most(op, what, rows, tensor.rows)?;
    at_most(op, what, tensor.size_bytes(), tensor.buf.len())
}

/// Fails unless the two tensors have one dtype.
pub(super) fn dtype(
    op: &'static str,
    what: &'static str,
    found: &Tensor<Vec<u8>>,
    expected: &Tensor<Vec<u8>>,
) -> Result<()> {
    match found.dtype == expected.dtype {
        true => Ok(()),
        false => Err(KernelError::DType { op, what, expected: expected.dtype, found: found.dtype }),
    }
}

/// Checks the lengths of a step's lists against each other and the room in `dst`.
pub(super) fn lengths(dst: &NullInputs, src: &StepInputs) -> Result<()> {
    const OP: &str = "begin_step";
    let (num_tokens, num_seqs, num_samples) = (src.num_tokens(), src.num_seqs(), src.num_samples());
    at_most(OP, "num_tokens", num_tokens, dst.max_tokens)?;
    at_most(OP, "num_seqs", num_seqs, dst.max_seqs)?;
    at_most(OP, "num_samples", num_samples, dst.max_samples)?;
    equal(OP, "positions.len", src.positions.len(), num_tokens)?;
    equal(OP, "slots.len", src.slots.len(), num_tokens)?;
    equal(OP, "cu_q_lens.len", src.cu_q_lens.len(), num_seqs + 1)?;
    equal(OP, "seq_rows.len", src.seq_rows.len(), num_seqs)?;
    equal(OP, "sample_tokens.len", src.sample_tokens.len(), num_samples)?;
    equal(OP, "cu_q_lens[0]", src.cu_q_lens[0] as usize, 0)
}

/// Checks what a step's lists say against each other, the page table and the KV storage.
pub(super) fn contents(src: &StepInputs, state: &SeqState<Vec<u8>>, kv: &[KvLayer<Vec<u8>>]) -> Result<()> {
    const OP: &str = "begin_step";
    let num_pages = kv.first().map_or(usize::MAX, |layer| layer.k.rows / layer.page_size);
    let page_size = kv.first().map_or(usize::MAX, |layer| layer.page_size);
    for update in &src.page_updates {
        below(OP, "page_updates.row", update.row as usize, state.max_rows)?;
        below(OP, "page_updates.idx", update.idx as usize, state.max_pages)?;
        below(OP, "page_updates.page", update.page as usize, num_pages)?;
    }
    for &(from, to) in &src.page_copies {
        below(OP, "page_copies.from", from as usize, num_pages)?;
        below(OP, "page_copies.to", to as usize, num_pages)?;
    }
    for reset in &src.count_resets {
        below(OP, "count_resets.row", reset.row as usize, state.max_rows)?;
        at_most(OP, "count_resets.num_prompt", reset.num_prompt as usize, reset.tokens.len())?;
        for &token in &reset.tokens {
            below(OP, "count_resets.tokens", token as usize, state.vocab)?;
        }
    }
    for &id in &src.token_ids {
        let (what, limit) = if id < 0 { ("token row", state.max_rows) } else { ("token", state.vocab) };
        below(OP, what, if id < 0 { -1 - id as i64 } else { id as i64 } as usize, limit)?;
    }
    for s in 0..src.num_seqs() {
        let (start, end) = (src.cu_q_lens[s] as usize, src.cu_q_lens[s + 1] as usize);
        at_most(OP, "cu_q_lens", start, end)?;
        at_most(OP, "cu_q_lens", end, src.num_tokens())?;
        below(OP, "seq_rows", src.seq_rows[s] as usize, state.max_rows)?;
        let kv_len = src.kv_lens[s] as usize;
        at_most(OP, "queries of a sequence", end - start, kv_len)?;
        at_most(OP, "kv_lens", kv_len.div_ceil(page_size), state.max_pages)?;
        for (i, token) in (start..end).enumerate() {
            equal(OP, "position", src.positions[token] as usize, kv_len - (end - start) + i)?;
        }
    }
    for (&token, sample) in src.sample_tokens.iter().zip(&src.samples) {
        below(OP, "sample_tokens", token as usize, src.num_tokens())?;
        if sample.seq_row != PADDING {
            below(OP, "samples.seq_row", sample.seq_row as usize, state.max_rows)?;
            equal(
                OP,
                "samples.position",
                sample.position as usize,
                src.positions[token as usize] as usize + 1,
            )?;
        }
    }
    Ok(())
}
