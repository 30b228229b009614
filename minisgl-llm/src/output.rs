use minisgl_engine::request::{FinishReason, Timings, TokenLogprobs};

/// The continuation of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The generated text, without the stop string and, as a rule, without special tokens. Empty where the model
    /// has no tokenizer.
    pub text: String,
    /// The generated tokens. EOS and stop ids are not included; the tokens of a stop string are.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens of the prompt that were found in the prefix cache.
    pub num_cached_tokens: usize,
    /// One entry a generated token, where asked for.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Where the time went.
    pub timings: Timings,
    /// Completions 2 to `n` of the same prompt, in order. Theirs are empty.
    pub alternatives: Vec<Output>,
}

impl Output {
    /// All completions of the prompt in order: this one, then the alternatives.
    pub fn completions(&self) -> impl Iterator<Item = &Output> {
        std::iter::once(self).chain(&self.alternatives)
    }
}
