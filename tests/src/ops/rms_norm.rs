use minisgl_kernels::{Backend, DType};
use minisgl_reference::{Precision, rms_norm};
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, close, dtype, expect_err, one_of, precision, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "rms_norm", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    rows: usize,
    spare_rows: usize,
    cols: usize,
    eps: f64,
    scale: f64,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let cols = one_of(&[1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 96, 127, 128, 250, 896, 1024, 1536, 4096]);
    let eps = prop::sample::select(vec![1e-5, 1e-6, 0.5]);
    let scale = prop::sample::select(vec![1.0, 1e-3, 30.0]);
    // Now and then enough rows for the kernels that take many at once.
    let rows = prop_oneof![15 => 1..20usize, 1 => 2048..2100usize];
    (dtype(), rows, 0..3usize, cols, eps, scale, any::<u64>()).prop_map(
        |(dtype, rows, spare_rows, cols, eps, scale, seed)| Case {
            dtype,
            rows: if cols <= 1024 { rows } else { rows % 20 + 1 },
            spare_rows,
            cols,
            eps,
            scale,
            seed,
        },
    )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, rows, spare_rows, cols, eps, scale, seed } = case;
    let mut rng = Rng::new(seed);
    let x: Vec<f64> = rng.activations(rows * cols).iter().map(|x| x * scale).collect();
    let mut x = Guarded::new(backend, dtype, rows + spare_rows, cols, &x)?;
    let mut weight = Guarded::new(backend, dtype, 1, cols, &rng.normals(cols, 1.0, 0.3))?;
    let mut run = |backend: &mut B, rows: usize| {
        let mut out = Guarded::poisoned(backend, dtype, rows + spare_rows, cols)?;
        backend.rms_norm(&mut out.tensor, &x.tensor, &weight.tensor, eps as f32, rows)?;
        x.unchanged(backend, "x")?;
        weight.unchanged(backend, "weight")?;
        out.read_rows(backend, "out", rows)
    };
    let found = run(backend, rows)?;
    same_bits("out, again", &run(backend, rows)?, &found)?;
    same_bits("out of the first row alone", &run(backend, 1)?, &found[..cols])?;

    let eps = f64::from(eps as f32);
    let (x, weight) = (&x.written()[..rows * cols], weight.written());
    let exact = rms_norm(x, &weight, eps, Precision::F64);
    let naive = rms_norm(x, &weight, eps, precision(dtype));
    // The mean of squares, the root, the reciprocal and two products in f32.
    let floor = |i: usize| 8.0 * DType::F32.epsilon() * exact[i].abs();
    close("out", dtype, cols, &found, &exact, &naive, floor)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (x, weight) = (tensor(DType::F32, 2, 8)?, tensor(DType::F32, 1, 8)?);
    let (mut out, mut narrow) = (tensor(DType::F32, 2, 8)?, tensor(DType::F32, 2, 7)?);
    let (mut half, short) = (tensor(DType::F16, 2, 8)?, tensor(DType::F32, 1, 4)?);
    expect_err("out too narrow", backend.rms_norm(&mut narrow, &x, &weight, 1e-5, 2))?;
    expect_err("weight too short", backend.rms_norm(&mut out, &x, &short, 1e-5, 2))?;
    expect_err("too many rows", backend.rms_norm(&mut out, &x, &weight, 1e-5, 3))?;
    expect_err("another dtype", backend.rms_norm(&mut half, &x, &weight, 1e-5, 2))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, rows, cols) = (*w, w.tokens(), w.model.hidden);
    let bytes = w.bytes_of(2 * rows * cols + cols);
    vec![BenchCase::new("hidden", bytes, (4 * rows * cols) as f64, move |backend: &mut B| {
        let x = noise(backend, w.dtype, rows, cols)?;
        let weight = noise(backend, w.dtype, 1, cols)?;
        let mut out = backend.tensor("out", w.dtype, rows, cols)?;
        Ok(move |backend: &mut B| backend.rms_norm(&mut out, &x, &weight, 1e-5, rows))
    })]
}
