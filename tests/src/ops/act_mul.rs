use minisgl_kernels::{Activation, Backend, DType};
use minisgl_reference::{self as reference, Precision};
use proptest::prelude::*;

use super::bench::{BenchCase, Workload, noise};
use super::support::{Failure, Guarded, Rng, close, dtype, expect_err, one_of, precision, same_bits};
use super::{CheckConfig, OpCases, fixed, property};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "act_mul", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    activation: Activation,
    rows: usize,
    spare_rows: usize,
    ffn: usize,
    scale: f64,
    seed: u64,
}

fn strategy() -> impl Strategy<Value = Case> {
    let ffn = one_of(&[1, 2, 3, 8, 15, 16, 17, 40, 65, 96, 768, 1001, 3072]);
    let activation = prop::sample::select(vec![Activation::Silu, Activation::Gelu, Activation::GeluTanh]);
    // 30 reaches both tails, where the exponential over- or underflows.
    let scale = prop::sample::select(vec![1.0, 0.01, 30.0]);
    (dtype(), activation, 1..12usize, 0..3usize, ffn, scale, any::<u64>()).prop_map(
        |(dtype, activation, rows, spare_rows, ffn, scale, seed)| Case {
            dtype,
            activation,
            rows,
            spare_rows,
            ffn,
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
    let &Case { dtype, activation, rows, spare_rows, ffn, scale, seed } = case;
    let mut rng = Rng::new(seed);
    let mut values = rng.activations(rows * 2 * ffn);
    for row in values.chunks_exact_mut(2 * ffn) {
        for gate in &mut row[..ffn] {
            *gate = if rng.chance(0.02) { 0.0 } else { *gate * scale };
        }
    }
    let mut gate_up = Guarded::new(backend, dtype, rows + spare_rows, 2 * ffn, &values)?;
    let mut run = |backend: &mut B, rows: usize| {
        let mut out = Guarded::poisoned(backend, dtype, rows + spare_rows, ffn)?;
        backend.act_mul(&mut out.tensor, &gate_up.tensor, activation, rows)?;
        gate_up.unchanged(backend, "gate_up")?;
        out.read_rows(backend, "out", rows)
    };
    let found = run(backend, rows)?;
    same_bits("out, again", &run(backend, rows)?, &found)?;
    same_bits("out of the first row alone", &run(backend, 1)?, &found[..ffn])?;

    let kind = match activation {
        Activation::Silu => reference::Activation::Silu,
        Activation::Gelu => reference::Activation::Gelu,
        Activation::GeluTanh => reference::Activation::GeluTanh,
    };
    let gate_up = &gate_up.written()[..rows * 2 * ffn];
    let exact = reference::act_mul(gate_up, ffn, kind, Precision::F64);
    let naive = reference::act_mul(gate_up, ffn, kind, precision(dtype));
    // The factor on the gate, computed in f32 as 1 + tanh or 1 + erf is, carries an absolute error of a few
    // roundings of 1 however small it is itself: so allow them on gate * up.
    let floor = |i: usize| {
        let (row, col) = (i / ffn, i % ffn);
        let product = gate_up[row * 2 * ffn + col] * gate_up[row * 2 * ffn + ffn + col];
        4.0 * DType::F32.epsilon() * product.abs()
    };
    close("out", dtype, ffn, &found, &exact, &naive, floor)
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |rows, cols| backend.tensor("test tensor", DType::F32, rows, cols);
    let (gate_up, mut out, mut wide) = (tensor(2, 16)?, tensor(2, 8)?, tensor(2, 16)?);
    expect_err("out too wide", backend.act_mul(&mut wide, &gate_up, Activation::Silu, 2))?;
    expect_err("too many rows", backend.act_mul(&mut out, &gate_up, Activation::Silu, 3))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let (w, rows, ffn) = (*w, w.tokens(), w.model.ffn);
    let bytes = w.bytes_of(3 * rows * ffn);
    vec![BenchCase::new("silu", bytes, (5 * rows * ffn) as f64, move |backend: &mut B| {
        let gate_up = noise(backend, w.dtype, rows, 2 * ffn)?;
        let mut out = backend.tensor("out", w.dtype, rows, ffn)?;
        Ok(move |backend: &mut B| backend.act_mul(&mut out, &gate_up, Activation::Silu, rows))
    })]
}
