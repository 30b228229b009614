use minisgl_kernels::{Backend, PADDING, PageUpdate, SampleParams, SeqState, StepInputs};

use super::{Failure, Rng, Words};

/// One sequence of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SeqShape {
    /// Tokens in this step.
    pub(crate) q_len: usize,
    /// Tokens in the KV storage before this step.
    pub(crate) past: usize,
}

impl SeqShape {
    /// Tokens in the KV storage after this step.
    pub(crate) fn kv_len(&self) -> usize {
        self.past + self.q_len
    }
}

/// Sequences on random rows of the page table and random pages, padded or not, as host integers.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// The step.
    pub(crate) inputs: StepInputs,
    /// The pages of each sequence.
    pub(crate) pages: Vec<Vec<u32>>,
    /// Tokens in a page.
    pub(crate) page_size: usize,
    /// Pages of the storage, some of them free.
    pub(crate) num_pages: usize,
    /// Rows of the page table, some of them free.
    pub(crate) max_rows: usize,
    /// Pages that a row can hold.
    pub(crate) max_pages: usize,
    /// Tokens that are not padding.
    pub(crate) num_real_tokens: usize,
}

impl Scene {
    /// Lays `seqs` out, followed by `padding` padding tokens, sequences and samples. Token ids are below `vocab`.
    pub(crate) fn new(
        rng: &mut Rng,
        seqs: &[SeqShape],
        page_size: usize,
        padding: usize,
        vocab: usize,
    ) -> Self {
        let num_pages_of = |seq: &SeqShape| seq.kv_len().div_ceil(page_size);
        let used: usize = seqs.iter().map(num_pages_of).sum();
        let num_pages = used + 1 + rng.below(3);
        let max_rows = seqs.len() + 1 + rng.below(3);
        let max_pages = seqs.iter().map(num_pages_of).max().unwrap_or(0) + 1 + rng.below(3);

        let mut free = rng.distinct(used, num_pages);
        let rows = rng.distinct(seqs.len(), max_rows);
        let mut inputs = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
        let mut pages = Vec::new();
        for (seq, &row) in seqs.iter().zip(&rows) {
            let own = free.split_off(free.len() - num_pages_of(seq));
            for (idx, &page) in own.iter().enumerate() {
                inputs.page_updates.push(PageUpdate { row, idx: idx as u32, page });
            }
            for position in seq.past..seq.kv_len() {
                inputs.token_ids.push(rng.below(vocab) as i32);
                inputs.positions.push(position as u32);
                inputs
                    .slots
                    .push(own[position / page_size] * page_size as u32 + (position % page_size) as u32);
            }
            inputs.cu_q_lens.push(inputs.token_ids.len() as u32);
            inputs.kv_lens.push(seq.kv_len() as u32);
            inputs.seq_rows.push(row);
            if seq.q_len > 0 {
                inputs.sample_tokens.push(inputs.token_ids.len() as u32 - 1);
                inputs.samples.push(SampleParams::greedy(row, seq.kv_len() as u32));
            }
            pages.push(own);
        }
        let num_real_tokens = inputs.token_ids.len();
        for _ in 0..padding {
            inputs.token_ids.push(0);
            inputs.positions.push(0);
            inputs.slots.push(PADDING);
            inputs.cu_q_lens.push(num_real_tokens as u32);
            inputs.kv_lens.push(0);
            inputs.seq_rows.push(PADDING);
            inputs.sample_tokens.push(0);
            inputs.samples.push(SampleParams::greedy(PADDING, 0));
        }
        Self { inputs, pages, page_size, num_pages, max_rows, max_pages, num_real_tokens }
    }

    /// Slots of the KV storage.
    pub(crate) fn num_slots(&self) -> usize {
        self.num_pages * self.page_size
    }

    /// The slot of a position of a sequence.
    pub(crate) fn slot(&self, seq: usize, position: usize) -> usize {
        self.pages[seq][position / self.page_size] as usize * self.page_size + position % self.page_size
    }

    /// Room for this step and a bit more.
    pub(crate) fn device_inputs<B: Backend>(&self, backend: &mut B) -> Result<B::Inputs, Failure> {
        let inputs = &self.inputs;
        Ok(backend.inputs(inputs.num_tokens() + 3, inputs.num_seqs() + 2, inputs.num_samples() + 1)?)
    }

    /// Device state whose every entry is garbage until a step writes it.
    pub(crate) fn device_state<B: Backend>(
        &self,
        backend: &mut B,
        vocab: usize,
    ) -> Result<SeqState<B::Buf>, Failure> {
        let mut state = backend.seq_state(self.max_rows, self.max_pages, vocab)?;
        Words::write_u32(backend, &mut state.page_table, &vec![0xDEAD_BEEF; self.max_rows * self.max_pages])?;
        Words::write_u32(backend, &mut state.last_tokens, &vec![0xDEAD_BEEF; self.max_rows])?;
        Words::write_u16(backend, &mut state.token_counts, &vec![0x5AA5; self.max_rows * vocab])?;
        Ok(state)
    }
}
