//! Every op of the registry at the shapes of real models' steps, beside the limits of the machine.

mod args;
mod shapes;

use std::time::Duration;

use clap::Parser;
use minisgl_engine::config::Device;
use minisgl_kernels::Backend;
use minisgl_kernels::cpu::{Cpu, CpuOptions};
use minisgl_tests::ops::bench::{BenchCase, Workload};
use minisgl_tests::ops::{OPS, registry};
use minisgl_tests::report::{Limits, Report, Row, Work};

use args::Args;
use shapes::Shapes;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    match args.device {
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => bench_cuda(ordinal, args),
        #[cfg(feature = "cuda")]
        Device::Auto if minisgl_kernels::cuda::num_devices() > 0 => bench_cuda(0, args),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(format!("device {} needs the feature cuda", args.device).into()),
        Device::Auto | Device::Cpu => {
            bench(&mut Cpu::new(CpuOptions { threads: args.threads, isa: None })?, args)
        }
    }
}

#[cfg(feature = "cuda")]
fn bench_cuda(ordinal: usize, args: &Args) -> Result<()> {
    use minisgl_kernels::cuda::{Cuda, CudaOptions};
    let minisgl_engine::config::AttentionBackend { prefill, decode } = args.attention_backend;
    bench(&mut Cuda::open(CudaOptions { ordinal, prefill, decode, ..CudaOptions::default() })?, args)
}

fn bench<B: Backend>(backend: &mut B, args: &Args) -> Result<()> {
    if let Some(unknown) = args.ops.iter().find(|name| !OPS.contains(&name.as_str())) {
        return Err(format!("unknown op '{unknown}': expected one of {}", OPS.join(", ")).into());
    }
    let limits = match args.limit_gbs.zip(args.limit_gflops) {
        Some((gbs, gflops)) => Limits {
            device: backend.device_name(),
            bytes_per_s: gbs * 1e9,
            bytes_name: "bandwidth as given",
            flops_per_s: gflops * 1e9,
            flops_name: "rate as given",
        },
        None => Limits::measure(args.device)?,
    };
    let is_gpu = backend.has_graphs();
    let shapes = Shapes::new(args, is_gpu);
    let budget = Duration::from_millis(args.budget_ms.unwrap_or(if is_gpu { 30 } else { 300 }));
    let wanted = |name: &str| args.ops.is_empty() || args.ops.iter().any(|wanted| wanted == name);
    let logits_dtype = backend.logits_dtype(args.dtype);
    let mut report = Report::new("ops", &limits);
    let mut measure = |workload: &Workload, only: Option<&str>| -> Result<()> {
        let chosen = |name| wanted(name) && only.is_none_or(|only| only == name);
        for op in registry::<B>().iter().filter(|op| chosen(op.name)) {
            for case in op.bench(workload) {
                let time = case.median(backend, budget)?;
                let name = format!("{} {} {} {}", workload.model.name, workload.label(), op.name, case.name);
                report.add(row(op.name, name, time, &case, &limits));
            }
        }
        Ok(())
    };
    for &model in &shapes.models {
        for workload in shapes::steps(model, &shapes, args, logits_dtype) {
            measure(&workload, None)?;
        }
    }
    if shapes.attention {
        for workload in shapes::attention(args, logits_dtype) {
            measure(&workload, Some("attention"))?;
        }
    }
    report.finish(args.output_dir.as_deref())?;
    Ok(())
}

fn row<B: Backend>(op: &str, name: String, time: Duration, case: &BenchCase<B>, limits: &Limits) -> Row {
    let work = Work { bytes: case.bytes, flops: case.flops, seconds: time.as_secs_f64().max(1e-9) };
    Row {
        series: op.to_owned(),
        name,
        value: work.seconds * 1e6,
        unit: "us",
        rate: format!(
            "{:.1} GB/s, {:.1} GFLOP/s",
            work.bytes / work.seconds / 1e9,
            work.flops / work.seconds / 1e9
        ),
        share: Some(work.share(limits)),
        work: Some(work),
    }
}
