//! [`Backend`] for [`Cpu`]: each method hands over to the file that is named after it.

use std::time::{Duration, Instant};

use super::buf::Buf;
use super::check::{numbers, numbers_mut};
use super::{
    Cpu, CpuAttnPlan, CpuInputs, act_mul, attention, convert, embedding, linear, memory, norm, rope_store_kv,
    sample,
};
use crate::{
    Activation, AttnSpec, Backend, DType, KernelError, KvLayer, MAX_LOGPROBS, Memory, Result, SampleBuf,
    Samples, SeqState, StepInputs, Tensor,
};

/// Buffers from this size on are compared with the memory that is left: asking takes as long as filling less.
const CHECKED_FROM_BYTES: usize = 64 << 20;

impl Backend for Cpu {
    type Buf = Buf;
    type Inputs = CpuInputs;
    type AttnPlan = CpuAttnPlan;
    type Graph = std::convert::Infallible;
    type ReadBack = Samples;

    fn device_name(&self) -> String {
        let threads = self.num_threads();
        format!("cpu ({}, {threads} thread{})", self.isa(), if threads == 1 { "" } else { "s" })
    }

    fn memory(&self) -> Memory {
        memory::memory()
    }

    fn logits_dtype(&self, _: DType) -> DType {
        DType::F32
    }

    fn has_graphs(&self) -> bool {
        false
    }

    fn alloc(&mut self, what: &'static str, size_bytes: usize) -> Result<Buf> {
        let out_of_memory = |memory: Memory| KernelError::OutOfMemory {
            device: "cpu".to_owned(),
            what,
            wanted_bytes: size_bytes,
            free_bytes: memory.free_bytes,
            total_bytes: memory.total_bytes,
        };
        if size_bytes >= CHECKED_FROM_BYTES {
            let memory = memory::memory();
            if size_bytes > memory.free_bytes {
                return Err(out_of_memory(memory));
            }
        }
        Buf::zeroed(size_bytes).map_err(|_| out_of_memory(memory::memory()))
    }

    fn write(&mut self, dst: &mut Buf, offset_bytes: usize, src: &[u8]) -> Result<()> {
        let end = offset_bytes.saturating_add(src.len());
        numbers_mut::<u8>("write", "dst bytes", dst, end)?[offset_bytes..].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Buf, offset_bytes: usize, dst: &mut [u8]) -> Result<()> {
        let end = offset_bytes.saturating_add(dst.len());
        dst.copy_from_slice(&numbers::<u8>("read", "src bytes", src, end)?[offset_bytes..]);
        Ok(())
    }

    fn load_rows(
        &mut self,
        dst: &mut Tensor<Buf>,
        first_row: usize,
        src: &[u8],
        src_dtype: DType,
    ) -> Result<()> {
        convert::load_rows(self, dst, first_row, src, src_dtype)
    }

    fn fill_random(&mut self, dst: &mut Tensor<Buf>, mean: f32, std: f32, seed: u64) -> Result<()> {
        convert::fill_random(self, dst, mean, std, seed)
    }

    fn inputs(&mut self, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<CpuInputs> {
        Ok(CpuInputs::new(max_tokens, max_seqs, max_samples))
    }

    fn begin_step(
        &mut self,
        dst: &mut CpuInputs,
        src: &StepInputs,
        state: &mut SeqState<Buf>,
        kv: &mut [KvLayer<Buf>],
    ) -> Result<()> {
        dst.begin_step(src, state, kv)
    }

    fn attn_plan(&mut self, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<CpuAttnPlan> {
        CpuAttnPlan::new(spec, max_tokens, max_seqs)
    }

    fn plan_attention(&mut self, plan: &mut CpuAttnPlan, inputs: &CpuInputs, spec: &AttnSpec) -> Result<()> {
        plan.plan(inputs, spec)
    }

    fn embedding(
        &mut self,
        out: &mut Tensor<Buf>,
        table: &Tensor<Buf>,
        inputs: &CpuInputs,
        state: &SeqState<Buf>,
    ) -> Result<()> {
        embedding::embedding(self, out, table, inputs, state)
    }

    fn rms_norm(
        &mut self,
        out: &mut Tensor<Buf>,
        x: &Tensor<Buf>,
        weight: &Tensor<Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        norm::rms_norm(self, out, x, weight, eps, rows)
    }

    fn add_rms_norm(
        &mut self,
        out: &mut Tensor<Buf>,
        residual: &mut Tensor<Buf>,
        x: &Tensor<Buf>,
        weight: &Tensor<Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        norm::add_rms_norm(self, out, residual, x, weight, eps, rows)
    }

    fn add(&mut self, residual: &mut Tensor<Buf>, x: &Tensor<Buf>, rows: usize) -> Result<()> {
        norm::add(self, residual, x, rows)
    }

    fn linear(
        &mut self,
        out: &mut Tensor<Buf>,
        x: &Tensor<Buf>,
        weight: &Tensor<Buf>,
        bias: Option<&Tensor<Buf>>,
        rows: usize,
    ) -> Result<()> {
        linear::linear(self, out, x, weight, bias, rows)
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor<Buf>,
        q_norm: Option<&Tensor<Buf>>,
        k_norm: Option<&Tensor<Buf>>,
        eps: f32,
        rope: &Tensor<Buf>,
        inputs: &CpuInputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<Buf>,
    ) -> Result<()> {
        rope_store_kv::rope_store_kv(self, qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)
    }

    fn attention(
        &mut self,
        out: &mut Tensor<Buf>,
        qkv: &Tensor<Buf>,
        kv: &KvLayer<Buf>,
        inputs: &CpuInputs,
        state: &SeqState<Buf>,
        plan: &CpuAttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        attention::attention(self, out, qkv, kv, inputs, state, plan, spec)
    }

    fn act_mul(
        &mut self,
        out: &mut Tensor<Buf>,
        gate_up: &Tensor<Buf>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        act_mul::act_mul(self, out, gate_up, activation, rows)
    }

    fn gather_samples(&mut self, out: &mut Tensor<Buf>, x: &Tensor<Buf>, inputs: &CpuInputs) -> Result<()> {
        embedding::gather_samples(self, out, x, inputs)
    }

    fn sample(
        &mut self,
        out: &mut SampleBuf<Buf>,
        logits: &Tensor<Buf>,
        inputs: &CpuInputs,
        state: &mut SeqState<Buf>,
    ) -> Result<()> {
        sample::sample(self, out, logits, inputs, state)
    }

    fn read_back(&mut self, out: &SampleBuf<Buf>, num_samples: usize, logprobs: bool) -> Result<Samples> {
        const OP: &str = "read_back";
        let mut samples = Samples {
            tokens: numbers::<u32>(OP, "out.tokens", &out.tokens, num_samples)?.to_vec(),
            ..Samples::default()
        };
        if logprobs {
            let len = num_samples * MAX_LOGPROBS;
            samples.logprobs = numbers::<f32>(OP, "out.logprobs", &out.logprobs, num_samples)?.to_vec();
            samples.top_tokens = numbers::<u32>(OP, "out.top_tokens", &out.top_tokens, len)?.to_vec();
            samples.top_logprobs = numbers::<f32>(OP, "out.top_logprobs", &out.top_logprobs, len)?.to_vec();
        }
        Ok(samples)
    }

    fn wait(&mut self, read_back: Samples) -> Result<Samples> {
        Ok(read_back)
    }

    fn capture(&mut self, _: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Self::Graph> {
        Err(KernelError::Unsupported {
            op: "capture",
            what: "the CPU".to_owned(),
            supported: "graphs need a CUDA device".to_owned(),
        })
    }

    fn replay(&mut self, graph: &Self::Graph) -> Result<()> {
        match *graph {}
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        body(self)?;
        Ok(start.elapsed())
    }
}
