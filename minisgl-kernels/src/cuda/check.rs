//! Checks of tensor arguments that the ops share. What passes them makes the launches sound.

use super::bindings::{msgl_activation, msgl_dtype};
use super::memory::DeviceBuf;
use crate::{Activation, DType, KernelError, Result, Tensor};

/// The dtype as the launchers take it.
pub(crate) fn abi(dtype: DType) -> msgl_dtype {
    match dtype {
        DType::BF16 => msgl_dtype::MSGL_BF16,
        DType::F16 => msgl_dtype::MSGL_F16,
        DType::F32 => msgl_dtype::MSGL_F32,
    }
}

/// The activation as the launchers take it.
pub(crate) fn activation(activation: Activation) -> msgl_activation {
    match activation {
        Activation::Silu => msgl_activation::MSGL_SILU,
        Activation::Gelu => msgl_activation::MSGL_GELU,
        Activation::GeluTanh => msgl_activation::MSGL_GELU_TANH,
    }
}

/// Fails unless `found` is `expected`.
pub(crate) fn same(op: &'static str, what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(KernelError::Shape { op, what, expected, found }) }
}

/// Fails unless `found` is below `limit`.
pub(crate) fn below(op: &'static str, what: &'static str, found: usize, limit: usize) -> Result<()> {
    if found < limit { Ok(()) } else { Err(KernelError::Index { op, what, found, limit }) }
}

/// Fails unless the dtypes are the same.
pub(crate) fn same_dtype(op: &'static str, what: &'static str, found: DType, expected: DType) -> Result<()> {
    if found == expected { Ok(()) } else { Err(KernelError::DType { op, what, expected, found }) }
}

/// Fails unless `rows` rows of `cols` columns of `dtype` are in the tensor and in its memory.
pub(crate) fn tensor(
    op: &'static str,
    what: &'static str,
    tensor: &Tensor<DeviceBuf>,
    rows: usize,
    cols: usize,
    dtype: DType,
) -> Result<()> {
    same_dtype(op, what, tensor.dtype, dtype)?;
    same(op, what, tensor.cols, cols)?;
    below(op, what, rows, tensor.rows + 1)?;
    below(op, what, tensor.size_bytes(), tensor.buf.size_bytes() + 1)
}

/// The number as the launchers take it.
pub(crate) fn u32_of(op: &'static str, what: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| KernelError::Index { op, what, found: n, limit: u32::MAX as usize })
}
