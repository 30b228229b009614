//! Where a caller receives the events of its requests: the engine's thread puts a step's events in and wakes the caller
//! once, however many requests it has.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::EngineError;
use crate::queue::Queue;
use crate::request::{Event, Sink};

/// The receiving end of any number of sinks, each with a tag of type `T` by which its events are told apart.
///
/// Dropping it aborts what still runs.
pub struct Mailbox<T> {
    queue: Arc<Queue<(T, Event), ()>>,
    /// Taken from the queue and not handed out.
    taken: VecDeque<(T, Event)>,
}

/// Events for which memory is kept.
const MAX_KEPT: usize = 4096;

impl<T: Clone + Send + 'static> Mailbox<T> {
    /// Without sinks and events.
    pub fn new() -> Self {
        Self { queue: Arc::new(Queue::new()), taken: VecDeque::new() }
    }

    /// The sink of one more request. Its last event says how the request ended, if only by the sink being dropped.
    pub fn sink(&self, tag: T) -> Box<dyn Sink> {
        Box::new(MailboxSink { queue: Arc::clone(&self.queue), tag, is_ended: false })
    }

    /// Waits for the next event, in the order in which they were sent. It waits for ever where every sink has ended.
    pub fn recv(&mut self) -> (T, Event) {
        loop {
            if let Some(event) = self.taken.pop_front() {
                return event;
            }
            // What piled up while the caller was away is not to be paid for ever after.
            self.taken.shrink_to(MAX_KEPT);
            // Nobody closes the queue before the mailbox is dropped.
            self.queue.take(&mut self.taken, true);
        }
    }
}

impl<T: Clone + Send + 'static> Default for Mailbox<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.queue.close(()));
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("num_taken", &self.taken.len()).finish_non_exhaustive()
    }
}

struct MailboxSink<T: Clone + Send> {
    queue: Arc<Queue<(T, Event), ()>>,
    tag: T,
    is_ended: bool,
}

impl<T: Clone + Send> Sink for MailboxSink<T> {
    fn send(&mut self, event: Event) -> bool {
        self.is_ended |= !matches!(event, Event::Token { .. });
        self.queue.put((self.tag.clone(), event)).is_ok()
    }

    fn flush(&mut self) {
        self.queue.tell();
    }
}

impl<T: Clone + Send> Drop for MailboxSink<T> {
    /// An engine that panics drops its sinks: the caller must not wait for ever.
    fn drop(&mut self) {
        if !self.is_ended {
            self.send(Event::Failed(EngineError::Dead("the request was dropped before it ended".into())));
        }
        self.flush();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::request::{FinishReason, Timings};

    const TOKEN: Event = Event::Token { token: 1, logprobs: None };

    #[test]
    fn events_come_in_order_and_a_sink_that_is_dropped_before_the_end_says_so() {
        let mut mailbox = Mailbox::new();
        let mut sinks = [mailbox.sink(3), mailbox.sink(4)];
        assert!(sinks.iter_mut().all(|sink| sink.send(TOKEN)));
        drop(sinks);
        let events: Vec<_> = (0..4).map(|_| mailbox.recv()).collect();
        assert_eq!(events.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [3, 4, 3, 4]);
        for (_, last) in &events[2..] {
            assert!(matches!(last, Event::Failed(EngineError::Dead(_))), "{last:?}");
        }
    }

    #[test]
    fn an_end_is_said_once_and_a_caller_that_left_is_noticed() {
        let mut mailbox = Mailbox::new();
        let (mut ends, mut goes_on) = (mailbox.sink(0), mailbox.sink(1));
        let (reason, timings) = (FinishReason::Stop, Timings::default());
        assert!(ends.send(Event::Finished { reason, num_cached_tokens: 0, timings }));
        drop(ends);
        assert!(goes_on.send(TOKEN));
        assert_eq!([mailbox.recv().0, mailbox.recv().0], [0, 1]);
        drop(mailbox);
        assert!(!goes_on.send(TOKEN));
    }

    #[test]
    fn a_caller_that_waits_is_woken_by_the_flush() {
        let mut mailbox = Mailbox::new();
        let mut sink = mailbox.sink(7);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| (0..3).map(|_| mailbox.recv().0).collect::<Vec<_>>());
            // Long enough for the caller to wait, as a rule; whatever it does, it gets all.
            std::thread::sleep(Duration::from_millis(20));
            (0..3).for_each(|_| assert!(sink.send(TOKEN)));
            sink.flush();
            assert_eq!(caller.join().unwrap(), [7, 7, 7]);
        });
    }
}
