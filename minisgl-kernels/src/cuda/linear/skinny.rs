//! Our own product of few tokens: csrc/skinny/.

use std::ffi::c_void;

use super::super::bindings::{
    MSGL_SKINNY_VARIANTS, msgl_activation, msgl_skinny, msgl_skinny_is_supported, msgl_skinny_params,
};
use super::super::{Cuda, check};
use super::{OP, Operands, Run, Shape};
use crate::{Activation, Result};

/// A linear layer with what may be computed in the same pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// With `adds`, the output is added to.
    pub(super) shape: Shape,
    pub(super) operands: Operands,
    /// Weight and epsilon of an RMSNorm of `x`.
    pub(super) norm: Option<(*const c_void, f32)>,
    /// The weight's rows are gates and then ups, and the output has one column for each pair.
    pub(super) gated: Option<Activation>,
    /// Where to write while measuring: as large as the output, which a sum must not go to twice.
    pub(super) trial_out: *mut c_void,
}

/// A kernel, and how it cuts a product up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant(pub(super) u32);

/// The most rows that are computed in the same way: by the same instance of a kernel, so that the larger of two batches
/// is not the faster one.
fn alike(rows: usize) -> usize {
    match rows {
        2..=8 => 8,
        9..=16 => 16,
        17..=24 => 24,
        25..=32 => 32,
        33..=48 => 48,
        49..=64 => 64,
        _ => rows,
    }
}

/// What a choice between this kernel and others depends on; of the rows, what they are [`alike`] to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) shape: Shape,
    pub(super) has_norm: bool,
    pub(super) is_gated: bool,
}

impl Product {
    /// A linear layer and nothing else.
    pub(super) fn plain(shape: Shape, operands: Operands) -> Self {
        Self { shape, operands, norm: None, gated: None, trial_out: operands.out }
    }

    pub(super) fn key(&self) -> Key {
        let shape = Shape { rows: alike(self.shape.rows), ..self.shape };
        Key { shape, has_norm: self.norm.is_some(), is_gated: self.gated.is_some() }
    }

    /// Bytes of the weights.
    pub(super) fn weight_bytes(&self) -> usize {
        self.shape.n * self.shape.k * self.shape.dtype.size_bytes()
    }

    /// Whether any variant computes this on the device.
    pub(super) fn is_supported(&self, cuda: &Cuda) -> Result<bool> {
        Ok(!self.variants(cuda)?.is_empty())
    }

    /// The variants that compute this on the device.
    pub(super) fn variants(&self, cuda: &Cuda) -> Result<Vec<Variant>> {
        let params = self.params(cuda, Variant(0), Run::Op)?;
        let is_supported = |variant: &u32| {
            let params = msgl_skinny_params { variant: *variant, ..params };
            // SAFETY: reads sizes and dtypes, and whether pointers are null.
            unsafe { msgl_skinny_is_supported(&params, cuda.device.sm) != 0 }
        };
        Ok((0..MSGL_SKINNY_VARIANTS).filter(is_supported).map(Variant).collect())
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// The operands must have the sizes of the shape, the norm `k` elements; with gates the output has `n / 2`
    /// columns. The variant must be one of [`variants`](Self::variants).
    pub(super) unsafe fn enqueue(&self, cuda: &Cuda, variant: Variant, run: Run) -> Result<()> {
        let params = self.params(cuda, variant, run)?;
        // SAFETY: the caller's promise, for the output or for the memory of its size that trials write to.
        unsafe { cuda.launch(OP, &params, msgl_skinny) }
    }

    fn params(&self, cuda: &Cuda, variant: Variant, run: Run) -> Result<msgl_skinny_params> {
        let Self { shape, operands, norm, gated, .. } = *self;
        let (norm, eps) = norm.unwrap_or((std::ptr::null(), 0.0));
        Ok(msgl_skinny_params {
            out: run.out(operands.out, self.trial_out),
            x: operands.x,
            weight: run.weight(operands.weight),
            bias: operands.bias,
            norm,
            rows: check::u32_of(OP, "rows", shape.rows)?,
            n: check::u32_of(OP, "weight.rows", shape.n)?,
            k: check::u32_of(OP, "weight.cols", shape.k)?,
            eps,
            is_gated: u32::from(gated.is_some()),
            adds_to_out: u32::from(shape.adds),
            num_sms: cuda.device.num_sms,
            variant: variant.0,
            activation: match gated {
                Some(Activation::Gelu) => msgl_activation::MSGL_GELU,
                Some(Activation::GeluTanh) => msgl_activation::MSGL_GELU_TANH,
                Some(Activation::Silu) | None => msgl_activation::MSGL_SILU,
            },
            out_dtype: check::abi(shape.out_dtype),
            dtype: check::abi(shape.dtype),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::alike;

    #[test]
    fn rows_are_alike_to_no_fewer_and_in_order() {
        for rows in 1..300 {
            assert!(alike(rows) >= rows, "{rows}");
            assert_eq!(alike(alike(rows)), alike(rows), "{rows}");
            assert!(alike(rows + 1) >= alike(rows), "{rows}");
        }
    }
}
