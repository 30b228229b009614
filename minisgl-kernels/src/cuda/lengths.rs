//! Steps of short and of long contexts: attention wants other grids for them, and a grid is recorded with a graph. So a
//! graph is recorded for short contexts, and where an op said that it then ends somewhere, once more for long ones.

use std::cell::Cell;

/// How long the contexts are that an op has to expect.
pub(crate) struct Lengths {
    /// Longest context of the step that was begun last.
    of_step: usize,
    /// What the recording under way is for.
    recorded: Option<usize>,
    /// Longest context for which the recording under way is meant.
    limit: Cell<usize>,
}

impl Lengths {
    pub(crate) fn new() -> Self {
        Self { of_step: 0, recorded: None, limit: Cell::new(usize::MAX) }
    }

    /// A step with contexts of up to `max_kv_len` positions begins.
    pub(crate) fn begin_step(&mut self, max_kv_len: usize) {
        self.of_step = max_kv_len;
    }

    /// Longest context of the step that was begun last.
    pub(crate) fn of_step(&self) -> usize {
        self.of_step
    }

    /// A recording begins, for contexts of `max_kv_len` positions.
    pub(crate) fn begin_recording(&mut self, max_kv_len: usize) {
        self.recorded = Some(max_kv_len);
        self.limit.set(usize::MAX);
    }

    /// Ends it and returns the longest context that it is meant for.
    pub(crate) fn end_recording(&mut self) -> usize {
        self.recorded = None;
        self.limit.get()
    }

    /// The longest context to expect where the inputs at hand have one of `max_kv_len`.
    pub(crate) fn expected(&self, max_kv_len: usize) -> usize {
        self.recorded.unwrap_or(max_kv_len)
    }

    /// What the caller has chosen is not meant for contexts of more than `max_kv_len` positions.
    pub(crate) fn limit_to(&self, max_kv_len: usize) {
        self.limit.set(self.limit.get().min(max_kv_len));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_knows_no_step_and_ends_at_the_lowest_limit() {
        let mut lengths = Lengths::new();
        lengths.begin_step(700);
        assert_eq!((lengths.of_step(), lengths.expected(600)), (700, 600));
        lengths.begin_recording(0);
        assert_eq!(lengths.expected(600), 0);
        lengths.limit_to(2048);
        lengths.limit_to(1024);
        lengths.limit_to(usize::MAX);
        assert_eq!(lengths.end_recording(), 1024);
        assert_eq!(lengths.expected(600), 600);
        lengths.begin_recording(usize::MAX);
        assert_eq!(lengths.expected(600), usize::MAX);
        assert_eq!(lengths.end_recording(), usize::MAX);
    }
}
