//! The gated activation: csrc/act_mul.cu.

use super::bindings::{msgl_act_mul, msgl_act_mul_params};
use super::memory::DeviceBuf;
use super::{Cuda, check};
use crate::{Activation, Result, Tensor};

const OP: &str = "act_mul";

/// See [`Backend::act_mul`](crate::Backend::act_mul).
pub(crate) fn act_mul(
    cuda: &Cuda,
    out: &mut Tensor<DeviceBuf>,
    gate_up: &Tensor<DeviceBuf>,
    activation: Activation,
    rows: usize,
) -> Result<()> {
    check::tensor(OP, "gate_up", gate_up, rows, 2 * out.cols, out.dtype)?;
    check::tensor(OP, "out", out, rows, out.cols, out.dtype)?;
    let params = msgl_act_mul_params {
        out: out.buf.as_ptr(),
        gate_up: gate_up.buf.as_ptr(),
        rows: check::u32_of(OP, "rows", rows)?,
        ffn: check::u32_of(OP, "out.cols", out.cols)?,
        activation: check::activation(activation),
        dtype: check::abi(out.dtype),
    };
    // SAFETY: `gate_up` has `rows` rows of `2 * ffn` columns, `out` of `ffn`, both of `dtype`.
    unsafe { cuda.launch(OP, &params, msgl_act_mul) }
}
