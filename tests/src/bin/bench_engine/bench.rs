//! One running model and what is measured of it.

use std::path::Path;
use std::time::{Duration, Instant};

use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::mailbox::Mailbox;
use minisgl_engine::model::ModelSpec;
use minisgl_engine::request::{Event, Request, RequestParams};
use minisgl_engine::{DType, Engine, Submission};
use minisgl_kernels::Memory;
use minisgl_tests::host_time::HostTime;
use minisgl_tests::models::random_tokens;
use minisgl_tests::report::{Limits, Row, Work};

use crate::args::Args;

/// Runs of prompts go on for so long at least: a GPU's clock moves between runs of a fraction of a second.
const MIN_PREFILL_SECONDS: f64 = 2.0;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub(crate) struct Bench {
    name: String,
    spec: ModelSpec,
    engine: Engine,
    device: Device,
    /// From nothing to the first token of a short prompt.
    first_token: Duration,
    repeats: usize,
    /// Every prompt is new, so that a prefix cache helps only where it is meant to.
    next_stream: u32,
}

impl Bench {
    pub(crate) fn start(dir: &Path, args: &Args) -> Result<Self> {
        let spec = ModelSpec::read(dir)?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        let defaults = EngineConfig::new(dir);
        let config = EngineConfig {
            device: args.device,
            attention_backend: args.attention_backend,
            use_dummy_weight: !args.load_weights,
            max_seq_len_override: Some(spec.max_position.min(8192)),
            max_extend_tokens: args.max_extend_tokens.or(defaults.max_extend_tokens),
            ..defaults
        };
        let start = Instant::now();
        let engine = Engine::start(config, None)?;
        let mut bench = Self {
            name,
            spec,
            engine,
            device: args.device,
            first_token: Duration::ZERO,
            repeats: args.repeats.max(1),
            next_stream: 0,
        };
        let request = bench.request(8, 1, 0.0);
        bench.time(vec![request]);
        bench.first_token = start.elapsed();
        Ok(bench)
    }

    fn prompt(&mut self, len: usize) -> Vec<u32> {
        self.next_stream += 1;
        random_tokens(1, self.next_stream, len, self.spec.vocab)
    }

    fn request(&mut self, len: usize, max_tokens: usize, temperature: f32) -> Request {
        request(self.prompt(len), max_tokens, temperature)
    }

    /// Seconds from submission to the last event.
    fn time(&self, requests: Vec<Request>) -> f64 {
        let mut mailbox = Mailbox::new();
        let mut num_running = requests.len();
        let submit = |request| Submission { request, sinks: vec![mailbox.sink(())] };
        let submissions = requests.into_iter().map(submit).collect();
        let start = Instant::now();
        self.engine.submit(submissions).expect("valid requests");
        while num_running > 0 {
            match mailbox.recv().1 {
                Event::Token { .. } => {}
                Event::Finished { .. } => num_running -= 1,
                Event::Failed(error) => panic!("a request failed: {error}"),
            }
        }
        start.elapsed().as_secs_f64()
    }

    /// Weights that a step reads: all but an embedding table that is not the head.
    fn weights(&self) -> usize {
        let (body, tables) = self.spec.num_params();
        body + if self.spec.tied { tables } else { tables / 2 }
    }

    /// Bytes that a decode step must read.
    fn decode_bytes(&self, batch: usize, context: usize) -> f64 {
        let kv = batch * context * self.spec.kv_bytes_per_token(DType::BF16);
        (self.weights() * DType::BF16.size_bytes() + kv) as f64
    }

    /// Floating-point operations of a decode step.
    fn decode_flops(&self, batch: usize, context: usize) -> f64 {
        let attention = 4 * self.spec.num_layers * self.spec.num_heads * self.spec.head_dim * context;
        (batch * (2 * self.weights() + attention)) as f64
    }

    /// Process start is not in it: the backend, weights, memory and graphs are.
    pub(crate) fn start_rows(&self) -> Vec<Row> {
        let info = self.engine.info();
        let row = |name: &str, value, unit, rate| Row {
            series: self.name.clone(),
            name: format!("{} {name}", self.name),
            value,
            unit,
            rate,
            share: None,
            work: None,
        };
        let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
        let kv = info.num_pages * info.page_size * info.kv_bytes_per_token;
        let (ready, weights) = (info.load_time.as_secs_f64(), info.weights_time.as_secs_f64());
        let ready = format!("ready after {ready:.2} s, of which weights {weights:.2} s");
        let pages = format!("{} pages of {}", info.num_pages, info.page_size);
        let mut rows = vec![
            row("start to first token", self.first_token.as_secs_f64(), "s", ready),
            row(
                "weights",
                gib(info.weight_bytes),
                "GiB",
                format!("{:.1} GB/s", info.weight_bytes as f64 / weights / 1e9),
            ),
            row("KV", gib(kv), "GiB", pages),
        ];
        if let Some(memory) = device_memory(self.device) {
            let used = memory.total_bytes - memory.free_bytes;
            let allowed = 0.9 * memory.total_bytes as f64;
            rows.push(Row {
                share: Some((used as f64 / allowed, "memory_ratio 0.9")),
                ..row("memory in use", gib(used), "GiB", format!("of {:.2} GiB", gib(memory.total_bytes)))
            });
        }
        rows
    }

    /// A decode step, and what the host does in it.
    pub(crate) fn decode(
        &mut self,
        (batch, context): (usize, usize),
        steps: usize,
        limits: &Limits,
    ) -> (Row, HostTime) {
        let prompts: Vec<_> = (0..batch).map(|_| self.prompt(context)).collect();
        let run = |bench: &Self, max_tokens| {
            bench.time(prompts.iter().map(|prompt| request(prompt.clone(), max_tokens, 0.0)).collect())
        };
        // From now on the prompts are in the prefix cache, and a run is nothing but decoding.
        run(self, 1);
        let mut times: Vec<f64> = (0..self.repeats)
            .map(|_| {
                let rest = run(self, 1);
                (run(self, 1 + steps) - rest) / steps as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let mid = context + steps / 2;
        let work =
            Work { bytes: self.decode_bytes(batch, mid), flops: self.decode_flops(batch, mid), seconds };
        let name = format!("{} decode, batch {batch}, context {context}", self.name);
        let recent = self.engine.recent_steps();
        let of_these = recent.iter().rev().filter(|step| step.is_decode && step.num_seqs == batch);
        let of_these = of_these.take(self.repeats * steps).map(|step| step.times);
        let host = HostTime::new(name.clone(), of_these.collect());
        let step = Row {
            series: self.name.clone(),
            name,
            value: seconds * 1e3,
            unit: "ms a step",
            rate: format!("{:.1} tok/s, {:.1} GB/s", batch as f64 / seconds, work.bytes / seconds / 1e9),
            share: Some((work.bytes / seconds / limits.bytes_per_s, limits.bytes_name)),
            work: Some(work),
        };
        (step, host)
    }

    /// Prompts that were never seen, one token each.
    pub(crate) fn prefill(&mut self, (count, len): (usize, usize), limits: &Limits) -> Row {
        let run = |bench: &mut Self| {
            let requests = (0..count).map(|_| bench.request(len, 1, 0.0)).collect();
            bench.time(requests)
        };
        run(self);
        let mut times = Vec::new();
        while times.len() < self.repeats || times.iter().sum::<f64>() < MIN_PREFILL_SECONDS {
            times.push(run(self));
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let spec = &self.spec;
        let (body, _) = spec.num_params();
        let head = self.weights() - body;
        let attention =
            2.0 * (spec.num_layers * spec.num_heads * spec.head_dim) as f64 * (len * (len + 1)) as f64;
        let flops = count as f64 * (2.0 * body as f64 * len as f64 + 2.0 * head as f64 + attention);
        Row {
            series: self.name.clone(),
            name: format!("{} prefill, {count} x {len}", self.name),
            value: (count * len) as f64 / seconds,
            unit: "tok/s",
            rate: format!("{:.1} GFLOP/s", flops / seconds / 1e9),
            share: Some((flops / seconds / limits.flops_per_s, limits.flops_name)),
            // The weights are read once at least.
            work: Some(Work { bytes: self.decode_bytes(0, 0), flops, seconds }),
        }
    }

    /// A workload of many requests, all submitted at once.
    pub(crate) fn offline(&mut self, workload: &Path, limits: &Limits) -> Result<Row> {
        #[derive(serde::Deserialize)]
        struct Workload {
            temperature: f32,
            prompt_len: Vec<usize>,
            max_tokens: Vec<usize>,
        }
        let text = std::fs::read(workload).map_err(|error| format!("{}: {error}", workload.display()))?;
        let workload: Workload = serde_json::from_slice(&text)?;
        let pairs: Vec<_> =
            workload.prompt_len.iter().copied().zip(workload.max_tokens.iter().copied()).collect();
        let run = |bench: &mut Self, cap: usize| {
            let requests =
                pairs.iter().map(|&(len, max)| bench.request(len, max.min(cap), workload.temperature));
            let requests = requests.collect();
            bench.time(requests)
        };
        run(self, 16);
        let seconds = run(self, usize::MAX);
        let output: usize = workload.max_tokens.iter().sum();
        // Lower bound of the bytes: weights once for each step of the longest output, every KV entry once a step.
        let kv = self.spec.kv_bytes_per_token(DType::BF16) as f64;
        let steps = workload.max_tokens.iter().copied().max().unwrap_or(0) as f64;
        let kv_tokens: f64 =
            pairs.iter().map(|&(len, max)| max as f64 * (len as f64 + max as f64 / 2.0)).sum();
        let bytes = steps * self.decode_bytes(0, 0) + kv_tokens * kv;
        Ok(Row {
            series: self.name.clone(),
            name: format!("{} offline, {} requests", self.name, pairs.len()),
            value: output as f64 / seconds,
            unit: "output tok/s",
            rate: format!("{seconds:.2} s"),
            share: Some((bytes / seconds / limits.bytes_per_s, limits.bytes_name)),
            work: None,
        })
    }
}

/// What a GPU holds, this question's own workspace included.
fn device_memory(device: Device) -> Option<Memory> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Auto | Device::Cuda(_) if minisgl_kernels::cuda::num_devices() > 0 => {
            use minisgl_kernels::Backend;
            use minisgl_kernels::cuda::{Cuda, CudaOptions};
            let ordinal = if let Device::Cuda(ordinal) = device { ordinal } else { 0 };
            Cuda::open(CudaOptions { ordinal, ..CudaOptions::default() }).ok().map(|cuda| cuda.memory())
        }
        _ => None,
    }
}

fn request(token_ids: Vec<u32>, max_tokens: usize, temperature: f32) -> Request {
    let params = RequestParams { max_tokens, temperature, ignore_eos: true, ..RequestParams::default() };
    Request { token_ids, params }
}
