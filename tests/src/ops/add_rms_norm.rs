use minisgl_kernels::{Backend, DType};
use minisgl_reference::{Precision, rms_norm};

use super::add::{Case, check_sums, strategy};
use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, close, expect_err, precision, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "add_rms_norm", check, bench }
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    property(backend, config, strategy(), check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, _: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, rows, spare_rows, cols, seed } = case;
    let (mut rng, eps) = (Rng::new(seed), 1e-5f32);
    let before = rng.activations(rows * cols);
    let mut x = Guarded::new(backend, dtype, rows + spare_rows, cols, &rng.activations(rows * cols))?;
    let mut weight = Guarded::new(backend, dtype, 1, cols, &rng.normals(cols, 1.0, 0.3))?;
    let mut run = |backend: &mut B, rows: usize| {
        let mut residual = Guarded::new(backend, dtype, rows + spare_rows, cols, &before[..rows * cols])?;
        let mut out = Guarded::poisoned(backend, dtype, rows + spare_rows, cols)?;
        let r = &mut residual.tensor;
        backend.add_rms_norm(&mut out.tensor, r, &x.tensor, &weight.tensor, eps, rows)?;
        x.unchanged(backend, "x")?;
        weight.unchanged(backend, "weight")?;
        Ok::<_, Failure>((
            out.read_rows(backend, "out", rows)?,
            residual.read_rows(backend, "residual", rows)?,
        ))
    };
    let (found, residual) = run(backend, rows)?;
    let again = run(backend, rows)?;
    same_bits("out, again", &again.0, &found)?;
    same_bits("residual, again", &again.1, &residual)?;
    same_bits("out of the first row alone", &run(backend, 1)?.0, &found[..cols])?;

    let p = precision(dtype);
    let (x, weight) = (x.written(), weight.written());
    check_sums(dtype, &residual, &before, &x)?;
    let exact = rms_norm(&residual, &weight, f64::from(eps), Precision::F64);
    let naive = rms_norm(&residual, &weight, f64::from(eps), p);
    let floor = |i: usize| 8.0 * DType::F32.epsilon() * exact[i].abs();
    close("out", dtype, cols, &found, &exact, &naive, floor)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::F32, rows, cols);
    let (x, weight, mut out, mut residual) = (tensor(2, 8)?, tensor(1, 8)?, tensor(2, 8)?, tensor(2, 8)?);
    let mut short = tensor(1, 8)?;
    expect_err("residual too short", backend.add_rms_norm(&mut out, &mut short, &x, &weight, 1e-5, 2))?;
    expect_err("too many rows", backend.add_rms_norm(&mut out, &mut residual, &x, &weight, 1e-5, 3))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, rows, cols) = (*w, w.tokens(), w.model.hidden);
    let bytes = w.bytes_of(4 * rows * cols + cols);
    vec![BenchCase::new("hidden", bytes, (5 * rows * cols) as f64, move |backend: &mut B| {
        let mut x = backend.tensor("x", w.dtype, rows, cols)?;
        // Small enough that the residual stays finite over thousands of runs.
        backend.fill_random(&mut x, 0.0, 1e-3, 1)?;
        let mut residual = noise(backend, w.dtype, rows, cols)?;
        let weight = noise(backend, w.dtype, 1, cols)?;
        let mut out = backend.tensor("out", w.dtype, rows, cols)?;
        Ok(move |backend: &mut B| backend.add_rms_norm(&mut out, &mut residual, &x, &weight, 1e-5, rows))
    })]
}
