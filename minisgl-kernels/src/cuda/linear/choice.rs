//! The skinny kernel, or what else computes the same: the faster by measurement.

use super::super::Cuda;
use super::skinny::Product;
use super::trial::{self, Run};
use crate::Result;
use crate::cuda::options::LinearKernel;

/// Most tokens that the skinny kernel gets where nothing was measured: where it was the faster for every shape of
/// docs/kernels/linear.md.
const MAX_UNMEASURED_ROWS: usize = 16;
/// What the other way must take at most of the skinny kernel's time, so that noise does not change the kernel from
/// run to run.
const MARGIN: f32 = 0.95;

/// Runs `product` by the skinny kernel, or else `other`.
///
/// # Safety
/// As for [`Product::enqueue`]. A trial of `other` may write to the trial output only, and to what is unspecified
/// after the op anyway.
pub(super) unsafe fn run(
    cuda: &mut Cuda,
    product: &Product,
    other: &mut dyn FnMut(&mut Cuda, Run) -> Result<()>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    if unsafe { takes_skinny(cuda, product, other)? } {
        // SAFETY: the caller's promise; it is supported.
        unsafe { product.enqueue(cuda, Run::Op) }
    } else {
        other(cuda, Run::Op)
    }
}

/// # Safety
/// As for [`run`].
unsafe fn takes_skinny(
    cuda: &mut Cuda,
    product: &Product,
    other: &mut dyn FnMut(&mut Cuda, Run) -> Result<()>,
) -> Result<bool> {
    if cuda.options.linear == LinearKernel::Cublas || !product.is_supported(cuda)? {
        return Ok(false);
    }
    if cuda.options.linear == LinearKernel::Skinny {
        return Ok(true);
    }
    let (key, rows) = (product.key(), product.shape.rows);
    let Some(cache) = &cuda.blas.cache else { return Ok(rows <= MAX_UNMEASURED_ROWS) };
    if let Some(is_skinny) = cache.choice(&key) {
        return Ok(is_skinny);
    }
    if !cuda.measures() {
        return Ok(rows <= MAX_UNMEASURED_ROWS);
    }
    let (weight, bytes) = (product.operands.weight, product.weight_bytes());
    // SAFETY: the caller's promise; a trial's weights are as many bytes.
    let skinny = trial::time(cuda, weight, bytes, &mut |cuda, run| unsafe { product.enqueue(cuda, run) })?;
    let other = trial::time(cuda, weight, bytes, other)?;
    let is_skinny = match (skinny, other) {
        (Some(skinny), Some(other)) => other > MARGIN * skinny,
        // No memory to measure in.
        _ => return Ok(rows <= MAX_UNMEASURED_ROWS),
    };
    if let Some(cache) = &mut cuda.blas.cache {
        cache.set_choice(key, is_skinny);
    }
    Ok(is_skinny)
}
