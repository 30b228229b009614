//! The requests of one call from submission to their outputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use minisgl_engine::mailbox::Mailbox;
use minisgl_engine::request::{Event, Request, RequestId};
use minisgl_engine::{EngineError, Submission};

use crate::completion::Completion;
use crate::error::{Error, Problem, Result};
use crate::llm::Inner;
use crate::output::Output;
use crate::progress::Progress;

/// A request that has been checked, with what the engine does not need to know about it.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) stop: Vec<String>,
    pub(crate) skip_special_tokens: bool,
    pub(crate) n: usize,
    /// Whether the caller chose the random key.
    pub(crate) has_seed: bool,
}

/// Requests on their way, by the index of their prompt. Dropping it aborts them.
pub(crate) struct Flight {
    inner: Arc<Inner>,
    mailbox: Mailbox<Tag>,
    running: BTreeMap<usize, Running>,
    progress: Option<Progress>,
}

/// Which completion of which prompt an event is of.
#[derive(Clone, Copy)]
struct Tag {
    index: usize,
    completion: usize,
}

struct Running {
    ids: Vec<RequestId>,
    num_prompt_tokens: usize,
    completions: Vec<Slot>,
    counted: bool,
}

enum Slot {
    Running(Completion),
    Ended(Result<Output, EngineError>),
}

impl Flight {
    pub(crate) fn new(inner: Arc<Inner>, progress: Option<Progress>) -> Self {
        Self { inner, mailbox: Mailbox::new(), running: BTreeMap::new(), progress }
    }

    /// Submits checked requests under the indices of their prompts, which are not in use.
    pub(crate) fn submit(&mut self, jobs: Vec<(usize, Job)>) -> Result<()> {
        let mut submissions = Vec::with_capacity(jobs.len());
        let mut running = Vec::with_capacity(jobs.len());
        for (index, job) in jobs {
            let completions: Vec<_> = (0..job.n)
                .map(|_| {
                    let detokenizer = self.inner.detokenizer(job.skip_special_tokens);
                    let logprobs = job.request.params.logprobs.is_some();
                    Slot::Running(Completion::new(detokenizer, job.stop.clone(), logprobs))
                })
                .collect();
            let num_prompt_tokens = job.request.token_ids.len();
            let sinks = (0..job.n).map(|completion| self.mailbox.sink(Tag { index, completion })).collect();
            submissions.push(Submission { request: job.request, sinks });
            running
                .push((index, Running { ids: Vec::new(), num_prompt_tokens, completions, counted: false }));
        }
        let mut ids = self.inner.engine.submit(submissions)?.into_iter();
        for (index, mut running) in running {
            running.ids = ids.by_ref().take(running.completions.len()).collect();
            self.running.insert(index, running);
        }
        Ok(())
    }

    /// Shows how far the requests are.
    pub(crate) fn set_progress(&mut self, progress: Option<Progress>) {
        self.progress = progress;
    }

    /// Counts a prompt that ended without being submitted.
    pub(crate) fn count_refused(&mut self) {
        if let Some(progress) = &mut self.progress {
            progress.add_ended();
        }
    }

    /// Prompts that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// The lowest index that has not ended.
    pub(crate) fn oldest(&self) -> Option<usize> {
        self.running.keys().next().copied()
    }

    /// The text so far of the first completion of a prompt that has not ended.
    pub(crate) fn text(&self, index: usize) -> Option<&str> {
        match self.running.get(&index)?.completions.first()? {
            Slot::Running(completion) => Some(completion.text()),
            Slot::Ended(_) => None,
        }
    }

    /// The engine's names of a prompt's completions.
    pub(crate) fn ids(&self, index: usize) -> Vec<RequestId> {
        self.running.get(&index).map(|running| running.ids.clone()).unwrap_or_default()
    }

    /// Waits until a prompt has ended. `None` when all have.
    pub(crate) fn next_ended(&mut self) -> Option<(usize, Result<Output>)> {
        while !self.running.is_empty() {
            if let Some(ended) = self.step() {
                return Some(ended);
            }
        }
        None
    }

    /// Waits for one event; returns the prompt that it ended, if any.
    pub(crate) fn step(&mut self) -> Option<(usize, Result<Output>)> {
        // Every sink says how it ended, if only by being dropped.
        let (Tag { index, completion }, event) = self.mailbox.recv();
        let running = self.running.get_mut(&index)?;
        if !running.counted {
            running.counted = true;
            if let Some(progress) = &mut self.progress {
                progress.add_prompt(running.num_prompt_tokens);
            }
        }
        let slot = &mut running.completions[completion];
        let Slot::Running(current) = slot else { return None };
        match event {
            Event::Token { token, logprobs } => {
                if let Some(progress) = &mut self.progress {
                    progress.add_token();
                }
                if current.push(token, logprobs) {
                    self.inner.engine.abort(running.ids[completion]);
                }
                return None;
            }
            Event::Finished { reason, num_cached_tokens, timings } => {
                let current = std::mem::replace(current, Completion::new(None, Vec::new(), false));
                let output = current.finish(reason, running.num_prompt_tokens, num_cached_tokens, timings);
                *slot = Slot::Ended(Ok(output));
            }
            Event::Failed(error) => *slot = Slot::Ended(Err(error)),
        }
        if running.completions.iter().any(|slot| matches!(slot, Slot::Running(_))) {
            return None;
        }
        if let Some(progress) = &mut self.progress {
            progress.add_ended();
        }
        let running = self.running.remove(&index)?;
        Some((index, running.into_output(index)))
    }
}

impl Running {
    fn into_output(self, index: usize) -> Result<Output> {
        let mut outputs = Vec::with_capacity(self.completions.len());
        for slot in self.completions {
            let output = match slot {
                Slot::Ended(result) => result,
                Slot::Running(_) => Err(EngineError::Dead("the request did not end".into())),
            };
            outputs.push(output.map_err(|source| {
                let problem = Problem { index, why: source.to_string() };
                Error::Failed { index, problem, source }
            })?);
        }
        let mut first = outputs.remove(0);
        first.alternatives = outputs;
        Ok(first)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        for running in self.running.values() {
            for (&id, slot) in running.ids.iter().zip(&running.completions) {
                if matches!(slot, Slot::Running(_)) {
                    self.inner.engine.abort(id);
                }
            }
        }
    }
}
