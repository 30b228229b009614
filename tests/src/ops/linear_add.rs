use minisgl_kernels::{Backend, DType};
use minisgl_reference::{Precision, linear};

use super::bench::{BenchCase, ModelShape, Rotation, Workload, noise};
use super::fused::{Case, Layer, product_property, rounding_before_bias, strategy, sums_of_magnitudes};
use super::support::{Failure, Guarded, Rng, close, expect_err, precision, same_bits};
use super::{CheckConfig, OpCases, fixed};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "linear_add", check, bench }
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    product_property(backend, config, strategy(), |case| case.k, check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, config: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, bias, rows, spare_rows, k, n, seed } = case;
    let mut rng = Rng::new(seed);
    let (x_values, before) = (rng.activations(rows * k), rng.activations(rows * n));
    let mut layer = Layer::random(backend, &mut rng, dtype, (n, k), bias)?;
    let mut run = |backend: &mut B, rows: usize| {
        let mut x = Guarded::new(backend, dtype, rows + spare_rows, k, &x_values[..rows * k])?;
        let mut residual = Guarded::new(backend, dtype, rows + spare_rows, n, &before[..rows * n])?;
        let mut delta = Guarded::poisoned(backend, dtype, rows + spare_rows, n)?;
        let residual_before = residual.written();
        let (r, d) = (&mut residual.tensor, &mut delta.tensor);
        backend.linear_add(r, d, &x.tensor, layer.weight(), layer.bias(), rows)?;
        x.unchanged(backend, "x")?;
        layer.unchanged(backend)?;
        let found = residual.read_rows(backend, "residual", rows)?;
        Ok::<_, Failure>((found, x.written()[..rows * k].to_vec(), residual_before[..rows * n].to_vec()))
    };
    let (found, x, before) = run(backend, rows)?;
    same_bits("residual, again", &run(backend, rows)?.0, &found)?;
    let (first, ..) = run(backend, 1)?;
    if config.batch_invariant {
        same_bits("residual of the first row alone", &first, &found[..n])?;
    }

    let (weight, bias) = layer.written();
    let (bias, p) = (bias.as_deref(), precision(dtype));
    let delta = linear(&x, &weight, bias, k, Precision::F64);
    let exact: Vec<f64> = before.iter().zip(&delta).map(|(r, d)| r + d).collect();
    let rounded = linear(&x, &weight, bias, k, p);
    let naive: Vec<f64> = before.iter().zip(&rounded).map(|(r, d)| p.store(r + d)).collect();
    let sums = sums_of_magnitudes(&x, &weight, bias, k);
    // The f32 sum of a product as in `linear`, and what it adds, which may be rounded before it is added.
    let lost = |i: usize| {
        DType::F32.epsilon() * (sums[i] + exact[i].abs())
            + dtype.epsilon() / 2.0 * delta[i].abs()
            + rounding_before_bias(config, dtype, n, bias, delta[i])
    };
    close("residual", dtype, n, &found, &exact, &naive, lost)?;
    close("residual of the first row alone", dtype, n, &first, &exact[..n], &naive[..n], lost)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (x, weight) = (tensor(DType::BF16, 2, 32)?, tensor(DType::BF16, 8, 32)?);
    let (other_k, bias) = (tensor(DType::BF16, 8, 64)?, tensor(DType::BF16, 1, 7)?);
    let (mut residual, mut delta) = (tensor(DType::BF16, 2, 8)?, tensor(DType::BF16, 2, 8)?);
    let (mut narrow, mut wider) = (tensor(DType::BF16, 2, 7)?, tensor(DType::F32, 2, 8)?);
    let mut run = |what, residual: &mut _, delta: &mut _, weight, bias, rows| {
        expect_err(what, backend.linear_add(residual, delta, &x, weight, bias, rows))
    };
    run("residual too narrow", &mut narrow, &mut delta, &weight, None, 2)?;
    run("residual of another dtype", &mut wider, &mut delta, &weight, None, 2)?;
    run("delta too narrow", &mut residual, &mut narrow, &weight, None, 2)?;
    run("weight of another width", &mut residual, &mut delta, &other_k, None, 2)?;
    run("bias too short", &mut residual, &mut delta, &weight, Some(&bias), 2)?;
    run("too many rows", &mut residual, &mut delta, &weight, None, 3)
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let w = *w;
    let ModelShape { hidden, ffn, heads, head_dim, .. } = w.model;
    let rows = w.tokens();
    let case = |name: &str, k: usize| {
        let weight_bytes = w.bytes_of(hidden * k);
        let bytes = weight_bytes + w.bytes_of(rows * (k + 2 * hidden));
        BenchCase::new(name, bytes, 2.0 * (rows * hidden * k) as f64, move |backend: &mut B| {
            let x = noise(backend, w.dtype, rows, k)?;
            let mut residual = noise(backend, w.dtype, rows, hidden)?;
            let mut delta = backend.tensor("delta", w.dtype, rows, hidden)?;
            // Small enough that the residual stays finite over thousands of runs.
            let mut weights = Rotation::new(w.copies(weight_bytes), |seed| {
                let mut weight = backend.tensor("weights", w.dtype, hidden, k)?;
                backend.fill_random(&mut weight, 0.0, 1e-4, seed as u64)?;
                Ok(weight)
            })?;
            Ok(move |backend: &mut B| {
                backend.linear_add(&mut residual, &mut delta, &x, weights.turn(), None, rows)
            })
        })
    };
    vec![case("o", heads * head_dim), case("down", ffn)]
}
