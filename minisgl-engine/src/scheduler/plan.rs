use minisgl_kernels::PageUpdate;

use super::{MAX_STEPS_IN_FLIGHT, Part, Scheduler};
use crate::batch::{Batch, BatchSeq, SeqIdx};
use crate::sequence::Phase;

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
        let mut budget = Budget { tokens: self.config.max_extend_tokens, is_short_of_pages: false };
        self.plan_running(batch, &mut budget);
        if !budget.is_short_of_pages {
            self.admit(batch, &mut budget);
        }
        let mut chunks = std::mem::take(&mut self.chunks);
        for (seq, q_len) in chunks.drain(..) {
            self.totals.prompt_tokens += q_len as u64;
            self.push(batch, seq, q_len);
        }
        self.chunks = chunks;
        if batch.seqs.is_empty() {
            return false;
        }
        let every_seq_samples = batch.sampled.len() == batch.seqs.len();
        batch.is_decode = every_seq_samples && batch.inputs.num_tokens() == batch.seqs.len();

        let mut step = self.spare_steps.pop().unwrap_or_default();
        step.parts.clear();
        let mut sampled = batch.sampled.iter().peekable();
        for (i, part) in batch.seqs.iter().enumerate() {
            let is_sampled = sampled.next_if(|&&s| s as usize == i).is_some();
            step.parts.push(Part { seq: part.seq, q_len: part.q_len, is_sampled });
        }
        self.in_flight.push_back(step);
        self.totals.steps += 1;
        true
    }

    /// Gives the running sequences their tokens, first admitted first, so that pages go to the older ones.
    fn plan_running(&mut self, batch: &mut Batch, budget: &mut Budget) {
        let mut at = 0;
        while at < self.running.len() {
            let idx = self.running[at];
            at += 1;
            let seq = &self.seqs[idx];
            // A sequence that ends by its length with a step in flight is never scheduled past its end.
            if seq.is_returning {
                continue;
            }
            let num_unscheduled = seq.num_unscheduled();
            let is_decode = num_unscheduled == 1;
            let wanted = if is_decode { 1 } else { num_unscheduled.min(budget.tokens) };
            let room = self.take_pages(batch, idx, wanted, at, budget);
            let q_len = wanted.min(room);
            if q_len == 0 {
                continue;
            }
            if is_decode {
                self.push(batch, idx, 1);
            } else {
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
        let page_size = self.config.page_size;
        loop {
            let seq = &self.seqs[idx];
            let room = seq.pages.len() * page_size - seq.num_scheduled;
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
        batch.inputs.page_updates.push(update);
    }

    /// Appends the next `q_len` tokens of a sequence to the batch, and a sample if they reach its end.
    fn push(&mut self, batch: &mut Batch, idx: SeqIdx, q_len: usize) {
        let page_size = self.config.page_size;
        let seq = &mut self.seqs[idx];
        debug_assert_eq!(seq.phase, Phase::Running);
        let inputs = &mut batch.inputs;
        let (start, end) = (seq.num_scheduled, seq.num_scheduled + q_len);
        let known = seq.tokens.get(start..end.min(seq.tokens.len())).unwrap_or(&[]);
        inputs.token_ids.extend(known.iter().map(|&token| token as i32));
        if end > seq.tokens.len() {
            // Sampled by the step in flight and still on the device.
            inputs.token_ids.push(-1 - seq.row as i32);
        }
        let mut position = start;
        while position < end {
            let (page, offset) = (seq.pages[position / page_size], position % page_size);
            let run = (page_size - offset).min(end - position);
            let slot = page * page_size as u32 + offset as u32;
            inputs.slots.extend(slot..slot + run as u32);
            inputs.positions.extend(position as u32..(position + run) as u32);
            position += run;
        }
        inputs.cu_q_lens.push(inputs.token_ids.len() as u32);
        inputs.kv_lens.push(end as u32);
        inputs.seq_rows.push(seq.row);
        seq.num_scheduled = end;
        seq.num_in_flight += 1;
        if end == seq.planned_len() {
            let mut sample = seq.sample;
            sample.seq_row = seq.row;
            sample.position = end as u32;
            inputs.samples.push(sample);
            inputs.sample_tokens.push(inputs.token_ids.len() as u32 - 1);
            batch.sampled.push(batch.seqs.len() as u32);
            seq.num_pending += 1;
            if seq.planned_len() == seq.max_len {
                seq.is_returning = true;
                self.num_returning += 1;
            }
        }
        batch.seqs.push(BatchSeq { seq: idx, row: seq.row, q_len: q_len as u32, kv_len: end as u32 });
        if !seq.has_started {
            seq.has_started = true;
            batch.started.push(seq.id);
        }
    }
}
