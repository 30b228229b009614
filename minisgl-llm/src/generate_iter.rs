use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, InvalidPrompts, Problem, Result};
use crate::flight::Flight;
use crate::llm::Inner;
use crate::output::Output;
use crate::params::SamplingParams;
use crate::progress::Progress;
use crate::prompt::Prompt;

/// Prompts submitted ahead of the sequences that run, so that the engine never waits for the caller: as many
/// again.
const QUEUE_FACTOR: usize = 2;
/// How far the newest prompt may be ahead of the oldest unfinished one, in units of sequences in flight.
const AHEAD_FACTOR: usize = 32;

/// Outputs of a stream of prompts, in the order in which they finish, each with the index of its prompt.
///
/// Lazy: a prompt is taken from its iterator only when there is room for it, so memory is bounded however many
/// there are. At most twice `max_running_req` prompts are submitted, and none is taken that is more than 32
/// times `max_running_req` ahead of the oldest unfinished one: who puts the outputs back in order holds no more
/// than that. A prompt that cannot be run, or fails, is an error in its place and harms no other. Dropping the
/// iterator aborts what runs.
pub struct GenerateIter<I> {
    inner: Arc<Inner>,
    flight: Flight,
    /// `None` once exhausted.
    requests: Option<I>,
    num_taken: usize,
    ready: VecDeque<(usize, Result<Output>)>,
}

impl<I: Iterator<Item = Result<(Prompt, SamplingParams), String>>> GenerateIter<I> {
    pub(crate) fn new(inner: Arc<Inner>, requests: I) -> Self {
        let flight = Flight::new(Arc::clone(&inner), None);
        Self { inner, flight, requests: Some(requests), num_taken: 0, ready: VecDeque::new() }
    }

    /// Shows a bar over the outputs where standard error is a terminal; `num_requests` is how many there will be,
    /// where that is known.
    #[must_use]
    pub fn with_progress(mut self, num_requests: Option<usize>) -> Self {
        self.flight.set_progress(Progress::on_terminal(num_requests));
        self
    }

    fn refill(&mut self) {
        let max_running_req = self.inner.engine.info().max_running_req;
        let max_in_flight = QUEUE_FACTOR * max_running_req;
        let max_ahead = AHEAD_FACTOR * max_running_req;
        let mut jobs = Vec::new();
        while self.flight.len() + jobs.len() < max_in_flight {
            let oldest = self.flight.oldest().or(jobs.first().map(|(index, _)| *index));
            if oldest.is_some_and(|oldest| self.num_taken >= oldest + max_ahead) {
                break;
            }
            let Some(request) = self.requests.as_mut().and_then(Iterator::next) else {
                self.requests = None;
                break;
            };
            let index = self.num_taken;
            self.num_taken += 1;
            match request.and_then(|(prompt, params)| self.inner.prepare(prompt, &params)) {
                Ok(job) => jobs.push((index, job)),
                Err(why) => {
                    let problems = vec![Problem { index, why }];
                    let error = Error::Invalid(InvalidPrompts { problems, num_prompts: 1 });
                    self.ready.push_back((index, Err(error)));
                    break;
                }
            }
        }
        self.inner.assign_seeds(&mut jobs);
        let indices: Vec<usize> = jobs.iter().map(|(index, _)| *index).collect();
        if let Err(error) = self.flight.submit(jobs) {
            // Only a stopped engine refuses checked requests: nothing further can run.
            self.requests = None;
            let why = error.to_string();
            self.ready.extend(indices.into_iter().map(|index| {
                let source = minisgl_engine::EngineError::Dead(why.clone());
                (index, Err(Error::Failed { index, problem: Problem { index, why: why.clone() }, source }))
            }));
        }
    }
}

impl<I: Iterator<Item = Result<(Prompt, SamplingParams), String>>> Iterator for GenerateIter<I> {
    type Item = (usize, Result<Output>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() && self.requests.is_some() {
            self.refill();
        }
        match self.ready.pop_front() {
            Some(refused) => {
                self.flight.count_refused();
                Some(refused)
            }
            None => self.flight.next_ended(),
        }
    }
}

impl<I> std::fmt::Debug for GenerateIter<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerateIter").field("num_taken", &self.num_taken).finish_non_exhaustive()
    }
}
