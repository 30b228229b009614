//! Decides what each step computes: which sequences, how many tokens of each, in which pages.
//!
//! The scheduler is a state machine over integers. It has no clock and no thread, and knows neither tensors nor
//! text. [`Scheduler::schedule`] plans a step from what is certain before any result of the step in flight is
//! known; [`Scheduler::commit`] takes the oldest step's tokens in. At most [`MAX_STEPS_IN_FLIGHT`] steps are
//! planned and not committed, so a sequence that turns out to have ended wastes at most one row of one step.
//!
//! # A step
//!
//! 1. Every running sequence that has one token left to compute (decode) gets it, whatever else is in the step.
//! 2. Running sequences with more to compute (prefill) get the next chunk of it, in the order of admission,
//!    until the step has `max_extend_tokens` prompt tokens.
//! 3. Waiting requests are admitted while prompt tokens, rows and pages last.
//!
//! All of it runs in one step. **Decode does not starve:** a stream of prompts can lengthen a step, by at most
//! `max_extend_tokens` tokens, and can not keep a sequence in decode out of it. **Prefill does not starve:**
//! decode rows take nothing from the prompt budget, so a prompt with `p` tokens ahead of it among the admitted is
//! computed after `(p + its own length) / max_extend_tokens` steps, rounded up, plus those in which it had to
//! wait for pages. **Waiting does not starve:** among the first [`LOOKAHEAD`] waiting requests the one with the
//! longest cached prefix is admitted first, but one that was overtaken [`MAX_OVERTAKEN`] times is not overtaken
//! again, and nothing is admitted past a request that was chosen and has to wait for pages.
//!
//! # Admission and preemption
//!
//! Admission reserves what requests are likely to need, not their `max_tokens` in full: the rest of the prompt,
//! and of the output that is allowed a share that is learned from the requests that ended (and raised by an
//! eighth whenever it turns out too small). When a sequence needs a page and there is none, cached prefixes are
//! evicted, least recently used first; when there are none left, the sequence that was admitted last goes back to
//! its place in the queue, and its pages stay in the cache as a prefix until they are needed. Pages of a sequence
//! in flight come back when its last step commits, never before; until then whoever needs them waits.
//!
//! **Some sequence always progresses.** Consider the running sequence admitted first. Sequences are preempted
//! only for one admitted before them, so it is never preempted. When it needs a page, every sequence admitted
//! later can be preempted for it, at once or as soon as a step in flight commits; after that every cached page
//! that is not its own can be evicted. A request is refused by [`Scheduler::validate`] unless the pool holds its
//! prompt and a token, and its length is clamped to the pool, so the page is there. Hence it ends after finitely
//! many steps, and the next one is the first. When none is running, the request that is chosen is admitted
//! without a reservation: the same argument gives it its pages.
//!
//! # Prefix cache
//!
//! Whole pages of a prompt enter the cache when the step that computes them commits, so that no hit can meet a
//! page that is not computed; those of the output enter when the sequence ends or is preempted. A waiting request
//! whose next page is being computed by a running one waits for it: the pages are computed and stored once, and
//! the wait is at most the other's prefill, which is what computing them again would take. The last token of a
//! prompt is always computed, for its logits. Several completions of one prompt share its pages, in the cache or
//! without one; the page in which the prompt ends is copied, because each continues it in its own way.

mod admit;
mod check;
mod commit;
mod config;
mod plan;
mod queue;
mod release;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::{HashMap, VecDeque};

pub use config::SchedulerConfig;
use queue::Queue;

use crate::batch::SeqIdx;
use crate::config::CacheType;
use crate::error::{EngineError, Result};
use crate::kv::{KeyIsHash, PagePool, RadixTree};
use crate::request::{FinishReason, Request, RequestId};
use crate::sequence::{Phase, SeqStore, Sequence};

/// Steps that can be planned and not yet committed: one on the device, one planned meanwhile.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;

/// Waiting requests among which the longest cached prefix goes first.
pub const LOOKAHEAD: usize = 32;

/// How often a waiting request is overtaken by later ones at most.
pub const MAX_OVERTAKEN: u32 = 64;

/// The scheduler half of an engine; see the module for its policy.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    /// Longest sequence of the model or the pool, whichever is less.
    max_seq_len: usize,
    seqs: SeqStore,
    by_id: HashMap<RequestId, SeqIdx>,
    waiting: Queue,
    /// Sequences in `Phase::Running` in the order of admission.
    running: Vec<SeqIdx>,
    /// Completions of one prompt, by the arrival of the first.
    groups: HashMap<u64, Group>,
    in_flight: VecDeque<Step>,
    /// Committed steps, for their memory.
    spare_steps: Vec<Step>,

    pool: PagePool,
    tree: Option<RadixTree>,
    free_rows: Vec<u32>,
    /// Pages that running sequences compute, by the hash of the prefix that they end.
    computing: HashMap<u64, u32, KeyIsHash>,
    /// Sequences whose row and pages come back when a step in flight commits.
    num_returning: usize,
    /// Share of the allowed output that a request is expected to use, in 1/1024.
    output_share: usize,
    next_arrival: u64,
    /// Prompt chunks of the step being planned.
    chunks: Vec<(SeqIdx, usize)>,
    totals: Totals,
}

/// A planned step that is not committed yet.
#[derive(Debug, Default)]
struct Step {
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    seq: SeqIdx,
    q_len: u32,
    is_sampled: bool,
}

/// Live completions of one prompt.
#[derive(Debug, Default)]
struct Group {
    num_live: usize,
    running: Vec<SeqIdx>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    prefix_lookup_tokens: u64,
    prefix_hit_tokens: u64,
    preemptions: u64,
    steps: u64,
    prompt_tokens: u64,
    output_tokens: u64,
}

/// What [`Scheduler::commit`] and [`Scheduler::abort`] report, in the order in which it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// One more token of an output.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// Which of the step's samples it is: where its log probabilities are.
        sample_idx: usize,
    },
    /// The end of an output. Nothing more is reported for this request.
    Finished {
        /// The request.
        id: RequestId,
        /// Why.
        reason: FinishReason,
        /// Prompt tokens that did not have to be computed.
        num_cached_tokens: usize,
    },
    /// The end of a request for which the model produced no finite logit. Nothing more is reported for it.
    NotFinite {
        /// The request.
        id: RequestId,
        /// Position of the token that could not be sampled.
        position: usize,
    },
}

/// Where sequences and pages are, and sums since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sequences that hold a page-table row.
    pub num_running: usize,
    /// Sequences that wait for one.
    pub num_waiting: usize,
    /// Pages that sequences hold.
    pub pages_used: usize,
    /// Pages that only the prefix cache holds.
    pub pages_cached: usize,
    /// Pages that nobody holds.
    pub pages_free: usize,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_lookup_tokens: u64,
    /// Prompt tokens found there, or shared with another completion of the same prompt.
    pub prefix_hit_tokens: u64,
    /// Sequences put back to waiting because pages ran out.
    pub preemptions: u64,
    /// Steps planned.
    pub steps: u64,
    /// Tokens scheduled in chunks of prompts (and of preempted outputs).
    pub prompt_tokens: u64,
    /// Tokens of outputs.
    pub output_tokens: u64,
}

impl Scheduler {
    /// A scheduler of an empty pool.
    ///
    /// # Errors
    /// A setting out of range: names it, its value and the range.
    pub fn new(config: SchedulerConfig) -> Result<Self> {
        config.check()?;
        let has_tree = config.cache_type == CacheType::Radix;
        Ok(Self {
            max_seq_len: config.max_seq_len.min(config.num_pages * config.page_size),
            seqs: SeqStore::default(),
            by_id: HashMap::new(),
            waiting: Queue::default(),
            running: Vec::new(),
            groups: HashMap::new(),
            in_flight: VecDeque::new(),
            spare_steps: Vec::new(),
            pool: PagePool::new(config.num_pages),
            tree: has_tree.then(|| RadixTree::new(config.page_size)),
            free_rows: (0..config.max_running_req as u32).rev().collect(),
            computing: HashMap::default(),
            num_returning: 0,
            output_share: 512,
            next_arrival: 0,
            chunks: Vec::new(),
            totals: Totals::default(),
            config,
        })
    }

    /// Checks a request without queueing it.
    ///
    /// # Errors
    /// As [`SchedulerConfig::validate`].
    pub fn validate(&self, request: &Request) -> Result<()> {
        self.config.validate(request)
    }

    /// Queues `ids.len()` completions of one prompt. The first draws with the request's seed, each other with a
    /// seed of its own derived from it. `max_tokens` is clamped to the room that the prompt leaves.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), or an id that is in use; then nothing is queued.
    pub fn add(&mut self, request: Request, ids: &[RequestId]) -> Result<()> {
        self.validate(&request)?;
        for (i, id) in ids.iter().enumerate() {
            if self.by_id.contains_key(id) || ids[..i].contains(id) {
                return Err(EngineError::InvalidRequest(format!("request id {} is in use", id.0)));
            }
        }
        let num_prompt = request.token_ids.len();
        let max_len = num_prompt + request.params.max_tokens.min(self.max_seq_len - num_prompt);
        let group = (ids.len() > 1).then_some(self.next_arrival);
        if let Some(group) = group {
            self.groups.insert(group, Group { num_live: ids.len(), running: Vec::new() });
        }
        for (i, &id) in ids.iter().enumerate() {
            let seed = completion_seed(request.params.seed, i as u64);
            let mut seq = Sequence::new(&request, id, self.next_arrival, max_len, seed);
            seq.group = group;
            if self.tree.is_some() {
                seq.hash_pages(self.config.page_size);
            }
            let idx = self.seqs.insert(seq);
            self.by_id.insert(id, idx);
            self.waiting.push(self.next_arrival, idx);
            self.next_arrival += 1;
        }
        Ok(())
    }

    /// Ends a request at once: `updates` gets its `Finished`. Row and pages come back when no step in flight
    /// uses them. Does nothing for a request that has ended or was never added.
    pub fn abort(&mut self, id: RequestId, updates: &mut Vec<Update>) {
        let Some(&idx) = self.by_id.get(&id) else { return };
        if self.seqs[idx].phase == Phase::Running {
            let at = self.running.iter().position(|&seq| seq == idx);
            self.running.remove(at.expect("a running sequence is listed"));
        }
        updates.push(self.finished(idx, FinishReason::Abort));
        self.end(idx);
    }

    /// Whether no request is waiting, running or in flight.
    pub fn is_idle(&self) -> bool {
        self.seqs.len() == 0 && self.in_flight.is_empty()
    }

    /// Steps planned and not committed.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Where everything is now.
    pub fn counters(&self) -> Counters {
        let pages_cached = self.tree.as_ref().map_or(0, RadixTree::num_evictable_pages);
        let totals = self.totals;
        Counters {
            num_running: self.seqs.len() - self.waiting.len(),
            num_waiting: self.waiting.len(),
            pages_used: self.pool.num_pages() - self.pool.num_free() - pages_cached,
            pages_cached,
            pages_free: self.pool.num_free(),
            prefix_lookup_tokens: totals.prefix_lookup_tokens,
            prefix_hit_tokens: totals.prefix_hit_tokens,
            preemptions: totals.preemptions,
            steps: totals.steps,
            prompt_tokens: totals.prompt_tokens,
            output_tokens: totals.output_tokens,
        }
    }

    /// What it was built with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }
}

/// The seed of completion `i` of a request: its own for the first, a mix of both for the others (the finaliser
/// of SplitMix64: Steele, Lea, Flood 2014).
pub fn completion_seed(seed: u64, i: u64) -> u64 {
    if i == 0 {
        return seed;
    }
    let mut mixed = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
