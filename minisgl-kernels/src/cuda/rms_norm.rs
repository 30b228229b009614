//! RMSNorm with and without the residual sum: csrc/rms_norm.cu.

use super::bindings::{msgl_rms_norm, msgl_rms_norm_params};
use super::memory::DeviceBuf;
use super::{Cuda, check};
use crate::{Result, Tensor};

/// See [`Backend::rms_norm`](crate::Backend::rms_norm) and
/// [`Backend::add_rms_norm`](crate::Backend::add_rms_norm), which is this with a residual.
pub(crate) fn rms_norm(
    cuda: &Cuda,
    op: &'static str,
    out: &mut Tensor<DeviceBuf>,
    residual: Option<&mut Tensor<DeviceBuf>>,
    x: &Tensor<DeviceBuf>,
    weight: &Tensor<DeviceBuf>,
    eps: f32,
    rows: usize,
) -> Result<()> {
    let (cols, dtype) = (x.cols, x.dtype);
    check::tensor(op, "x", x, rows, cols, dtype)?;
    check::tensor(op, "out", out, rows, cols, dtype)?;
    check::tensor(op, "weight", weight, 1, cols, dtype)?;
    if let Some(residual) = &residual {
        check::tensor(op, "residual", residual, rows, cols, dtype)?;
    }
    let params = msgl_rms_norm_params {
        out: out.buf.as_ptr(),
        residual: residual.map_or(std::ptr::null_mut(), |r| r.buf.as_ptr()),
        x: x.buf.as_ptr(),
        weight: weight.buf.as_ptr(),
        rows: check::u32_of(op, "rows", rows)?,
        cols: check::u32_of(op, "x.cols", cols)?,
        eps,
        dtype: check::abi(dtype),
    };
    // SAFETY: every matrix has `rows` rows of `cols` columns of `dtype`, the weight one.
    unsafe { cuda.launch(op, &params, msgl_rms_norm) }
}
