//! Ops around a product: in one pass where the skinny kernel takes it, one after the other elsewhere.

use std::ffi::c_void;

use super::super::bindings::{msgl_add, msgl_add_params};
use super::super::memory::DeviceBuf;
use super::super::{Cuda, act_mul, check, rms_norm};
use super::gemm::Gemm;
use super::skinny::Product;
use super::{Operands, Run, Shape, checked, choice, run_library};
use crate::{Activation, Result, Tensor};

/// See [`Backend::add`](crate::Backend::add).
pub(crate) fn add(
    cuda: &Cuda,
    residual: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    rows: usize,
) -> Result<()> {
    const OP: &str = "add";
    check::tensor(OP, "x", x, rows, x.cols, x.dtype)?;
    check::tensor(OP, "residual", residual, rows, x.cols, x.dtype)?;
    let params = msgl_add_params {
        residual: residual.buf.as_ptr(),
        x: x.buf.as_ptr(),
        num_elems: rows as u64 * x.cols as u64,
        dtype: check::abi(x.dtype),
    };
    // SAFETY: both have `rows` rows of as many columns, of `dtype`.
    unsafe { cuda.launch(OP, &params, msgl_add) }
}

/// See [`Backend::norm_linear`](crate::Backend::norm_linear).
pub(crate) fn norm_linear(
    cuda: &mut Cuda,
    out: &mut Tensor<DeviceBuf>,
    normed: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    norm: &Tensor<DeviceBuf>,
    eps: f32,
    weight: &Tensor<DeviceBuf>,
    bias: Option<&Tensor<DeviceBuf>>,
    rows: usize,
) -> Result<()> {
    const OP: &str = "norm_linear";
    check::tensor(OP, "norm", norm, 1, x.cols, x.dtype)?;
    check::tensor(OP, "normed", normed, rows, x.cols, x.dtype)?;
    let Some((shape, operands)) = checked(OP, out, x, weight, bias, rows)? else { return Ok(()) };
    let of_normed = Operands { x: normed.buf.as_ptr::<c_void>().cast_const(), ..operands };
    let norm_ptr = norm.buf.as_ptr::<c_void>().cast_const();
    let mut product = Product { norm: Some((norm_ptr, eps)), ..Product::plain(shape, operands) };
    let mut has_normed = false;
    if !product.is_supported(cuda)? {
        rms_norm::rms_norm(cuda, OP, normed, None, x, norm, eps, rows)?;
        has_normed = true;
        product = Product::plain(shape, of_normed);
    }
    let composed = &mut |cuda: &mut Cuda, run: Run| {
        if !has_normed {
            rms_norm::rms_norm(cuda, OP, normed, None, x, norm, eps, rows)?;
        }
        // SAFETY: `checked` has made sure of the sizes, and `normed` has those of `x`.
        unsafe { run_library(cuda, shape, of_normed, operands.out, run) }
    };
    // SAFETY: `checked` has made sure of the sizes of the product, and the norm's is checked above; a trial writes to
    // `out` and `normed`.
    unsafe { choice::run(cuda, &product, composed) }
}

/// See [`Backend::linear_add`](crate::Backend::linear_add).
pub(crate) fn linear_add(
    cuda: &mut Cuda,
    residual: &mut Tensor<DeviceBuf>,
    delta: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    weight: &Tensor<DeviceBuf>,
    bias: Option<&Tensor<DeviceBuf>>,
    rows: usize,
) -> Result<()> {
    const OP: &str = "linear_add";
    check::tensor(OP, "residual", residual, rows, weight.rows, weight.dtype)?;
    check::tensor(OP, "delta", delta, rows, weight.rows, weight.dtype)?;
    let Some((shape, operands)) = checked(OP, residual, x, weight, bias, rows)? else { return Ok(()) };
    let shape = Shape { adds: true, ..shape };
    let trial_out = delta.buf.as_ptr::<c_void>();
    let product = Product { trial_out, ..Product::plain(shape, operands) };
    let composed = &mut |cuda: &mut Cuda, run: Run| {
        if bias.is_none() {
            // SAFETY: `checked` has made sure of the sizes, and `delta` has those of `residual`.
            return unsafe { run_library(cuda, shape, operands, trial_out, run) };
        }
        let of_delta = Operands { out: trial_out, ..operands };
        // SAFETY: as above.
        unsafe { run_library(cuda, Shape { adds: false, ..shape }, of_delta, trial_out, run)? };
        // What the sum costs is not worth a second buffer for the trial.
        if matches!(run, Run::Trial(_)) { Ok(()) } else { add(cuda, residual, delta, rows) }
    };
    // SAFETY: as above; trials write to `delta`.
    unsafe { choice::run(cuda, &product, composed) }
}

/// See [`Backend::norm_gated_linear`](crate::Backend::norm_gated_linear).
pub(crate) fn norm_gated_linear(
    cuda: &mut Cuda,
    out: &mut Tensor<DeviceBuf>,
    normed: &mut Tensor<DeviceBuf>,
    gate_up: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    norm: &Tensor<DeviceBuf>,
    eps: f32,
    weight: &Tensor<DeviceBuf>,
    bias: Option<&Tensor<DeviceBuf>>,
    activation: Activation,
    rows: usize,
) -> Result<()> {
    const OP: &str = "norm_gated_linear";
    check::tensor(OP, "norm", norm, 1, x.cols, x.dtype)?;
    check::tensor(OP, "normed", normed, rows, x.cols, x.dtype)?;
    check::tensor(OP, "out", out, rows, out.cols, x.dtype)?;
    check::same(OP, "weight.rows", weight.rows, 2 * out.cols)?;
    check::tensor(OP, "gate_up", gate_up, rows, weight.rows, x.dtype)?;
    let Some((shape, of_gate_up)) = checked(OP, gate_up, x, weight, bias, rows)? else { return Ok(()) };
    let of_normed = Operands { x: normed.buf.as_ptr::<c_void>().cast_const(), ..of_gate_up };
    let norm_ptr = norm.buf.as_ptr::<c_void>().cast_const();
    let plain = Product::plain(shape, Operands { out: out.buf.as_ptr(), ..of_gate_up });
    let mut product = Product { norm: Some((norm_ptr, eps)), gated: Some(activation), ..plain };
    let mut has_normed = false;
    if !product.is_supported(cuda)? {
        rms_norm::rms_norm(cuda, OP, normed, None, x, norm, eps, rows)?;
        has_normed = true;
        product =
            Product { norm: None, operands: Operands { x: of_normed.x, ..product.operands }, ..product };
    }
    let composed = &mut |cuda: &mut Cuda, run: Run| {
        if !has_normed {
            rms_norm::rms_norm(cuda, OP, normed, None, x, norm, eps, rows)?;
        }
        let gated = Operands { weight: run.weight(of_normed.weight), out: out.buf.as_ptr(), ..of_normed };
        if let Some(gemm) = Gemm::choose(cuda, shape, gated, Some(activation))? {
            // SAFETY: `checked` has made sure of the sizes of the product, with `x` of those of `normed`; `out` has half
            // as many columns, checked above.
            return unsafe { gemm.enqueue(cuda) };
        }
        // SAFETY: `checked` has made sure of the sizes, and `normed` has those of `x`.
        unsafe { run_library(cuda, shape, of_normed, of_gate_up.out, run)? };
        act_mul::act_mul(cuda, out, gate_up, activation, rows)
    };
    // SAFETY: `checked` has made sure of the sizes of the product; `out` has half as many columns, and the norm `k`
    // elements, checked above; a trial writes to `out`, `normed` and `gate_up`.
    unsafe { choice::run(cuda, &product, composed) }
}
