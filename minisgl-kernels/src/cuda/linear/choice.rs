//! The skinny kernel, or what else computes the same: the faster by measurement.

use super::super::Cuda;
use super::skinny::Product;
use super::tune;
use crate::Result;
use crate::cuda::options::LinearKernel;

/// Most tokens that the skinny kernel gets where nothing was measured: where it was the faster for every shape of
/// docs/kernels/linear.md.
const MAX_UNMEASURED_ROWS: usize = 16;
/// What the other way must take at most of the skinny kernel's time, so that noise does not change the kernel from
/// run to run.
const MARGIN: f32 = 0.95;

/// Runs `product` by the skinny kernel, or else `other`, which is told whether it is a trial.
///
/// # Safety
/// As for [`Product::enqueue`]. A trial of `other` may write to the trial output only, and to what is unspecified
/// after the op anyway.
pub(super) unsafe fn run(
    cuda: &mut Cuda,
    product: &Product,
    other: &mut dyn FnMut(&mut Cuda, bool) -> Result<()>,
) -> Result<()> {
    // SAFETY: the caller's promise.
    if unsafe { takes_skinny(cuda, product, other)? } {
        // SAFETY: the caller's promise; it is supported.
        unsafe { product.enqueue(cuda, false) }
    } else {
        other(cuda, false)
    }
}

/// # Safety
/// As for [`run`].
unsafe fn takes_skinny(
    cuda: &mut Cuda,
    product: &Product,
    other: &mut dyn FnMut(&mut Cuda, bool) -> Result<()>,
) -> Result<bool> {
    let is_offered = matches!(cuda.options.linear, LinearKernel::Auto | LinearKernel::Skinny);
    if !is_offered || !product.is_supported(cuda)? {
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
    if cuda.is_capturing || !tune::is_tuned(rows) {
        return Ok(rows <= MAX_UNMEASURED_ROWS);
    }
    // SAFETY: the caller's promise.
    let skinny = tune::time(cuda, &mut |cuda| unsafe { product.enqueue(cuda, true) })?;
    let other = tune::time(cuda, &mut |cuda| other(cuda, true))?;
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
