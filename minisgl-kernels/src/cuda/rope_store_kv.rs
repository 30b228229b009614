//! Query and key norm, rotary embedding and KV store: csrc/rope_store_kv.cu.

use super::bindings::{msgl_rope_store_kv, msgl_rope_store_kv_params};
use super::memory::DeviceBuf;
use super::{Cuda, CudaInputs, check};
use crate::{AttnSpec, DType, KernelError, KvLayer, Result, Tensor};

const OP: &str = "rope_store_kv";
/// The largest head that a warp keeps in registers.
const MAX_HEAD_DIM: usize = 512;

/// See [`Backend::rope_store_kv`](crate::Backend::rope_store_kv).
pub(crate) fn rope_store_kv(
    cuda: &Cuda,
    qkv: &mut Tensor<DeviceBuf>,
    q_norm: Option<&Tensor<DeviceBuf>>,
    k_norm: Option<&Tensor<DeviceBuf>>,
    eps: f32,
    rope: &Tensor<DeviceBuf>,
    inputs: &CudaInputs,
    spec: &AttnSpec,
    kv: &mut KvLayer<DeviceBuf>,
) -> Result<()> {
    launch(cuda, &params(qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)?)
}

/// Runs the kernel on arguments that [`params`] has checked.
pub(super) fn launch(cuda: &Cuda, params: &msgl_rope_store_kv_params) -> Result<()> {
    // SAFETY: qkv, norms, rope and KV have the shapes that the params say, which `params` has checked; the kernel
    // compares every slot with `num_slots` and every position with `max_position`.
    unsafe { cuda.launch(OP, params, msgl_rope_store_kv) }
}

/// Checks the arguments and fills in what the kernels take.
pub(crate) fn params(
    qkv: &mut Tensor<DeviceBuf>,
    q_norm: Option<&Tensor<DeviceBuf>>,
    k_norm: Option<&Tensor<DeviceBuf>>,
    eps: f32,
    rope: &Tensor<DeviceBuf>,
    inputs: &CudaInputs,
    spec: &AttnSpec,
    kv: &mut KvLayer<DeviceBuf>,
) -> Result<msgl_rope_store_kv_params> {
    let (num_tokens, dtype) = (inputs.layout.num_tokens, qkv.dtype);
    if spec.head_dim == 0 || !spec.head_dim.is_multiple_of(2) || spec.head_dim > MAX_HEAD_DIM {
        return Err(KernelError::Unsupported {
            op: OP,
            what: format!("head_dim {}", spec.head_dim),
            supported: format!("even sizes up to {MAX_HEAD_DIM}"),
        });
    }
    check::tensor(OP, "qkv", qkv, num_tokens, spec.qkv_cols(), dtype)?;
    check::tensor(OP, "rope", rope, inputs.extent.positions, spec.head_dim, DType::F32)?;
    check::tensor(OP, "kv.k", &kv.k, inputs.extent.slots, spec.kv_cols(), dtype)?;
    check::tensor(OP, "kv.v", &kv.v, inputs.extent.slots, spec.kv_cols(), dtype)?;
    for (what, norm) in [("q_norm", q_norm), ("k_norm", k_norm)] {
        if let Some(norm) = norm {
            check::tensor(OP, what, norm, 1, spec.head_dim, dtype)?;
        }
    }
    let ptr = |norm: Option<&Tensor<DeviceBuf>>| {
        norm.map_or(std::ptr::null(), |n| n.buf.as_ptr::<std::ffi::c_void>().cast_const())
    };
    Ok(msgl_rope_store_kv_params {
        qkv: qkv.buf.as_ptr(),
        q_norm: ptr(q_norm),
        k_norm: ptr(k_norm),
        rope: rope.buf.as_ptr(),
        positions: inputs.positions(),
        slots: inputs.slots(),
        k: kv.k.buf.as_ptr(),
        v: kv.v.buf.as_ptr(),
        num_slots: kv.k.rows.min(kv.v.rows) as u64,
        num_tokens: num_tokens as u32,
        num_heads: check::u32_of(OP, "num_heads", spec.num_heads)?,
        num_kv_heads: check::u32_of(OP, "num_kv_heads", spec.num_kv_heads)?,
        head_dim: spec.head_dim as u32,
        max_position: check::u32_of(OP, "rope.rows", rope.rows)?,
        eps,
        dtype: check::abi(dtype),
    })
}
