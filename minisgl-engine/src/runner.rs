//! The runner: turns a batch of integers into sampled tokens on the device.

use std::collections::BTreeMap;

use minisgl_kernels::{
    Backend, DType, KvLayer, PADDING, PageUpdate, SampleBuf, SampleParams, Samples, SeqState, StepInputs,
};

use crate::batch::Batch;
use crate::model::{Decoder, DecoderSizes, ModelSpec, WeightSource, Weights};
use crate::{EngineError, LoadProgress, Result};

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
        let weights = Weights::load(&mut backend, spec, config.dtype, source, progress)?;

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
        let mut runner = Self { backend, decoder, kv, state, inputs, samples, graphs: BTreeMap::new() };

        // On an asynchronous device libraries and kernels take memory when they first run: let the largest step
        // run once before what is left is counted.
        if runner.backend.has_graphs() {
            runner.warm_up(config)?;
        }
        let num_pages = match config.num_page_override {
            Some(num_pages) => num_pages,
            None => runner.num_pages_that_fit(spec, config, at_start)?,
        };
        runner.kv.clear();
        runner.kv = kv_layers(&mut runner.backend, spec, config, num_pages)?;
        if runner.backend.has_graphs() {
            for &size in &config.graph_sizes {
                runner.capture(size)?;
            }
        }
        Ok(runner)
    }

    /// Pages in the KV storage.
    pub(crate) fn num_pages(&self) -> usize {
        self.kv.first().map_or(0, |layer| layer.k.rows / layer.page_size)
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
        let mut inputs = StepInputs { cu_q_lens: vec![0], ..StepInputs::default() };
        pad_decode(&mut inputs, size);
        self.backend.begin_step(&mut self.inputs, &inputs, &mut self.state, &mut self.kv)?;
        // Once eagerly, so that whatever chooses algorithms by timing does it outside of the capture.
        self.step(size, size)?;
        let Self { backend, decoder, kv, state, inputs, samples, .. } = self;
        let graph = backend.capture(&mut |b| {
            let logits = decoder.forward(b, inputs, state, kv, size, size)?;
            b.sample(samples, logits, inputs, state)
        })?;
        self.graphs.insert(size, graph);
        Ok(())
    }

    /// Runs the largest prefill and the largest decode step once, every sequence on the same page.
    fn warm_up(&mut self, config: &RunnerConfig) -> Result<()> {
        let prompt = config.max_extend_tokens.min(config.max_seq_len) as u32;
        let mut prefill = StepInputs {
            token_ids: vec![0; prompt as usize],
            positions: (0..prompt).collect(),
            slots: vec![0; prompt as usize],
            cu_q_lens: vec![0, prompt],
            kv_lens: vec![prompt],
            seq_rows: vec![0],
            sample_tokens: vec![prompt - 1],
            samples: vec![SampleParams::greedy(0, prompt)],
            ..StepInputs::default()
        };
        prefill.page_updates.push(PageUpdate { row: 0, idx: 0, page: 0 });
        let decode = StepInputs {
            cu_q_lens: (0..=config.max_running_req as u32).collect(),
            token_ids: vec![0; config.max_running_req],
            positions: vec![0; config.max_running_req],
            slots: vec![0; config.max_running_req],
            kv_lens: vec![1; config.max_running_req],
            seq_rows: (0..config.max_running_req as u32).collect(),
            sample_tokens: (0..config.max_running_req as u32).collect(),
            samples: (0..config.max_running_req as u32).map(|row| SampleParams::greedy(row, 1)).collect(),
            ..StepInputs::default()
        };
        for inputs in [prefill, decode] {
            self.backend.begin_step(&mut self.inputs, &inputs, &mut self.state, &mut self.kv)?;
            self.step(inputs.num_tokens(), inputs.num_samples())?;
            self.backend.synchronize()?;
        }
        Ok(())
    }

    fn num_pages_that_fit(
        &self,
        spec: &ModelSpec,
        config: &RunnerConfig,
        at_start: minisgl_kernels::Memory,
    ) -> Result<usize> {
        let now = self.backend.memory();
        let held = at_start.free_bytes.saturating_sub(now.free_bytes);
        let share = |bytes: usize| (bytes as f64 * config.memory_ratio) as usize;
        // A GPU is ours up to a share of the whole card; main memory is shared with everybody, so there it is a
        // share of what was free, and never more than all sequences together can use.
        let (budget, held, most) = if self.backend.has_graphs() {
            (share(at_start.total_bytes).min(at_start.free_bytes), held, usize::MAX)
        } else {
            let pages_each = config.max_seq_len.div_ceil(config.page_size);
            let most = config.max_running_req.saturating_mul(pages_each);
            (share(at_start.free_bytes), spec.weight_bytes(config.dtype), most)
        };
        let page_bytes = config.page_size * spec.kv_bytes_per_token(config.dtype);
        let num_pages = (budget.saturating_sub(held) / page_bytes).min(most);
        if num_pages == 0 {
            return Err(EngineError::InvalidConfig(format!(
                "memory_ratio {} of {} allows {} MiB, weights and activations hold {} MiB: no room for a KV page \
                 of {} MiB; raise memory_ratio or lower max_running_req, max_extend_tokens or \
                 max_seq_len_override",
                config.memory_ratio,
                self.backend.device_name(),
                budget >> 20,
                held >> 20,
                (page_bytes >> 20).max(1)
            )));
        }
        Ok(num_pages)
    }
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
