//! The queue between callers and the engine's thread, either way: many push, one takes, either side closes it with a
//! reason.
//!
//! A channel cannot tell a late sender why the receiver is gone, nor hand over what arrived in between: closing
//! and pushing exclude each other here, so that nothing pushed is ever lost in silence. Nor can it be given many items
//! and wake its receiver once.

use std::collections::VecDeque;

#[cfg(loom)]
use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

/// Items of type `T`, closed for a reason of type `E`.
#[derive(Debug)]
pub(crate) struct Queue<T, E> {
    state: Mutex<State<T, E>>,
    changed: Condvar,
    /// Whether the taker has not been told of an item that was put.
    is_untold: AtomicBool,
}

#[derive(Debug)]
struct State<T, E> {
    items: VecDeque<T>,
    closed: Option<E>,
}

impl<T, E: Clone> Queue<T, E> {
    pub(crate) fn new() -> Self {
        let state = State { items: VecDeque::new(), closed: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), is_untold: AtomicBool::new(false) }
    }

    /// Appends an item, or says why nobody will take it.
    pub(crate) fn push(&self, item: T) -> Result<(), E> {
        self.put(item)?;
        self.tell();
        Ok(())
    }

    /// As [`push`](Self::push), but leaves a taker that waits asleep: [`tell`](Self::tell) must follow.
    pub(crate) fn put(&self, item: T) -> Result<(), E> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        state.items.push_back(item);
        // Under the lock, and in one chain with the other swaps: who clears this and wakes the taker in place of this
        // thread does so after the item is there.
        self.is_untold.swap(true, Ordering::Release);
        Ok(())
    }

    /// Wakes the taker if it may wait for items that are there.
    pub(crate) fn tell(&self) {
        if self.is_untold.load(Ordering::Relaxed) && self.is_untold.swap(false, Ordering::Acquire) {
            self.changed.notify_one();
        }
    }

    /// Moves all items to `taken`, which is empty and whose memory is reused; waits for one if `wait`. Returns whether
    /// the queue is open.
    pub(crate) fn take(&self, taken: &mut VecDeque<T>, wait: bool) -> bool {
        let mut state = self.lock();
        while wait && state.items.is_empty() && state.closed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.closed.is_some() {
            return false;
        }
        std::mem::swap(&mut state.items, taken);
        true
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
            let mut taken = VecDeque::new();
            assert!(queue.take(&mut taken, false));
            let mut seen = Vec::from(taken);
            seen.extend(queue.close("dead"));
            for (i, caller) in callers.into_iter().enumerate() {
                let accepted = caller.join().unwrap();
                assert_eq!(accepted, seen.contains(&(i as u32)));
            }
            assert_eq!(queue.push(9), Err("dead"));
            assert!(!queue.take(&mut VecDeque::new(), true));
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
            let (mut taken, mut items) = (0, VecDeque::new());
            while queue.take(&mut items, true) {
                taken += items.drain(..).len();
            }
            assert_eq!(taken + caller.join().unwrap(), 1);
        });
    }

    /// Two sides put items and tell of them afterwards: whichever of them tells, a taker that waits gets all.
    #[test]
    fn loom_items_that_were_put_are_told_of() {
        loom::model(|| {
            let queue = Arc::new(Queue::<u32, &str>::new());
            let callers: Vec<_> = (0..2)
                .map(|i| {
                    let queue = Arc::clone(&queue);
                    thread::spawn(move || {
                        queue.put(i).unwrap();
                        queue.tell();
                    })
                })
                .collect();
            let (mut taken, mut items) = (0, VecDeque::new());
            while taken < 2 {
                assert!(queue.take(&mut items, true));
                taken += items.drain(..).len();
            }
            callers.into_iter().for_each(|caller| caller.join().unwrap());
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
