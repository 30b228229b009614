//! The engine's thread: the loop that keeps at most one step in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use minisgl_kernels::{Backend, MAX_LOGPROBS, Samples};
use rustc_hash::FxHashMap;
use tracing::{Level, span};

use crate::batch::Batch;
use crate::engine::{Command, Queued, Shared, fail};
use crate::request::{Event, RequestId, Sink, Timings, TokenLogprobs};
use crate::runner::{Launch, Runner};
use crate::scheduler::{Scheduler, Update};
use crate::stats::{Stats, StepRecord, StepTimes};
use crate::{EngineError, Result};

pub(crate) struct Worker<B: Backend> {
    runner: Runner<B>,
    scheduler: Scheduler,
    shared: Arc<Shared>,
    /// Whether a step is launched before the one in flight is read.
    overlap: bool,
    /// Looked up for every token: a hash that withstands chosen keys would cost as much as the rest of handing it out.
    active: FxHashMap<RequestId, Active>,
    batch: Batch,
    updates: Vec<Update>,
    /// Sinks of requests that ended in this turn of the loop, until they are flushed.
    ended: Vec<Box<dyn Sink>>,
    stats: Stats,
}

/// A request that has not ended.
struct Active {
    sink: Box<dyn Sink>,
    num_logprobs: Option<usize>,
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

impl<B: Backend> Worker<B> {
    pub(crate) fn new(runner: Runner<B>, scheduler: Scheduler, shared: Arc<Shared>, overlap: bool) -> Self {
        Self {
            runner,
            scheduler,
            shared,
            overlap,
            active: FxHashMap::default(),
            batch: Batch::default(),
            updates: Vec::new(),
            ended: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// Runs until the engine is dropped or an op fails; then every request left gets the reason.
    pub(crate) fn run(mut self) {
        let body = std::panic::AssertUnwindSafe(|| self.steps());
        let end = std::panic::catch_unwind(body).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(EngineError::Dead(format!("its thread panicked: {text}")))
        });
        let error = match end {
            Ok(()) => EngineError::Dead("it was shut down".into()),
            Err(error) => error,
        };
        tracing::debug!(%error, "engine ends");
        // From here on submissions are refused; those that came before are told.
        self.shared.close(&error);
        self.active.into_values().for_each(|active| fail(active.sink, &error));
    }

    fn steps(&mut self) -> Result<()> {
        let mut in_flight: Option<Launch<B>> = None;
        let mut start = Instant::now();
        loop {
            let idle = in_flight.is_none() && self.scheduler.is_idle();
            if !self.take_commands(idle) {
                return Ok(());
            }
            if idle {
                start = Instant::now();
            }
            let mut times = StepTimes::default();
            let launch = self.plan_and_launch(&mut times)?;
            let (num_seqs, is_decode) = (self.batch.seqs.len(), self.batch.is_decode);
            if let Some(step) = in_flight.take() {
                self.commit(step, &mut times)?;
            } else if launch.is_none() && !self.scheduler.is_idle() {
                return Err(EngineError::Dead(
                    "no waiting request can be scheduled: this is a defect".into(),
                ));
            }
            match launch {
                Some(step) if self.overlap => in_flight = Some(step),
                Some(step) => self.commit(step, &mut times)?,
                None => {}
            }
            self.stats.counters = self.scheduler.counters();
            let end = Instant::now();
            self.stats.add(end - start, &mut times);
            start = end;
            self.shared.observe(&self.stats, StepRecord { num_seqs, is_decode, times });
        }
    }

    fn plan_and_launch(&mut self, times: &mut StepTimes) -> Result<Option<Launch<B>>> {
        let start = Instant::now();
        let planned = span!(Level::TRACE, "schedule").in_scope(|| self.scheduler.schedule(&mut self.batch));
        let scheduled = Instant::now();
        times.schedule = scheduled - start;
        if !planned {
            return Ok(None);
        }
        for id in &self.batch.started {
            if let Some(active) = self.active.get_mut(id) {
                active.started.get_or_insert(scheduled);
            }
        }
        let tokens = self.batch.inputs.num_tokens();
        let launch = span!(Level::TRACE, "launch", seqs = self.batch.seqs.len(), tokens)
            .in_scope(|| self.runner.launch(&mut self.batch))?;
        times.launch = scheduled.elapsed();
        Ok(Some(launch))
    }

    fn commit(&mut self, step: Launch<B>, times: &mut StepTimes) -> Result<()> {
        let start = Instant::now();
        let samples = span!(Level::TRACE, "wait").in_scope(|| self.runner.wait(step))?;
        let waited = Instant::now();
        times.wait += waited - start;
        span!(Level::TRACE, "commit").in_scope(|| {
            self.scheduler.commit(&samples, &mut self.updates);
            self.hand_out(&samples, waited);
        });
        times.commit += waited.elapsed();
        Ok(())
    }

    /// Takes every command that is there; waits for one if `idle`. `false` says that the engine was dropped.
    fn take_commands(&mut self, idle: bool) -> bool {
        let mut commands = VecDeque::new();
        if !self.shared.commands.take(&mut commands, idle) {
            return false;
        }
        for command in commands {
            match command {
                Command::Submit(submissions) => {
                    submissions.into_iter().for_each(|queued| self.submit(queued));
                }
                Command::Abort(id) => {
                    self.scheduler.abort(id, &mut self.updates);
                    self.hand_out(&Samples::default(), Instant::now());
                }
            }
        }
        true
    }

    fn submit(&mut self, queued: Queued) {
        let Queued { request, ids, sinks, submitted } = queued;
        let num_logprobs = request.params.logprobs;
        let added = self.scheduler.add(request, &ids);
        for (id, mut sink) in ids.into_iter().zip(sinks) {
            match &added {
                Ok(()) => {
                    let (started, first_token) = (None, None);
                    self.active.insert(id, Active { sink, num_logprobs, submitted, started, first_token });
                }
                Err(error) => {
                    sink.send(Event::Failed(error.clone()));
                    sink.flush();
                }
            }
        }
    }

    /// Passes updates on to the sinks, and aborts the requests whose sinks are gone. `now` is when they became known.
    fn hand_out(&mut self, samples: &Samples, now: Instant) {
        let mut updates = std::mem::take(&mut self.updates);
        let mut at = 0;
        while let Some(&update) = updates.get(at) {
            at += 1;
            if let Some(deaf) = self.pass_on(update, samples, now) {
                self.scheduler.abort(deaf, &mut updates);
            }
        }
        for update in updates.drain(..) {
            if let Update::Token { id, .. } = update
                && let Some(active) = self.active.get_mut(&id)
            {
                active.sink.flush();
            }
        }
        self.ended.drain(..).for_each(|mut sink| sink.flush());
        self.updates = updates;
    }

    /// Returns the request's id if nobody listens to it any more.
    fn pass_on(&mut self, update: Update, samples: &Samples, now: Instant) -> Option<RequestId> {
        match update {
            Update::Token { id, token, sample_idx } => {
                let active = self.active.get_mut(&id)?;
                active.first_token.get_or_insert(now);
                let logprobs = active.num_logprobs.map(|n| token_logprobs(samples, sample_idx, n));
                (!active.sink.send(Event::Token { token, logprobs })).then_some(id)
            }
            Update::Finished { id, reason, num_cached_tokens } => {
                let active = self.active.remove(&id)?;
                let timings = active.timings(now);
                self.end(active, Event::Finished { reason, num_cached_tokens, timings });
                None
            }
            Update::NotFinite { id, position } => {
                let active = self.active.remove(&id)?;
                self.end(active, Event::Failed(EngineError::NotFinite { position }));
                None
            }
        }
    }

    fn end(&mut self, active: Active, event: Event) {
        let mut sink = active.sink;
        sink.send(event);
        self.ended.push(sink);
    }
}

impl Active {
    /// Where its time went, if it ends `now`.
    fn timings(&self, now: Instant) -> Timings {
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Timings { queue: started - self.submitted, prefill: first_token - started, decode: now - first_token }
    }
}

fn token_logprobs(samples: &Samples, sample: usize, num_top: usize) -> TokenLogprobs {
    let first = sample * MAX_LOGPROBS;
    let top = first..first + num_top;
    TokenLogprobs {
        chosen: samples.logprobs[sample],
        top: samples.top_tokens[top.clone()]
            .iter()
            .copied()
            .zip(samples.top_logprobs[top].iter().copied())
            .collect(),
    }
}
