//! What a caller hands to the engine and what comes back. No text: token ids only.

use std::time::Duration;

/// A prompt and how to continue it. The engine validates it before anything runs.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt: at least one token.
    pub token_ids: Vec<u32>,
    /// How to continue.
    pub params: RequestParams,
}

/// How to continue a prompt: the part of the sampling params that needs no text.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestParams {
    /// 0 is greedy: the arg max, ties to the lowest id.
    pub temperature: f32,
    /// Below 1: off; 1 is greedy.
    pub top_k: i32,
    /// Nucleus, in (0, 1].
    pub top_p: f32,
    /// Drop tokens under `min_p` times the largest probability; in [0, 1].
    pub min_p: f32,
    /// New tokens, at least 1; clamped to the room that the model's length leaves.
    pub max_tokens: usize,
    /// Go on past the model's EOS ids.
    pub ignore_eos: bool,
    /// End on one of these ids too; like EOS, the id is not part of the output.
    pub stop_token_ids: Vec<u32>,
    /// Subtracted from the logit of each token generated so far; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once for each time it was generated; in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; above 0.
    pub repetition_penalty: f32,
    /// Key of this request's random numbers.
    pub seed: u64,
    /// Report the chosen token's log probability and those of this many most likely tokens.
    pub logprobs: Option<usize>,
}

impl Default for RequestParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: -1,
            top_p: 1.0,
            min_p: 0.0,
            max_tokens: 1024,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            logprobs: None,
        }
    }
}

/// Names one submitted request for as long as the engine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An EOS id or a stop condition.
    Stop,
    /// `max_tokens`, or the model's length.
    Length,
    /// The caller gave up.
    Abort,
}

/// Log probabilities of one generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that was chosen.
    pub chosen: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// From submission to the first step that computes a part of it.
    pub queue: Duration,
    /// From there to its first token.
    pub prefill: Duration,
    /// From there to its end.
    pub decode: Duration,
}

/// What a request's sink receives: any number of `Token`, then one `Finished` or `Failed`.
#[derive(Clone, Debug)]
pub enum Event {
    /// One more token of the output.
    Token {
        /// The token.
        token: u32,
        /// Its log probabilities, where asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The end of the output.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Prompt tokens found in the prefix cache.
        num_cached_tokens: usize,
        /// Where the time went.
        timings: Timings,
    },
    /// The end without a result; says why.
    Failed(crate::EngineError),
}

/// Receives a request's events, on the engine's thread: it must not block.
pub trait Sink: Send {
    /// Takes one event. Returning `false` says that nobody listens any more: the request is aborted.
    fn send(&mut self, event: Event) -> bool;

    /// Called when the events of a step have been sent, to this sink and to the others: what `send` has kept back, or a
    /// receiver that it has left asleep, must wait no longer.
    fn flush(&mut self) {}
}
