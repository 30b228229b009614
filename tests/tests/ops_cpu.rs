//! Every op of the registry on the CPU backend, with every instruction set that this machine has.
//!
//! `MINISGL_TEST_CASES` says how many random cases an op gets on each instruction set; a failure names the seed
//! that finds it again through `MINISGL_TEST_SEED`.

use libtest_mimic::{Arguments, Failed, Trial};
use minisgl_kernels::cpu::{Cpu, CpuOptions, Isa};
use minisgl_tests::ops::{CheckConfig, OPS, find};

fn main() {
    let trials = OPS.iter().flat_map(|&op| {
        let name = move |isa: Isa| format!("{op}::{isa}").to_lowercase().replace(' ', "-");
        let trial = move |isa| Trial::test(name(isa), move || check(op, isa));
        Isa::available().into_iter().map(trial)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn check(op: &str, isa: Isa) -> Result<(), Failed> {
    // Two threads: work is split even on a machine with one core.
    let mut cpu = Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa) })?;
    find::<Cpu>(op).check(&mut cpu, &CheckConfig::from_env(24))?;
    Ok(())
}
