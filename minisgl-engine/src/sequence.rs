use std::ops::{Index, IndexMut};

use minisgl_kernels::SampleParams;

use crate::batch::SeqIdx;
use crate::kv::{NodeId, RadixTree, hash_tokens};
use crate::request::{Request, RequestId};
use crate::token_list::TokenList;

/// One completion on its way: what the scheduler knows of it.
///
/// Of its tokens, `num_scheduled` have been handed to the device and `num_committed` of these are known to be in
/// the KV storage; the difference is in flight, as are `num_pending` tokens that were sampled and not yet seen.
///
/// The fields come in the order of how often they are used. With thousands of sequences little counts but the cache lines
/// that a decode step touches: planning the first three of each sequence, committing the first and the third, and its page
/// list and settled tokens only every so many steps. Lines are fetched in pairs, hence the alignment.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct Sequence {
    pub(crate) phase: Phase,
    /// Whether row and pages are known to come back when its last step in flight commits.
    pub(crate) is_returning: bool,
    /// Whether some of `hashes` are announced as being computed.
    pub(crate) is_publishing: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) row: u32,
    /// Uncommitted steps that it is part of.
    pub(crate) num_in_flight: u32,
    pub(crate) num_pending: u32,
    pub(crate) num_scheduled: usize,
    pub(crate) num_committed: usize,
    /// Tokens that it has at most when it ends.
    pub(crate) max_len: usize,
    /// Tokens for which it has pages.
    pub(crate) num_slots: usize,
    /// The slot of token `num_scheduled`, if that is not the first of a page.
    pub(crate) next_slot: u32,
    /// Whether there are `stop_token_ids`, which lie on a line that is not needed otherwise.
    pub(crate) has_stop_token_ids: bool,
    pub(crate) id: RequestId,

    /// How to draw; row and position are filled in for each step.
    pub(crate) sample: SampleParams,
    pub(crate) stop_token_ids: Box<[u32]>,

    /// The prompt, then the output.
    pub(crate) tokens: TokenList,

    pub(crate) num_prompt: usize,
    pub(crate) pages: Vec<u32>,
    /// Place in the order of arrival; kept when the sequence is preempted.
    pub(crate) arrival: u64,
    /// Arrival of the first of the completions that share this prompt, where there are several.
    pub(crate) group: Option<u64>,
    /// Where its locked prefix ends in the tree, and of how many of `pages` that prefix consists.
    pub(crate) node: NodeId,
    pub(crate) num_locked: usize,
    /// `hashes[i]` identifies the tokens of pages `0..=i`; one for each whole page of known tokens at the time it
    /// was queued. Empty without a prefix cache.
    pub(crate) hashes: Vec<u64>,
    /// How many of `hashes` are no longer announced as being computed.
    pub(crate) num_published: usize,

    pub(crate) num_cached_tokens: usize,
    /// Whether a part of it was ever scheduled.
    pub(crate) has_started: bool,
    /// Sequences that arrived later and were admitted earlier.
    pub(crate) num_overtaken: u32,
    /// Cached pages of its prefix as of a version of the tree. Some of them may have been evicted since: good enough to
    /// choose by, and far cheaper than to look again after every eviction.
    pub(crate) cached_hint: (u64, usize),
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// In the queue: no row, no page.
    Waiting,
    /// Holds a row.
    Running,
    /// Preempted while a step was in flight: back to the queue when it commits.
    Retracting,
    /// Reported as ended; its last step is still in flight.
    Ended,
}

impl Sequence {
    pub(crate) fn new(request: &Request, id: RequestId, arrival: u64, max_len: usize, seed: u64) -> Self {
        let params = &request.params;
        Self {
            phase: Phase::Waiting,
            is_returning: false,
            is_publishing: false,
            ignore_eos: params.ignore_eos,
            row: 0,
            num_in_flight: 0,
            num_pending: 0,
            num_scheduled: 0,
            num_committed: 0,
            max_len,
            num_slots: 0,
            next_slot: 0,
            has_stop_token_ids: !params.stop_token_ids.is_empty(),
            id,
            sample: SampleParams {
                seq_row: 0,
                position: 0,
                seed,
                temperature: params.temperature,
                top_k: params.top_k,
                top_p: params.top_p,
                min_p: params.min_p,
                presence_penalty: params.presence_penalty,
                frequency_penalty: params.frequency_penalty,
                repetition_penalty: params.repetition_penalty,
                num_logprobs: params.logprobs.map_or(-1, |n| n as i32),
            },
            stop_token_ids: params.stop_token_ids.clone().into_boxed_slice(),
            tokens: TokenList::new(request.token_ids.clone()),
            num_prompt: request.token_ids.len(),
            pages: Vec::new(),
            arrival,
            group: None,
            node: RadixTree::ROOT,
            num_locked: 0,
            hashes: Vec::new(),
            num_published: 0,
            num_cached_tokens: 0,
            has_started: false,
            num_overtaken: 0,
            cached_hint: (u64::MAX, 0),
        }
    }

    /// Tokens that it will have once the steps in flight commit.
    #[inline]
    pub(crate) fn planned_len(&self) -> usize {
        self.tokens.len() + self.num_pending as usize
    }

    /// Tokens still to be computed before the next one can be sampled; 0 when nothing is left to schedule.
    #[inline]
    pub(crate) fn num_unscheduled(&self) -> usize {
        self.planned_len() - self.num_scheduled
    }

    /// Pages that a cached prefix can have: its last token is always computed, for its logits.
    pub(crate) fn max_cached_pages(&self, page_size: usize) -> usize {
        (self.tokens.len() - 1) / page_size
    }

    /// Extends `hashes` to every whole page of the known tokens.
    pub(crate) fn hash_pages(&mut self, page_size: usize) {
        let (done, pages) = (self.hashes.len(), self.tokens.as_slice().chunks_exact(page_size));
        let mut hash = self.hashes.last().copied().unwrap_or(0);
        self.hashes.extend(pages.skip(done).map(|page| {
            hash = hash_tokens(hash, page);
            hash
        }));
    }
}

/// Live sequences by index. An index is reused after its sequence's end.
///
/// They lie in chunks, side by side, because a step walks over all that run; a chunk without a live sequence holds
/// no memory, so that a burst of a million requests is not paid for afterwards.
#[derive(Debug, Default)]
pub(crate) struct SeqStore {
    chunks: Vec<Chunk>,
    /// Chunks with a vacant slot.
    open: Vec<usize>,
    len: usize,
}

const CHUNK: usize = 64;

#[derive(Debug, Default)]
struct Chunk {
    /// `CHUNK` slots, or none.
    slots: Box<[Option<Sequence>]>,
    /// A bit for each slot that is taken.
    taken: u64,
}

impl SeqStore {
    pub(crate) fn insert(&mut self, seq: Sequence) -> SeqIdx {
        let at = self.open.last().copied().unwrap_or_else(|| {
            self.chunks.push(Chunk::default());
            self.open.push(self.chunks.len() - 1);
            self.chunks.len() - 1
        });
        let chunk = &mut self.chunks[at];
        if chunk.slots.is_empty() {
            chunk.slots = (0..CHUNK).map(|_| None).collect();
        }
        let slot = chunk.taken.trailing_ones() as usize;
        chunk.slots[slot] = Some(seq);
        chunk.taken |= 1 << slot;
        if chunk.taken == u64::MAX {
            self.open.pop();
        }
        self.len += 1;
        SeqIdx((at * CHUNK + slot) as u32)
    }

    pub(crate) fn remove(&mut self, idx: SeqIdx) {
        let (at, slot) = split(idx);
        let chunk = &mut self.chunks[at];
        let seq = chunk.slots[slot].take();
        assert!(seq.is_some(), "sequence {} is removed twice", idx.0);
        if chunk.taken == u64::MAX {
            self.open.push(at);
        }
        chunk.taken &= !(1 << slot);
        if chunk.taken == 0 {
            chunk.slots = Box::default();
        }
        self.len -= 1;
    }

    pub(crate) fn get(&self, idx: SeqIdx) -> Option<&Sequence> {
        let (at, slot) = split(idx);
        self.chunks.get(at)?.slots.get(slot)?.as_ref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SeqIdx, &Sequence)> {
        let indices = (0..self.chunks.len() * CHUNK).map(|idx| SeqIdx(idx as u32));
        let is_taken = move |&idx: &SeqIdx| {
            let (at, slot) = split(idx);
            (self.chunks[at].taken >> slot) & 1 == 1
        };
        indices.filter(is_taken).map(|idx| (idx, &self[idx]))
    }

    /// Slots that hold memory, taken or not.
    #[cfg(test)]
    pub(crate) fn num_slots(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.slots.len()).sum()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[inline]
fn split(idx: SeqIdx) -> (usize, usize) {
    (idx.0 as usize / CHUNK, idx.0 as usize % CHUNK)
}

impl Index<SeqIdx> for SeqStore {
    type Output = Sequence;

    #[inline]
    fn index(&self, idx: SeqIdx) -> &Sequence {
        let (at, slot) = split(idx);
        self.chunks[at].slots[slot].as_ref().expect("the index of a live sequence")
    }
}

impl IndexMut<SeqIdx> for SeqStore {
    #[inline]
    fn index_mut(&mut self, idx: SeqIdx) -> &mut Sequence {
        let (at, slot) = split(idx);
        self.chunks[at].slots[slot].as_mut().expect("the index of a live sequence")
    }
}
