//! The command line.

use std::path::PathBuf;

use clap::Parser;
use minisgl_engine::config::{AttentionBackend, Device};
use minisgl_kernels::DType;
use minisgl_tests::ops::bench::{LLAMA_3_1_8B, LLAMA_3_2_1B, ModelShape, QWEN3_0_6B};

/// Measures every op: median device time after a warm-up, on noise, inputs rotated so that caches are cold.
#[derive(Parser)]
pub(crate) struct Args {
    /// Ops by name; all if absent.
    #[arg(long, value_delimiter = ',')]
    pub(crate) ops: Vec<String>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(crate) device: Device,
    /// Threads of the CPU backend; by default as many as the process may use.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Attention kernels of a GPU, as in fa,fi.
    #[arg(long, default_value = "auto")]
    pub(crate) attention_backend: AttentionBackend,
    /// Models whose shapes are taken; by default those that suit the device.
    #[arg(long, value_delimiter = ',', value_parser = parse_model)]
    pub(crate) models: Option<Vec<ModelShape>>,
    /// Storage of weights, activations and KV.
    #[arg(long, default_value = "bf16")]
    pub(crate) dtype: DType,
    /// Sequences in each decode step.
    #[arg(long, value_delimiter = ',')]
    pub(crate) decode_batches: Option<Vec<usize>>,
    /// Tokens of each sequence in a decode step.
    #[arg(long, default_value_t = 1024)]
    pub(crate) context: usize,
    /// Prompts and their length in each prefill step, as in 2x4096; 0x0 leaves prefill out.
    #[arg(long, value_delimiter = ',', value_parser = minisgl_tests::report::parse_prompts)]
    pub(crate) prefill: Option<Vec<(usize, usize)>>,
    /// Whether to measure attention at ragged, long and grouped shapes too; by default on a GPU.
    #[arg(long)]
    pub(crate) attention: Option<bool>,
    /// Tokens in a KV page.
    #[arg(long, default_value_t = 16)]
    pub(crate) page_size: usize,
    /// Bytes of weights or KV to go through before the first are met again; more than the last cache holds.
    #[arg(long, default_value_t = 512)]
    pub(crate) cold_mib: usize,
    /// Time for each measurement; by default 300 ms, on a GPU 30 ms.
    #[arg(long)]
    pub(crate) budget_ms: Option<u64>,
    /// Limit on bytes in GB/s; measured if absent.
    #[arg(long, requires = "limit_gflops")]
    pub(crate) limit_gbs: Option<f64>,
    /// Limit on arithmetic in GFLOP/s; measured if absent.
    #[arg(long, requires = "limit_gbs")]
    pub(crate) limit_gflops: Option<f64>,
    /// Where JSON, Markdown and the roofline plot go; not written if absent.
    #[arg(long)]
    pub(crate) output_dir: Option<PathBuf>,
}

fn parse_model(name: &str) -> Result<ModelShape, String> {
    let known = [QWEN3_0_6B, LLAMA_3_2_1B, LLAMA_3_1_8B];
    let names = known.map(|model| model.name.to_lowercase()).join(", ");
    let found = known.into_iter().find(|model| model.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("unknown model '{name}': expected one of {names}"))
}
