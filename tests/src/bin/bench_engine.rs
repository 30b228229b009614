//! Whole models with random weights: decode and prefill speed beside the limits of the machine.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use clap::Parser;
use minisgl_engine::config::{Device, EngineConfig};
use minisgl_engine::model::ModelSpec;
use minisgl_engine::request::{Request, RequestParams};
use minisgl_engine::{DType, Engine, Submission};
use minisgl_tests::harness::{ChannelSink, collect};
use minisgl_tests::models::random_tokens;
use minisgl_tests::report::{Limits, Report, Row};

/// Measures decode and prefill of whole models with random weights.
#[derive(Parser)]
struct Args {
    /// Model shapes: directories with a config.json.
    #[arg(long, value_delimiter = ',', default_value = "bench/shapes/llama-3.2-1b")]
    models: Vec<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Which parts to measure.
    #[arg(long, value_delimiter = ',', default_value = "decode,prefill")]
    parts: Vec<Part>,
    /// Sequences in each decode measurement.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    decode_batches: Vec<usize>,
    /// Prompt tokens before each decode measurement.
    #[arg(long, default_value_t = 128)]
    context: usize,
    /// Decode steps in each measurement.
    #[arg(long, default_value_t = 24)]
    steps: usize,
    /// Prompts and their length in each prefill measurement, as in 1x512.
    #[arg(long, value_delimiter = ',', default_value = "1x512", value_parser = parse_prompts)]
    prefill: Vec<(usize, usize)>,
    /// Measurements of which the median is taken, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Workload of the offline part.
    #[arg(long, default_value = "bench/workloads/offline256.json")]
    workload: PathBuf,
    /// Where JSON and Markdown go; not written if absent.
    #[arg(long)]
    output_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Time of a decode step at several batch sizes.
    Decode,
    /// Prompt tokens a second.
    Prefill,
    /// A workload of many requests.
    Offline,
}

fn parse_prompts(text: &str) -> Result<(usize, usize), String> {
    let (count, len) = text.split_once('x').ok_or("expected COUNTxLENGTH, as in 1x512")?;
    let parse = |part: &str| part.parse().map_err(|error| format!("'{part}': {error}"));
    Ok((parse(count)?, parse(len)?))
}

fn main() {
    let args = Args::parse();
    if let Err(error) = run(&args) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::measure(args.device)?;
    let mut report = Report::new("engine", &limits);
    for dir in &args.models {
        let mut bench = Bench::start(dir, args)?;
        for part in &args.parts {
            match part {
                Part::Decode => {
                    for &batch in &args.decode_batches {
                        report.add(bench.decode(batch, args, &limits));
                    }
                }
                Part::Prefill => {
                    for &prompts in &args.prefill {
                        report.add(bench.prefill(prompts, args, &limits));
                    }
                }
                Part::Offline => report.add(bench.offline(&args.workload, &limits)?),
            }
        }
    }
    report.finish(args.output_dir.as_deref())?;
    Ok(())
}

struct Bench {
    name: String,
    spec: ModelSpec,
    engine: Engine,
    /// Every prompt is new, so that a prefix cache cannot help.
    next_stream: u32,
}

impl Bench {
    fn start(dir: &Path, args: &Args) -> Result<Self, Box<dyn std::error::Error>> {
        let spec = ModelSpec::read(dir)?;
        let name =
            dir.file_name().map_or_else(|| dir.display().to_string(), |n| n.to_string_lossy().into_owned());
        eprintln!("{name}: starting with random weights");
        let config = EngineConfig {
            device: args.device,
            use_dummy_weight: true,
            max_seq_len_override: Some(spec.max_position.min(8192)),
            ..EngineConfig::new(dir)
        };
        let engine = Engine::start(config, None)?;
        let info = engine.info();
        eprintln!(
            "{name}: ready after {:.2} s, of which weights {:.2} s ({:.2} GB)",
            info.load_time.as_secs_f64(),
            info.weights_time.as_secs_f64(),
            info.weight_bytes as f64 / 1e9
        );
        Ok(Self { name, spec, engine, next_stream: 0 })
    }

    fn request(&mut self, len: usize, max_tokens: usize, temperature: f32) -> Request {
        self.next_stream += 1;
        let token_ids = random_tokens(1, self.next_stream, len, self.spec.vocab);
        let params = RequestParams { max_tokens, temperature, ignore_eos: true, ..RequestParams::default() };
        Request { token_ids, params }
    }

    /// Seconds from submission to the last event.
    fn time(&self, requests: Vec<Request>) -> f64 {
        let (sender, receiver) = mpsc::channel();
        let num = requests.len();
        let submit = |(i, request): (usize, Request)| Submission {
            request,
            sinks: vec![Box::new(ChannelSink(i, sender.clone()))],
        };
        let submissions = requests.into_iter().enumerate().map(submit).collect();
        let start = Instant::now();
        self.engine.submit(submissions).expect("valid requests");
        for result in collect(&receiver, num) {
            result.expect("an output");
        }
        start.elapsed().as_secs_f64()
    }

    fn median(&mut self, repeats: usize, mut measure: impl FnMut(&mut Self) -> f64) -> f64 {
        measure(self);
        let mut times: Vec<f64> = (0..repeats.max(1)).map(|_| measure(self)).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// Bytes that a decode step must read: all weights but an embedding table that is not the head, and the KV.
    fn decode_bytes(&self, batch: usize, context: usize) -> f64 {
        let (body, tables) = self.spec.num_params();
        let head = if self.spec.tied { tables } else { tables / 2 };
        let kv = batch * context * self.spec.kv_bytes_per_token(DType::BF16);
        ((body + head) * DType::BF16.size_bytes() + kv) as f64
    }

    fn decode(&mut self, batch: usize, args: &Args, limits: &Limits) -> Row {
        let (context, steps) = (args.context, args.steps);
        let seconds = self.median(args.repeats, |bench| {
            let mut run = |max_tokens| {
                let requests = (0..batch).map(|_| bench.request(context, max_tokens, 0.0)).collect();
                bench.time(requests)
            };
            // The difference leaves the prompt out.
            let prefill = run(1);
            (run(1 + steps) - prefill) / steps as f64
        });
        let bytes = self.decode_bytes(batch, context + steps / 2);
        Row {
            name: format!("{} decode, batch {batch}, context {context}", self.name),
            value: seconds * 1e3,
            unit: "ms a step",
            rate: format!("{:.1} tok/s, {:.1} GB/s", batch as f64 / seconds, bytes / seconds / 1e9),
            share: bytes / seconds / limits.bytes_per_s,
            limit: "read bandwidth",
        }
    }

    fn prefill(&mut self, (count, len): (usize, usize), args: &Args, limits: &Limits) -> Row {
        let seconds = self.median(args.repeats, |bench| {
            let requests = (0..count).map(|_| bench.request(len, 1, 0.0)).collect();
            bench.time(requests)
        });
        let spec = &self.spec;
        let (body, tables) = spec.num_params();
        let head = if spec.tied { tables } else { tables / 2 };
        let attention =
            2.0 * (spec.num_layers * spec.num_heads * spec.head_dim) as f64 * (len * (len + 1)) as f64;
        let flops = count as f64 * (2.0 * body as f64 * len as f64 + 2.0 * head as f64 + attention);
        Row {
            name: format!("{} prefill, {count} x {len}", self.name),
            value: (count * len) as f64 / seconds,
            unit: "tok/s",
            rate: format!("{:.1} GFLOP/s", flops / seconds / 1e9),
            share: flops / seconds / limits.flops_per_s,
            limit: limits.flops_name,
        }
    }

    fn offline(&mut self, workload: &Path, limits: &Limits) -> Result<Row, Box<dyn std::error::Error>> {
        #[derive(serde::Deserialize)]
        struct Workload {
            temperature: f32,
            prompt_len: Vec<usize>,
            max_tokens: Vec<usize>,
        }
        let workload: Workload = serde_json::from_slice(&std::fs::read(workload)?)?;
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
            name: format!("{} offline, {} requests", self.name, pairs.len()),
            value: output as f64 / seconds,
            unit: "output tok/s",
            rate: format!("{seconds:.2} s"),
            share: bytes / seconds / limits.bytes_per_s,
            limit: "read bandwidth",
        })
    }
}
