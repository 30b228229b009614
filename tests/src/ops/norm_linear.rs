use minisgl_kernels::{Backend, DType};
use minisgl_reference::{Precision, linear, rms_norm};

use super::bench::{BenchCase, ModelShape, Rotation, Workload, noise};
use super::fused::{Case, Layer, product_property, rounding_before_bias, rounding_of_x, strategy};
use super::support::{Failure, Guarded, Rng, close, expect_err, precision, same_bits};
use super::{CheckConfig, OpCases, fixed};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "norm_linear", check, bench }
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    product_property(backend, config, strategy(), |case| case.k, check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

fn check_case<B: Backend>(backend: &mut B, config: &CheckConfig, case: &Case) -> Result<(), Failure> {
    let &Case { dtype, bias, rows, spare_rows, k, n, seed } = case;
    let (mut rng, eps) = (Rng::new(seed), 1e-5f32);
    let out_dtype = if rng.chance(0.3) { DType::F32 } else { dtype };
    let x_values = rng.activations(rows * k);
    let mut norm = Guarded::new(backend, dtype, 1, k, &rng.normals(k, 1.0, 0.3))?;
    let mut layer = Layer::random(backend, &mut rng, dtype, (n, k), bias)?;
    let mut run = |backend: &mut B, x_values: &[f64]| {
        let rows = x_values.len() / k;
        let mut x = Guarded::new(backend, dtype, rows + spare_rows, k, x_values)?;
        let mut normed = Guarded::poisoned(backend, dtype, rows + spare_rows, k)?;
        let mut out = Guarded::poisoned(backend, out_dtype, rows + spare_rows, n)?;
        backend.norm_linear(
            &mut out.tensor,
            &mut normed.tensor,
            &x.tensor,
            &norm.tensor,
            eps,
            layer.weight(),
            layer.bias(),
            rows,
        )?;
        x.unchanged(backend, "x")?;
        norm.unchanged(backend, "norm")?;
        layer.unchanged(backend)?;
        Ok::<_, Failure>((out.read_rows(backend, "out", rows)?, x.written()[..rows * k].to_vec()))
    };
    let (found, x) = run(backend, &x_values)?;
    same_bits("out, again", &run(backend, &x_values)?.0, &found)?;
    let (first, _) = run(backend, &x_values[..k])?;
    if config.batch_invariant {
        same_bits("out of the first row alone", &first, &found[..n])?;
    }

    let (norm, (weight, bias)) = (norm.written(), layer.written());
    let exactly = rms_norm(&x, &norm, f64::from(eps), Precision::F64);
    let naively = rms_norm(&x, &norm, f64::from(eps), precision(dtype));
    let exact = linear(&exactly, &weight, bias.as_deref(), k, Precision::F64);
    let naive = linear(&naively, &weight, bias.as_deref(), k, precision(out_dtype));
    let lost_before = rounding_of_x(&exactly, &weight, k, dtype);
    let lost =
        |i: usize| lost_before[i] + rounding_before_bias(config, out_dtype, n, bias.as_deref(), exact[i]);
    close("out", out_dtype, n, &found, &exact, &naive, lost)?;
    close("out of the first row alone", out_dtype, n, &first, &exact[..n], &naive[..n], lost)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::BF16, rows, cols);
    let (x, norm, short) = (tensor(2, 32)?, tensor(1, 32)?, tensor(1, 16)?);
    let (weight, wide, bias) = (tensor(8, 32)?, tensor(8, 64)?, tensor(1, 7)?);
    let (mut out, mut normed, mut narrow) = (tensor(2, 8)?, tensor(2, 32)?, tensor(2, 16)?);
    let mut run = |what, out: &mut _, normed: &mut _, norm, weight, bias, rows| {
        expect_err(what, backend.norm_linear(out, normed, &x, norm, 1e-5, weight, bias, rows))
    };
    run("norm too short", &mut out, &mut normed, &short, &weight, None, 2)?;
    run("normed too narrow", &mut out, &mut narrow, &norm, &weight, None, 2)?;
    run("weight of another width", &mut out, &mut normed, &norm, &wide, None, 2)?;
    run("out too wide", &mut narrow, &mut normed, &norm, &weight, None, 2)?;
    run("bias too short", &mut out, &mut normed, &norm, &weight, Some(&bias), 2)?;
    run("too many rows", &mut out, &mut normed, &norm, &weight, None, 3)
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let w = *w;
    let ModelShape { hidden, heads, kv_heads, head_dim, vocab, .. } = w.model;
    let case = |name: &str, rows: usize, n: usize, logits: bool| {
        let weight_bytes = w.bytes_of(n * hidden);
        let bytes = weight_bytes + w.bytes_of(rows * (hidden + n));
        BenchCase::new(name, bytes, 2.0 * (rows * n * hidden) as f64, move |backend: &mut B| {
            let out_dtype = if logits { backend.logits_dtype(w.dtype) } else { w.dtype };
            let (x, norm) = (noise(backend, w.dtype, rows, hidden)?, noise(backend, w.dtype, 1, hidden)?);
            let mut normed = backend.tensor("normed", w.dtype, rows, hidden)?;
            let mut out = backend.tensor("out", out_dtype, rows, n)?;
            let mut weights = Rotation::new(w.copies(weight_bytes), |_| noise(backend, w.dtype, n, hidden))?;
            Ok(move |backend: &mut B| {
                backend.norm_linear(&mut out, &mut normed, &x, &norm, 1e-5, weights.turn(), None, rows)
            })
        })
    };
    let rows = w.tokens();
    let mut cases = vec![case("qkv", rows, (heads + 2 * kv_heads) * head_dim, false)];
    // A prompt's logits are those of its last token: the same shape as in decode.
    if w.q_len == 1 {
        cases.push(case("lm_head", rows, vocab, true));
    }
    cases
}
