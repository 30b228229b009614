//! A step's inputs: checked once, so that ops can trust them.

use super::buf::Buf;
use super::check::{below, equal, numbers_mut};
use crate::{KernelError, KvLayer, MAX_LOGPROBS, PADDING, Result, SampleParams, SeqState, StepInputs};

const OP: &str = "begin_step";

/// A step's inputs. Keeps its memory from step to step.
#[derive(Debug)]
pub struct CpuInputs {
    pub(super) token_ids: Vec<i32>,
    pub(super) positions: Vec<u32>,
    pub(super) slots: Vec<u32>,
    pub(super) cu_q_lens: Vec<u32>,
    pub(super) kv_lens: Vec<u32>,
    pub(super) seq_rows: Vec<u32>,
    pub(super) sample_tokens: Vec<u32>,
    pub(super) samples: Vec<SampleParams>,
    sorted_slots: Vec<u32>,
    max_tokens: usize,
    max_seqs: usize,
    max_samples: usize,
}

impl CpuInputs {
    pub(super) fn new(max_tokens: usize, max_seqs: usize, max_samples: usize) -> Self {
        let mut cu_q_lens = Vec::with_capacity(max_seqs + 1);
        cu_q_lens.push(0);
        Self {
            token_ids: Vec::with_capacity(max_tokens),
            positions: Vec::with_capacity(max_tokens),
            slots: Vec::with_capacity(max_tokens),
            cu_q_lens,
            kv_lens: Vec::with_capacity(max_seqs),
            seq_rows: Vec::with_capacity(max_seqs),
            sample_tokens: Vec::with_capacity(max_samples),
            samples: Vec::with_capacity(max_samples),
            sorted_slots: Vec::with_capacity(max_tokens),
            max_tokens,
            max_seqs,
            max_samples,
        }
    }

    pub(super) fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    pub(super) fn num_seqs(&self) -> usize {
        self.kv_lens.len()
    }

    pub(super) fn num_samples(&self) -> usize {
        self.samples.len()
    }

    /// Checks everything, then applies the changes of state, then takes the rest over.
    pub(super) fn begin_step(
        &mut self,
        src: &StepInputs,
        state: &mut SeqState<Buf>,
        kv: &mut [KvLayer<Buf>],
    ) -> Result<()> {
        self.check_tokens(src, state)?;
        self.check_seqs(src, state)?;
        self.check_samples(src, state)?;
        check_changes(src, state, kv)?;
        apply_page_updates(src, state)?;
        apply_count_resets(src, state)?;
        for layer in kv {
            copy_pages(src, layer)?;
        }
        self.token_ids.clone_from(&src.token_ids);
        self.positions.clone_from(&src.positions);
        self.slots.clone_from(&src.slots);
        self.cu_q_lens.clone_from(&src.cu_q_lens);
        self.kv_lens.clone_from(&src.kv_lens);
        self.seq_rows.clone_from(&src.seq_rows);
        self.sample_tokens.clone_from(&src.sample_tokens);
        self.samples.clone_from(&src.samples);
        Ok(())
    }

    fn check_tokens(&mut self, src: &StepInputs, state: &SeqState<Buf>) -> Result<()> {
        let num_tokens = src.num_tokens();
        at_most("num_tokens", self.max_tokens, num_tokens)?;
        equal(OP, "positions.len()", num_tokens, src.positions.len())?;
        equal(OP, "slots.len()", num_tokens, src.slots.len())?;
        for (&token, &slot) in src.token_ids.iter().zip(&src.slots) {
            if token < 0 && slot != PADDING {
                below(OP, "row of a device token", state.max_rows, device_row(token))?;
            }
        }
        // Threads store to slots side by side.
        self.sorted_slots.clear();
        self.sorted_slots.extend(src.slots.iter().filter(|&&slot| slot != PADDING));
        self.sorted_slots.sort_unstable();
        match self.sorted_slots.array_windows().find(|[a, b]| a == b) {
            Some([slot, _]) => Err(KernelError::Unsupported {
                op: OP,
                what: format!("slot {slot} for two tokens"),
                supported: "a slot holds one token".to_owned(),
            }),
            None => Ok(()),
        }
    }

    fn check_seqs(&self, src: &StepInputs, state: &SeqState<Buf>) -> Result<()> {
        let num_seqs = src.num_seqs();
        at_most("num_seqs", self.max_seqs, num_seqs)?;
        equal(OP, "cu_q_lens.len()", num_seqs + 1, src.cu_q_lens.len())?;
        equal(OP, "seq_rows.len()", num_seqs, src.seq_rows.len())?;
        equal(OP, "cu_q_lens[0]", 0, src.cu_q_lens[0] as usize)?;
        at_most("last cu_q_lens", src.num_tokens(), src.cu_q_lens[num_seqs] as usize)?;
        for seq in 0..num_seqs {
            let (start, end) = (src.cu_q_lens[seq], src.cu_q_lens[seq + 1]);
            at_most("cu_q_lens before a smaller one", end as usize, start as usize)?;
            if end > start {
                at_most("q_len beside a smaller kv_len", src.kv_lens[seq] as usize, (end - start) as usize)?;
                below(OP, "seq_rows", state.max_rows, src.seq_rows[seq] as usize)?;
            }
        }
        Ok(())
    }

    fn check_samples(&self, src: &StepInputs, state: &SeqState<Buf>) -> Result<()> {
        at_most("num_samples", self.max_samples, src.num_samples())?;
        equal(OP, "sample_tokens.len()", src.num_samples(), src.sample_tokens.len())?;
        for (params, &token) in src.samples.iter().zip(&src.sample_tokens) {
            if params.seq_row != PADDING {
                below(OP, "sample_tokens", src.num_tokens(), token as usize)?;
                below(OP, "samples.seq_row", state.max_rows, params.seq_row as usize)?;
                at_most(
                    "samples.num_logprobs",
                    MAX_LOGPROBS,
                    usize::try_from(params.num_logprobs).unwrap_or(0),
                )?;
            }
        }
        Ok(())
    }
}

/// The page-table row whose last token a negative token id stands for.
pub(super) fn device_row(token: i32) -> usize {
    // -1 - token, which is the bitwise complement and cannot overflow.
    !token as usize
}

fn at_most(what: &'static str, limit: usize, found: usize) -> Result<()> {
    below(OP, what, limit.saturating_add(1), found)
}

fn check_changes(src: &StepInputs, state: &SeqState<Buf>, kv: &[KvLayer<Buf>]) -> Result<()> {
    for layer in kv {
        if layer.page_size == 0 {
            return Err(KernelError::Shape { op: OP, what: "kv.page_size", expected: 1, found: 0 });
        }
    }
    let num_pages = kv.iter().map(|layer| layer.k.rows.min(layer.v.rows) / layer.page_size).min();
    let num_pages = num_pages.unwrap_or(usize::MAX);
    for update in &src.page_updates {
        below(OP, "page_updates.row", state.max_rows, update.row as usize)?;
        below(OP, "page_updates.idx", state.max_pages, update.idx as usize)?;
        below(OP, "page_updates.page", num_pages, update.page as usize)?;
    }
    for &(from, to) in &src.page_copies {
        below(OP, "page_copies.from", num_pages, from as usize)?;
        below(OP, "page_copies.to", num_pages, to as usize)?;
    }
    for reset in &src.count_resets {
        below(OP, "count_resets.row", state.max_rows, reset.row as usize)?;
        at_most("count_resets.num_prompt", reset.tokens.len(), reset.num_prompt as usize)?;
        for &token in &reset.tokens {
            below(OP, "count_resets.tokens", state.vocab, token as usize)?;
        }
    }
    Ok(())
}

fn apply_page_updates(src: &StepInputs, state: &mut SeqState<Buf>) -> Result<()> {
    let len = state.max_rows * state.max_pages;
    let table = numbers_mut::<u32>(OP, "state.page_table", &mut state.page_table, len)?;
    for update in &src.page_updates {
        table[update.row as usize * state.max_pages + update.idx as usize] = update.page;
    }
    Ok(())
}

fn apply_count_resets(src: &StepInputs, state: &mut SeqState<Buf>) -> Result<()> {
    let len = state.max_rows * state.vocab;
    let counts = numbers_mut::<u16>(OP, "state.token_counts", &mut state.token_counts, len)?;
    for reset in &src.count_resets {
        let row = &mut counts[reset.row as usize * state.vocab..][..state.vocab];
        row.fill(0);
        let (prompt, generated) = reset.tokens.split_at(reset.num_prompt as usize);
        for &token in prompt {
            row[token as usize] |= PROMPT_BIT;
        }
        for &token in generated {
            count_token(&mut row[token as usize]);
        }
    }
    Ok(())
}

/// Says that a token is in the prompt; see [`SeqState::token_counts`].
pub(super) const PROMPT_BIT: u16 = 1 << 15;

/// Counts one more generation of a token, up to the largest count.
pub(super) fn count_token(count: &mut u16) {
    if *count & !PROMPT_BIT != !PROMPT_BIT {
        *count += 1;
    }
}

fn copy_pages(src: &StepInputs, layer: &mut KvLayer<Buf>) -> Result<()> {
    for tensor in [&mut layer.k, &mut layer.v] {
        let page_bytes = layer.page_size * tensor.cols * tensor.dtype.size_bytes();
        let len = tensor.size_bytes();
        let bytes = numbers_mut::<u8>(OP, "kv bytes", &mut tensor.buf, len)?;
        for &(from, to) in &src.page_copies {
            let start = from as usize * page_bytes;
            bytes.copy_within(start..start + page_bytes, to as usize * page_bytes);
        }
    }
    Ok(())
}
