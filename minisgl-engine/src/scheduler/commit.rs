use minisgl_kernels::Samples;

use super::{Scheduler, Update};
use crate::batch::SeqIdx;
use crate::request::FinishReason;
use crate::sequence::Phase;

impl Scheduler {
    /// Takes in the results of the oldest step in flight: `samples.tokens[i]` is the token of its `i`-th sample.
    /// What happened to its requests is appended to `updates`.
    ///
    /// # Panics
    /// If no step is in flight, or `samples` has fewer tokens than the step has samples.
    pub fn commit(&mut self, samples: &Samples, updates: &mut Vec<Update>) {
        let step = self.in_flight.pop_front().expect("a step in flight to commit");
        let mut sample_idx = 0;
        let mut has_ended = false;
        for part in &step.parts {
            let seq = &mut self.seqs[part.seq];
            seq.num_in_flight -= 1;
            seq.num_committed += part.q_len as usize;
            if part.is_sampled {
                seq.num_pending -= 1;
                let token = samples.tokens[sample_idx];
                if seq.phase != Phase::Ended {
                    has_ended |= self.take_token(part.seq, sample_idx, token, updates);
                }
                sample_idx += 1;
            }
            self.after_step(part.seq);
        }
        if has_ended {
            let Self { running, seqs, .. } = self;
            running.retain(|&idx| seqs.get(idx).is_some_and(|seq| seq.phase == Phase::Running));
        }
        self.spare_steps.push(step);
    }

    /// Appends a sampled token to its sequence; returns whether that ended it.
    fn take_token(&mut self, idx: SeqIdx, sample_idx: usize, token: u32, updates: &mut Vec<Update>) -> bool {
        let seq = &mut self.seqs[idx];
        let id = seq.id;
        if token == u32::MAX {
            updates.push(Update::NotFinite { id, position: seq.tokens.len() });
            // Its pages may hold what spoilt the logits: nothing more of it enters the cache.
            seq.tokens.truncate(seq.num_locked * self.config.page_size);
            self.end(idx);
            return true;
        }
        debug_assert!((token as usize) < self.config.vocab, "token {token} is outside of the vocabulary");
        seq.tokens.push(token);
        let is_eos = !seq.ignore_eos && self.config.eos_token_ids.contains(&token);
        let reason = if is_eos || seq.stop_token_ids.contains(&token) {
            FinishReason::Stop
        } else {
            self.totals.output_tokens += 1;
            updates.push(Update::Token { id, token, sample_idx });
            if seq.tokens.len() < seq.max_len {
                return false;
            }
            FinishReason::Length
        };
        let (used, allowed) = (seq.tokens.len() - seq.num_prompt, seq.max_len - seq.num_prompt);
        self.output_share = (15 * self.output_share + used * 1024 / allowed + 8) / 16;
        updates.push(self.finished(idx, reason));
        self.end(idx);
        true
    }

    /// What a committed step makes possible for a sequence that was part of it.
    fn after_step(&mut self, idx: SeqIdx) {
        let Some(seq) = self.seqs.get(idx) else { return };
        match seq.phase {
            Phase::Running if seq.is_publishing => self.publish(idx),
            Phase::Retracting if seq.num_in_flight == 0 => self.requeue(idx),
            Phase::Ended if seq.num_in_flight == 0 => self.discard(idx),
            _ => {}
        }
    }

    /// Puts the whole pages of the prompt that are computed by now into the cache.
    fn publish(&mut self, idx: SeqIdx) {
        let Some(tree) = &mut self.tree else { return };
        let seq = &mut self.seqs[idx];
        let num_pages = (seq.num_committed / self.config.page_size).min(seq.hashes.len());
        let pages = &seq.pages[..num_pages];
        (seq.node, seq.num_locked) =
            tree.extend(seq.node, seq.num_locked, &seq.tokens, pages, &mut self.pool);
        self.no_longer_computing(idx, num_pages);
    }
}
