//! A backend without arithmetic: it drives a scheduler for a million steps, and checks what it is driven with.
//!
//! Every op checks the shapes of its tensors. In checked mode the KV storage holds, instead of keys and values,
//! which token of which history was stored where ([`memory`]). Attention then reads each sequence back through its
//! page table and fails when a slot does not hold what belongs there: a stale page, another sequence's row, a
//! prefix that was never computed, a page that was handed out too early. The sampled token is a hash of the whole
//! history, so that the output of a request depends on its own tokens alone, and any difference between two runs
//! is a fault of whoever drives the backend. Unchecked, the token is a hash of the last token, in O(1).

mod backend;
mod check;
mod memory;

use crate::{SampleParams, StepInputs};

/// How a [`Null`] behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Whether the KV storage is modelled and checked.
    pub checked: bool,
}

impl NullOptions {
    /// The token that follows `history`, drawn with the seed and at the position of `sample`: what any correct
    /// way of driving the backend must produce.
    pub fn next_token(&self, history: &[u32], sample: &SampleParams) -> u32 {
        let state = match self.checked {
            true => history.iter().fold(memory::EMPTY, |chain, &token| memory::chain(chain, token)),
            false => history.last().map_or(memory::EMPTY, |&token| memory::chain(memory::EMPTY, token)),
        };
        draw(state, sample, self.vocab)
    }
}

/// The backend; see the module.
#[derive(Debug)]
pub struct Null {
    options: NullOptions,
    /// Prompt tokens of each page-table row, as of the last reset of its penalty counts.
    num_prompts: Vec<u32>,
}

impl Null {
    /// A backend that behaves as `options` say.
    pub fn new(options: NullOptions) -> Self {
        Self { options, num_prompts: Vec::new() }
    }
}

/// A step's inputs.
#[derive(Debug)]
pub struct NullInputs {
    max_tokens: usize,
    max_seqs: usize,
    max_samples: usize,
    step: StepInputs,
    /// `[num_tokens]` the input tokens, those that only the device knew included.
    tokens: Vec<u32>,
    /// `[num_tokens]` hash of the history up to and including each token.
    chains: Vec<u64>,
}

/// The limits of an attention plan: there is nothing to plan.
#[derive(Clone, Copy, Debug)]
pub struct NullPlan {
    max_tokens: usize,
    max_seqs: usize,
}

/// A token for a history with the hash `chain`.
fn draw(chain: u64, sample: &SampleParams, vocab: usize) -> u32 {
    let seed = if sample.is_greedy() { 0 } else { sample.seed | 1 << 63 };
    let hash = memory::mix(memory::mix(chain, seed), u64::from(sample.position));
    (hash % vocab as u64) as u32
}

#[cfg(test)]
mod tests;
