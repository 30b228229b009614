//! Runs models for `tests/parity/parity.py`: greedy tokens as JSON, and the logits behind them as raw f32.

use std::path::{Path, PathBuf};

use clap::Parser;
use minisgl_engine::config::{AttentionBackend, CacheType, Device, EngineConfig};
use minisgl_engine::{DType, EngineError};
use minisgl_kernels::cpu::{Cpu, CpuOptions};
use minisgl_tests::harness::greedy;
use minisgl_tests::tap::{Recorded, record};
use serde::{Deserialize, Serialize};

/// Runs the jobs of a parity test.
#[derive(Parser)]
struct Args {
    /// cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// A JSON list of jobs.
    jobs: PathBuf,
}

#[derive(Deserialize)]
struct Job {
    /// Model directory.
    model: PathBuf,
    /// bf16, f16 or f32.
    dtype: String,
    page_size: usize,
    max_extend_tokens: usize,
    attention_backend: String,
    /// Prompts as token ids.
    prompts: Vec<Vec<u32>>,
    /// Tokens to generate for each prompt.
    max_tokens: usize,
    /// Where `<out>.json` and `<out>.f32` go. The second holds `[prompt][token][vocab]`.
    out: PathBuf,
}

#[derive(Serialize)]
struct Done {
    device: String,
    tokens: Vec<Vec<u32>>,
    vocab: usize,
}

type Error = Box<dyn std::error::Error>;

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let jobs: Vec<Job> = serde_json::from_slice(&std::fs::read(&args.jobs)?)?;
    // Keeps the device's context from one job to the next: making it takes longer than a job.
    #[cfg(feature = "cuda")]
    let _context = match args.device {
        Device::Cuda(ordinal) => {
            use minisgl_kernels::cuda::{Cuda, CudaOptions};
            Some(Cuda::open(CudaOptions { ordinal, ..CudaOptions::default() })?)
        }
        _ => None,
    };
    for job in jobs {
        let outputs =
            outputs(&job, args.device).map_err(|error| format!("{}: {error}", job.out.display()))?;
        let vocab = outputs.iter().flat_map(|(_, rows)| rows).map(Vec::len).next().unwrap_or(0);
        let tokens = outputs.iter().map(|(generated, _)| generated.tokens.clone()).collect();
        let done = Done { device: args.device.to_string(), tokens, vocab };
        let bytes: Vec<u8> = outputs
            .iter()
            .flat_map(|(_, rows)| rows.iter().flatten())
            .flat_map(|x| x.to_le_bytes())
            .collect();
        std::fs::write(with_suffix(&job.out, "f32"), bytes)?;
        std::fs::write(with_suffix(&job.out, "json"), serde_json::to_vec(&done)?)?;
    }
    Ok(())
}

/// The names of jobs hold dots, which `with_extension` would cut at.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}

fn outputs(job: &Job, device: Device) -> Result<Vec<Recorded>, Error> {
    let dtype: DType = job.dtype.parse().map_err(|_| format!("unknown dtype '{}'", job.dtype))?;
    let attention_backend: AttentionBackend = job.attention_backend.parse()?;
    let config = EngineConfig {
        dtype: Some(dtype),
        device,
        page_size: job.page_size,
        max_extend_tokens: Some(job.max_extend_tokens),
        max_running_req: 32,
        num_page_override: Some(8192 / job.page_size),
        cache_type: CacheType::Naive,
        ..EngineConfig::new(&job.model)
    };
    let requests: Vec<_> = job.prompts.iter().map(|prompt| greedy(prompt, job.max_tokens)).collect();
    Ok(match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let AttentionBackend { prefill, decode } = attention_backend;
            let options =
                minisgl_kernels::cuda::CudaOptions { ordinal, prefill, decode, ..Default::default() };
            record(config, move || minisgl_kernels::cuda::Cuda::open(options), &requests)?
        }
        Device::Cpu if attention_backend == AttentionBackend::default() => {
            record(config, || Cpu::new(CpuOptions::default()), &requests)?
        }
        _ => {
            let error = format!("attention_backend {attention_backend} does not run on device {device}");
            return Err(EngineError::InvalidConfig(error).into());
        }
    })
}
