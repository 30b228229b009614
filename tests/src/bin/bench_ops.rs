//! Every op of the registry at the shapes of real models' steps, beside the limits of the machine.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use minisgl_engine::config::Device;
use minisgl_kernels::cpu::{Cpu, CpuOptions};
use minisgl_kernels::{Backend, DType};
use minisgl_tests::ops::bench::{LLAMA_3_1_8B, LLAMA_3_2_1B, ModelShape, QWEN3_0_6B, Workload};
use minisgl_tests::ops::registry;
use minisgl_tests::report::{Limits, Report, Row};

/// Measures every op: median device time after a warm-up, on noise, inputs rotated so that caches are cold.
#[derive(Parser)]
struct Args {
    /// Ops by name; all if absent.
    #[arg(long, value_delimiter = ',')]
    ops: Vec<String>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Threads of the CPU backend; by default as many as the process may use.
    #[arg(long)]
    threads: Option<usize>,
    /// Models whose shapes are taken.
    #[arg(long, value_delimiter = ',', default_value = "qwen3-0.6b,llama-3.2-1b", value_parser = parse_model)]
    models: Vec<ModelShape>,
    /// Storage of weights, activations and KV.
    #[arg(long, default_value = "bf16")]
    dtype: DType,
    /// Sequences in each decode step.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    decode_batches: Vec<usize>,
    /// Tokens of each sequence in a decode step.
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Length of each prompt; 0 leaves prefill out.
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prefill: Vec<usize>,
    /// Tokens in a KV page.
    #[arg(long, default_value_t = 16)]
    page_size: usize,
    /// Bytes of weights or KV to go through before the first are met again; more than the last cache holds.
    #[arg(long, default_value_t = 512)]
    cold_mib: usize,
    /// Time for each measurement.
    #[arg(long, default_value_t = 300)]
    budget_ms: u64,
    /// Limit on reads in GB/s; measured if absent.
    #[arg(long, requires = "limit_gflops")]
    limit_gbs: Option<f64>,
    /// Limit on arithmetic in GFLOP/s; measured if absent.
    #[arg(long, requires = "limit_gbs")]
    limit_gflops: Option<f64>,
    /// Where JSON and Markdown go; not written if absent.
    #[arg(long)]
    output_dir: Option<PathBuf>,
}

fn parse_model(name: &str) -> Result<ModelShape, String> {
    let known = [QWEN3_0_6B, LLAMA_3_2_1B, LLAMA_3_1_8B];
    let names = known.map(|model| model.name.to_lowercase()).join(", ");
    let found = known.into_iter().find(|model| model.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("unknown model '{name}': expected one of {names}"))
}

fn main() {
    let args = Args::parse();
    if let Err(error) = run(&args) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    match args.device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            use minisgl_kernels::cuda::{Cuda, CudaOptions};
            bench(&mut Cuda::open(CudaOptions { ordinal, ..CudaOptions::default() })?, args)
        }
        #[cfg(feature = "cuda")]
        Device::Auto if minisgl_kernels::cuda::num_devices() > 0 => {
            use minisgl_kernels::cuda::{Cuda, CudaOptions};
            bench(&mut Cuda::open(CudaOptions::default())?, args)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(format!("device {} needs the feature cuda", args.device).into()),
        Device::Auto | Device::Cpu => {
            bench(&mut Cpu::new(CpuOptions { threads: args.threads, isa: None })?, args)
        }
    }
}

fn bench<B: Backend>(backend: &mut B, args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let ops = registry::<B>();
    if let Some(unknown) = args.ops.iter().find(|name| ops.iter().all(|op| op.name != **name)) {
        let names: Vec<_> = ops.iter().map(|op| op.name).collect();
        return Err(format!("unknown op '{unknown}': expected one of {}", names.join(", ")).into());
    }
    let limits = match args.limit_gbs.zip(args.limit_gflops) {
        Some((gbs, gflops)) => Limits {
            device: backend.device_name(),
            bytes_per_s: gbs * 1e9,
            flops_per_s: gflops * 1e9,
            flops_name: "as given",
        },
        None => Limits::measure(args.device)?,
    };
    let wanted = |name: &str| args.ops.is_empty() || args.ops.iter().any(|wanted| wanted == name);
    let mut report = Report::new("ops", &limits);
    for &model in &args.models {
        for workload in workloads(model, args) {
            for op in ops.iter().filter(|op| wanted(op.name)) {
                for case in op.bench(&workload) {
                    let time = case.median(backend, Duration::from_millis(args.budget_ms))?;
                    let name = format!("{} {} {} {}", model.name, workload.label(), op.name, case.name);
                    report.add(row(name, time, case.bytes, case.flops, &limits));
                }
            }
        }
    }
    report.finish(args.output_dir.as_deref())?;
    Ok(())
}

fn workloads(model: ModelShape, args: &Args) -> Vec<Workload> {
    let workload = |seqs, q_len, kv_len| Workload {
        model,
        dtype: args.dtype,
        seqs,
        q_len,
        kv_len,
        page_size: args.page_size,
        cold_bytes: args.cold_mib << 20,
    };
    let decode = args.decode_batches.iter().map(|&seqs| workload(seqs, 1, args.context));
    decode.chain(args.prefill.iter().filter(|&&len| len > 0).map(|&len| workload(1, len, len))).collect()
}

/// The share is that of the nearer limit.
fn row(name: String, time: Duration, bytes: f64, flops: f64, limits: &Limits) -> Row {
    let seconds = time.as_secs_f64().max(1e-9);
    let (byte_share, flop_share) =
        (bytes / seconds / limits.bytes_per_s, flops / seconds / limits.flops_per_s);
    let (share, limit) = if byte_share >= flop_share {
        (byte_share, "read bandwidth")
    } else {
        (flop_share, limits.flops_name)
    };
    Row {
        name,
        value: seconds * 1e6,
        unit: "us",
        rate: format!("{:.1} GB/s, {:.1} GFLOP/s", bytes / seconds / 1e9, flops / seconds / 1e9),
        share,
        limit,
    }
}
