//! Gather of the rows to sample from: csrc/gather_samples.cu.

use super::bindings::{msgl_gather_samples, msgl_gather_samples_params};
use super::memory::DeviceBuf;
use super::{Cuda, CudaInputs, check};
use crate::{Result, Tensor};

const OP: &str = "gather_samples";

/// See [`Backend::gather_samples`](crate::Backend::gather_samples). Rows of padding samples keep what they hold.
pub(crate) fn gather_samples(
    cuda: &Cuda,
    out: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    inputs: &CudaInputs,
) -> Result<()> {
    let num_samples = inputs.layout.num_samples;
    check::tensor(OP, "x", x, inputs.layout.num_tokens, out.cols, out.dtype)?;
    check::tensor(OP, "out", out, num_samples, x.cols, x.dtype)?;
    let params = msgl_gather_samples_params {
        out: out.buf.as_ptr(),
        x: x.buf.as_ptr(),
        sample_tokens: inputs.sample_tokens(),
        num_samples: num_samples as u32,
        x_rows: inputs.layout.num_tokens as u32,
        cols: check::u32_of(OP, "x.cols", x.cols)?,
        dtype: check::abi(x.dtype),
    };
    // SAFETY: `out` has room for `num_samples` rows; the kernel compares every index with `x_rows`.
    unsafe { cuda.launch(OP, &params, msgl_gather_samples) }
}
