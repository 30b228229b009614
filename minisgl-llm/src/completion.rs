use minisgl_engine::request::{FinishReason, Timings, TokenLogprobs};

use crate::output::Output;
use crate::stop::StopMatcher;
use crate::tokenizer::Detokenizer;

/// One completion as its tokens arrive.
pub(crate) struct Completion {
    /// `None` where the model has no tokenizer: there is no text then.
    detokenizer: Option<Detokenizer>,
    stop: StopMatcher,
    /// What may be seen: never a part of a character or of a stop string.
    text: String,
    /// Scratch for one token's text.
    piece: String,
    token_ids: Vec<u32>,
    logprobs: Option<Vec<TokenLogprobs>>,
    stopped: bool,
}

impl Completion {
    pub(crate) fn new(detokenizer: Option<Detokenizer>, stop: Vec<String>, logprobs: bool) -> Self {
        Self {
            detokenizer,
            stop: StopMatcher::new(stop),
            text: String::new(),
            piece: String::new(),
            token_ids: Vec::new(),
            logprobs: logprobs.then(Vec::new),
            stopped: false,
        }
    }

    /// Takes a token; returns whether it completed a stop string. Tokens that were on their way then are
    /// ignored.
    pub(crate) fn push(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> bool {
        if self.stopped {
            return false;
        }
        self.token_ids.push(token);
        if let (Some(list), Some(logprobs)) = (&mut self.logprobs, logprobs) {
            list.push(logprobs);
        }
        if let Some(detokenizer) = &mut self.detokenizer {
            self.piece.clear();
            detokenizer.push(token, &mut self.piece);
            self.stopped = self.stop.push(&self.piece, &mut self.text);
        }
        self.stopped
    }

    /// The text that may be seen so far: it only ever grows.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn finish(
        mut self,
        reason: FinishReason,
        num_prompt_tokens: usize,
        num_cached_tokens: usize,
        timings: Timings,
    ) -> Output {
        if let (Some(detokenizer), false) = (&mut self.detokenizer, self.stopped) {
            self.piece.clear();
            detokenizer.flush(&mut self.piece);
            self.stopped = self.stop.push(&self.piece, &mut self.text);
            if !self.stopped {
                self.stop.flush(&mut self.text);
            }
        }
        Output {
            text: self.text,
            token_ids: self.token_ids,
            finish_reason: if self.stopped { FinishReason::Stop } else { reason },
            num_prompt_tokens,
            num_cached_tokens,
            logprobs: self.logprobs,
            timings,
            alternatives: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tokenizer::Tokenizer;

    fn run(text: &str, stop: &[&str], reason: FinishReason) -> (Output, usize) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/rust-docs-6m/tokenizer.json");
        let tokenizer = Arc::new(Tokenizer::from_file(path).unwrap());
        let ids = tokenizer.encode(text, false).unwrap();
        let stop = stop.iter().map(|&s| s.to_owned()).collect();
        let mut completion = Completion::new(Some(Detokenizer::new(tokenizer, true)), stop, false);
        let mut seen = String::new();
        let mut num_stops = 0;
        for &id in &ids {
            num_stops += usize::from(completion.push(id, None));
            assert!(completion.text().starts_with(&seen), "the text only grows");
            seen = completion.text().to_owned();
        }
        let output = completion.finish(reason, 3, 2, Timings::default());
        assert!(output.text.starts_with(&seen));
        (output, num_stops)
    }

    #[test]
    fn ends_before_a_stop_string_across_tokens_and_ignores_what_follows() {
        let (output, num_stops) =
            run("The vector is empty. It has no elements.", &["tor is emp"], FinishReason::Abort);
        assert_eq!(
            (output.text.as_str(), output.finish_reason, num_stops),
            ("The vec", FinishReason::Stop, 1)
        );
        assert!(output.token_ids.len() < 12, "{:?}", output.token_ids);
    }

    #[test]
    fn what_was_held_back_appears_at_the_end() {
        let (output, _) = run("see the end", &["ending"], FinishReason::Length);
        assert_eq!((output.text.as_str(), output.finish_reason), ("see the end", FinishReason::Length));
    }

    #[test]
    fn without_tokenizer_there_are_ids_and_no_text() {
        let mut completion = Completion::new(None, Vec::new(), true);
        let logprobs = TokenLogprobs { chosen: -0.5, top: vec![(7, -0.5)] };
        completion.push(7, Some(logprobs.clone()));
        let output = completion.finish(FinishReason::Length, 1, 0, Timings::default());
        assert_eq!((output.text.as_str(), output.token_ids), ("", vec![7]));
        assert_eq!(output.logprobs, Some(vec![logprobs]));
    }
}
