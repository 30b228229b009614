//! What the machine can do at most, to judge kernels by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Cpu;
use super::buf::Buf;
use super::simd::{Kernel, LANES, Simd, dispatch};

/// Large enough that no cache holds a noticeable part.
const BYTES: usize = 2 << 30;

/// Runs of which the best counts.
const RUNS: usize = 5;

/// Bytes a second that all threads read from memory together, streaming.
///
/// # Panics
/// Where the system has no memory for the buffer: 2 GiB, or half of what is free if that is less.
pub fn read_bandwidth(cpu: &Cpu) -> f64 {
    let bytes = BYTES.min(super::memory::memory().free_bytes / 2);
    let mut buf = Buf::zeroed(bytes).unwrap_or_else(|error| panic!("no {bytes} bytes to read: {error}"));
    // Pages that were never written are one and the same page of zeros.
    buf.as_mut_slice::<u32>().fill(0x3f80_0001);
    let words = buf.as_slice::<f32>();
    let share = words.len() / cpu.num_threads();
    let isa = cpu.isa;
    let seconds = best_of_runs(|| {
        cpu.pool.run(&|thread| {
            std::hint::black_box(dispatch(isa, Sum(&words[thread * share..(thread + 1) * share])));
        });
    });
    (share * cpu.num_threads() * size_of::<f32>()) as f64 / seconds
}

/// Floating-point operations a second (two for each multiply-add of f32) of all threads together.
pub fn fma_rate(cpu: &Cpu) -> f64 {
    let done = AtomicU64::new(0);
    let isa = cpu.isa;
    let seconds = best_of_runs(|| {
        done.store(0, Ordering::Relaxed);
        cpu.pool.run(&|_| {
            done.fetch_add(dispatch(isa, MultiplyAdd), Ordering::Relaxed);
        });
    });
    done.into_inner() as f64 / seconds
}

fn best_of_runs(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(time).fold(f64::INFINITY, f64::min)
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        const STREAMS: usize = 8;
        let mut sums = [s.splat(0.0); STREAMS];
        for block in self.0.as_chunks::<{ STREAMS * LANES }>().0 {
            let (vectors, _) = block.as_chunks::<LANES>();
            for (sum, x) in sums.iter_mut().zip(vectors) {
                s.prefetch(x.as_ptr().wrapping_add(512));
                *sum = s.add(*sum, s.load_f32(x));
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += s.reduce_add(sum);
        }
        total
    }
}

struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    type Output = u64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> u64 {
        // Enough chains to hide the latency of two units, few enough for the registers.
        if S::WIDE { multiply_add::<S, 12>(s) } else { multiply_add::<S, 6>(s) }
    }
}

#[inline(always)]
fn multiply_add<S: Simd, const CHAINS: usize>(s: S) -> u64 {
    const STEPS: usize = 4_000_000;
    let (x, y) = (s.splat(std::hint::black_box(0.999)), s.splat(std::hint::black_box(0.001)));
    let mut sums = [y; CHAINS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = s.fma(*sum, x, y);
        }
    }
    let mut total = 0.0;
    for sum in sums {
        total += s.reduce_add(sum);
    }
    std::hint::black_box(total);
    (2 * LANES * CHAINS * STEPS) as u64
}
