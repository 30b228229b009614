//! What the scheduler hands to the runner: the border between the two halves of the crate.

use minisgl_kernels::StepInputs;

use crate::request::RequestId;

/// One step's work, complete: the runner needs nothing else, and no sequence.
///
/// The packed inputs are in the order of `seqs`; `inputs.samples[i]` belongs to `sampled[i]`.
#[derive(Debug, Default)]
pub struct Batch {
    /// The packed integers that go to the device in one copy.
    pub inputs: StepInputs,
    /// The sequences in the batch and how much of each is computed.
    pub seqs: Vec<BatchSeq>,
    /// Index into `seqs` of each sequence whose next token is sampled: those whose last known token is in the
    /// batch.
    pub sampled: Vec<u32>,
    /// Requests of which this batch computes the first part.
    pub started: Vec<RequestId>,
    /// Whether every sequence has exactly one query and samples: the step can run as a captured graph.
    pub is_decode: bool,
}

impl Batch {
    /// Empties it and keeps its memory. `inputs.cu_q_lens` is left with the 0 that it starts with.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.inputs.cu_q_lens.push(0);
        self.seqs.clear();
        self.sampled.clear();
        self.started.clear();
        self.is_decode = false;
    }

    /// Whether any sample asks for log probabilities.
    pub fn wants_logprobs(&self) -> bool {
        self.inputs.samples.iter().any(|s| s.num_logprobs >= 0)
    }
}

/// One sequence's part of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSeq {
    /// The scheduler's index of the sequence.
    pub seq: SeqIdx,
    /// Its page-table row.
    pub row: u32,
    /// Query tokens: a chunk of the prompt, or 1 in decode.
    pub q_len: u32,
    /// Tokens in the KV storage after the step.
    pub kv_len: u32,
}

/// The scheduler's index of a live sequence. Reused after its end; a [`crate::request::RequestId`] is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqIdx(pub u32);
