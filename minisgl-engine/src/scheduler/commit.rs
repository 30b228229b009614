use minisgl_kernels::Samples;

use super::{Part, Scheduler, Update};
use crate::batch::SeqIdx;
use crate::request::FinishReason;
use crate::sequence::{Phase, Sequence};

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
        for &Part { seq: idx, q_len, is_sampled } in &step.parts {
            let seq = &mut self.seqs[idx];
            seq.num_in_flight -= 1;
            seq.num_committed += q_len as usize;
            if is_sampled {
                let token = samples.tokens[sample_idx];
                seq.num_pending -= 1;
                if seq.phase != Phase::Ended {
                    let verdict = take_token(seq, token, &self.config.eos_token_ids);
                    if matches!(verdict, Verdict::GoesOn | Verdict::Length) {
                        self.totals.output_tokens += 1;
                        updates.push(Update::Token { id: seq.id, token, sample_idx });
                    }
                    if verdict == Verdict::GoesOn && seq.phase == Phase::Running && !seq.is_publishing {
                        sample_idx += 1;
                        continue;
                    }
                    has_ended |= self.conclude(idx, verdict, updates);
                }
                sample_idx += 1;
            }
            self.after_step(idx);
        }
        if has_ended {
            let Self { running, seqs, .. } = self;
            running.retain(|&idx| seqs.get(idx).is_some_and(|seq| seq.phase == Phase::Running));
        }
        self.spare_steps.push(step);
    }

    /// Ends a sequence if `verdict` says so; returns whether it does.
    fn conclude(&mut self, idx: SeqIdx, verdict: Verdict, updates: &mut Vec<Update>) -> bool {
        let seq = &mut self.seqs[idx];
        let reason = match verdict {
            Verdict::GoesOn => return false,
            Verdict::Stop => FinishReason::Stop,
            Verdict::Length => FinishReason::Length,
            Verdict::NotFinite => {
                updates.push(Update::NotFinite { id: seq.id, position: seq.tokens.len() });
                // Its pages may hold what spoilt the logits: nothing more of it enters the cache.
                seq.tokens.truncate(seq.num_locked * self.config.page_size);
                self.end(idx);
                return true;
            }
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
            tree.extend(seq.node, seq.num_locked, seq.tokens.as_slice(), pages, &mut self.pool);
        self.no_longer_computing(idx, num_pages);
    }
}

/// What a sampled token means for its sequence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    GoesOn,
    Stop,
    Length,
    NotFinite,
}

/// Appends a sampled token to its sequence.
#[inline]
fn take_token(seq: &mut Sequence, token: u32, eos_token_ids: &[u32]) -> Verdict {
    if token == u32::MAX {
        return Verdict::NotFinite;
    }
    seq.tokens.push(token);
    let is_eos = !seq.ignore_eos && eos_token_ids.contains(&token);
    if is_eos || (seq.has_stop_token_ids && seq.stop_token_ids.contains(&token)) {
        Verdict::Stop
    } else if seq.tokens.len() == seq.max_len {
        Verdict::Length
    } else {
        Verdict::GoesOn
    }
}
