//! Whole models with random weights: start, decode, prefill and offline speed beside the limits of the machine.

mod args;
mod bench;

use clap::Parser;
use minisgl_engine::config::Device;
use minisgl_tests::report::{Limits, Report};

use args::{Args, Part, Plan};
use bench::{Bench, Result};

fn main() {
    if let Err(error) = run(&Args::parse()) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

fn run(args: &Args) -> Result<()> {
    let limits = Limits::measure(args.device)?;
    let mut report = Report::new("engine", &limits);
    let plan = Plan::new(args, is_gpu(args.device));
    for dir in &plan.models {
        let mut bench = Bench::start(dir, args)?;
        for part in &plan.parts {
            match part {
                Part::Start => bench.start_rows().into_iter().for_each(|row| report.add(row)),
                Part::Decode => {
                    for &shape in &plan.decode {
                        let (step, host) = bench.decode(shape, plan.steps, &limits);
                        report.add(step);
                        report.add_host_time(host);
                    }
                }
                Part::Prefill => {
                    for &prompts in &plan.prefill {
                        report.add(bench.prefill(prompts, &limits));
                    }
                }
                Part::Offline => report.add(bench.offline(&args.workload, &limits)?),
                Part::Sweep => {
                    for &batch in &args.sweep {
                        let (step, _) = bench.decode((batch, args.sweep_context), plan.steps / 2, &limits);
                        report.add(step);
                    }
                }
            }
        }
    }
    report.finish(args.output_dir.as_deref())?;
    Ok(())
}

/// Whether the engine would take a GPU.
fn is_gpu(device: Device) -> bool {
    match device {
        Device::Cpu => false,
        Device::Cuda(_) => true,
        #[cfg(feature = "cuda")]
        Device::Auto => minisgl_kernels::cuda::num_devices() > 0,
        #[cfg(not(feature = "cuda"))]
        Device::Auto => false,
    }
}
