/// Marks an unused entry of a padded step: a slot that is not written, a row that is not updated.
pub const PADDING: u32 = u32::MAX;

/// Everything the device needs to know for one step, as host integers.
///
/// A step runs `num_tokens` packed tokens of `num_seqs` sequences, and samples one token from each of
/// `num_samples` rows. A CUDA graph is captured for fixed sizes, so a smaller batch is padded: a padding token
/// has `slots = PADDING`, a padding sequence has no queries (`cu_q_lens` repeats) and `kv_lens = 0`, and a
/// padding sample has `seq_rows = PADDING`. Padding must cost nothing and change nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepInputs {
    /// `[num_tokens]` input token, or `-1 - row`: the token last sampled for page-table row `row`, which the
    /// host may not have seen yet.
    pub token_ids: Vec<i32>,
    /// `[num_tokens]` position in its sequence.
    pub positions: Vec<u32>,
    /// `[num_tokens]` slot of the KV storage that receives this token's key and value
    /// (`page * page_size + offset`), or [`PADDING`].
    pub slots: Vec<u32>,
    /// `[num_seqs + 1]` prefix sums of the number of query tokens of each sequence; starts with 0.
    pub cu_q_lens: Vec<u32>,
    /// `[num_seqs]` tokens in the KV storage once this step has stored its own.
    pub kv_lens: Vec<u32>,
    /// `[num_seqs]` row of the page table.
    pub seq_rows: Vec<u32>,
    /// `[num_samples]` index of the packed token whose logits are wanted.
    pub sample_tokens: Vec<u32>,
    /// `[num_samples]` how to draw.
    pub samples: Vec<SampleParams>,
    /// Changes of the page table, applied before anything else in the step.
    pub page_updates: Vec<PageUpdate>,
    /// Penalty counts to rebuild, applied before anything else in the step.
    pub count_resets: Vec<CountReset>,
    /// Pages to copy, `(from, to)`, in every layer, before anything is stored: the copy half of copy-on-write.
    pub page_copies: Vec<(u32, u32)>,
}

impl StepInputs {
    /// Packed tokens, padding included.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Sequences, padding included.
    pub fn num_seqs(&self) -> usize {
        self.kv_lens.len()
    }

    /// Rows to sample from, padding included.
    pub fn num_samples(&self) -> usize {
        self.samples.len()
    }

    /// Empties every list and keeps its memory.
    pub fn clear(&mut self) {
        self.token_ids.clear();
        self.positions.clear();
        self.slots.clear();
        self.cu_q_lens.clear();
        self.kv_lens.clear();
        self.seq_rows.clear();
        self.sample_tokens.clear();
        self.samples.clear();
        self.page_updates.clear();
        self.count_resets.clear();
        self.page_copies.clear();
    }
}

/// How to draw the next token of one sequence.
///
/// The distribution, in this order: penalties on the logits (repetition, then frequency, then presence), then
/// `softmax(logits / temperature)`, then top-k, then top-p on what top-k left (renormalised), then min-p relative
/// to the largest probability. Tokens that tie with the last one kept by top-k or top-p are kept too. The draw is Gumbel-max over the kept tokens with
/// noise from Philox keyed by `(seed, position, token)`, so it does not depend on the batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// Page-table row that receives the token, or [`PADDING`].
    pub seq_row: u32,
    /// Position that the sampled token will have in its sequence: the counter of the random numbers.
    pub position: u32,
    /// Key of the random numbers.
    pub seed: u64,
    /// 0 is greedy: the arg max, ties to the lowest id.
    pub temperature: f32,
    /// Below 1: off. 1 is greedy.
    pub top_k: i32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Subtracted from the logit of each token that was generated at least once.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time that it was generated.
    pub frequency_penalty: f32,
    /// Divides a positive logit and multiplies a negative one, for each token of the prompt or the output.
    pub repetition_penalty: f32,
    /// Most likely tokens to report, at most [`crate::MAX_LOGPROBS`]; below 0: report not even the chosen one's.
    pub num_logprobs: i32,
}

impl SampleParams {
    /// Greedy, without penalties or log probabilities.
    pub const fn greedy(seq_row: u32, position: u32) -> Self {
        Self {
            seq_row,
            position,
            seed: 0,
            temperature: 0.0,
            top_k: -1,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            num_logprobs: -1,
        }
    }

    /// Whether the arg max is taken and no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Whether the draw depends on the counts of past tokens.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// One entry of the page table changes: `page_table[row][idx] = page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageUpdate {
    /// Row of the page table.
    pub row: u32,
    /// Which page of the sequence.
    pub idx: u32,
    /// Page of the KV storage.
    pub page: u32,
}

/// Rebuilds the penalty counts of one page-table row: when a sequence with penalties enters the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountReset {
    /// Row of the page table.
    pub row: u32,
    /// How many of `tokens` are the prompt; the rest was generated.
    pub num_prompt: u32,
    /// The tokens of the sequence so far.
    pub tokens: Vec<u32>,
}
