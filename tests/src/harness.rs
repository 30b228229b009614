//! What end-to-end tests share: settings from the environment, and requests run through an engine.

use std::hash::{BuildHasher, RandomState};
use std::sync::mpsc;
use std::time::Duration;

use minisgl_engine::config::Device;
use minisgl_engine::request::{Event, FinishReason, Request, RequestParams, Sink, TokenLogprobs};
use minisgl_engine::{Engine, EngineError, Submission};

/// How long a test waits for one event before it says that the engine hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The device that end-to-end tests run on: `MINISGL_TEST_DEVICE`, or the CPU.
///
/// # Panics
/// If the variable names no device.
pub fn device() -> Device {
    match std::env::var("MINISGL_TEST_DEVICE") {
        Ok(name) => name.parse().expect("MINISGL_TEST_DEVICE"),
        Err(_) => Device::Cpu,
    }
}

/// Where random inputs start: `MINISGL_TEST_SEED`, or a fresh seed. It is printed, so that a failure can be had again.
///
/// # Panics
/// If the variable is no whole number.
pub fn seed() -> u64 {
    let seed = number("MINISGL_TEST_SEED").unwrap_or_else(fresh_seed);
    println!("MINISGL_TEST_SEED={seed}");
    seed
}

pub(crate) fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0)
}

/// The whole number in an environment variable.
pub(crate) fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is '{value}', expected a whole number")))
}

/// What one request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Generated tokens.
    pub tokens: Vec<u32>,
    /// Their log probabilities, where asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Prompt tokens found in the prefix cache.
    pub num_cached_tokens: usize,
}

/// A sink that passes events on to a channel, with the number of its request.
pub struct ChannelSink(pub usize, pub mpsc::Sender<(usize, Event)>);

impl Sink for ChannelSink {
    fn send(&mut self, event: Event) -> bool {
        self.1.send((self.0, event)).is_ok()
    }
}

/// A greedy request.
pub fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    let params = RequestParams { max_tokens, ignore_eos: true, ..RequestParams::default() };
    Request { token_ids: prompt.to_vec(), params }
}

/// Submits all requests at once and collects their outputs in order.
///
/// # Panics
/// If the engine fails a request or sends nothing for two minutes.
pub fn run(engine: &Engine, requests: &[Request]) -> Vec<Generated> {
    try_run(engine, requests)
        .into_iter()
        .enumerate()
        .map(|(i, result)| result.unwrap_or_else(|error| panic!("request {i} failed: {error}")))
        .collect()
}

/// As [`run`], with each request's error.
pub fn try_run(engine: &Engine, requests: &[Request]) -> Vec<Result<Generated, EngineError>> {
    let (sender, receiver) = mpsc::channel();
    let submit = |(i, request): (usize, &Request)| Submission {
        request: request.clone(),
        sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
    };
    let submissions = requests.iter().enumerate().map(submit).collect();
    engine.submit(submissions).expect("valid requests");
    collect(&receiver, requests.len())
}

/// Collects the events of `num` requests.
pub fn collect(receiver: &mpsc::Receiver<(usize, Event)>, num: usize) -> Vec<Result<Generated, EngineError>> {
    let mut partial = vec![(Vec::new(), Vec::new()); num];
    let mut done: Vec<Option<Result<Generated, EngineError>>> = vec![None; num];
    while done.iter().any(Option::is_none) {
        let (i, event) = receiver.recv_timeout(PATIENCE).expect("an event within two minutes");
        assert!(done[i].is_none(), "an event after the end of request {i}: {event:?}");
        match event {
            Event::Token { token, logprobs } => {
                partial[i].0.push(token);
                partial[i].1.extend(logprobs);
            }
            Event::Finished { reason, num_cached_tokens, .. } => {
                let (tokens, logprobs) = std::mem::take(&mut partial[i]);
                done[i] = Some(Ok(Generated { tokens, logprobs, reason, num_cached_tokens }));
            }
            Event::Failed(error) => done[i] = Some(Err(error)),
        }
    }
    done.into_iter().flatten().collect()
}
