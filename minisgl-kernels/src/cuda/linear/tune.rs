//! Choosing an algorithm: the library's first guess, or the fastest of its guesses by measurement.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::result;

use super::super::Cuda;
use super::super::device::Event;
use super::super::memory::DeviceBuf;
use super::descriptors::{MatmulDesc, MatrixLayout, candidates};
use super::{OP, Operands, Plan, Shape, WORKSPACE_BYTES};
use crate::{KernelError, Result};

/// Guesses that are timed. Each loads its kernel, which costs the start some milliseconds.
const CANDIDATES: usize = 4;
/// Timings of each, of which the least counts.
const REPEATS: usize = 2;
/// Shapes with more rows are bound by arithmetic, where the first guess is good, and seldom come twice.
pub(super) const MAX_TUNED_ROWS: usize = 512;
/// A measured winner must beat the first guess by this factor, so that noise does not change the algorithm, and
/// with it the last bits of the result, from run to run.
const MARGIN: f32 = 0.95;

/// Whether a shape comes often enough to be worth its measurement: the sizes that decode graphs are made for.
pub(super) fn is_tuned(rows: usize) -> bool {
    rows <= 16 || (rows <= MAX_TUNED_ROWS && rows.is_multiple_of(8))
}

/// Makes the plan for `shape`.
///
/// # Safety
/// The operands must have the sizes of `shape`. The output is overwritten.
pub(super) unsafe fn plan(cuda: &mut Cuda, shape: Shape, operands: Operands) -> Result<Plan> {
    let cache = cuda.blas.cache.as_ref();
    let known = cache.and_then(|cache| cache.algorithm(&shape));
    // A measurement needs the stream to itself, and leaves nonsense in the output.
    let measures = known.is_none() && cache.is_some() && !cuda.is_capturing && is_tuned(shape.rows);
    let limit = if measures || known.is_some() { CANDIDATES } else { 1 };
    let mut plans = guesses(cuda, shape, limit)
        .map_err(|e| cuda.device.error(OP, format!("{e} while planning {shape:?}")))?;
    if plans.is_empty() {
        return Err(KernelError::Unsupported {
            op: OP,
            what: format!("{shape:?}"),
            supported: "shapes that cuBLASLt has an algorithm for".into(),
        });
    }
    let best = match known {
        Some(best) => best.min(plans.len() - 1),
        None if measures && plans.len() > 1 => {
            // SAFETY: the caller's promise.
            let best = unsafe { fastest(cuda, shape, operands, &plans)? };
            if let Some(cache) = &mut cuda.blas.cache {
                cache.set_algorithm(shape, best);
            }
            best
        }
        None => 0,
    };
    Ok(plans.swap_remove(best))
}

fn guesses(cuda: &Cuda, shape: Shape, limit: usize) -> Result<Vec<Plan>, CublasError> {
    let make = || {
        let Shape { rows, n, k, dtype, out_dtype, .. } = shape;
        Ok::<_, CublasError>((
            MatmulDesc::new()?,
            MatrixLayout::new(dtype, k, n, k)?,
            MatrixLayout::new(dtype, k, rows, k)?,
            MatrixLayout::new(out_dtype, n, rows, n)?,
        ))
    };
    let (desc, weight, x, out) = make()?;
    let found = candidates(cuda.blas.handle, &desc, [&weight, &x, &out], WORKSPACE_BYTES, limit)?;
    let plan = |result: cudarc::cublaslt::sys::cublasLtMatmulHeuristicResult_t| {
        let (desc, weight, x, out) = make()?;
        Ok(Plan { desc, weight, x, out, algo: result.algo, workspace_bytes: result.workspaceSize })
    };
    found.into_iter().map(plan).collect()
}

/// Index of the fastest plan.
///
/// # Safety
/// The operands must have the sizes of `shape`.
unsafe fn fastest(cuda: &mut Cuda, shape: Shape, operands: Operands, plans: &[Plan]) -> Result<usize> {
    let mut best = (0, f32::INFINITY);
    for (i, plan) in plans.iter().enumerate() {
        let took = time(cuda, &mut |cuda| {
            // SAFETY: the caller's promise.
            let enqueued = unsafe { plan.enqueue(&cuda.blas, shape, operands, &cuda.stream) };
            enqueued.map_err(|e| cuda.device.error(OP, e.to_string()))
        });
        let took = match took {
            Ok(Some(took)) => took,
            // With no memory to spare the first guess has to do.
            Ok(None) => return Ok(0),
            // A guess that does not run is no candidate. An error of the device shows again in the next call.
            Err(_) => continue,
        };
        if took < best.1 * if best.0 == 0 { MARGIN } else { 1.0 } {
            best = (i, took);
        }
    }
    Ok(best.0)
}

/// Milliseconds of what `body` enqueues, the least of some runs, or none where there is no memory to measure in.
/// Weights are read from cold caches, as they are in a step.
pub(super) fn time(cuda: &mut Cuda, body: &mut dyn FnMut(&mut Cuda) -> Result<()>) -> Result<Option<f32>> {
    // Before the buffer is taken: it may have things of its own to measure.
    body(cuda)?;
    let flush_bytes = cuda.device.l2_bytes * 3 / 2;
    let flush = match cuda.blas.flush.take() {
        Some(flush) => flush,
        None => match DeviceBuf::zeroed(&cuda.device, &cuda.stream, "cache flush", flush_bytes) {
            Ok(flush) => flush,
            Err(KernelError::OutOfMemory { .. }) => return Ok(None),
            Err(error) => return Err(error),
        },
    };
    let (start, end) = (Event::new(&cuda.device, true)?, Event::new(&cuda.device, true)?);
    let mut least = f32::INFINITY;
    for repeat in 0..REPEATS {
        // SAFETY: the buffer has `flush_bytes` bytes.
        let flushed =
            unsafe { result::memset_d8_async(flush.ptr(), repeat as u8, flush_bytes, cuda.stream.raw()) };
        cuda.device.check(OP, flushed)?;
        start.record(&cuda.stream)?;
        body(cuda)?;
        end.record(&cuda.stream)?;
        end.wait(OP)?;
        least = least.min(end.elapsed_ms(&start)?);
    }
    cuda.blas.flush = Some(flush);
    Ok(Some(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graph_sizes_are_tuned_and_prefill_is_not() {
        for rows in [1, 2, 3, 16, 24, 32, 256, 512] {
            assert!(is_tuned(rows), "{rows}");
        }
        for rows in [17, 33, 513, 520, 8192] {
            assert!(!is_tuned(rows), "{rows}");
        }
    }
}
