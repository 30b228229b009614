//! The queue between callers and the engine's thread: many push, one takes, either side closes it with a reason.
//!
//! A channel cannot tell a late sender why the receiver is gone, nor hand over what arrived in between: closing
//! and pushing exclude each other here, so that nothing pushed is ever lost in silence.

use std::collections::VecDeque;

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};

/// Items of type `T`, closed for a reason of type `E`.
#[derive(Debug)]
pub(crate) struct Queue<T, E> {
    state: Mutex<State<T, E>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T, E> {
    items: VecDeque<T>,
    closed: Option<E>,
}

impl<T, E: Clone> Queue<T, E> {
    pub(crate) fn new() -> Self {
        let state = State { items: VecDeque::new(), closed: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Appends an item, or says why nobody will take it.
    pub(crate) fn push(&self, item: T) -> Result<(), E> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        state.items.push_back(item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes all items, in order; waits for one if `wait`. `None` once the queue is closed.
    pub(crate) fn take(&self, wait: bool) -> Option<VecDeque<T>> {
        let mut state = self.lock();
        while wait && state.items.is_empty() && state.closed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        match state.closed {
            Some(_) => None,
            None => Some(std::mem::take(&mut state.items)),
        }
    }

    /// Closes the queue, unless it is closed already: the first reason stays. Returns the items that nobody took.
    pub(crate) fn close(&self, reason: E) -> VecDeque<T> {
        let mut state = self.lock();
        state.closed.get_or_insert(reason);
        let left = std::mem::take(&mut state.items);
        drop(state);
        self.changed.notify_all();
        left
    }

    /// A panic while the lock is held leaves a whole state behind: nothing in here can panic half-way.
    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Every interleaving of a few operations: `RUSTFLAGS="--cfg loom" cargo test --release -p minisgl-engine loom`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Each item is taken, handed back by `close`, or refused: exactly one of the three.
    #[test]
    fn loom_nothing_is_lost_when_the_taker_closes() {
        loom::model(|| {
            let queue = Arc::new(Queue::<u32, &str>::new());
            let callers: Vec<_> = (0..2)
                .map(|i| {
                    let queue = Arc::clone(&queue);
                    thread::spawn(move || queue.push(i).is_ok())
                })
                .collect();
            let mut seen: Vec<u32> = queue.take(false).expect("open").into_iter().collect();
            seen.extend(queue.close("dead"));
            for (i, caller) in callers.into_iter().enumerate() {
                let accepted = caller.join().unwrap();
                assert_eq!(accepted, seen.contains(&(i as u32)));
            }
            assert_eq!(queue.push(9), Err("dead"));
            assert!(queue.take(true).is_none());
        });
    }

    /// A taker that waits is woken by a push and by a close from the other side, and sees the push first.
    #[test]
    fn loom_a_waiting_taker_is_woken() {
        loom::model(|| {
            let queue = Arc::new(Queue::<u32, &str>::new());
            let caller = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    queue.push(7).unwrap();
                    queue.close("dropped").len()
                })
            };
            let mut taken = 0;
            while let Some(items) = queue.take(true) {
                taken += items.len();
            }
            assert_eq!(taken + caller.join().unwrap(), 1);
        });
    }

    /// Two sides close at once: one reason stays, and nobody gets the other.
    #[test]
    fn loom_the_first_reason_stays() {
        loom::model(|| {
            let queue = Arc::new(Queue::<u32, u32>::new());
            let other = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || drop(queue.close(1)))
            };
            queue.close(2);
            let first = queue.push(0).unwrap_err();
            other.join().unwrap();
            assert_eq!(queue.push(0), Err(first));
        });
    }
}
