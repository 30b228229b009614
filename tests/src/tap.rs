//! A backend that lets a test look at, or spoil, what passes between the engine and the device.

use std::sync::mpsc;
use std::time::Duration;

use minisgl_engine::Engine;
use minisgl_engine::config::EngineConfig;
use minisgl_engine::request::Request;
use minisgl_kernels::{
    Activation, AttnSpec, Backend, DType, KernelError, KvLayer, Memory, Result, SampleBuf, Samples, SeqState,
    StepInputs, Tensor,
};

use crate::harness::{Generated, run};

/// What a test does at two points of every step.
pub trait Tap<B: Backend>: Send + 'static {
    /// The step's integers are on their way; no op of the step has been called.
    fn begun(&mut self, backend: &mut B, step: &StepInputs, state: &mut SeqState<B::Buf>) -> Result<()>;
    /// The logits of the step's samples, `[num_samples, vocab]`, are about to be sampled from.
    fn logits(&mut self, backend: &mut B, logits: &Tensor<B::Buf>) -> Result<()>;
}

/// `B` with a tap in it. It has no graphs to offer: nothing can be looked at inside of one.
pub struct Tapped<B, T> {
    inner: B,
    tap: T,
}

impl<B: Backend, T: Tap<B>> Tapped<B, T> {
    /// Puts `tap` into `inner`.
    pub fn new(inner: B, tap: T) -> Self {
        Self { inner, tap }
    }
}

impl<B: Backend, T: Tap<B>> Backend for Tapped<B, T> {
    type Buf = B::Buf;
    type Inputs = B::Inputs;
    type AttnPlan = B::AttnPlan;
    type Graph = B::Graph;
    type ReadBack = B::ReadBack;

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn logits_dtype(&self, dtype: DType) -> DType {
        self.inner.logits_dtype(dtype)
    }

    fn has_graphs(&self) -> bool {
        self.inner.has_graphs()
    }

    fn alloc(&mut self, what: &'static str, size_bytes: usize) -> Result<B::Buf> {
        self.inner.alloc(what, size_bytes)
    }

    fn write(&mut self, dst: &mut B::Buf, offset_bytes: usize, src: &[u8]) -> Result<()> {
        self.inner.write(dst, offset_bytes, src)
    }

    fn read(&mut self, src: &B::Buf, offset_bytes: usize, dst: &mut [u8]) -> Result<()> {
        self.inner.read(src, offset_bytes, dst)
    }

    fn load_rows(
        &mut self,
        dst: &mut Tensor<B::Buf>,
        first_row: usize,
        src: &[u8],
        src_dtype: DType,
    ) -> Result<()> {
        self.inner.load_rows(dst, first_row, src, src_dtype)
    }

    fn fill_random(&mut self, dst: &mut Tensor<B::Buf>, mean: f32, std: f32, seed: u64) -> Result<()> {
        self.inner.fill_random(dst, mean, std, seed)
    }

    fn inputs(&mut self, max_tokens: usize, max_seqs: usize, max_samples: usize) -> Result<B::Inputs> {
        self.inner.inputs(max_tokens, max_seqs, max_samples)
    }

    fn begin_step(
        &mut self,
        dst: &mut B::Inputs,
        src: &StepInputs,
        state: &mut SeqState<B::Buf>,
        kv: &mut [KvLayer<B::Buf>],
    ) -> Result<()> {
        self.inner.begin_step(dst, src, state, kv)?;
        self.tap.begun(&mut self.inner, src, state)
    }

    fn attn_plan(&mut self, spec: &AttnSpec, max_tokens: usize, max_seqs: usize) -> Result<B::AttnPlan> {
        self.inner.attn_plan(spec, max_tokens, max_seqs)
    }

    fn plan_attention(&mut self, plan: &mut B::AttnPlan, inputs: &B::Inputs, spec: &AttnSpec) -> Result<()> {
        self.inner.plan_attention(plan, inputs, spec)
    }

    fn embedding(
        &mut self,
        out: &mut Tensor<B::Buf>,
        table: &Tensor<B::Buf>,
        inputs: &B::Inputs,
        state: &SeqState<B::Buf>,
    ) -> Result<()> {
        self.inner.embedding(out, table, inputs, state)
    }

    fn rms_norm(
        &mut self,
        out: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        weight: &Tensor<B::Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        self.inner.rms_norm(out, x, weight, eps, rows)
    }

    fn add_rms_norm(
        &mut self,
        out: &mut Tensor<B::Buf>,
        residual: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        weight: &Tensor<B::Buf>,
        eps: f32,
        rows: usize,
    ) -> Result<()> {
        self.inner.add_rms_norm(out, residual, x, weight, eps, rows)
    }

    fn linear(
        &mut self,
        out: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        weight: &Tensor<B::Buf>,
        bias: Option<&Tensor<B::Buf>>,
        rows: usize,
    ) -> Result<()> {
        self.inner.linear(out, x, weight, bias, rows)
    }

    fn add(&mut self, residual: &mut Tensor<B::Buf>, x: &Tensor<B::Buf>, rows: usize) -> Result<()> {
        self.inner.add(residual, x, rows)
    }

    fn norm_linear(
        &mut self,
        out: &mut Tensor<B::Buf>,
        normed: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        norm: &Tensor<B::Buf>,
        eps: f32,
        weight: &Tensor<B::Buf>,
        bias: Option<&Tensor<B::Buf>>,
        rows: usize,
    ) -> Result<()> {
        self.inner.norm_linear(out, normed, x, norm, eps, weight, bias, rows)
    }

    fn linear_add(
        &mut self,
        residual: &mut Tensor<B::Buf>,
        delta: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        weight: &Tensor<B::Buf>,
        bias: Option<&Tensor<B::Buf>>,
        rows: usize,
    ) -> Result<()> {
        self.inner.linear_add(residual, delta, x, weight, bias, rows)
    }

    fn norm_gated_linear(
        &mut self,
        out: &mut Tensor<B::Buf>,
        normed: &mut Tensor<B::Buf>,
        gate_up: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        norm: &Tensor<B::Buf>,
        eps: f32,
        weight: &Tensor<B::Buf>,
        bias: Option<&Tensor<B::Buf>>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.inner.norm_gated_linear(out, normed, gate_up, x, norm, eps, weight, bias, activation, rows)
    }

    fn rope_store_kv(
        &mut self,
        qkv: &mut Tensor<B::Buf>,
        q_norm: Option<&Tensor<B::Buf>>,
        k_norm: Option<&Tensor<B::Buf>>,
        eps: f32,
        rope: &Tensor<B::Buf>,
        inputs: &B::Inputs,
        spec: &AttnSpec,
        kv: &mut KvLayer<B::Buf>,
    ) -> Result<()> {
        self.inner.rope_store_kv(qkv, q_norm, k_norm, eps, rope, inputs, spec, kv)
    }

    fn attention(
        &mut self,
        out: &mut Tensor<B::Buf>,
        qkv: &Tensor<B::Buf>,
        kv: &KvLayer<B::Buf>,
        inputs: &B::Inputs,
        state: &SeqState<B::Buf>,
        plan: &B::AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        self.inner.attention(out, qkv, kv, inputs, state, plan, spec)
    }

    fn rope_attention(
        &mut self,
        out: &mut Tensor<B::Buf>,
        qkv: &mut Tensor<B::Buf>,
        q_norm: Option<&Tensor<B::Buf>>,
        k_norm: Option<&Tensor<B::Buf>>,
        eps: f32,
        rope: &Tensor<B::Buf>,
        kv: &mut KvLayer<B::Buf>,
        inputs: &B::Inputs,
        state: &SeqState<B::Buf>,
        plan: &B::AttnPlan,
        spec: &AttnSpec,
    ) -> Result<()> {
        self.inner.rope_attention(out, qkv, q_norm, k_norm, eps, rope, kv, inputs, state, plan, spec)
    }

    fn act_mul(
        &mut self,
        out: &mut Tensor<B::Buf>,
        gate_up: &Tensor<B::Buf>,
        activation: Activation,
        rows: usize,
    ) -> Result<()> {
        self.inner.act_mul(out, gate_up, activation, rows)
    }

    fn gather_samples(
        &mut self,
        out: &mut Tensor<B::Buf>,
        x: &Tensor<B::Buf>,
        inputs: &B::Inputs,
    ) -> Result<()> {
        self.inner.gather_samples(out, x, inputs)
    }

    fn sample(
        &mut self,
        out: &mut SampleBuf<B::Buf>,
        logits: &Tensor<B::Buf>,
        inputs: &B::Inputs,
        state: &mut SeqState<B::Buf>,
    ) -> Result<()> {
        self.tap.logits(&mut self.inner, logits)?;
        self.inner.sample(out, logits, inputs, state)
    }

    fn read_back(
        &mut self,
        out: &SampleBuf<B::Buf>,
        num_samples: usize,
        logprobs: bool,
    ) -> Result<B::ReadBack> {
        self.inner.read_back(out, num_samples, logprobs)
    }

    fn wait(&mut self, read_back: B::ReadBack) -> Result<Samples> {
        self.inner.wait(read_back)
    }

    fn capture(&mut self, _body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<B::Graph> {
        Err(KernelError::Unsupported {
            op: "capture",
            what: "a backend with a tap in it".into(),
            supported: "set cuda_graph_bs to an empty list".into(),
        })
    }

    fn replay(&mut self, graph: &B::Graph) -> Result<()> {
        self.inner.replay(graph)
    }

    fn synchronize(&mut self) -> Result<()> {
        self.inner.synchronize()
    }

    fn elapsed(&mut self, body: &mut dyn FnMut(&mut Self) -> Result<()>) -> Result<Duration> {
        let start = std::time::Instant::now();
        self.inner.synchronize()?;
        body(self)?;
        self.inner.synchronize()?;
        Ok(start.elapsed())
    }
}

/// Seeds from here on name requests; below are the engine's own steps at its start.
const FIRST_SEED: u64 = 1 << 32;

/// The logits behind one sampled token.
struct Row {
    /// The request's seed.
    seed: u64,
    /// Where the token goes in its sequence.
    position: usize,
    logits: Vec<f32>,
}

/// Copies every row of logits to the host, by the seed of its request.
struct Recorder {
    /// Seed and position of each sample of the step that runs.
    samples: Vec<(u64, usize)>,
    rows: mpsc::Sender<Row>,
}

impl<B: Backend> Tap<B> for Recorder {
    fn begun(&mut self, _: &mut B, step: &StepInputs, _: &mut SeqState<B::Buf>) -> Result<()> {
        self.samples = step.samples.iter().map(|s| (s.seed, s.position as usize)).collect();
        Ok(())
    }

    fn logits(&mut self, backend: &mut B, logits: &Tensor<B::Buf>) -> Result<()> {
        let row_bytes = logits.cols * logits.dtype.size_bytes();
        let mut bytes = vec![0; self.samples.len() * row_bytes];
        backend.read(&logits.buf, 0, &mut bytes)?;
        for (&(seed, position), row) in self.samples.iter().zip(bytes.chunks_exact(row_bytes)) {
            if seed >= FIRST_SEED {
                // The receiver outlives the engine.
                drop(self.rows.send(Row { seed, position, logits: logits.dtype.widen(row) }));
            }
        }
        Ok(())
    }
}

/// A request's output, and for each of its tokens the logits that it was drawn from.
pub type Recorded = (Generated, Vec<Vec<f32>>);

/// Runs `requests` on a backend of the caller's making, and records the logits of every token that comes out.
///
/// The requests' seeds are replaced: they tell the rows of a batch apart.
///
/// # Errors
/// The engine does not start.
///
/// # Panics
/// If the engine fails a request, or a token came out that was never sampled.
pub fn record<B: Backend>(
    config: EngineConfig,
    make: impl FnOnce() -> Result<B, KernelError> + Send + 'static,
    requests: &[Request],
) -> minisgl_engine::Result<Vec<Recorded>> {
    let (sender, receiver) = mpsc::channel();
    let config = EngineConfig { cuda_graph_bs: Some(Vec::new()), ..config };
    let engine = Engine::start_with(config, None, move || {
        Ok(Tapped::new(make()?, Recorder { samples: Vec::new(), rows: sender }))
    })?;
    let mut requests = requests.to_vec();
    for (request, seed) in requests.iter_mut().zip(FIRST_SEED..) {
        request.params.seed = seed;
    }
    let outputs = run(&engine, &requests);
    drop(engine);
    let mut rows: Vec<Vec<Option<Vec<f32>>>> =
        outputs.iter().map(|output| vec![None; output.tokens.len()]).collect();
    for row in receiver {
        let i = (row.seed - FIRST_SEED) as usize;
        // The last step in flight may be one too many.
        if let Some(place) = rows[i].get_mut(row.position - requests[i].token_ids.len()) {
            *place = Some(row.logits);
        }
    }
    let whole = |rows: Vec<Option<Vec<f32>>>| {
        rows.into_iter().map(|row| row.expect("logits of every token")).collect::<Vec<_>>()
    };
    Ok(outputs.into_iter().zip(rows.into_iter().map(whole)).collect())
}
