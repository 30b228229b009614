//! Linear layers: by cuBLASLt, with one plan a shape, kept, or by our own kernel for few tokens (skinny.rs), which
//! can do more in the same pass (fused.rs). Which of them runs is measured (choice.rs) and remembered (cache.rs).
//!
//! The library computes column-major matrices, so the row-major `out = x * weight^T` is asked for as
//! `out^T = (weight^T)^T * x^T`: A is the weight, B the activations, D the output. A bias is laid into the output
//! first, which the product is then added to in f32: the library's own bias epilogue rounds the product to 16 bits
//! before it adds. A plan holds the descriptors and the algorithm for one shape; making one costs tens of microseconds of
//! host time, using one a few.

mod cache;
mod choice;
mod descriptors;
mod fused;
mod gemm;
mod handle;
mod skinny;
mod step;
mod trial;
mod tune;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::cublasLtMatmulAlgo_t;

use super::bindings::{msgl_broadcast_row, msgl_broadcast_row_params};
use super::device::{Device, Stream};
use super::memory::DeviceBuf;
use super::{Cuda, check};
use crate::{DType, KernelError, Result, Tensor};
use cache::Cache;
use descriptors::{MatmulDesc, MatrixLayout};
use gemm::Gemm;
use handle::Handle;
use skinny::Product;
use step::Rivals;
use trial::{Run, Scratch};

pub(crate) use fused::{add, linear_add, norm_gated_linear, norm_linear};
pub(crate) use step::settle;

const OP: &str = "linear";
/// What NVIDIA recommends for Hopper: split-K and stream-K algorithms need it.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Plans kept of those that were not measured. Prefill brings a new number of rows with every step.
const MAX_GUESSED_PLANS: usize = 4096;

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Tokens.
    rows: usize,
    /// Output features.
    n: usize,
    /// Input features.
    k: usize,
    dtype: DType,
    out_dtype: DType,
    has_bias: bool,
    /// The product is added to the output.
    adds: bool,
}

/// An algorithm for one shape.
struct Plan {
    desc: MatmulDesc,
    weight: MatrixLayout,
    x: MatrixLayout,
    out: MatrixLayout,
    algo: cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
    /// Whether it was measured to be the best, now or by a run before.
    is_best: bool,
}

/// The operands of one matmul.
#[derive(Clone, Copy, Debug)]
struct Operands {
    weight: *const c_void,
    x: *const c_void,
    bias: *const c_void,
    out: *mut c_void,
}

/// The library's handle, workspace and plans.
pub(crate) struct Blas {
    handle: Handle,
    workspace: DeviceBuf,
    plans: HashMap<Shape, Plan>,
    num_guessed_plans: usize,
    /// What was measured, now or by a run before; none where nothing is to be measured.
    cache: Option<Cache>,
    /// What was measured alone, and not yet in its step.
    rivals: Vec<Rivals>,
    /// Memory for measurements, while there may be more to come.
    scratch: Option<Scratch>,
}

impl Blas {
    /// Frees what measurements need.
    pub(crate) fn end_measurements(&mut self) {
        self.scratch = None;
        self.rivals.clear();
    }

    fn keep(&mut self, shape: Shape, plan: Plan) {
        if !plan.is_best {
            if self.num_guessed_plans == MAX_GUESSED_PLANS {
                self.plans.retain(|_, plan| plan.is_best);
                self.num_guessed_plans = 0;
            }
            self.num_guessed_plans += 1;
        }
        self.plans.insert(shape, plan);
    }

    /// The library must be loadable; `tunes` lets kernels be chosen by measurement.
    pub(crate) fn new(device: &Arc<Device>, stream: &Stream, tunes: bool) -> Result<Self> {
        let handle = Handle::of(device).map_err(|e| device.error("cublasLtCreate", e.to_string()))?;
        let workspace = DeviceBuf::zeroed(device, stream, "cuBLASLt workspace", WORKSPACE_BYTES)?;
        let cache = if tunes { Some(Cache::open(&device.kernels_key()?)) } else { None };
        Ok(Self {
            handle,
            workspace,
            plans: HashMap::new(),
            num_guessed_plans: 0,
            cache,
            rivals: Vec::new(),
            scratch: None,
        })
    }
}

/// See [`Backend::linear`](crate::Backend::linear).
pub(crate) fn linear(
    cuda: &mut Cuda,
    out: &mut Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    weight: &Tensor<DeviceBuf>,
    bias: Option<&Tensor<DeviceBuf>>,
    rows: usize,
) -> Result<()> {
    let Some((shape, operands)) = checked(OP, out, x, weight, bias, rows)? else { return Ok(()) };
    let product = Product::plain(shape, operands);
    // SAFETY: `checked` has made sure of the sizes.
    let library =
        &mut |cuda: &mut Cuda, run: Run| unsafe { run_library(cuda, shape, operands, operands.out, run) };
    // SAFETY: as above; what is measured writes to `out`, which is overwritten anyway.
    unsafe { choice::run(cuda, &product, library) }
}

/// The sizes and addresses of a product, or none where it has no elements.
fn checked(
    op: &'static str,
    out: &Tensor<DeviceBuf>,
    x: &Tensor<DeviceBuf>,
    weight: &Tensor<DeviceBuf>,
    bias: Option<&Tensor<DeviceBuf>>,
    rows: usize,
) -> Result<Option<(Shape, Operands)>> {
    let (n, k, dtype) = (weight.rows, weight.cols, weight.dtype);
    check::tensor(op, "x", x, rows, k, dtype)?;
    check::tensor(op, "weight", weight, n, k, dtype)?;
    if out.dtype != DType::F32 {
        check::same_dtype(op, "out", out.dtype, dtype)?;
    }
    check::tensor(op, "out", out, rows, n, out.dtype)?;
    if let Some(bias) = bias {
        check::tensor(op, "bias", bias, 1, n, dtype)?;
    }
    if rows == 0 || n == 0 {
        return Ok(None);
    }
    if k == 0 {
        return Err(KernelError::Unsupported {
            op,
            what: "x of 0 columns".into(),
            supported: "at least one".into(),
        });
    }
    let shape = Shape { rows, n, k, dtype, out_dtype: out.dtype, has_bias: bias.is_some(), adds: false };
    let operands = Operands {
        weight: weight.buf.as_ptr(),
        x: x.buf.as_ptr(),
        bias: bias.map_or(std::ptr::null(), |b| b.buf.as_ptr::<c_void>().cast_const()),
        out: out.buf.as_ptr(),
    };
    Ok(Some((shape, operands)))
}

/// Runs our own kernel for many tokens, or cuBLASLt. Trials, of it or inside of it, write to `trial_out`.
///
/// # Safety
/// The operands must have the sizes of `shape`, and `trial_out` that of the output.
unsafe fn run_library(
    cuda: &mut Cuda,
    shape: Shape,
    operands: Operands,
    trial_out: *mut c_void,
    run: Run,
) -> Result<()> {
    let of_run =
        Operands { weight: run.weight(operands.weight), out: run.out(operands.out, trial_out), ..operands };
    if let Some(gemm) = Gemm::choose(cuda, shape, of_run, None)? {
        // SAFETY: the caller's promise.
        return unsafe { gemm.enqueue(cuda) };
    }
    let planned = cuda.blas.plans.get(&shape);
    if planned.is_none_or(|plan| cuda.measures() && !plan.is_best) {
        // SAFETY: the caller's promise.
        let plan = unsafe { tune::plan(cuda, shape, Operands { out: trial_out, ..operands })? };
        cuda.blas.keep(shape, plan);
    }
    let operands = of_run;
    if shape.has_bias {
        let params = msgl_broadcast_row_params {
            out: operands.out,
            row: operands.bias,
            rows: check::u32_of(OP, "rows", shape.rows)?,
            cols: check::u32_of(OP, "weight.rows", shape.n)?,
            out_dtype: check::abi(shape.out_dtype),
            row_dtype: check::abi(shape.dtype),
        };
        // SAFETY: the caller's promise: `out` is `rows` x `n`, `bias` has `n` elements.
        unsafe { cuda.launch(OP, &params, msgl_broadcast_row)? };
    }
    let blas = &cuda.blas;
    let plan = &blas.plans[&shape];
    // SAFETY: the caller's promise.
    let status = unsafe { plan.enqueue(blas, shape, operands, &cuda.stream) };
    status.map_err(|e| {
        let when = if cuda.is_capturing { " while a graph was captured" } else { "" };
        cuda.device.error(OP, format!("{e} for {shape:?}{when}"))
    })
}

impl Plan {
    /// # Safety
    /// The operands must have the sizes of `shape`, and the plan must have been made for it.
    unsafe fn enqueue(
        &self,
        blas: &Blas,
        shape: Shape,
        operands: Operands,
        stream: &Stream,
    ) -> Result<(), CublasError> {
        let alpha = 1f32;
        let beta = if shape.has_bias || shape.adds { 1f32 } else { 0.0 };
        // SAFETY: the caller's promise; the factors are f32 as the descriptor says and read before the call
        // returns; the workspace is the stream's alone.
        unsafe {
            result::matmul(
                blas.handle.0,
                self.desc.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                operands.weight,
                self.weight.0,
                operands.x,
                self.x.0,
                operands.out,
                self.out.0,
                operands.out,
                self.out.0,
                &self.algo,
                blas.workspace.as_ptr(),
                self.workspace_bytes,
                stream.raw().cast(),
            )
        }
    }
}
