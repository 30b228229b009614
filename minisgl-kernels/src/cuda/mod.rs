//! The CUDA backend: hand-written kernels (csrc/) behind the op set, one compute stream, one copy stream.
//!
//! Everything is enqueued on the compute stream and runs in that order; the copy stream only carries a step's
//! integers to the device while the step before is running. An error that a kernel leaves behind surfaces in a
//! later call as [`KernelError::Device`], and in every call after it: the context is lost, the process is not.
//!
//! A program built with this backend starts on a machine without GPU, driver or CUDA; [`Cuda::open`] says what
//! is missing.

mod act_mul;
mod attention;
#[allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code, unreachable_pub)]
#[allow(unused_qualifications, clippy::all, clippy::undocumented_unsafe_blocks)]
#[rustfmt::skip]
mod bindings;
mod check;
mod device;
mod embedding;
mod gather_samples;
mod graph;
mod inputs;
mod layout;
mod lengths;
mod libraries;
mod linear;
mod load;
mod memory;
mod options;
pub mod probe;
mod read_back;
mod rms_norm;
mod rope_attention;
mod rope_store_kv;
mod sample;
mod step_check;

use std::ffi::c_int;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cudarc::driver::sys;

pub use attention::AttnPlan;
pub use graph::CudaGraph;
pub use inputs::CudaInputs;
pub use memory::DeviceBuf;
pub use options::{AttnKernel, CudaOptions, LinearKernel, OWN_LINEAR_KERNELS};
pub use read_back::CudaReadBack;

use crate::{
    Activation, AttnSpec, Backend, DType, KernelError, KvLayer, Memory, Result, SampleBuf, Samples, SeqState,
    StepInputs, Tensor,
};
use bindings::msgl_stream;
use device::{Binding, Device, Stream};

type Matrix = Tensor<DeviceBuf>;

/// One GPU as a [`Backend`].
pub struct Cuda {
    // Dropped in this order: what lives on the streams before the streams, all before the device.
    blas: linear::Blas,
    /// Where results land on the host, free for the next read-back.
    landings: Vec<read_back::Landing>,
    /// Staging of weights, made when the first are loaded.
    slots: Vec<load::Slot>,
    stream: Stream,
    copy_stream: Stream,
    binding: Binding,
    is_capturing: bool,
    /// Inside of [`Backend::tune`].
    is_tuning: bool,
    lengths: lengths::Lengths,
    options: CudaOptions,
    device: Arc<Device>,
}

/// How many GPUs there are; 0 where there is no driver or none that this program can use.
pub fn num_devices() -> usize {
    device::num_devices().unwrap_or(0)
}

impl Cuda {
    /// Opens a GPU.
    ///
    /// # Errors
    /// [`KernelError::NoDevice`] where there is no driver, no such GPU, one too old, or no cuBLASLt: it says
    /// what is missing. [`KernelError::OutOfMemory`] where even the workspaces do not fit.
    pub fn open(options: CudaOptions) -> Result<Self> {
        // Each takes a third of a second: side by side.
        let cublaslt = thread::spawn(libraries::load_cublaslt);
        let device = Device::open(options.ordinal)?;
        let loaded = cublaslt.join().unwrap_or_else(|_| Err("the loader of cuBLASLt panicked".into()));
        loaded.map_err(|why| KernelError::NoDevice { device: device.name(), why })?;
        let (stream, copy_stream) = (Stream::new(&device)?, Stream::new(&device)?);
        Ok(Self {
            blas: linear::Blas::new(&device, &stream, options.tune_gemm)?,
            landings: Vec::new(),
            slots: Vec::new(),
            stream,
            copy_stream,
            binding: Binding::new(),
            is_capturing: false,
            is_tuning: false,
            lengths: lengths::Lengths::new(),
            options,
            device,
        })
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The params' pointers must be device memory of the shapes that the header gives for their sizes.
    unsafe fn launch<P>(
        &self,
        op: &'static str,
        params: &P,
        launcher: unsafe extern "C" fn(*const P, msgl_stream) -> c_int,
    ) -> Result<()> {
        // SAFETY: the caller's promise; launchers read the params before they return.
        let status = unsafe { launcher(params, self.stream.abi()) };
        self.device.check_status(op, status)
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        self.binding.ensure(&self.device)
    }

    /// Whether ops may time kernels now.
    fn measures(&self) -> bool {
        self.is_tuning && !self.is_capturing
    }

    /// Fails inside of [`Backend::capture`], where only ops may be called.
    fn outside_capture(&self, op: &'static str) -> Result<()> {
        if self.is_capturing {
            return Err(KernelError::Unsupported {
                op,
                what: "a call while a graph is being captured".into(),
                supported: "ops on memory that was allocated before".into(),
            });
        }
        Ok(())
    }
}

impl Backend for Cuda {
    type Buf = DeviceBuf;
    type Inputs = CudaInputs;
    type AttnPlan = AttnPlan;
    type Graph = CudaGraph;
    type ReadBack = CudaReadBack;

    fn device_name(&self) -> String {
        self.device.name()
    }

    fn memory(&self) -> Memory {
        // A device that does not answer any more has nothing to give.
        let lost = Memory { total_bytes: 0, free_bytes: 0 };
        self.bind().and_then(|()| self.device.memory()).unwrap_or(lost)
    }

    fn logits_dtype(&self, dtype: DType) -> DType {
        dtype
    }

    fn has_graphs(&self) -> bool {
        true
    }

    fn alloc(&mut self, what: &'static str, size_bytes: usize) -> Result<DeviceBuf> {
        self.bind()?;
        self.outside_capture("alloc")?;
        DeviceBuf::zeroed(&self.device, &self.stream, what, size_bytes)
    }

    fn write(&mut self, dst: &mut DeviceBuf, offset_bytes: usize, src: &[u8]) -> Result<()> {
        self.bind()?;
        self.outside_capture("write")?;
        check::below("write", "offset_bytes + src.len", offset_bytes + src.len(), dst.size_bytes() + 1)?;
        if src.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies inside of `dst`. From pageable memory the driver has taken the bytes when the
        // call returns.
        let status = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                dst.ptr() + offset_bytes as u64,
                src.as_ptr().cast(),
                src.len(),
                self.stream.raw(),
            )
        };
        self.device.check("write", status.result())
    }

    fn read(&mut self, src: &DeviceBuf, offset_bytes: usize, dst: &mut [u8]) -> Result<()> {
        self.bind()?;
        self.outside_capture("read")?;
        check::below("read", "offset_bytes + dst.len", offset_bytes + dst.len(), src.size_bytes() + 1)?;
        if dst.is_empty() {
            return self.stream.synchronize("read");
        }
        // SAFETY: the range lies inside of `src`, and `dst` is not touched before the stream has been waited
        // for, whatever the outcome.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                dst.as_mut_ptr().cast(),
                src.ptr() + offset_bytes as u64,
                dst.len(),
                self.stream.raw(),
            )
        };
        let waited = self.stream.synchronize("read");
        self.device.check("read", status.result()).and(waited)
    }

    fn load_rows(&mut self, dst: &mut Matrix, first_row: usize, src: &[u8], src_dtype: DType) -> Result<()> {
        self.bind()?;
        load::load_rows(self, dst, first_row, src, src_dtype)
    }

    fn fill_random(&mut self, dst: &mut Matrix, mean: f32, std: f32, seed: u64) -> Result<()> {
        self.bind()?;
        load::fill_random(self, dst, mean, std, seed)
    }

    fn inputs(&mut self, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<CudaInputs> {
        self.bind()?;
        self.outside_capture("inputs")?;
        CudaInputs::new(self, max_tokens, max_seqs, max_samples)
    }

    fn begin_step(
        &mut self,
        dst: &mut CudaInputs,
        src: &StepInputs,
        state: &mut SeqState<DeviceBuf>,
        kv: &mut [KvLayer<DeviceBuf>],
    ) -> Result<()> {
        self.bind()?;
        inputs::begin_step(self, dst, src, state, kv)
    }

    fn attn_plan(&mut self, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<AttnPlan> {
        self.bind()?;
        self.outside_capture("attn_plan")?;
        attention::new_plan(self, spec, max_tokens, max_seqs)
    }

    fn plan_attention(&mut self, plan: &mut AttnPlan, inputs: &CudaInputs, spec: &AttnSpec) -> Result<()> {
        self.bind()?;
        attention::plan(self, plan, inputs, spec)
    }

    fn embedding(
        &mut self,
        out: &mut Matrix,
        table: &Matrix,
        inputs: &CudaInputs,
        state: &SeqState<DeviceBuf>,
    ) -> Result<()> {
        self.bind()?;
        embedding::embedding(self, out, table, inputs, state)
    }

    fn rms_norm(
        &mut self,
        out: &mut Matrix,
        x: &Matrix,
        weight: &Matrix,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        rms_norm::rms_norm(self, "rms_norm", out, None, x, weight, eps, rows)
    }

    fn add_rms_norm(
        &mut self,
        out: &mut Matrix,
        residual: &mut Matrix,
        x: &Matrix,
        weight: &Matrix,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        rms_norm::rms_norm(self, "add_rms_norm", out, Some(residual), x, weight, eps, rows)
    }

    fn linear(
        &mut self,
        out: &mut Matrix,
        x: &Matrix,
        weight: &Matrix,
        bias: Option<&Matrix>,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        linear::linear(self, out, x, weight, bias, rows)
    }

    fn add(&mut self, residual: &mut Matrix, x: &Matrix, rows: usize) -> Result<()> {
        self.bind()?;
        linear::add(self, residual, x, rows)
    }

    fn norm_linear(
        &mut self,
        out: &mut Matrix,
        normed: &mut Matrix,
        x: &Matrix,
        norm: &Matrix,
        eps: f32,
        weight: &Matrix,
        bias: Option<&Matrix>,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        linear::norm_linear(self, out, normed, x, norm, eps, weight, bias, rows)
    }

    fn linear_add(
        &mut self,
        residual: &mut Matrix,
        delta: &mut Matrix,
        x: &Matrix,
        weight: &Matrix,
        bias: Option<&Matrix>,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        linear::linear_add(self, residual, delta, x, weight, bias, rows)
    }

    fn norm_gated_linear(
        &mut self,
        out: &mut Matrix,
        normed: &mut Matrix,
        gate_up: &mut Matrix,
        x: &Matrix,
        norm: &Matrix,
        eps: f32,
        weight: &Matrix,
        bias: Option<&Matrix>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        linear::norm_gated_linear(self, out, normed, gate_up, x, norm, eps, weight, bias, activation, rows)
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Matrix,
        q_norm: Option<&Matrix>,
        k_norm: Option<&Matrix>,
        eps: f32,
        rope: &Matrix,
        inputs: &CudaInputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<DeviceBuf>,
    ) -> Result<()> {
        self.bind()?;
        rope_store_kv::rope_store_kv(self, qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)
    }

    fn attention(
        &mut self,
        out: &mut Matrix,
        qkv: &Matrix,
        kv: &KvLayer<DeviceBuf>,
        inputs: &CudaInputs,
        state: &SeqState<DeviceBuf>,
        plan: &AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        self.bind()?;
        attention::attention(self, out, qkv, kv, inputs, state, plan, spec)
    }

    fn rope_attention(
        &mut self,
        out: &mut Matrix,
        qkv: &mut Matrix,
        q_norm: Option<&Matrix>,
        k_norm: Option<&Matrix>,
        eps: f32,
        rope: &Matrix,
        kv: &mut KvLayer<DeviceBuf>,
        inputs: &CudaInputs,
        state: &SeqState<DeviceBuf>,
        plan: &AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        self.bind()?;
        rope_attention::rope_attention(
            self, out, qkv, q_norm, k_norm, eps, rope, kv, inputs, state, plan, spec,
        )
    }

    fn act_mul(
        &mut self,
        out: &mut Matrix,
        gate_up: &Matrix,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.bind()?;
        act_mul::act_mul(self, out, gate_up, activation, rows)
    }

    fn gather_samples(&mut self, out: &mut Matrix, x: &Matrix, inputs: &CudaInputs) -> Result<()> {
        self.bind()?;
        gather_samples::gather_samples(self, out, x, inputs)
    }

    fn sample(
        &mut self,
        out: &mut SampleBuf<DeviceBuf>,
        logits: &Matrix,
        inputs: &CudaInputs,
        state: &mut SeqState<DeviceBuf>,
    ) -> Result<()> {
        self.bind()?;
        sample::sample(self, out, logits, inputs, state)
    }

    fn read_back(
        &mut self,
        out: &SampleBuf<DeviceBuf>,
        num_samples: usize,
        logprobs: bool,
    ) -> Result<CudaReadBack> {
        self.bind()?;
        read_back::read_back(self, out, num_samples, logprobs)
    }

    fn wait(&mut self, read_back: CudaReadBack) -> Result<Samples> {
        self.bind()?;
        read_back::wait(self, read_back)
    }

    fn tune(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.bind()?;
        self.outside_capture("tune")?;
        self.is_tuning = true;
        let outcome = body(self).and_then(|()| linear::settle(self, body));
        self.is_tuning = false;
        self.blas.end_measurements();
        outcome
    }

    fn capture(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<CudaGraph> {
        self.bind()?;
        graph::capture(self, body)
    }

    fn replay(&mut self, graph: &CudaGraph) -> Result<()> {
        self.bind()?;
        graph::replay(self, graph)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.bind()?;
        self.outside_capture("synchronize")?;
        self.stream.synchronize("synchronize")
    }

    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration> {
        self.bind()?;
        graph::elapsed(self, body)
    }
}
