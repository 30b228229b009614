use super::{Scheduler, Update};
use crate::batch::SeqIdx;
use crate::request::FinishReason;
use crate::sequence::Phase;

impl Scheduler {
    pub(super) fn finished(&self, idx: SeqIdx, reason: FinishReason) -> Update {
        let seq = &self.seqs[idx];
        Update::Finished { id: seq.id, reason, num_cached_tokens: seq.num_cached_tokens }
    }

    /// Ends a sequence; a running one is no longer listed as such, or will not be soon. It is gone at once if no
    /// step in flight uses it, else when the last of these commits.
    pub(super) fn end(&mut self, idx: SeqIdx) {
        let seq = &mut self.seqs[idx];
        self.by_id.remove(&seq.id);
        if seq.phase == Phase::Waiting {
            self.waiting.remove(seq.arrival);
            self.remove(idx);
            return;
        }
        seq.phase = Phase::Ended;
        self.await_return(idx);
        if self.seqs[idx].num_in_flight == 0 {
            self.discard(idx);
        }
    }

    /// Puts a sequence that is no longer listed as running back into the queue, at once if no step in flight uses
    /// it, else when the last of these commits.
    pub(super) fn retract(&mut self, idx: SeqIdx) {
        self.totals.preemptions += 1;
        self.output_share = (self.output_share + 128).min(1024);
        let seq = &mut self.seqs[idx];
        seq.phase = Phase::Retracting;
        self.await_return(idx);
        if self.seqs[idx].num_in_flight == 0 {
            self.requeue(idx);
        }
    }

    /// Counts a sequence among those whose row and pages come back.
    fn await_return(&mut self, idx: SeqIdx) {
        let seq = &mut self.seqs[idx];
        self.num_returning += usize::from(!std::mem::replace(&mut seq.is_returning, true));
        if let Some(group) = seq.group.and_then(|group| self.groups.get_mut(&group)) {
            group.running.retain(|&other| other != idx);
        }
    }

    /// Forgets a sequence that no step in flight uses.
    pub(super) fn discard(&mut self, idx: SeqIdx) {
        self.release(idx);
        self.remove(idx);
    }

    /// Puts a sequence that no step in flight uses back into the queue. What it computed waits in the cache.
    pub(super) fn requeue(&mut self, idx: SeqIdx) {
        self.release(idx);
        let has_tree = self.tree.is_some();
        let seq = &mut self.seqs[idx];
        seq.phase = Phase::Waiting;
        seq.cached_hint.0 = u64::MAX;
        if has_tree {
            seq.hash_pages(self.config.page_size);
        }
        self.waiting.push(seq.arrival, idx);
    }

    /// Takes row and pages of a sequence back. What is computed of it enters the cache.
    fn release(&mut self, idx: SeqIdx) {
        let num_hashes = self.seqs[idx].hashes.len();
        self.no_longer_computing(idx, num_hashes);
        let seq = &mut self.seqs[idx];
        assert_eq!(seq.num_in_flight, 0, "pages of a sequence in flight do not come back");
        if let Some(tree) = &mut self.tree {
            // The last token in flight may have been computed and never been seen.
            let num_computed = seq.num_committed.min(seq.tokens.len());
            let pages = &seq.pages[..num_computed / self.config.page_size];
            tree.finish(seq.node, seq.num_locked, seq.tokens.as_slice(), pages, &mut self.pool);
            seq.node = crate::kv::RadixTree::ROOT;
            seq.num_locked = 0;
        }
        seq.pages.drain(..).for_each(|page| self.pool.release(page));
        (seq.num_slots, seq.num_scheduled, seq.num_committed, seq.num_published) = (0, 0, 0, 0);
        self.free_rows.push(seq.row);
        seq.is_returning = false;
        self.num_returning -= 1;
    }

    /// Takes back the lock and the holds of a request that is not admitted after all.
    pub(super) fn let_go(&mut self, idx: SeqIdx) {
        let seq = &mut self.seqs[idx];
        if let Some(tree) = &mut self.tree {
            tree.unlock(std::mem::replace(&mut seq.node, crate::kv::RadixTree::ROOT));
        }
        (seq.num_locked, seq.num_slots) = (0, 0);
        seq.pages.drain(..).for_each(|page| self.pool.release(page));
    }

    /// Withdraws the announcement that a sequence computes its pages up to `num_pages`.
    pub(super) fn no_longer_computing(&mut self, idx: SeqIdx, num_pages: usize) {
        let seq = &mut self.seqs[idx];
        let first = seq.num_published.min(num_pages);
        for hash in &seq.hashes[first..num_pages] {
            let count = self.computing.get_mut(hash).expect("an announced page");
            *count -= 1;
            if *count == 0 {
                self.computing.remove(hash);
            }
        }
        seq.num_published = seq.num_published.max(num_pages);
        seq.is_publishing = seq.num_published < seq.hashes.len();
    }

    fn remove(&mut self, idx: SeqIdx) {
        if let Some(key) = self.seqs[idx].group {
            let group = self.groups.get_mut(&key).expect("the group of a live sequence");
            group.num_live -= 1;
            if group.num_live == 0 {
                self.groups.remove(&key);
            }
        }
        self.seqs.remove(idx);
    }
}
