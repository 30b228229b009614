//! One registry of cases for every op, generic over the backend.
//!
//! A file an op, with the op's stem: a strategy of cases, a check of one case against the oracle, and the shapes
//! that its benchmark runs. Memory that an op must not read is NaN, unused indices are garbage, memory that it
//! must not write is verified to be unchanged.

use std::cell::RefCell;
use std::fmt::Debug;

use minisgl_kernels::{AttnKernel, Backend};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

mod act_mul;
mod add;
mod add_rms_norm;
mod attention;
mod begin_step;
pub mod bench;
mod embedding;
mod fill_random;
mod fused;
mod gather_samples;
mod graph;
mod linear;
mod linear_add;
mod load_rows;
pub mod naive;
mod norm_gated_linear;
mod norm_linear;
mod rms_norm;
mod rope_attention;
mod rope_store_kv;
mod sample;
mod support;

use crate::harness::{fresh_seed, number};
use bench::{BenchCase, Workload};
use support::{Failure, Rng};

/// How thoroughly to check, and what this backend promises.
#[derive(Clone, Copy, Debug)]
pub struct CheckConfig {
    /// Random cases an op.
    pub cases: u32,
    /// Where the random cases start; a failure names it.
    pub seed: u64,
    /// Whether a row's result is the same bits whatever the other rows, the number of rows, the chunking of a
    /// prompt and the page size are. Where this is false such runs are compared with the oracle instead.
    pub batch_invariant: bool,
    /// Whether sums of 16-bit products are cut off where a CPU would round them, as tensor cores do.
    pub truncates_sums: bool,
    /// Whether to look for a smaller case once one has failed.
    pub shrink: bool,
    /// Which attention kernels the backend was opened with, for prefill and for decode: `trtllm` gets only cases that
    /// it promises to take.
    pub attention: [AttnKernel; 2],
}

impl CheckConfig {
    /// `MINISGL_TEST_CASES` cases (by default `cases`) from `MINISGL_TEST_SEED` (by default a fresh one).
    pub fn from_env(cases: u32) -> Self {
        Self {
            cases: number("MINISGL_TEST_CASES").map_or(cases, |n| n as u32),
            seed: number("MINISGL_TEST_SEED").unwrap_or_else(fresh_seed),
            batch_invariant: true,
            truncates_sums: false,
            shrink: true,
            attention: [AttnKernel::Auto; 2],
        }
    }
}

type Check<B> = fn(&mut B, &CheckConfig) -> Result<(), String>;

/// Everything that the suites know about one op.
pub struct OpCases<B: Backend> {
    /// The op's stem.
    pub name: &'static str,
    check: Check<B>,
    bench: fn(&Workload) -> Vec<BenchCase<B>>,
}

impl<B: Backend> OpCases<B> {
    /// Runs `config.cases` random cases, then the fixed ones. The error names the seed and the smallest failing
    /// case that was found.
    pub fn check(&self, backend: &mut B, config: &CheckConfig) -> Result<(), String> {
        (self.check)(backend, config).map_err(|what| {
            let CheckConfig { cases, seed, .. } = config;
            format!(
                "{} on {}: {what}\nagain with MINISGL_TEST_CASES={cases} MINISGL_TEST_SEED={seed}",
                self.name,
                backend.device_name()
            )
        })
    }

    /// What the op's benchmark runs for one workload.
    pub fn bench(&self, workload: &Workload) -> Vec<BenchCase<B>> {
        (self.bench)(workload)
    }
}

macro_rules! registry {
    ($($op:ident)*) => {
        /// Every op, each once: the list that the suites of all backends and the benchmarks take theirs from.
        pub fn registry<B: Backend>() -> Vec<OpCases<B>> {
            vec![$($op::cases()),*]
        }

        /// The names in the registry.
        pub const OPS: &[&str] = &[$(stringify!($op)),*];
    };
}

registry! {
    load_rows fill_random begin_step embedding rms_norm add_rms_norm add linear norm_linear linear_add
    norm_gated_linear rope_store_kv attention rope_attention act_mul gather_samples sample graph
}

/// The entry called `name`.
///
/// # Panics
///
/// If there is none.
pub fn find<B: Backend>(name: &str) -> OpCases<B> {
    let mut all = registry();
    let names: Vec<_> = all.iter().map(|op: &OpCases<B>| op.name).collect();
    let index = names.iter().position(|n| *n == name);
    all.swap_remove(index.unwrap_or_else(|| panic!("no op '{name}' among {}", names.join(", "))))
}

/// Checks `config.cases` cases of `strategy`, shrinking the first that fails.
fn property<B: Backend, C: Debug>(
    backend: &mut B,
    config: &CheckConfig,
    strategy: impl Strategy<Value = C>,
    check: impl Fn(&mut B, &CheckConfig, &C) -> Result<(), Failure>,
) -> Result<(), String> {
    let runner_config = Config {
        cases: config.cases,
        failure_persistence: None,
        max_shrink_iters: if config.shrink { 300 } else { 0 },
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let mut seeds = Rng::new(config.seed);
    let seed: Vec<u8> = (0..4).flat_map(|_| seeds.bits().to_le_bytes()).collect();
    let mut runner = TestRunner::new_with_rng(runner_config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let backend = RefCell::new(backend);
    runner
        .run(&strategy, |case| {
            check(&mut backend.borrow_mut(), config, &case).map_err(|f| TestCaseError::fail(f.to_string()))
        })
        .map_err(|error| error.to_string())
}

/// Runs a check that takes no random case.
fn fixed<B: Backend>(
    backend: &mut B,
    what: &str,
    check: impl FnOnce(&mut B) -> Result<(), Failure>,
) -> Result<(), String> {
    check(backend).map_err(|failure| format!("{what}: {failure}"))
}

/// For ops without a benchmark of their own.
fn no_bench<B: Backend>(_: &Workload) -> Vec<BenchCase<B>> {
    Vec::new()
}
