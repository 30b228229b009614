use std::sync::{Arc, Weak};

use minisgl_engine::request::RequestId;

use crate::error::{Error, Result};
use crate::flight::{Flight, Job};
use crate::llm::Inner;
use crate::output::Output;

/// The text of one completion while it is generated: an iterator of increments whose concatenation is exactly the
/// `text` of its [`Output`].
///
/// An increment is never empty, never cuts a character and never holds a part of a stop string. Dropping the
/// stream aborts the request.
pub struct Stream {
    flight: Flight,
    abort_handle: AbortHandle,
    /// Bytes of the text that have been handed out.
    num_shown: usize,
    ended: Option<Result<Output>>,
    /// Whether the error was handed out.
    failed: bool,
}

impl Stream {
    pub(crate) fn start(inner: Arc<Inner>, job: Job) -> Result<Self> {
        let handle = Arc::downgrade(&inner);
        let mut flight = Flight::new(inner, None);
        flight.submit(vec![(0, job)])?;
        let abort_handle = AbortHandle { inner: handle, ids: flight.ids(0) };
        Ok(Self { flight, abort_handle, num_shown: 0, ended: None, failed: false })
    }

    /// Ends the request from another thread: the stream then ends with what was generated.
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort_handle.clone()
    }

    /// Waits for the end and returns the whole output, increments already seen included.
    ///
    /// # Errors
    /// The request failed while it ran.
    pub fn into_output(mut self) -> Result<Output> {
        loop {
            if let Some(ended) = self.ended.take() {
                return ended;
            }
            self.step();
        }
    }

    fn step(&mut self) {
        if let Some((_, ended)) = self.flight.step() {
            self.ended = Some(ended);
        }
    }
}

impl Iterator for Stream {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let text = match &self.ended {
                None => self.flight.text(0).unwrap_or_default(),
                Some(Ok(output)) => &output.text,
                Some(Err(_)) if self.failed => return None,
                Some(Err(_)) => {
                    self.failed = true;
                    let none_left = Error::Argument("the stream has failed and has no output".into());
                    return self.ended.replace(Err(none_left)).map(|ended| ended.map(|_| String::new()));
                }
            };
            if text.len() > self.num_shown {
                let increment = text[self.num_shown..].to_owned();
                self.num_shown = text.len();
                return Some(Ok(increment));
            }
            if self.ended.is_some() {
                return None;
            }
            self.step();
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("num_shown", &self.num_shown).finish_non_exhaustive()
    }
}

/// Ends the request of a [`Stream`], from any thread and at any time.
#[derive(Clone)]
pub struct AbortHandle {
    inner: Weak<Inner>,
    ids: Vec<RequestId>,
}

impl AbortHandle {
    /// Ends the request soon, unless it has ended.
    pub fn abort(&self) {
        if let Some(inner) = self.inner.upgrade() {
            for &id in &self.ids {
                inner.engine.abort(id);
            }
        }
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AbortHandle").field("ids", &self.ids).finish_non_exhaustive()
    }
}
