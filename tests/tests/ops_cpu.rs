//! Every op of the registry on the CPU backend, with every instruction set that this machine has.
//!
//! `MINISGL_TEST_CASES` says how many random cases an op gets on each instruction set; a failure names the seed
//! that finds it again through `MINISGL_TEST_SEED`.

use minisgl_kernels::cpu::{Cpu, CpuOptions, Isa};
use minisgl_tests::ops::{CheckConfig, find, registry};

fn check(name: &str) {
    let config = CheckConfig::from_env(24);
    for isa in Isa::available() {
        // Two threads: work is split even on a machine with one core.
        let options = CpuOptions { threads: Some(2), isa: Some(isa) };
        let mut cpu = Cpu::new(options).expect("an instruction set that is available");
        find::<Cpu>(name).check(&mut cpu, &config).unwrap_or_else(|what| panic!("{what}"));
    }
}

macro_rules! ops {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_op_has_a_test() {
            let tested = [$(stringify!($name)),*];
            let ops: Vec<_> = registry::<Cpu>().iter().map(|op| op.name).collect();
            assert_eq!(ops, tested);
        }
    };
}

ops! {
    load_rows fill_random begin_step embedding rms_norm add_rms_norm linear rope_store_kv attention act_mul
    gather_samples sample graph
}
