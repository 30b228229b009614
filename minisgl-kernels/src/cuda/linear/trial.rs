//! Timing what computes a product, as it runs in a step: recorded in a graph, behind one another, weights cold.

use std::ffi::c_void;

use cudarc::driver::result;

use super::super::bindings::{msgl_dtype, msgl_fill_random, msgl_fill_random_params};
use super::super::device::Event;
use super::super::memory::DeviceBuf;
use super::super::{Cuda, graph};
use super::OP;
use crate::{KernelError, Result};

/// Runs in a graph: enough for the start of a run to overlap the end of the one before, as in a step.
const RUNS: usize = 12;
/// The same for many weights, where what overlaps is a small part.
const LONG_RUNS: usize = 3;
/// Bytes of weights that are many.
const LONG_BYTES: usize = 32 << 20;
/// Replays of the graph, of which the fastest counts.
const REPEATS: usize = 2;

/// What a run of a product is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Run {
    /// The op.
    Op,
    /// A measurement: with weights at this address, and writing to what is unspecified after the op only.
    Trial(*const c_void),
}

impl Run {
    /// Where to read the weights.
    pub(super) fn weight(self, of_op: *const c_void) -> *const c_void {
        match self {
            Self::Op => of_op,
            Self::Trial(weight) => weight,
        }
    }

    /// Where to write.
    pub(super) fn out(self, of_op: *mut c_void, of_trial: *mut c_void) -> *mut c_void {
        match self {
            Self::Op => of_op,
            Self::Trial(_) => of_trial,
        }
    }
}

/// Memory for measurements.
pub(super) struct Scratch {
    /// Written before a replay, to have nothing else in the cache.
    flush: DeviceBuf,
    /// Noise that stands for the weights of several layers.
    weights: DeviceBuf,
}

impl Scratch {
    fn new(cuda: &Cuda) -> Result<Self> {
        let bytes = cuda.device.l2_bytes * 3 / 2;
        let buffer = |what| DeviceBuf::zeroed(&cuda.device, &cuda.stream, what, bytes);
        let scratch = Self { flush: buffer("cache flush")?, weights: buffer("weights to measure with")? };
        let params = msgl_fill_random_params {
            out: scratch.weights.as_ptr(),
            num_elems: (bytes / 2) as u64,
            seed: 0,
            mean: 0.0,
            std: 0.02,
            dtype: msgl_dtype::MSGL_BF16,
        };
        // SAFETY: the buffer has `num_elems` elements of two bytes.
        unsafe { cuda.launch(OP, &params, msgl_fill_random)? };
        Ok(scratch)
    }
}

/// Microseconds of what `body` enqueues for a product with `weight_bytes` bytes of weights at `weight`, or none where
/// there is no memory to measure in.
///
/// # Errors
/// Those of `body`, which is called first with the product's own weights.
pub(super) fn time(
    cuda: &mut Cuda,
    weight: *const c_void,
    weight_bytes: usize,
    body: &mut dyn FnMut(&mut Cuda, Run) -> Result<()>,
) -> Result<Option<f32>> {
    // Not recorded: it may load kernels or plan first.
    body(cuda, Run::Trial(weight))?;
    let scratch = match cuda.blas.scratch.take() {
        Some(scratch) => scratch,
        None => match Scratch::new(cuda) {
            Ok(scratch) => scratch,
            Err(KernelError::OutOfMemory { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    // Copies of tensor maps and 16-byte accesses want aligned weights.
    let stride = weight_bytes.next_multiple_of(256);
    let runs = if weight_bytes < LONG_BYTES { RUNS } else { LONG_RUNS };
    let copies = (scratch.weights.size_bytes() / stride.max(1)).min(runs);
    let place = |i: usize| match copies {
        // More than the cache holds: cold each time.
        0 => weight,
        _ => scratch.weights.at::<c_void>(i % copies * stride).cast_const(),
    };
    let recorded =
        graph::capture(cuda, &mut |cuda| (0..runs).try_for_each(|i| body(cuda, Run::Trial(place(i)))))?;
    let (start, end) = (Event::new(&cuda.device, true)?, Event::new(&cuda.device, true)?);
    let mut least = f32::INFINITY;
    for repeat in 0..REPEATS {
        let (flush, bytes) = (scratch.flush.ptr(), scratch.flush.size_bytes());
        // SAFETY: the buffer has that many bytes.
        let flushed = unsafe { result::memset_d8_async(flush, repeat as u8, bytes, cuda.stream.raw()) };
        cuda.device.check(OP, flushed)?;
        start.record(&cuda.stream)?;
        graph::replay(cuda, &recorded)?;
        end.record(&cuda.stream)?;
        end.wait(OP)?;
        least = least.min(end.elapsed_ms(&start)? * 1e3 / runs as f32);
    }
    cuda.blas.scratch = Some(scratch);
    Ok(Some(least))
}
