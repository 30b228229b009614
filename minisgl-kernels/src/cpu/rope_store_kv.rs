//! What happens to a token's merged projection between the linear layer and attention: norm of queries and
//! keys, rotary embedding (Su et al. 2021), store of key and value.

use super::buf::Buf;
use super::check::{Disjoint, below, dtype, equal, names, rows, rows_mut};
use super::norm::inverse_rms;
use super::simd::{Element, Kernel, LANES, Simd, dispatch, load_any, store_any};
use super::{Cpu, CpuInputs, with_element};
use crate::{AttnSpec, DType, KvLayer, PADDING, Result, Tensor};

const OP: &str = "rope_store_kv";

pub(super) fn rope_store_kv(
    cpu: &Cpu,
    qkv: &mut Tensor<Buf>,
    q_norm: Option<&Tensor<Buf>>,
    k_norm: Option<&Tensor<Buf>>,
    eps: f32,
    rope: &Tensor<Buf>,
    inputs: &CpuInputs,
    spec: &AttnSpec,
    kv: &mut KvLayer<Buf>,
) -> Result<()> {
    check_spec(OP, spec)?;
    dtype(names!(OP, "kv.k"), qkv.dtype, &kv.k)?;
    dtype(names!(OP, "kv.v"), qkv.dtype, &kv.v)?;
    dtype(names!(OP, "rope"), DType::F32, rope)?;
    for norm in [q_norm, k_norm].into_iter().flatten() {
        dtype(names!(OP, "norm"), qkv.dtype, norm)?;
    }
    let num_slots = kv.k.rows;
    equal(OP, "kv.v.rows", num_slots, kv.v.rows)?;
    for (&slot, &position) in inputs.slots.iter().zip(&inputs.positions) {
        if slot != PADDING {
            below(OP, "slots", num_slots, slot as usize)?;
            below(OP, "positions", rope.rows, position as usize)?;
        }
    }
    let rope = rows::<f32>(names!(OP, "rope"), rope, rope.rows, spec.head_dim)?;
    let (q_cols, kv_cols, cols) = (spec.q_cols(), spec.kv_cols(), spec.qkv_cols());
    let isa = cpu.isa;
    with_element!(qkv.dtype, E => {
        let norm = |norm: Option<&'_ Tensor<Buf>>| -> Result<Option<Vec<f32>>> {
            norm.map(|norm| {
                let weight = rows::<E>(names!(OP, "norm"), norm, 1, spec.head_dim)?;
                Ok(weight.iter().map(|&w| w.to_f32()).collect())
            })
            .transpose()
        };
        let (q_norm, k_norm) = (norm(q_norm)?, norm(k_norm)?);
        let qkv = Disjoint::new(rows_mut::<E>(names!(OP, "qkv"), qkv, inputs.num_tokens(), cols)?);
        let k = Disjoint::new(rows_mut::<E>(names!(OP, "kv.k"), &mut kv.k, num_slots, kv_cols)?);
        let v = Disjoint::new(rows_mut::<E>(names!(OP, "kv.v"), &mut kv.v, num_slots, kv_cols)?);
        let token = |i: usize| {
            let slot = inputs.slots[i];
            if slot == PADDING {
                return;
            }
            let angles = &rope[inputs.positions[i] as usize * spec.head_dim..][..spec.head_dim];
            // SAFETY: each row of `qkv` belongs to one token, and a token to one thread.
            let row = unsafe { qkv.get(i * cols, cols) };
            let (q, rest) = row.split_at_mut(q_cols);
            let (key, value) = rest.split_at_mut(kv_cols);
            dispatch(isa, Rotate { heads: q, angles, norm: q_norm.as_deref(), eps });
            dispatch(isa, Rotate { heads: key, angles, norm: k_norm.as_deref(), eps });
            // SAFETY: `begin_step` made sure that no two tokens have the same slot.
            let (k, v) = unsafe {
                (k.get(slot as usize * kv_cols, kv_cols), v.get(slot as usize * kv_cols, kv_cols))
            };
            k.copy_from_slice(key);
            v.copy_from_slice(value);
        };
        cpu.for_items(inputs.num_tokens(), 2 * cols, &|range| range.for_each(token));
        Ok(())
    })
}

/// The sizes that every attention op divides by or halves.
pub(super) fn check_spec(op: &'static str, spec: &AttnSpec) -> Result<()> {
    equal(op, "spec.head_dim % 2", 0, spec.head_dim % 2)?;
    for (what, size) in [
        ("spec.head_dim of 0 against", spec.head_dim),
        ("spec.num_kv_heads of 0 against", spec.num_kv_heads),
        ("spec.page_size of 0 against", spec.page_size),
    ] {
        below(op, what, usize::MAX, if size == 0 { usize::MAX } else { 0 })?;
    }
    equal(op, "spec.num_heads % num_kv_heads", 0, spec.num_heads % spec.num_kv_heads)
}

struct Rotate<'a, E> {
    /// Any number of heads of `angles.len()` elements.
    heads: &'a mut [E],
    /// Cosines, then sines.
    angles: &'a [f32],
    norm: Option<&'a [f32]>,
    eps: f32,
}

impl<E: Element> Kernel for Rotate<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.angles.len() / 2;
        let (cosines, sines) = self.angles.split_at(half);
        for head in self.heads.chunks_exact_mut(self.angles.len()) {
            let scale = match self.norm {
                Some(_) => s.splat(inverse_rms(s, head, self.eps)),
                None => s.splat(1.0),
            };
            let (low, high) = head.split_at_mut(half);
            for start in (0..half).step_by(LANES) {
                let end = half.min(start + LANES);
                let (low, high) = (&mut low[start..end], &mut high[start..end]);
                let (mut x, mut y) = (load_any(s, low), load_any(s, high));
                if let Some(norm) = self.norm {
                    let (low, high) = norm.split_at(half);
                    x = s.mul(s.mul(x, scale), load_any(s, &low[start..end]));
                    y = s.mul(s.mul(y, scale), load_any(s, &high[start..end]));
                }
                let (cos, sin) = (load_any(s, &cosines[start..end]), load_any(s, &sines[start..end]));
                store_any(s, s.sub(s.mul(x, cos), s.mul(y, sin)), low);
                store_any(s, s.fma(x, sin, s.mul(y, cos)), high);
            }
        }
    }
}
