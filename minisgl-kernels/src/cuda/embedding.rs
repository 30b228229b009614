//! Embedding: csrc/embedding.cu.

use super::bindings::{msgl_embedding, msgl_embedding_params};
use super::memory::DeviceBuf;
use super::{Cuda, CudaInputs, check};
use crate::{Result, SeqState, Tensor};

const OP: &str = "embedding";

/// See [`Backend::embedding`](crate::Backend::embedding).
pub(crate) fn embedding(
    cuda: &Cuda,
    out: &mut Tensor<DeviceBuf>,
    table: &Tensor<DeviceBuf>,
    inputs: &CudaInputs,
    state: &SeqState<DeviceBuf>,
) -> Result<()> {
    let num_tokens = inputs.layout.num_tokens;
    check::tensor(OP, "table", table, table.rows, out.cols, out.dtype)?;
    check::tensor(OP, "out", out, num_tokens, table.cols, table.dtype)?;
    let params = msgl_embedding_params {
        out: out.buf.as_ptr(),
        table: table.buf.as_ptr(),
        token_ids: inputs.token_ids(),
        last_tokens: state.last_tokens.as_ptr(),
        num_tokens: num_tokens as u32,
        cols: check::u32_of(OP, "out.cols", out.cols)?,
        table_rows: check::u32_of(OP, "table.rows", table.rows)?,
        max_rows: state.max_rows as u32,
        dtype: check::abi(out.dtype),
    };
    // SAFETY: `out` has room for `num_tokens` rows; the kernel compares every token with `table_rows` and every
    // row with `max_rows`, which are the sizes of `table` and `last_tokens`.
    unsafe { cuda.launch(OP, &params, msgl_embedding) }
}
