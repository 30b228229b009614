//! Our own product of many tokens: csrc/gemm/.

use super::super::bindings::{msgl_activation, msgl_gemm, msgl_gemm_is_supported, msgl_gemm_params};
use super::super::{Cuda, check};
use super::{OP, Operands, Shape};
use crate::cuda::options::LinearKernel;
use crate::{Activation, Result};

/// Fewest tokens that it gets: docs/kernels/gemm.md.
const MIN_ROWS: usize = 512;

/// A linear layer, perhaps with the gated activation of what it computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gemm {
    params: msgl_gemm_params,
}

impl Gemm {
    /// The product, or none where the kernel does not compute it or something else is faster. With `gated`, the
    /// weight's rows are gates and then ups, and the output has one column for each pair.
    pub(super) fn choose(
        cuda: &Cuda,
        shape: Shape,
        operands: Operands,
        gated: Option<Activation>,
    ) -> Result<Option<Self>> {
        let is_wanted = cuda.options.linear == LinearKernel::Auto && shape.rows >= MIN_ROWS;
        if !is_wanted || shape.has_bias || shape.out_dtype != shape.dtype {
            return Ok(None);
        }
        let params = msgl_gemm_params {
            out: operands.out,
            x: operands.x,
            weight: operands.weight,
            rows: check::u32_of(OP, "rows", shape.rows)?,
            n: check::u32_of(OP, "weight.rows", shape.n)?,
            k: check::u32_of(OP, "weight.cols", shape.k)?,
            is_gated: u32::from(gated.is_some()),
            adds_to_out: u32::from(shape.adds),
            num_sms: cuda.device.num_sms,
            activation: gated.map_or(msgl_activation::MSGL_SILU, check::activation),
            dtype: check::abi(shape.dtype),
        };
        // SAFETY: reads sizes and the dtype; what it asks the runtime is about the current device, which is this one.
        let is_supported = unsafe { msgl_gemm_is_supported(&params, cuda.device.sm) } != 0;
        Ok(is_supported.then_some(Self { params }))
    }

    /// Enqueues the kernel.
    ///
    /// # Safety
    /// The operands must have the sizes of the shape; with gates the output has `n / 2` columns.
    pub(super) unsafe fn enqueue(&self, cuda: &Cuda) -> Result<()> {
        // SAFETY: the caller's promise; `choose` has made sure that there is a kernel.
        unsafe { cuda.launch(OP, &self.params, msgl_gemm) }
    }
}
