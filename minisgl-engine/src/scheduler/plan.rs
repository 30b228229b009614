use minisgl_kernels::{PageUpdate, SampleParams};

use super::{MAX_STEPS_IN_FLIGHT, Part, Scheduler, Step};
use crate::batch::{Batch, BatchSeq, SeqIdx};
use crate::sequence::Sequence;

/// What is left of a step while it is planned.
pub(super) struct Budget {
    /// Prompt tokens.
    pub(super) tokens: usize,
    /// Whether a sequence went without a page: then nothing new is admitted.
    pub(super) is_short_of_pages: bool,
}

impl Scheduler {
    /// Plans the next step into `batch`, whose memory is reused. Returns `false`, with an empty batch, when
    /// nothing can run before a step in flight commits, or nothing is left to run.
    pub fn schedule(&mut self, batch: &mut Batch) -> bool {
        batch.clear();
        if self.in_flight.len() == MAX_STEPS_IN_FLIGHT {
            return false;
        }
        let mut step = self.spare_steps.pop().unwrap_or_default();
        step.parts.clear();
        let mut budget = Budget { tokens: self.config.max_extend_tokens, is_short_of_pages: false };
        self.plan_running(batch, &mut step, &mut budget);
        if !budget.is_short_of_pages {
            self.admit(batch, &mut budget);
        }
        let mut chunks = std::mem::take(&mut self.chunks);
        for (seq, q_len) in chunks.drain(..) {
            self.totals.prompt_tokens += q_len as u64;
            self.push_chunk(batch, &mut step, seq, q_len);
        }
        self.chunks = chunks;
        if batch.seqs.is_empty() {
            self.spare_steps.push(step);
            return false;
        }
        let every_seq_samples = batch.sampled.len() == batch.seqs.len();
        batch.is_decode = every_seq_samples && batch.inputs.num_tokens() == batch.seqs.len();

        self.in_flight.push_back(step);
        self.totals.steps += 1;
        true
    }

    /// Gives the running sequences their tokens, first admitted first, so that pages go to the older ones.
    fn plan_running(&mut self, batch: &mut Batch, step: &mut Step, budget: &mut Budget) {
        let mut at = 0;
        while at < self.running.len() {
            let idx = self.running[at];
            at += 1;
            let seq = &mut self.seqs[idx];
            // A sequence that ends by its length with a step in flight is never scheduled past its end.
            if seq.is_returning {
                continue;
            }
            let num_unscheduled = seq.num_unscheduled();
            if num_unscheduled == 1 {
                if seq.num_slots > seq.num_scheduled || self.take_pages(batch, idx, 1, at, budget) > 0 {
                    let is_last = push_decode(batch, step, &mut self.seqs[idx], idx, self.config.page_size);
                    self.num_returning += usize::from(is_last);
                }
                continue;
            }
            let wanted = num_unscheduled.min(budget.tokens);
            let q_len = wanted.min(self.take_pages(batch, idx, wanted, at, budget));
            if q_len > 0 {
                budget.tokens -= q_len;
                self.chunks.push((idx, q_len));
            }
        }
    }

    /// Gives a sequence pages for `wanted` more tokens, as far as there are any, preempting if need be those
    /// that run at `first_victim` and later. Returns for how many tokens it has room now.
    fn take_pages(
        &mut self,
        batch: &mut Batch,
        idx: SeqIdx,
        wanted: usize,
        first_victim: usize,
        budget: &mut Budget,
    ) -> usize {
        loop {
            let seq = &self.seqs[idx];
            let room = seq.num_slots - seq.num_scheduled;
            if room >= wanted {
                return room;
            }
            let Some(page) = self.find_page(first_victim, budget) else { return room };
            self.give_page(batch, idx, page);
        }
    }

    /// A free page, at the cost of cached prefixes and of sequences that run at `first_victim` and later.
    fn find_page(&mut self, first_victim: usize, budget: &mut Budget) -> Option<u32> {
        loop {
            if let Some(page) = self.alloc_page() {
                return Some(page);
            }
            budget.is_short_of_pages = true;
            // Pages are on their way back: no reason to preempt anybody more.
            if self.num_returning > 0 || self.running.len() <= first_victim {
                return None;
            }
            let victim = self.running.pop().expect("a sequence after the first victim");
            self.retract(victim);
        }
    }

    /// A free page, at the cost of a cached prefix.
    pub(super) fn alloc_page(&mut self) -> Option<u32> {
        if let Some(page) = self.pool.alloc() {
            return Some(page);
        }
        self.tree.as_mut()?.evict(1, &mut self.pool);
        self.pool.alloc()
    }

    /// Appends a page to a sequence's list and to its row of the page table.
    pub(super) fn give_page(&mut self, batch: &mut Batch, idx: SeqIdx, page: u32) {
        let seq = &mut self.seqs[idx];
        let update = PageUpdate { row: seq.row, idx: seq.pages.len() as u32, page };
        seq.pages.push(page);
        seq.num_slots += self.config.page_size;
        batch.inputs.page_updates.push(update);
    }

    /// Appends the next `q_len` tokens of a sequence to the batch, and a sample if they reach its end.
    fn push_chunk(&mut self, batch: &mut Batch, step: &mut Step, idx: SeqIdx, q_len: usize) {
        let page_size = self.config.page_size;
        let seq = &mut self.seqs[idx];
        let inputs = &mut batch.inputs;
        let (start, end) = (seq.num_scheduled, seq.num_scheduled + q_len);
        inputs.token_ids.extend(seq.tokens.as_slice()[start..end].iter().map(|&token| token as i32));
        inputs.positions.extend(start as u32..end as u32);
        let mut position = start;
        while position < end {
            let (page, offset) = (seq.pages[position / page_size], position % page_size);
            let run = (page_size - offset).min(end - position);
            let slot = page * page_size as u32 + offset as u32;
            inputs.slots.extend(slot..slot + run as u32);
            seq.next_slot = slot + run as u32;
            position += run;
        }
        if !seq.has_started {
            seq.has_started = true;
            batch.started.push(seq.id);
        }
        push_seq(batch, step, seq, idx, q_len);
        if seq.num_scheduled == seq.planned_len() {
            let is_last = push_sample(batch, seq);
            self.num_returning += usize::from(is_last);
        }
    }
}

/// Appends a sequence's one token that is left to compute to the batch, and a sample: the short way for what nearly
/// every row of nearly every step is. Returns whether the sample is the sequence's last.
#[inline]
fn push_decode(
    batch: &mut Batch,
    step: &mut Step,
    seq: &mut Sequence,
    idx: SeqIdx,
    page_size: usize,
) -> bool {
    let inputs = &mut batch.inputs;
    let position = seq.num_scheduled;
    // Sampled by the step in flight, the token is still on the device.
    let token = seq.tokens.get(position).map_or(-1 - seq.row as i32, |token| token as i32);
    if seq.num_slots - position == page_size {
        let page = *seq.pages.last().expect("a page for the token");
        seq.next_slot = page * page_size as u32;
    }
    inputs.token_ids.push(token);
    inputs.slots.push(seq.next_slot);
    inputs.positions.push(position as u32);
    seq.next_slot += 1;
    push_seq(batch, step, seq, idx, 1);
    push_sample(batch, seq)
}

/// Appends a sample of the batch's last sequence. Returns whether it is the sequence's last.
#[inline]
fn push_sample(batch: &mut Batch, seq: &mut Sequence) -> bool {
    let (seq_row, position) = (seq.row, seq.num_scheduled as u32);
    batch.inputs.samples.push(SampleParams { seq_row, position, ..seq.sample });
    batch.inputs.sample_tokens.push(batch.inputs.token_ids.len() as u32 - 1);
    batch.sampled.push(batch.seqs.len() as u32 - 1);
    seq.num_pending += 1;
    seq.is_returning = seq.planned_len() == seq.max_len;
    seq.is_returning
}

/// Appends a sequence whose `q_len` tokens are in the batch already.
#[inline]
fn push_seq(batch: &mut Batch, step: &mut Step, seq: &mut Sequence, idx: SeqIdx, q_len: usize) {
    seq.num_scheduled += q_len;
    seq.num_in_flight += 1;
    let is_sampled = seq.num_scheduled == seq.planned_len();
    let (row, q_len, kv_len) = (seq.row, q_len as u32, seq.num_scheduled as u32);
    batch.inputs.cu_q_lens.push(batch.inputs.token_ids.len() as u32);
    batch.inputs.kv_lens.push(kv_len);
    batch.inputs.seq_rows.push(row);
    batch.seqs.push(BatchSeq { seq: idx, row, q_len, kv_len });
    step.parts.push(Part { seq: idx, q_len, is_sampled });
}
