use minisgl_kernels::{CountReset, PageUpdate};

use super::plan::Budget;
use super::{LOOKAHEAD, MAX_OVERTAKEN, Scheduler};
use crate::batch::{Batch, SeqIdx};
use crate::kv::RadixTree;
use crate::sequence::{Phase, Sequence};

impl Scheduler {
    /// Admits waiting requests while prompt tokens, rows and pages last.
    pub(super) fn admit(&mut self, batch: &mut Batch, budget: &mut Budget) {
        if budget.tokens == 0 || self.free_rows.is_empty() || self.waiting.len() == 0 {
            return;
        }
        // Nothing in here changes what those that run already are expected to need.
        let mut num_reserved = self.num_reserved_pages();
        while budget.tokens > 0 && !self.free_rows.is_empty() {
            let Some(at) = self.choose() else { break };
            let idx = self.waiting.get(at).expect("the chosen one waits");
            if !self.try_admit(batch, budget, idx, num_reserved) {
                break;
            }
            num_reserved += self.num_expected_pages(idx);
            for before in 0..at {
                let other = self.waiting.get(before).expect("a place before the chosen one");
                if !self.must_wait(other) {
                    self.seqs[other].num_overtaken += 1;
                }
            }
            self.waiting.remove(self.seqs[idx].arrival);
        }
    }

    /// The place in the queue of the request to admit next.
    fn choose(&mut self) -> Option<usize> {
        let mut best = None;
        for at in 0..LOOKAHEAD {
            let Some(idx) = self.waiting.get(at) else { break };
            if self.must_wait(idx) {
                continue;
            }
            if self.seqs[idx].num_overtaken >= MAX_OVERTAKEN {
                return Some(at);
            }
            let num_cached = self.num_cached_pages(idx);
            if best.is_none_or(|(_, most)| num_cached > most) {
                best = Some((at, num_cached));
            }
        }
        best.map(|(at, _)| at)
    }

    /// Whether a request's next pages are being computed by a running sequence.
    fn must_wait(&mut self, idx: SeqIdx) -> bool {
        if self.is_sharing(idx) && self.sibling(idx).is_none() {
            let group = self.seqs[idx].group.and_then(|group| self.groups.get(&group));
            if group.is_some_and(|group| !group.running.is_empty()) {
                return true;
            }
        }
        let num_cached = self.num_cached_pages(idx);
        let seq = &self.seqs[idx];
        num_cached < seq.max_cached_pages(self.config.page_size)
            && seq.hashes.get(num_cached).is_some_and(|hash| self.computing.contains_key(hash))
    }

    fn num_cached_pages(&mut self, idx: SeqIdx) -> usize {
        let Some(tree) = &self.tree else { return 0 };
        let seq = &mut self.seqs[idx];
        if seq.cached_hint.0 != tree.version() {
            let max_pages = seq.max_cached_pages(self.config.page_size);
            let num_cached = tree.num_cached(seq.tokens.as_slice(), max_pages);
            seq.cached_hint = (tree.version(), num_cached);
        }
        seq.cached_hint.1
    }

    /// Whether a request is one of several completions and has not generated anything yet.
    fn is_sharing(&self, idx: SeqIdx) -> bool {
        let seq = &self.seqs[idx];
        seq.group.is_some() && seq.tokens.len() == seq.num_prompt
    }

    /// A running completion of the same prompt whose prompt is in the KV storage.
    fn sibling(&self, idx: SeqIdx) -> Option<&Sequence> {
        let seq = &self.seqs[idx];
        let group = self.groups.get(&seq.group?)?;
        let siblings = group.running.iter().map(|&sibling| &self.seqs[sibling]);
        siblings.into_iter().find(|s| s.phase == Phase::Running && s.num_committed >= seq.num_prompt)
    }

    /// Gives a waiting request a row, its cached prefix and pages for its first chunk, unless pages are short:
    /// `num_reserved` of those available are for the sequences that run.
    fn try_admit(
        &mut self,
        batch: &mut Batch,
        budget: &mut Budget,
        idx: SeqIdx,
        num_reserved: usize,
    ) -> bool {
        let page_size = self.config.page_size;
        let seq = &mut self.seqs[idx];
        debug_assert!(seq.pages.is_empty() && seq.num_in_flight == 0);
        let max_cached_pages = seq.max_cached_pages(page_size);
        if let Some(tree) = &mut self.tree {
            seq.node = tree.lock_prefix(seq.tokens.as_slice(), max_cached_pages, &mut seq.pages);
            seq.num_locked = seq.pages.len();
            seq.pages.iter().for_each(|&page| self.pool.hold(page));
        }
        let num_cached_pages = seq.pages.len();
        seq.num_slots = num_cached_pages * page_size;

        let is_alone = self.running.is_empty() && self.num_returning == 0;
        if !is_alone && num_reserved + self.num_expected_pages(idx) > self.num_available_pages() {
            self.let_go(idx);
            return false;
        }

        let row = self.free_rows.pop().expect("a free row");
        let seq = &mut self.seqs[idx];
        seq.row = row;
        seq.phase = Phase::Running;
        let (num_pages, num_tokens) = (seq.max_len.div_ceil(page_size), seq.max_len);
        seq.pages.reserve(num_pages.min(256).saturating_sub(seq.pages.len()));
        seq.tokens.reserve(num_tokens.min(4096));
        for page_idx in 0..num_cached_pages {
            let page = seq.pages[page_idx];
            let update = PageUpdate { row, idx: page_idx as u32, page };
            batch.inputs.page_updates.push(update);
        }
        seq.num_scheduled = num_cached_pages * page_size;
        seq.num_committed = seq.num_scheduled;
        if self.is_sharing(idx) && (self.tree.is_none() || num_cached_pages == max_cached_pages) {
            self.share_pages(batch, idx);
        }

        let seq = &mut self.seqs[idx];
        if !seq.has_started {
            seq.num_cached_tokens = seq.num_scheduled;
            self.totals.prefix_lookup_tokens += seq.num_prompt as u64;
            self.totals.prefix_hit_tokens += seq.num_scheduled as u64;
        }
        if seq.sample.has_penalties() {
            let (num_prompt, tokens) = (seq.num_prompt as u32, seq.tokens.as_slice().to_vec());
            batch.inputs.count_resets.push(CountReset { row, num_prompt, tokens });
        }
        seq.num_published = seq.num_scheduled / page_size;
        seq.is_publishing = seq.num_published < seq.hashes.len();
        for &hash in seq.hashes.iter().skip(seq.num_published) {
            *self.computing.entry(hash).or_insert(0) += 1;
        }
        if let Some(group) = seq.group {
            self.groups.get_mut(&group).expect("the group of a live sequence").running.push(idx);
        }
        self.running.push(idx);

        let wanted = seq.num_unscheduled().min(budget.tokens);
        while self.seqs[idx].num_slots < self.seqs[idx].num_scheduled + wanted {
            let Some(page) = self.alloc_page() else { break };
            self.give_page(batch, idx, page);
        }
        let seq = &self.seqs[idx];
        let q_len = wanted.min(seq.num_slots - seq.num_scheduled);
        assert!(q_len > 0, "an admitted request gets a page");
        budget.tokens -= q_len;
        self.chunks.push((idx, q_len));
        true
    }

    /// Shares a sibling's whole pages of all prompt tokens but the last, and copies the page in which they end.
    fn share_pages(&mut self, batch: &mut Batch, idx: SeqIdx) {
        let page_size = self.config.page_size;
        let Some(sibling) = self.sibling(idx) else { return };
        let num_shared_tokens = sibling.num_prompt - 1;
        let num_whole = num_shared_tokens / page_size;
        let first = self.seqs[idx].pages.len();
        let shared: Vec<u32> = sibling.pages[first..num_whole].to_vec();
        let partial = (!num_shared_tokens.is_multiple_of(page_size)).then(|| sibling.pages[num_whole]);
        let copy = match partial {
            Some(page) => match self.alloc_page() {
                Some(copy) => Some((page, copy)),
                None => return,
            },
            None => None,
        };
        for page in shared {
            self.pool.hold(page);
            self.give_page(batch, idx, page);
        }
        if let Some((from, to)) = copy {
            batch.inputs.page_copies.push((from, to));
            self.give_page(batch, idx, to);
        }
        let seq = &mut self.seqs[idx];
        seq.num_scheduled = num_shared_tokens;
        seq.num_committed = num_shared_tokens;
    }

    /// Pages that can be had without taking them from a sequence.
    fn num_available_pages(&self) -> usize {
        self.pool.num_free() + self.tree.as_ref().map_or(0, RadixTree::num_evictable_pages)
    }

    /// Pages that the running sequences are expected to need beyond those that they hold.
    fn num_reserved_pages(&self) -> usize {
        self.running.iter().map(|&idx| self.num_expected_pages(idx)).sum()
    }

    /// Pages that a sequence is expected to need beyond those that it holds.
    fn num_expected_pages(&self, idx: SeqIdx) -> usize {
        let seq = &self.seqs[idx];
        let len = seq.planned_len();
        let num_new = ((seq.max_len - len) * self.output_share).div_ceil(1024);
        // The last token is never computed.
        let num_computed = (len + num_new).min(seq.max_len - 1);
        num_computed.div_ceil(self.config.page_size).saturating_sub(seq.pages.len())
    }
}
