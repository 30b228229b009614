//! The lines of `generate`: requests in, outputs out.

use minisgl_llm::{FinishReason, Message, Output, Prompt, SamplingParams, TokenLogprobs};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One input line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(default)]
    pub(crate) id: Option<Value>,
    prompt: Option<String>,
    token_ids: Option<Vec<u32>>,
    messages: Option<Vec<Message>>,
    temperature: Option<f32>,
    top_k: Option<i32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    max_tokens: Option<usize>,
    ignore_eos: Option<bool>,
    stop: Option<StopList>,
    stop_token_ids: Option<Vec<u32>>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    logprobs: Option<usize>,
    n: Option<usize>,
    skip_special_tokens: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum StopList {
    One(String),
    Many(Vec<String>),
}

impl Line {
    /// Reads a line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| {
            // The position says `line 1` of every line.
            let text = error.to_string();
            let why = text.split(" at line ").next().unwrap_or(&text);
            format!("the line is not a request: {why} (column {})", error.column())
        })
    }

    /// The request; what the line does not say is as in `defaults`.
    pub(crate) fn into_request(self, defaults: &SamplingParams) -> Result<(Prompt, SamplingParams), String> {
        let prompt = match (self.prompt, self.token_ids, self.messages) {
            (Some(text), None, None) => Prompt::Text(text),
            (None, Some(token_ids), None) => Prompt::TokenIds(token_ids),
            (None, None, Some(messages)) => Prompt::Chat(messages),
            (None, None, None) => return Err("the line has none of prompt, token_ids and messages".into()),
            _ => return Err("the line has more than one of prompt, token_ids and messages".into()),
        };
        let stop = self.stop.map(|stop| match stop {
            StopList::One(text) => vec![text],
            StopList::Many(texts) => texts,
        });
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            max_tokens: self.max_tokens.unwrap_or(defaults.max_tokens),
            ignore_eos: self.ignore_eos.unwrap_or(defaults.ignore_eos),
            stop: stop.unwrap_or_else(|| defaults.stop.clone()),
            stop_token_ids: self.stop_token_ids.unwrap_or_else(|| defaults.stop_token_ids.clone()),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.or(defaults.seed),
            logprobs: self.logprobs.or(defaults.logprobs),
            n: self.n.unwrap_or(defaults.n),
            skip_special_tokens: self.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
        };
        Ok((prompt, params))
    }
}

/// One output line.
#[derive(Debug, Serialize)]
pub(crate) struct OutputLine<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    #[serde(flatten)]
    result: LineResult<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum LineResult<'a> {
    Done(Completion<'a>),
    Failed { error: &'a str },
}

#[derive(Debug, Serialize)]
struct Completion<'a> {
    text: &'a str,
    token_ids: &'a [u32],
    finish_reason: &'static str,
    num_prompt_tokens: usize,
    num_cached_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprobs<'a>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alternatives: Vec<Completion<'a>>,
}

#[derive(Debug, Serialize)]
struct Logprobs<'a> {
    chosen: f32,
    top: &'a [(u32, f32)],
}

impl<'a> OutputLine<'a> {
    pub(crate) fn done(index: usize, id: Option<&'a Value>, output: &'a Output) -> Self {
        Self { index, id, result: LineResult::Done(Completion::new(output)) }
    }

    pub(crate) fn failed(index: usize, id: Option<&'a Value>, error: &'a str) -> Self {
        Self { index, id, result: LineResult::Failed { error } }
    }

    /// The line, with its end.
    pub(crate) fn to_text(&self) -> String {
        // Strings, integers and finite or null floats: nothing that JSON cannot hold.
        let mut text = serde_json::to_string(self).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl<'a> Completion<'a> {
    fn new(output: &'a Output) -> Self {
        let logprobs = |list: &'a Vec<TokenLogprobs>| {
            list.iter().map(|entry| Logprobs { chosen: entry.chosen, top: &entry.top }).collect()
        };
        Self {
            text: &output.text,
            token_ids: &output.token_ids,
            finish_reason: match output.finish_reason {
                FinishReason::Stop => "stop",
                FinishReason::Length => "length",
                FinishReason::Abort => "abort",
            },
            num_prompt_tokens: output.num_prompt_tokens,
            num_cached_tokens: output.num_cached_tokens,
            logprobs: output.logprobs.as_ref().map(logprobs),
            alternatives: output.alternatives.iter().map(Completion::new).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_says_goes_before_the_flags() {
        let defaults = SamplingParams { temperature: 0.5, top_k: 7, ..SamplingParams::default() };
        let line = r#"{"prompt": "a", "temperature": 1, "stop": "x", "seed": 3, "id": {"a": [1]}}"#;
        let (prompt, params) = Line::parse(line).unwrap().into_request(&defaults).unwrap();
        assert_eq!(prompt, Prompt::Text("a".into()));
        let expected =
            SamplingParams { temperature: 1.0, stop: vec!["x".into()], seed: Some(3), ..defaults.clone() };
        assert_eq!(params, expected);
        let (_, params) = Line::parse(r#"{"token_ids": [1]}"#).unwrap().into_request(&defaults).unwrap();
        assert_eq!(params, defaults);
    }

    #[test]
    fn bad_lines_say_what_is_wrong() {
        let defaults = SamplingParams::default();
        let cases = [
            ("{", "the line is not a request: EOF while parsing an object (column 1)"),
            (
                r#"{"prompt": 3}"#,
                "the line is not a request: invalid type: integer `3`, expected a string (column 12)",
            ),
            (r#"{"prompt": "a", "temprature": 1}"#, "the line is not a request: unknown field `temprature`"),
            (
                r#"{"token_ids": [-1]}"#,
                "the line is not a request: invalid value: integer `-1`, expected u32",
            ),
            ("{}", "the line has none of prompt, token_ids and messages"),
            (
                r#"{"prompt": "a", "token_ids": [1]}"#,
                "the line has more than one of prompt, token_ids and messages",
            ),
        ];
        for (line, expected) in cases {
            let why = Line::parse(line).and_then(|line| line.into_request(&defaults)).unwrap_err();
            assert!(why.starts_with(expected), "{why}");
        }
    }

    #[test]
    fn failures_are_lines_too() {
        let id = Value::from("a");
        assert_eq!(
            OutputLine::failed(3, Some(&id), "no").to_text(),
            "{\"index\":3,\"id\":\"a\",\"error\":\"no\"}\n"
        );
        assert_eq!(OutputLine::failed(3, None, "no").to_text(), "{\"index\":3,\"error\":\"no\"}\n");
    }
}
