use minisgl_kernels::{Backend, DType};
use minisgl_reference::Precision;
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, bitwise, dtype, expect_err, one_of, precision, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "add", check, bench }
}

/// Rows that are added to those of a residual stream.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) spare_rows: usize,
    pub(super) cols: usize,
    pub(super) seed: u64,
}

pub(super) fn strategy() -> impl Strategy<Value = Case> {
    let cols = one_of(&[1, 2, 5, 8, 16, 17, 31, 64, 100, 129, 256, 1000, 2048, 3584]);
    (dtype(), 1..20usize, 0..3usize, cols, any::<u64>())
        .prop_map(|(dtype, rows, spare_rows, cols, seed)| Case { dtype, rows, spare_rows, cols, seed })
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, rows, spare_rows, cols, seed } = case;
    let mut rng = Rng::new(seed);
    let before = rng.activations(rows * cols);
    let mut x = Guarded::new(backend, dtype, rows + spare_rows, cols, &rng.activations(rows * cols))?;
    let mut run = |backend: &mut B, rows: usize| {
        let mut residual = Guarded::new(backend, dtype, rows + spare_rows, cols, &before[..rows * cols])?;
        backend.add(&mut residual.tensor, &x.tensor, rows)?;
        x.unchanged(backend, "x")?;
        residual.read_rows(backend, "residual", rows)
    };
    let found = run(backend, rows)?;
    same_bits("residual, again", &run(backend, rows)?, &found)?;
    same_bits("residual of the first row alone", &run(backend, 1)?, &found[..cols])?;

    check_sums(dtype, &found, &before, &x.written())
}

/// Whether `found` is `before + x`: one f32 addition, then one rounding to storage, exact enough to be compared bit by
/// bit.
pub(super) fn check_sums(dtype: DType, found: &[f64], before: &[f64], x: &[f64]) -> Result<(), Failure> {
    let p = precision(dtype);
    let sums: Vec<f64> = before.iter().zip(x).map(|(&r, &x)| Precision::F32.store(p.store(r) + x)).collect();
    bitwise("residual", p, found, &sums)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (x, mut short) = (tensor(DType::F32, 2, 8)?, tensor(DType::F32, 1, 8)?);
    let (mut narrow, mut half) = (tensor(DType::F32, 2, 7)?, tensor(DType::F16, 2, 8)?);
    let mut long = tensor(DType::F32, 3, 8)?;
    expect_err("residual too short", backend.add(&mut short, &x, 2))?;
    expect_err("residual too narrow", backend.add(&mut narrow, &x, 2))?;
    expect_err("residual of another dtype", backend.add(&mut half, &x, 2))?;
    expect_err("x too short", backend.add(&mut long, &x, 3))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, rows, cols) = (*w, w.tokens(), w.model.hidden);
    let bytes = w.bytes_of(3 * rows * cols);
    vec![BenchCase::new("hidden", bytes, (rows * cols) as f64, move |backend: &mut B| {
        let mut x = backend.tensor("x", w.dtype, rows, cols)?;
        // Small enough that the residual stays finite over thousands of runs.
        backend.fill_random(&mut x, 0.0, 1e-3, 1)?;
        let mut residual = noise(backend, w.dtype, rows, cols)?;
        Ok(move |backend: &mut B| backend.add(&mut residual, &x, rows))
    })]
}
