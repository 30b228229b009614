//! Choosing an algorithm: the library's first guess, or the fastest of its guesses by measurement.

use cudarc::cublaslt::result::CublasError;

use super::super::Cuda;
use super::descriptors::{MatmulDesc, MatrixLayout, candidates};
use super::{OP, Operands, Plan, Shape, WORKSPACE_BYTES, trial};
use crate::{KernelError, Result};

/// Guesses that are timed. Each loads its kernel, which costs the start some milliseconds.
const CANDIDATES: usize = 4;
/// A measured winner must beat the first guess by this factor, so that noise does not change the algorithm, and
/// with it the last bits of the result, from run to run.
const MARGIN: f32 = 0.95;

/// Makes the plan for `shape`.
///
/// # Safety
/// The operands must have the sizes of `shape`. The output is overwritten.
pub(super) unsafe fn plan(cuda: &mut Cuda, shape: Shape, operands: Operands) -> Result<Plan> {
    let cache = cuda.blas.cache.as_ref();
    let known = cache.and_then(|cache| cache.algorithm(&shape));
    let measures = known.is_none() && cache.is_some() && cuda.measures();
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
    let is_best = measures || known.is_some();
    Ok(Plan { is_best, ..plans.swap_remove(best) })
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
        Ok(Plan {
            desc,
            weight,
            x,
            out,
            algo: result.algo,
            workspace_bytes: result.workspaceSize,
            is_best: false,
        })
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
        let bytes = shape.n * shape.k * shape.dtype.size_bytes();
        let took = trial::time(cuda, operands.weight, bytes, &mut |cuda, run| {
            let operands = Operands { weight: run.weight(operands.weight), ..operands };
            // SAFETY: the caller's promise; a trial's weights are as many bytes.
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
