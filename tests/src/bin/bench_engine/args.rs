//! The command line, and what suits a device where it says nothing.

use std::path::PathBuf;

use clap::Parser;
use minisgl_engine::config::{AttentionBackend, Device};
use minisgl_tests::report::parse_prompts;

/// Measures start, decode, prefill and offline throughput of whole models with random weights.
#[derive(Parser)]
pub(crate) struct Args {
    /// Model shapes: directories with a config.json. By default those that suit the device.
    #[arg(long, value_delimiter = ',')]
    pub(crate) models: Option<Vec<PathBuf>>,
    /// Load the weights of the directories in place of random ones: for the speed of loading.
    #[arg(long)]
    pub(crate) load_weights: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: Device,
    /// Attention kernels of a GPU, as in fa,fi.
    #[arg(long, default_value = "auto")]
    pub(crate) attention_backend: AttentionBackend,
    /// Which parts to measure.
    #[arg(long, value_delimiter = ',')]
    pub(crate) parts: Option<Vec<Part>>,
    /// Sequences and prompt tokens before each decode measurement, as in 32x1024.
    #[arg(long, value_delimiter = ',', value_parser = parse_prompts)]
    pub(crate) decode: Option<Vec<(usize, usize)>>,
    /// Decode steps in each measurement.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Prompts and their length in each prefill measurement, as in 1x512.
    #[arg(long, value_delimiter = ',', value_parser = parse_prompts)]
    pub(crate) prefill: Option<Vec<(usize, usize)>>,
    /// Sequences in each decode measurement of the sweep.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,2,4,8,12,16,24,32,48,63,64,65,80,96,128,160,192,224,256"
    )]
    pub(crate) sweep: Vec<usize>,
    /// Prompt tokens before each of them.
    #[arg(long, default_value_t = 512)]
    pub(crate) sweep_context: usize,
    /// Prompt tokens in one step at most; by default the engine's own limit.
    #[arg(long)]
    pub(crate) max_extend_tokens: Option<usize>,
    /// Measurements of which the median is taken, after one that is not counted.
    #[arg(long, default_value_t = 3)]
    pub(crate) repeats: usize,
    /// Workload of the offline part.
    #[arg(long, default_value = "bench/workloads/offline256.json")]
    pub(crate) workload: PathBuf,
    /// Where JSON, Markdown and the roofline plot go; not written if absent.
    #[arg(long)]
    pub(crate) output_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Seconds from nothing to the first token, and memory.
    Start,
    /// Time of a decode step, and the host's part in it.
    Decode,
    /// Prompt tokens a second.
    Prefill,
    /// A workload of many requests.
    Offline,
    /// Time of a decode step over many batch sizes.
    Sweep,
}

/// What to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) models: Vec<PathBuf>,
    pub(crate) parts: Vec<Part>,
    pub(crate) decode: Vec<(usize, usize)>,
    pub(crate) steps: usize,
    pub(crate) prefill: Vec<(usize, usize)>,
}

impl Plan {
    /// A CPU is measured at what it is used for: small batches and short prompts of a small model.
    pub(crate) fn new(args: &Args, is_gpu: bool) -> Self {
        let shapes =
            |names: &[&str]| names.iter().map(|name| format!("bench/shapes/{name}").into()).collect();
        let default = if is_gpu {
            Self {
                models: shapes(&["qwen3-0.6b", "llama-3.2-1b", "llama-3.1-8b"]),
                parts: vec![Part::Start, Part::Decode, Part::Prefill, Part::Offline, Part::Sweep],
                decode: vec![(1, 128), (32, 1024), (256, 1024)],
                steps: 128,
                prefill: vec![(16, 4096)],
            }
        } else {
            Self {
                models: shapes(&["llama-3.2-1b"]),
                parts: vec![Part::Start, Part::Decode, Part::Prefill],
                decode: vec![(1, 128), (8, 128)],
                steps: 24,
                prefill: vec![(1, 512)],
            }
        };
        Self {
            models: args.models.clone().unwrap_or(default.models),
            parts: args.parts.clone().unwrap_or(default.parts),
            decode: args.decode.clone().unwrap_or(default.decode),
            steps: args.steps.unwrap_or(default.steps),
            prefill: args.prefill.clone().unwrap_or(default.prefill),
        }
    }
}
