//! Rotation and KV store inside of decode attention: csrc/attention/decode_short.cuh. Steps that the kernel does not take
//! run both ops.

use super::bindings::{msgl_attention_params, msgl_rope_attention, msgl_rope_attention_params};
use super::memory::DeviceBuf;
use super::{AttnPlan, Cuda, CudaInputs, attention, rope_store_kv};
use crate::{AttnSpec, KvLayer, Result, SeqState, Tensor};

const OP: &str = "rope_attention";

/// See [`Backend::rope_attention`](crate::Backend::rope_attention).
pub(crate) fn rope_attention(
    cuda: &Cuda,
    out: &mut Tensor<DeviceBuf>,
    qkv: &mut Tensor<DeviceBuf>,
    q_norm: Option<&Tensor<DeviceBuf>>,
    k_norm: Option<&Tensor<DeviceBuf>>,
    eps: f32,
    rope: &Tensor<DeviceBuf>,
    kv: &mut KvLayer<DeviceBuf>,
    inputs: &CudaInputs,
    state: &SeqState<DeviceBuf>,
    plan: &AttnPlan,
    spec: &AttnSpec,
) -> Result<()> {
    let attention = attention::params(out, qkv, kv, inputs, state, plan, spec)?;
    let rope = rope_store_kv::params(qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)?;
    let Some(attention) = attention::rope_params(cuda, &attention, qkv.dtype, inputs, plan)? else {
        rope_store_kv::launch(cuda, &rope)?;
        let attention = msgl_attention_params { reads_early: 1, ..attention };
        return attention::launch(cuda, attention, qkv.dtype, inputs, plan);
    };
    let params = msgl_rope_attention_params { rope, attention };
    // SAFETY: both parts were checked for the tensors that they name, and name the same qkv and KV; begin_step has checked
    // rows, lengths and pages against the state and the KV. The kernel limits slots to `num_slots` and positions to
    // `max_position`, and the plan was made with the same sizes.
    unsafe { cuda.launch(OP, &params, msgl_rope_attention) }
}
