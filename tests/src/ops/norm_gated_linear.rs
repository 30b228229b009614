use minisgl_kernels::{Activation, Backend, DType};
use minisgl_reference::{self as reference, Precision, act_mul, linear, rms_norm};

use super::bench::{BenchCase, Rotation, Workload, noise};
use super::fused::{Case, Layer, many_tokens, product_property, rounding_of_x, strategy};
use super::support::{Failure, Guarded, Rng, close, expect_err, precision, same_bits};
use super::{CheckConfig, OpCases, fixed};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "norm_gated_linear", check, bench }
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    let once = |backend: &mut B, config: &CheckConfig, case: &Case| check_case(backend, config, case, 1);
    product_property(backend, config, strategy(), |case| case.k, once)?;
    many_tokens(backend, config, check_case)?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

/// Runs `copies` copies of the rows of `case`, one after the other.
fn check_case<B: Backend>(
    backend: &mut B,
    config: &CheckConfig,
    case: &Case,
    copies: usize,
) -> Result<(), Failure> {
    let &Case { dtype, bias, rows, spare_rows, k, n: ffn, seed } = case;
    let (mut rng, eps) = (Rng::new(seed), 1e-5f32);
    let (activation, kind) = match rng.below(3) {
        0 => (Activation::Silu, reference::Activation::Silu),
        1 => (Activation::Gelu, reference::Activation::Gelu),
        _ => (Activation::GeluTanh, reference::Activation::GeluTanh),
    };
    let n = 2 * ffn;
    let x_values = rng.activations(rows * k).repeat(copies);
    let mut norm = Guarded::new(backend, dtype, 1, k, &rng.normals(k, 1.0, 0.3))?;
    let mut layer = Layer::random(backend, &mut rng, dtype, (n, k), bias)?;
    let mut run = |backend: &mut B, x_values: &[f64]| {
        let rows = x_values.len() / k;
        let mut x = Guarded::new(backend, dtype, rows + spare_rows, k, x_values)?;
        let mut normed = Guarded::poisoned(backend, dtype, rows + spare_rows, k)?;
        let mut gate_up = Guarded::poisoned(backend, dtype, rows + spare_rows, n)?;
        let mut out = Guarded::poisoned(backend, dtype, rows + spare_rows, ffn)?;
        backend.norm_gated_linear(
            &mut out.tensor,
            &mut normed.tensor,
            &mut gate_up.tensor,
            &x.tensor,
            &norm.tensor,
            eps,
            layer.weight(),
            layer.bias(),
            activation,
            rows,
        )?;
        x.unchanged(backend, "x")?;
        norm.unchanged(backend, "norm")?;
        layer.unchanged(backend)?;
        Ok::<_, Failure>((out.read_rows(backend, "out", rows)?, x.written()))
    };
    let (found, x) = run(backend, &x_values)?;
    same_bits("out, again", &run(backend, &x_values)?.0, &found)?;
    let (first, _) = run(backend, &x_values[..k])?;
    if config.batch_invariant {
        same_bits("out of the first row alone", &first, &found[..ffn])?;
    }

    let x = &x[..rows * k];
    let (norm, (weight, bias)) = (norm.written(), layer.written());
    let (bias, p) = (bias.as_deref(), precision(dtype));
    let normed = rms_norm(x, &norm, f64::from(eps), Precision::F64);
    let gate_up = linear(&normed, &weight, bias, k, Precision::F64);
    let exact = act_mul(&gate_up, ffn, kind, Precision::F64);
    let rounded = rms_norm(x, &norm, f64::from(eps), p);
    let naive = act_mul(&linear(&rounded, &weight, bias, k, p), ffn, kind, p);
    // Gate and up may each be off by what rounding the normalised x costs, and be rounded themselves; neither of the
    // activations is steeper than 1.13. The last term is that of `act_mul`.
    let lost_before = rounding_of_x(&normed, &weight, k, dtype);
    let lost = |i: usize| {
        let at = i / ffn * n + i % ffn;
        let (gate, up) = (gate_up[at], gate_up[at + ffn]);
        let off = |at: usize| lost_before[at] + dtype.epsilon() / 2.0 * gate_up[at].abs();
        let (off_gate, off_up) = (off(at), off(at + ffn));
        1.13 * off_gate * (up.abs() + off_up)
            + gate.abs() * off_up
            + 4.0 * DType::F32.epsilon() * (gate * up).abs()
    };
    for (copy, found) in found.chunks(rows * ffn).enumerate() {
        close(&format!("out of copy {copy}"), dtype, ffn, found, &exact, &naive, lost)?;
    }
    close("out of the first row alone", dtype, ffn, &first, &exact[..ffn], &naive[..ffn], lost)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::BF16, rows, cols);
    let (x, norm, weight, other_n) = (tensor(2, 32)?, tensor(1, 32)?, tensor(16, 32)?, tensor(18, 32)?);
    let (mut out, mut normed, mut gate_up) = (tensor(2, 8)?, tensor(2, 32)?, tensor(2, 16)?);
    let (mut wide, bias) = (tensor(2, 9)?, tensor(1, 15)?);
    let mut run = |what, out: &mut _, gate_up: &mut _, weight, bias, rows| {
        let (x, norm, normed, act) = (&x, &norm, &mut normed, Activation::Silu);
        let done = backend.norm_gated_linear(out, normed, gate_up, x, norm, 1e-5, weight, bias, act, rows);
        expect_err(what, done)
    };
    run("out too wide", &mut wide, &mut gate_up, &weight, None, 2)?;
    run("gate_up too narrow", &mut out, &mut wide, &weight, None, 2)?;
    run("weight of other rows", &mut out, &mut gate_up, &other_n, None, 2)?;
    run("bias too short", &mut out, &mut gate_up, &weight, Some(&bias), 2)?;
    run("too many rows", &mut out, &mut gate_up, &weight, None, 3)
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, rows, hidden, ffn) = (*w, w.tokens(), w.model.hidden, w.model.ffn);
    let weight_bytes = w.bytes_of(2 * ffn * hidden);
    let bytes = weight_bytes + w.bytes_of(rows * (hidden + ffn));
    vec![BenchCase::new("gate_up", bytes, 4.0 * (rows * ffn * hidden) as f64, move |backend: &mut B| {
        let (x, norm) = (noise(backend, w.dtype, rows, hidden)?, noise(backend, w.dtype, 1, hidden)?);
        let mut normed = backend.tensor("normed", w.dtype, rows, hidden)?;
        let mut gate_up = backend.tensor("gate_up", w.dtype, rows, 2 * ffn)?;
        let mut out = backend.tensor("out", w.dtype, rows, ffn)?;
        let mut weights =
            Rotation::new(w.copies(weight_bytes), |_| noise(backend, w.dtype, 2 * ffn, hidden))?;
        Ok(move |backend: &mut B| {
            let (weight, act) = (weights.turn(), Activation::Silu);
            backend.norm_gated_linear(
                &mut out,
                &mut normed,
                &mut gate_up,
                &x,
                &norm,
                1e-5,
                weight,
                None,
                act,
                rows,
            )
        })
    })]
}
