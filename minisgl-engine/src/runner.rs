//! The runner: turns a batch of integers into sampled tokens on the device.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use minisgl_kernels::{
    Backend, DType, KvLayer, Memory, PADDING, SampleBuf, SampleParams, Samples, SeqState, StepInputs,
};

use crate::batch::Batch;
use crate::footprint::Footprint;
use crate::model::{Decoder, DecoderSizes, ModelSpec, WeightSource, Weights};
use crate::warm_up::{decode_step, largest_steps};
use crate::{EngineError, LoadProgress, Result};

/// The driver rounds an allocation up to this.
const ALLOCATION_BYTES: usize = 2 << 20;
/// Tokens of each sequence in the steps that kernels are chosen by.
const TUNED_SEQ_LEN: usize = 512;

/// What a runner is built from.
pub(crate) struct RunnerConfig {
    pub(crate) dtype: DType,
    pub(crate) max_running_req: usize,
    pub(crate) max_extend_tokens: usize,
    pub(crate) max_seq_len: usize,
    pub(crate) page_size: usize,
    pub(crate) memory_ratio: f64,
    pub(crate) num_page_override: Option<usize>,
    /// Decode batch sizes to capture.
    pub(crate) graph_sizes: Vec<usize>,
}

/// A device with a loaded model and its KV storage: every buffer is allocated at birth.
pub(crate) struct Runner<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    kv: Vec<KvLayer<B::Buf>>,
    state: SeqState<B::Buf>,
    inputs: B::Inputs,
    samples: SampleBuf<B::Buf>,
    /// Captured decode steps by their number of sequences.
    graphs: BTreeMap<usize, B::Graph>,
    weights_time: Duration,
}

/// A step under way on the device.
pub(crate) struct Launch<B: Backend> {
    /// `None` where the step samples nothing: a chunk in the middle of a prompt.
    read_back: Option<B::ReadBack>,
}

impl<B: Backend> Runner<B> {
    /// Loads the model, sizes the KV pool by what memory is left, and captures the decode graphs.
    pub(crate) fn new(
        mut backend: B,
        spec: &ModelSpec,
        source: &WeightSource<'_>,
        config: &RunnerConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let at_start = backend.memory();
        let start = Instant::now();
        let weights = Weights::load(&mut backend, spec, config.dtype, source, progress)?;
        backend.synchronize()?;
        let weights_time = start.elapsed();
        log_weights(spec.weight_bytes(config.dtype), weights_time);

        let sizes = DecoderSizes {
            max_tokens: config.max_extend_tokens + config.max_running_req,
            max_seqs: config.max_running_req,
            max_samples: config.max_running_req,
            max_position: config.max_seq_len,
            page_size: config.page_size,
        };
        let max_pages = config.max_seq_len.div_ceil(config.page_size);
        let decoder = Decoder::new(&mut backend, spec, config.dtype, weights, sizes)?;
        let state = backend.seq_state(config.max_running_req, max_pages, spec.vocab)?;
        let inputs = backend.inputs(sizes.max_tokens, sizes.max_seqs, sizes.max_samples)?;
        let samples = backend.sample_buf(sizes.max_samples)?;
        let kv = kv_layers(&mut backend, spec, config, 1)?;
        let mut runner =
            Self { backend, decoder, kv, state, inputs, samples, graphs: BTreeMap::new(), weights_time };

        if !runner.backend.has_graphs() {
            match config.num_page_override {
                Some(num_pages) => runner.set_pages(spec, config, num_pages)?,
                None => runner.fill_main_memory(spec, config, at_start)?,
            }
            return Ok(runner);
        }
        // Libraries and kernels take memory when they first run: let the largest steps run before what is left is
        // counted.
        let footprint = Footprint::new(at_start, config.memory_ratio);
        runner.warm_up(config)?;
        match config.num_page_override {
            Some(num_pages) => {
                runner.set_pages(spec, config, num_pages)?;
                runner.capture_all(config)?;
            }
            None => runner.fill_device(spec, config, &footprint)?,
        }
        runner.report_memory(config, &footprint);
        Ok(runner)
    }

    /// Pages in the KV storage.
    pub(crate) fn num_pages(&self) -> usize {
        self.kv.first().map_or(0, |layer| layer.k.rows / layer.page_size)
    }

    /// Time that the weights took to the device.
    pub(crate) fn weights_time(&self) -> Duration {
        self.weights_time
    }

    /// Device name for people.
    pub(crate) fn device_name(&self) -> String {
        self.backend.device_name()
    }

    /// Starts a step and returns before it ends, where the device is asynchronous.
    pub(crate) fn launch(&mut self, batch: &mut Batch) -> Result<Launch<B>> {
        let num_samples = batch.inputs.num_samples();
        let logprobs = batch.wants_logprobs();
        let graph = match batch.is_decode {
            true => self.graphs.range(batch.inputs.num_seqs()..).next(),
            false => None,
        };
        if let Some((&size, graph)) = graph {
            pad_decode(&mut batch.inputs, size);
            self.backend.begin_step(&mut self.inputs, &batch.inputs, &mut self.state, &mut self.kv)?;
            self.backend.replay(graph)?;
        } else {
            self.backend.begin_step(&mut self.inputs, &batch.inputs, &mut self.state, &mut self.kv)?;
            self.step(batch.inputs.num_tokens(), num_samples)?;
        }
        let read_back = match num_samples {
            0 => None,
            _ => Some(self.backend.read_back(&self.samples, num_samples, logprobs)?),
        };
        Ok(Launch { read_back })
    }

    /// Waits for a step's tokens.
    pub(crate) fn wait(&mut self, launch: Launch<B>) -> Result<Samples> {
        match launch.read_back {
            Some(read_back) => Ok(self.backend.wait(read_back)?),
            None => Ok(Samples::default()),
        }
    }

    /// Everything between the upload and the read-back.
    fn step(&mut self, num_tokens: usize, num_samples: usize) -> Result<()> {
        let Self { backend, decoder, kv, state, inputs, samples, .. } = self;
        let logits = decoder.forward(backend, inputs, state, kv, num_tokens, num_samples)?;
        if num_samples > 0 {
            backend.sample(samples, logits, inputs, state)?;
        }
        Ok(())
    }

    /// Records a decode step of `size` sequences.
    fn capture(&mut self, size: usize) -> Result<()> {
        self.begin_decode(size)?;
        let Self { backend, decoder, kv, state, inputs, samples, .. } = self;
        let graph = backend.capture(&mut |b| {
            let logits = decoder.forward(b, inputs, state, kv, size, size)?;
            b.sample(samples, logits, inputs, state)
        })?;
        self.graphs.insert(size, graph);
        Ok(())
    }

    /// Runs the largest steps once, every sequence on the same page, and lets the device choose its kernels for the
    /// steps to be recorded.
    fn warm_up(&mut self, config: &RunnerConfig) -> Result<()> {
        let RunnerConfig { max_running_req, max_extend_tokens, max_seq_len, .. } = *config;
        for inputs in largest_steps(max_running_req, max_extend_tokens, max_seq_len) {
            self.backend.begin_step(&mut self.inputs, &inputs, &mut self.state, &mut self.kv)?;
            self.step(inputs.num_tokens(), inputs.num_samples())?;
            self.backend.synchronize()?;
        }
        // Measuring takes memory too, which is free again afterwards. What is found for the largest of similar sizes
        // goes for the smaller ones.
        for &size in config.graph_sizes.iter().rev() {
            let step = decode_step(size, max_seq_len.min(TUNED_SEQ_LEN));
            self.backend.begin_step(&mut self.inputs, &step, &mut self.state, &mut self.kv)?;
            let Self { backend, decoder, kv, state, inputs, samples, .. } = self;
            backend.tune(&mut |b| {
                let logits = decoder.forward(b, inputs, state, kv, size, size)?;
                b.sample(samples, logits, inputs, state)
            })?;
        }
        Ok(())
    }

    /// Uploads a decode step of `size` sequences, all of them padding.
    fn begin_decode(&mut self, size: usize) -> Result<()> {
        let mut inputs = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
        pad_decode(&mut inputs, size);
        Ok(self.backend.begin_step(&mut self.inputs, &inputs, &mut self.state, &mut self.kv)?)
    }

    /// Gives main memory to the KV pool. It is shared with everybody, so it is a share of what was free, and never
    /// more than all sequences together can use.
    fn fill_main_memory(&mut self, spec: &ModelSpec, config: &RunnerConfig, at_start: Memory) -> Result<()> {
        let share = (at_start.free_bytes as f64 * config.memory_ratio) as usize;
        let held = spec.weight_bytes(config.dtype);
        let page_bytes = config.page_size * spec.kv_bytes_per_token(config.dtype);
        let most = config.max_running_req.saturating_mul(config.max_seq_len.div_ceil(config.page_size));
        let num_pages = (share.saturating_sub(held) / page_bytes).min(most);
        if num_pages == 0 {
            return Err(self.no_room(config, share, held, page_bytes));
        }
        self.set_pages(spec, config, num_pages)
    }

    /// Gives the rest of the device's share to the KV pool, then captures the graphs.
    ///
    /// What graphs take is known once they are there: the largest one, captured before the pool is sized, stands for
    /// each, and where that was too little the pool is made smaller.
    fn fill_device(&mut self, spec: &ModelSpec, config: &RunnerConfig, footprint: &Footprint) -> Result<()> {
        let page_bytes = config.page_size * spec.kv_bytes_per_token(config.dtype);
        let mut reserve = 2 * spec.num_layers * ALLOCATION_BYTES;
        if let Some(&largest) = config.graph_sizes.last() {
            let before = self.backend.memory();
            self.capture(largest)?;
            let taken = before.free_bytes.saturating_sub(self.backend.memory().free_bytes);
            reserve += taken * config.graph_sizes.len();
        }
        for attempts_left in (0..3).rev() {
            // Graphs first: they hold the addresses of the pages.
            self.graphs.clear();
            self.kv.clear();
            let now = self.backend.memory();
            let num_pages = footprint.num_pages(now, reserve, page_bytes);
            if num_pages == 0 {
                let held = footprint.held_bytes(now) + reserve;
                return Err(self.no_room(config, footprint.limit_bytes, held, page_bytes));
            }
            self.set_pages(spec, config, num_pages)?;
            self.capture_all(config)?;
            let excess = footprint.excess_bytes(self.backend.memory());
            if excess == 0 || attempts_left == 0 {
                break;
            }
            tracing::debug!(excess, num_pages, "the KV pool is made smaller");
            reserve += excess;
        }
        Ok(())
    }

    fn set_pages(&mut self, spec: &ModelSpec, config: &RunnerConfig, num_pages: usize) -> Result<()> {
        self.kv.clear();
        self.kv = kv_layers(&mut self.backend, spec, config, num_pages)?;
        Ok(())
    }

    fn capture_all(&mut self, config: &RunnerConfig) -> Result<()> {
        config.graph_sizes.iter().try_for_each(|&size| self.capture(size))
    }

    /// Says how much of the device is held, and warns where that is more than was allowed.
    fn report_memory(&self, config: &RunnerConfig, footprint: &Footprint) {
        let now = self.backend.memory();
        let (held, limit) = (footprint.held_bytes(now) >> 20, footprint.limit_bytes >> 20);
        let free = now.free_bytes >> 20;
        tracing::info!(held_mib = held, limit_mib = limit, free_mib = free, "device memory");
        if footprint.excess_bytes(now) > 0 {
            tracing::warn!(
                "the engine holds {held} MiB of {}, memory_ratio {} allows {limit} MiB: lower {}",
                self.backend.device_name(),
                config.memory_ratio,
                if config.num_page_override.is_some() { "num_page_override" } else { "memory_ratio" }
            );
        }
    }

    fn no_room(&self, config: &RunnerConfig, limit: usize, held: usize, page_bytes: usize) -> EngineError {
        EngineError::InvalidConfig(format!(
            "memory_ratio {} of {} allows {} MiB, weights and activations hold {} MiB: no room for a KV page of {} \
             MiB; raise memory_ratio or lower max_running_req, max_extend_tokens or max_seq_len_override",
            config.memory_ratio,
            self.backend.device_name(),
            limit >> 20,
            held >> 20,
            (page_bytes >> 20).max(1)
        ))
    }
}

fn log_weights(bytes: usize, time: Duration) {
    let (gigabytes, seconds) = (bytes as f64 / 1e9, time.as_secs_f64());
    tracing::info!(
        "{gigabytes:.2} GB of weights loaded in {seconds:.2} s, {:.1} GB/s",
        gigabytes / seconds.max(1e-9)
    );
}

fn kv_layers<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    config: &RunnerConfig,
    num_pages: usize,
) -> Result<Vec<KvLayer<B::Buf>>> {
    let page_size = config.page_size;
    let (slots, cols) = (num_pages * page_size, spec.num_kv_heads * spec.head_dim);
    (0..spec.num_layers)
        .map(|_| {
            Ok(KvLayer {
                k: backend.tensor("KV pages", config.dtype, slots, cols)?,
                v: backend.tensor("KV pages", config.dtype, slots, cols)?,
                page_size,
            })
        })
        .collect()
}

/// Fills a decode step up to `size` sequences with padding.
fn pad_decode(inputs: &mut StepInputs, size: usize) {
    let used = inputs.cu_q_lens.last().copied().unwrap_or(0);
    inputs.token_ids.resize(size, 0);
    inputs.positions.resize(size, 0);
    inputs.slots.resize(size, PADDING);
    inputs.cu_q_lens.resize(size + 1, used);
    inputs.kv_lens.resize(size, 0);
    inputs.seq_rows.resize(size, 0);
    inputs.sample_tokens.resize(size, 0);
    inputs.samples.resize(size, SampleParams::greedy(PADDING, 0));
}
