//! Our own kernels, or what else computes the same: the fastest by measurement.

use super::super::Cuda;
use super::skinny::{Product, Variant};
use super::step::Rivals;
use super::trial::{self, Run};
use crate::Result;
use crate::cuda::options::LinearKernel;

/// Most tokens that an own kernel gets where nothing was measured: where one was the faster for every shape of
/// docs/kernels/linear.md.
const MAX_UNMEASURED_ROWS: usize = 16;

/// Runs `product` by an own kernel, or else `other`.
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
    match unsafe { choose(cuda, product, other)? } {
        // SAFETY: the caller's promise; it is supported.
        Some(variant) => unsafe { product.enqueue(cuda, variant, Run::Op) },
        None => other(cuda, Run::Op),
    }
}

/// # Safety
/// As for [`run`].
unsafe fn choose(
    cuda: &mut Cuda,
    product: &Product,
    other: &mut dyn FnMut(&mut Cuda, Run) -> Result<()>,
) -> Result<Option<Variant>> {
    if matches!(cuda.options.linear, LinearKernel::Cublas | LinearKernel::Gemm) {
        return Ok(None);
    }
    let variants = product.variants(cuda)?;
    let Some(&first) = variants.first() else { return Ok(None) };
    let (key, rows) = (product.key(), product.shape.rows);
    let unmeasured = (rows <= MAX_UNMEASURED_ROWS).then_some(first);
    if let LinearKernel::Own(variant) = cuda.options.linear {
        return Ok(Some(Variant(variant)).filter(|variant| variants.contains(variant)));
    }
    if cuda.measures() {
        cuda.blas.rivals.iter_mut().for_each(|rivals| rivals.count(&key));
    }
    let Some(cache) = &cuda.blas.cache else { return Ok(unmeasured) };
    match cache.choice(&key) {
        Some(None) => return Ok(None),
        // Not one that the file alone knows.
        Some(Some(variant)) if variants.contains(&variant) => return Ok(Some(variant)),
        _ => {}
    }
    if !cuda.measures() {
        return Ok(unmeasured);
    }
    let (weight, bytes) = (product.operands.weight, product.weight_bytes());
    let mut times = Vec::with_capacity(variants.len() + 1);
    for variant in variants {
        // SAFETY: the caller's promise; a trial's weights are as many bytes, and the variant is supported.
        let body = &mut |cuda: &mut Cuda, run| unsafe { product.enqueue(cuda, variant, run) };
        // Without memory to measure in there is no choice.
        let Some(took) = trial::time(cuda, weight, bytes, body)? else { return Ok(unmeasured) };
        times.push((Some(variant), took));
    }
    let Some(took) = trial::time(cuda, weight, bytes, other)? else { return Ok(unmeasured) };
    times.push((None, took));
    let rivals = Rivals::new(key, &times);
    let choice = rivals.first();
    tracing::debug!(?key, us = ?times, "linear layer measured alone");
    cuda.blas.rivals.push(rivals);
    if let Some(cache) = &mut cuda.blas.cache {
        cache.set_choice(key, choice);
    }
    Ok(choice)
}
