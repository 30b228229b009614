//! A persistent thread pool for jobs of a few microseconds.
//!
//! A job is one closure that every thread runs once, told which thread it is. The calling thread takes part.
//! Workers spin for some tens of microseconds after a job, because the next op of a decode step follows at
//! once, then park, so that an idle pool costs nothing.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread polls for what it waits for before it parks: longer than the gap between two ops of a
/// decode step, shorter than anyone would notice on a meter.
const SPIN: Duration = Duration::from_micros(40);

/// Chunks that [`Pool::for_chunks`] aims at for each thread: enough to even out a thread that the system
/// takes away for a while, few enough that the shared counter stays cold.
const CHUNKS_PER_THREAD: usize = 8;

type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The job that workers run now, with its lifetime erased.
#[derive(Clone, Copy)]
struct JobPtr(*const Job<'static>);

// SAFETY: the pointee is `Sync`, so it may be called from any thread; `Pool::run` keeps it alive until every
// worker has finished with it.
unsafe impl Send for JobPtr {}

struct Shared {
    /// Incremented once a job; a worker runs when it sees a number that it has not seen.
    epoch: AtomicU32,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    job: Mutex<Option<JobPtr>>,
    stop: AtomicBool,
    /// Whether the caller is parked waiting for `pending` to reach 0.
    caller_parked: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    workers: Vec<WorkerState>,
}

#[derive(Default)]
struct WorkerState {
    parked: AtomicBool,
    thread: OnceLock<Thread>,
}

/// Threads that wait for jobs. Not `Sync`: one job at a time, and a job cannot start another.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// A pool of `num_threads` threads, the caller's included.
    pub(crate) fn new(num_threads: usize) -> std::io::Result<Self> {
        let num_workers = num_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            pending: AtomicUsize::new(0),
            job: Mutex::new(None),
            stop: AtomicBool::new(false),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            workers: (0..num_workers).map(|_| WorkerState::default()).collect(),
        });
        // Complete before the first spawn, so that an error on the way stops the workers already started.
        let mut pool = Self { shared, handles: Vec::with_capacity(num_workers), not_sync: PhantomData };
        for worker in 0..num_workers {
            let shared = Arc::clone(&pool.shared);
            let handle = thread::Builder::new()
                .name(format!("minisgl-cpu-{}", worker + 1))
                .spawn(move || worker_loop(&shared, worker))?;
            // The cell is empty: each worker has its own and is spawned once.
            let _ = pool.shared.workers[worker].thread.set(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Threads that run a job, the caller's included.
    pub(crate) fn num_threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `job(thread)` once on each thread, with `thread` from 0 (the caller) to `num_threads() - 1`, and
    /// returns when all have returned.
    ///
    /// # Panics
    /// With the first panic of the job, after every thread has finished.
    pub(crate) fn run(&self, job: &Job<'_>) {
        if self.handles.is_empty() {
            return job(0);
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by workers between the store of `epoch` below
        // and their decrement of `pending`, and this function does not return or unwind before `pending` is 0.
        let erased = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        *lock(&shared.job) = Some(JobPtr(erased));
        shared.pending.store(self.handles.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in &shared.workers {
            // SeqCst on both sides: either the worker sees the new epoch before it parks, or we see it parked.
            if worker.parked.load(Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.wait_for_workers();
        *lock(&shared.job) = None;
        let worker_panic = lock(&shared.panic).take();
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = worker_panic {
            resume_unwind(payload);
        }
    }

    /// Calls `body(thread, range)` for ranges that together cover `0..len` once. Every range but the last has a
    /// multiple of `grain` elements and starts at one; threads take the next range as they get free.
    pub(crate) fn for_chunks(&self, len: usize, grain: usize, body: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let grain = grain.max(1);
        let threads = self.num_threads();
        let grains = len.div_ceil(grain);
        if threads == 1 || grains <= 1 {
            if len > 0 {
                body(0, 0..len);
            }
            return;
        }
        let chunk = grains.div_ceil(threads * CHUNKS_PER_THREAD) * grain;
        let next = AtomicUsize::new(0);
        self.run(&|thread| {
            loop {
                let start = next.fetch_add(chunk, Ordering::Relaxed);
                if start >= len {
                    break;
                }
                body(thread, start..len.min(start + chunk));
            }
        });
    }

    fn wait_for_workers(&self) {
        let shared = &*self.shared;
        let is_done = || shared.pending.load(Ordering::Acquire) == 0;
        if spin_until(is_done) {
            return;
        }
        *lock(&shared.caller) = Some(thread::current());
        shared.caller_parked.store(true, Ordering::SeqCst);
        while shared.pending.load(Ordering::SeqCst) != 0 {
            thread::park();
        }
        shared.caller_parked.store(false, Ordering::SeqCst);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches the panics of its jobs, so it cannot have panicked.
            let _ = handle.join();
        }
    }
}

fn worker_loop(shared: &Shared, worker: usize) {
    let mut seen = 0;
    loop {
        wait_for_epoch(shared, worker, seen);
        seen = shared.epoch.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let job = *lock(&shared.job);
        if let Some(JobPtr(job)) = job {
            let result = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: `run` stored the pointer before it published this epoch and keeps the job alive
                // until `pending` is 0, which this worker's decrement below has yet to bring about.
                unsafe { (*job)(worker + 1) }
            }));
            if let Err(payload) = result {
                lock(&shared.panic).get_or_insert(payload);
            }
        }
        if shared.pending.fetch_sub(1, Ordering::SeqCst) == 1
            && shared.caller_parked.load(Ordering::SeqCst)
            && let Some(caller) = &*lock(&shared.caller)
        {
            caller.unpark();
        }
    }
}

fn wait_for_epoch(shared: &Shared, worker: usize, seen: u32) {
    let is_new = || shared.epoch.load(Ordering::Acquire) != seen;
    if spin_until(is_new) {
        return;
    }
    let parked = &shared.workers[worker].parked;
    parked.store(true, Ordering::SeqCst);
    while shared.epoch.load(Ordering::SeqCst) == seen {
        thread::park();
    }
    parked.store(false, Ordering::SeqCst);
}

/// Polls `condition` for about [`SPIN`]; says whether it came true.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    const POLLS_PER_CLOCK_READ: usize = 64;
    let mut start = None;
    loop {
        for _ in 0..POLLS_PER_CLOCK_READ {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}

/// No job runs while a lock is held, so a poisoned one guards consistent data.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_job_once() {
        for num_threads in [1, 2, 3, 8] {
            let pool = Pool::new(num_threads).unwrap();
            assert_eq!(pool.num_threads(), num_threads);
            let counts: Vec<AtomicUsize> = (0..num_threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..2000 {
                pool.run(&|thread| {
                    counts[thread].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 2000));
        }
    }

    #[test]
    fn a_parked_pool_wakes() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..20 {
            thread::sleep(SPIN * 5);
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.load(Ordering::Relaxed), 60);
    }

    #[test]
    fn a_long_job_is_waited_for() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            let done = AtomicBool::new(false);
            pool.run(&|thread| {
                if thread == 1 {
                    thread::sleep(SPIN * 20);
                    done.store(true, Ordering::Relaxed);
                }
            });
            assert!(done.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn chunks_cover_everything_once() {
        let pool = Pool::new(3).unwrap();
        for len in [0, 1, 2, 15, 16, 17, 100, 1000] {
            for grain in [1, 4, 16, 64] {
                let hits: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
                pool.for_chunks(len, grain, &|_, range| {
                    assert_eq!(range.start % grain, 0);
                    assert!(range.end == len || range.end % grain == 0);
                    for i in range {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "len {len}, grain {grain}");
            }
        }
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let finished = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|thread| {
                    assert!(thread != bad, "thread {bad} fails");
                    finished.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let payload = result.unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(message, &format!("thread {bad} fails"));
            assert_eq!(finished.load(Ordering::Relaxed), 2);
        }
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn dropping_joins_busy_and_parked_workers() {
        for _ in 0..50 {
            let pool = Pool::new(4).unwrap();
            pool.run(&|_| {});
            drop(pool);
        }
        let pool = Pool::new(4).unwrap();
        thread::sleep(SPIN * 5);
        drop(pool);
    }
}
