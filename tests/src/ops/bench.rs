//! What op benchmarks share: the shapes of real models, and how a case is timed.

use std::time::Duration;

use minisgl_kernels::{AttnSpec, Backend, DType, Result, Tensor};

use super::support::Rng;

/// The sizes of a model whose steps are timed.
#[derive(Clone, Copy, Debug)]
pub struct ModelShape {
    /// For the table.
    pub name: &'static str,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Elements of the feed-forward layer.
    pub ffn: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Whether query and key heads are normalised.
    pub qk_norm: bool,
}

/// Qwen3-0.6B.
pub const QWEN3_0_6B: ModelShape = ModelShape {
    name: "Qwen3-0.6B",
    hidden: 1024,
    ffn: 3072,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    vocab: 151_936,
    qk_norm: true,
};

/// Llama-3.2-1B.
pub const LLAMA_3_2_1B: ModelShape = ModelShape {
    name: "Llama-3.2-1B",
    hidden: 2048,
    ffn: 8192,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128_256,
    qk_norm: false,
};

/// Llama-3.1-8B.
pub const LLAMA_3_1_8B: ModelShape = ModelShape {
    name: "Llama-3.1-8B",
    hidden: 4096,
    ffn: 14_336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    qk_norm: false,
};

/// One kind of step of one model.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The model.
    pub model: ModelShape,
    /// Storage of weights, activations and KV.
    pub dtype: DType,
    /// Sequences in the step.
    pub seqs: usize,
    /// Tokens of each in the step: 1 is decode.
    pub q_len: usize,
    /// Tokens of each in the KV storage after the step: the lengths are uniform in `min_kv_len..=kv_len`.
    pub min_kv_len: usize,
    /// The largest of these lengths.
    pub kv_len: usize,
    /// Tokens in a page.
    pub page_size: usize,
    /// Storage of logits, as the backend wants it.
    pub logits_dtype: DType,
    /// How many bytes of inputs to rotate through before the first is met again, so that caches are cold.
    pub cold_bytes: usize,
}

impl Workload {
    /// Tokens in the step.
    pub fn tokens(&self) -> usize {
        self.seqs * self.q_len
    }

    /// The same with another number of sequences, each of `kv_len` tokens.
    pub fn with(self, seqs: usize, kv_len: usize) -> Self {
        Self { seqs, min_kv_len: kv_len, kv_len, ..self }
    }

    /// Tokens of each sequence in the KV storage after the step.
    pub fn kv_lens(&self) -> Vec<usize> {
        let mut rng = Rng::new(5);
        (0..self.seqs).map(|_| self.min_kv_len + rng.below(self.kv_len - self.min_kv_len + 1)).collect()
    }

    /// For the table.
    pub fn label(&self) -> String {
        let phase = if self.q_len == 1 { "decode" } else { "prefill" };
        let lens = match self.min_kv_len == self.kv_len {
            true => self.kv_len.to_string(),
            false => format!("{}..={}", self.min_kv_len, self.kv_len),
        };
        let pages = match self.page_size {
            16 => String::new(),
            page_size => format!(", pages of {page_size}"),
        };
        format!("{phase} {} x {} of {lens}{pages}", self.seqs, self.q_len)
    }

    /// The sizes of attention.
    pub fn attn_spec(&self) -> AttnSpec {
        let ModelShape { heads, kv_heads, head_dim, .. } = self.model;
        AttnSpec {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            page_size: self.page_size,
        }
    }

    /// Bytes of `n` elements.
    pub fn bytes_of(&self, n: usize) -> f64 {
        (n * self.dtype.size_bytes()) as f64
    }

    /// How many copies of inputs of `size_bytes` bytes to rotate through.
    pub fn copies(&self, size_bytes: f64) -> usize {
        (self.cold_bytes as f64 / size_bytes.max(1.0)).ceil().clamp(1.0, 256.0) as usize
    }
}

/// Things taken in turn, so many that caches have forgotten each when it is met again.
pub struct Rotation<T> {
    items: Vec<T>,
    turn: usize,
}

impl<T> Rotation<T> {
    /// `count` things, each made by `make` from its number.
    pub fn new(count: usize, make: impl FnMut(usize) -> Result<T>) -> Result<Self> {
        Ok(Self { items: (0..count).map(make).collect::<Result<_>>()?, turn: 0 })
    }

    /// The next in turn.
    pub fn turn(&mut self) -> &mut T {
        self.turn = (self.turn + 1) % self.items.len();
        &mut self.items[self.turn]
    }
}

/// Runs recorded in one graph: about the layers of a small model.
const GRAPH_RUNS: u32 = 24;

type Run<B> = Box<dyn FnMut(&mut B) -> Result<()>>;
type Prepare<B> = Box<dyn Fn(&mut B) -> Result<Run<B>>>;

/// One op at one shape.
pub struct BenchCase<B: Backend> {
    /// Which of the op's uses, as in `gate_up`.
    pub name: String,
    /// Bytes that must be read and written at least.
    pub bytes: f64,
    /// Floating point operations, a multiply-add being two.
    pub flops: f64,
    prepare: Prepare<B>,
}

impl<B: Backend> BenchCase<B> {
    /// `prepare` allocates and returns what runs once; called again and again, it rotates through its inputs.
    pub fn new<R: FnMut(&mut B) -> Result<()> + 'static>(
        name: impl Into<String>,
        bytes: f64,
        flops: f64,
        prepare: impl Fn(&mut B) -> Result<R> + 'static,
    ) -> Self {
        let prepare = move |backend: &mut B| Ok(Box::new(prepare(backend)?) as Run<B>);
        Self { name: name.into(), bytes, flops, prepare: Box::new(prepare) }
    }

    /// The median time of one run, after a warm-up, over about `budget`.
    ///
    /// Where the device has graphs, 24 runs are recorded in one, as a model's layers are, and a run is
    /// that part of a replay: the host's time to launch is no part of it, the device's time between two ops is.
    pub fn median(&self, backend: &mut B, budget: Duration) -> Result<Duration> {
        let mut run = (self.prepare)(backend)?;
        backend.tune(&mut |backend| run(backend))?;
        if !backend.has_graphs() {
            return median_of(backend, budget, &mut run);
        }
        let graph = backend.capture(&mut |backend| (0..GRAPH_RUNS).try_for_each(|_| run(backend)))?;
        Ok(median_of(backend, budget, &mut |backend| backend.replay(&graph))? / GRAPH_RUNS)
    }
}

fn median_of<B: Backend>(
    backend: &mut B,
    budget: Duration,
    run: &mut dyn FnMut(&mut B) -> Result<()>,
) -> Result<Duration> {
    let warm = backend.elapsed(run)?;
    let runs = (budget.as_secs_f64() / warm.as_secs_f64().max(1e-7)).clamp(5.0, 2000.0) as usize;
    let mut times = (0..runs).map(|_| backend.elapsed(run)).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[runs / 2])
}

/// A tensor of noise with deviation 1.
pub fn noise<B: Backend>(backend: &mut B, dtype: DType, rows: usize, cols: usize) -> Result<Tensor<B::Buf>> {
    let mut tensor = backend.tensor("bench tensor", dtype, rows, cols)?;
    backend.fill_random(&mut tensor, 0.0, 1.0, (rows * 31 + cols) as u64)?;
    Ok(tensor)
}
