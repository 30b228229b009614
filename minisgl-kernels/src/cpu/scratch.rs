//! Working memory that is reused from call to call.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::buf::{Buf, Plain};

/// A buffer that grows to the largest size asked for. Its contents are unspecified.
#[derive(Default)]
pub(crate) struct Scratch(Option<Buf>);

impl Scratch {
    /// `len` elements, aligned to a page.
    pub(crate) fn get<T: Plain>(&mut self, len: usize) -> &mut [T] {
        let wanted = len * size_of::<T>();
        if self.0.as_ref().is_none_or(|buf| buf.len() < wanted) {
            // Drop first: both need not be held at once.
            self.0 = None;
            self.0 = Some(Buf::zeroed(wanted).unwrap_or_else(|error| {
                panic!("the system has no {wanted} bytes of working memory: {error}")
            }));
        }
        match &mut self.0 {
            Some(buf) => &mut buf.as_mut_slice()[..len],
            None => &mut [],
        }
    }
}

/// What one thread works in. A thread locks its own only, so no lock is ever waited for.
#[derive(Default)]
pub(crate) struct ThreadScratch {
    /// Of an inner kernel.
    pub(crate) work: Scratch,
    /// Of the code around it.
    pub(crate) results: Scratch,
}

/// Locks a thread's scratch. Its contents are unspecified, so a panic under the lock leaves nothing broken.
pub(crate) fn lock(scratch: &Mutex<ThreadScratch>) -> MutexGuard<'_, ThreadScratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}
