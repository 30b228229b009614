//! Sampling: csrc/sample.cu.

use super::bindings::{msgl_sample, msgl_sample_params};
use super::memory::DeviceBuf;
use super::{Cuda, CudaInputs, check};
use crate::{Result, SampleBuf, SeqState, Tensor};

const OP: &str = "sample";

/// See [`Backend::sample`](crate::Backend::sample). Entries of padding samples keep what they hold.
pub(crate) fn sample(
    cuda: &Cuda,
    out: &mut SampleBuf<DeviceBuf>,
    logits: &Tensor<DeviceBuf>,
    inputs: &CudaInputs,
    state: &mut SeqState<DeviceBuf>,
) -> Result<()> {
    let num_samples = inputs.layout.num_samples;
    check::tensor(OP, "logits", logits, num_samples, state.vocab, logits.dtype)?;
    check::below(OP, "num_samples", num_samples, out.max_samples + 1)?;
    let params = msgl_sample_params {
        logits: logits.buf.as_ptr(),
        samples: inputs.samples(),
        last_tokens: state.last_tokens.as_ptr(),
        token_counts: state.token_counts.as_ptr(),
        tokens: out.tokens.as_ptr(),
        logprobs: out.logprobs.as_ptr(),
        top_tokens: out.top_tokens.as_ptr(),
        top_logprobs: out.top_logprobs.as_ptr(),
        scratch: inputs.sample_scratch.as_ptr(),
        num_samples: num_samples as u32,
        vocab: check::u32_of(OP, "logits.cols", state.vocab)?,
        max_rows: state.max_rows as u32,
        dtype: check::abi(logits.dtype),
    };
    // SAFETY: logits, results and scratch have room for `num_samples` samples; the kernel leaves a sample alone
    // whose row is not below `max_rows`, which is the size of `last_tokens` and `token_counts`.
    unsafe { cuda.launch(OP, &params, msgl_sample) }
}
