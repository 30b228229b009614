use minisgl_kernels::{Backend, DType};
use minisgl_reference::{Precision, linear};
use proptest::prelude::*;

use super::bench::{BenchCase, ModelShape, Rotation, Workload, noise};
use super::fused::{self, Layer, many_tokens, product_property, rounding_before_bias, sums_of_magnitudes};
use super::support::{Failure, Guarded, Rng, close, dtype, expect_err, one_of, precision, same_bits};
use super::{CheckConfig, OpCases, fixed};

/// What this op is checked and timed on.
pub(super) fn cases<B: Backend>() -> OpCases<B> {
    OpCases { name: "linear", check, bench }
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    f32_out: bool,
    bias: bool,
    rows: usize,
    spare_rows: usize,
    k: usize,
    n: usize,
    seed: u64,
}

impl From<&fused::Case> for Case {
    fn from(case: &fused::Case) -> Self {
        let &fused::Case { dtype, bias, rows, spare_rows, k, n, seed } = case;
        Self { dtype, f32_out: false, bias, rows, spare_rows, k, n, seed }
    }
}

fn strategy() -> impl Strategy<Value = Case> {
    // Around the edges of register tiles, SIMD widths and blocks of the sum.
    let rows = one_of(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 70]);
    let k = one_of(&[
        8, 16, 24, 32, 64, 96, 128, 256, 504, 512, 520, 1024, 1032, 1536, 1, 2, 7, 15, 17, 33, 100, 513,
    ]);
    let n = one_of(&[1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 127, 160, 251]);
    (dtype(), any::<bool>(), any::<bool>(), rows, 0..3usize, k, n, any::<u64>()).prop_map(
        |(dtype, f32_out, bias, rows, spare_rows, k, n, seed)| Case {
            dtype,
            f32_out,
            bias,
            rows,
            spare_rows,
            k,
            n,
            seed,
        },
    )
}

fn check<B: Backend>(backend: &mut B, config: &CheckConfig) -> Result<(), String> {
    let once = |backend: &mut B, config: &CheckConfig, case: &Case| check_case(backend, config, case, 1);
    product_property(backend, config, strategy(), |case| case.k, once)?;
    many_tokens(backend, config, |backend, config, case, copies| {
        check_case(backend, config, &Case::from(case), copies)
    })?;
    fixed(backend, "arguments that do not fit", check_refusals)
}

/// Runs `copies` copies of the rows of `case`, one after the other.
fn check_case<B: Backend>(
    backend: &mut B,
    config: &CheckConfig,
    case: &Case,
    copies: usize,
) -> Result<(), Failure> {
    let &Case { dtype, f32_out, bias, rows, spare_rows, k, n, seed } = case;
    let mut rng = Rng::new(seed);
    let x_values = rng.activations(rows * k).repeat(copies);
    let mut layer = Layer::random(backend, &mut rng, dtype, (n, k), bias)?;
    let out_dtype = if f32_out { DType::F32 } else { dtype };
    let mut run = |backend: &mut B, x_values: &[f64]| {
        let rows = x_values.len() / k;
        let mut x = Guarded::new(backend, dtype, rows + spare_rows, k, x_values)?;
        let mut out = Guarded::poisoned(backend, out_dtype, rows + spare_rows, n)?;
        backend.linear(&mut out.tensor, &x.tensor, layer.weight(), layer.bias(), rows)?;
        x.unchanged(backend, "x")?;
        layer.unchanged(backend)?;
        Ok::<_, Failure>((out.read_rows(backend, "out", rows)?, x.written()[..rows * k].to_vec()))
    };
    let (found, x) = run(backend, &x_values)?;
    same_bits("out, again", &run(backend, &x_values)?.0, &found)?;

    // Any run of rows of the same x, wherever it begins and however long it is.
    let first = rng.below(rows);
    let count = 1 + rng.below(rows - first);
    let (part, part_x) = run(backend, &x_values[first * k..(first + count) * k])?;
    if config.batch_invariant {
        let what = format!("out of rows {first}..{} alone", first + count);
        same_bits(&what, &part, &found[first * n..(first + count) * n])?;
    }

    let (weight, bias) = layer.written();
    let bias = bias.as_deref();
    for (found, x) in [(&found, &x[..rows * k]), (&part, &part_x)] {
        let exact = linear(x, &weight, bias, k, Precision::F64);
        let naive = linear(x, &weight, bias, k, precision(out_dtype));
        // One f32 rounding of the sum of magnitudes: six deviations of the error of a sequential f32 sum.
        let mut sums = sums_of_magnitudes(x, &weight, bias, k);
        if config.truncates_sums && dtype != DType::F32 {
            sums.iter_mut().zip(partial_sums(x, &weight, k)).for_each(|(sum, partial)| *sum += partial);
        }
        let lost = |i: usize| {
            DType::F32.epsilon() * sums[i] + rounding_before_bias(config, out_dtype, n, bias, exact[i])
        };
        for found in found.chunks(exact.len()) {
            close("out", out_dtype, n, found, &exact, &naive, lost)?;
        }
    }
    Ok(())
}

/// For each output the magnitudes of the partial sums after every eight products, added up. A tensor core adds that
/// many products or twice as many at once, and cuts the new sum off toward zero: less than one unit in its last
/// place is lost, always in the same direction (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor
/// cores, PeerJ Computer Science 7:e330, 2021, section 4).
fn partial_sums(x: &[f64], weight: &[f64], k: usize) -> Vec<f64> {
    let one = |x: &[f64], weight: &[f64]| {
        let dot = |(x, weight): (&[f64], &[f64])| x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>();
        let blocks = x.chunks(8).zip(weight.chunks(8)).map(dot);
        let partial = blocks.scan(0.0, |sum: &mut f64, block| {
            *sum += block;
            Some(sum.abs())
        });
        partial.sum::<f64>()
    };
    x.chunks_exact(k).flat_map(|x| weight.chunks_exact(k).map(move |weight| one(x, weight))).collect()
}

fn check_refusals<B: Backend>(backend: &mut B) -> Result<(), Failure> {
    let mut tensor = |dtype, rows, cols| backend.tensor("test tensor", dtype, rows, cols);
    let (x, weight) = (tensor(DType::BF16, 2, 16)?, tensor(DType::BF16, 8, 16)?);
    let (mut out, mut f16_out) = (tensor(DType::BF16, 2, 8)?, tensor(DType::F16, 2, 8)?);
    let (other_k, other_dtype) = (tensor(DType::BF16, 8, 24)?, tensor(DType::F32, 8, 16)?);
    let (bias, mut narrow) = (tensor(DType::BF16, 1, 7)?, tensor(DType::BF16, 2, 7)?);
    expect_err("weight of another width", backend.linear(&mut out, &x, &other_k, None, 2))?;
    expect_err("weight of another dtype", backend.linear(&mut out, &x, &other_dtype, None, 2))?;
    expect_err("out of a third dtype", backend.linear(&mut f16_out, &x, &weight, None, 2))?;
    expect_err("out too narrow", backend.linear(&mut narrow, &x, &weight, None, 2))?;
    expect_err("bias too short", backend.linear(&mut out, &x, &weight, Some(&bias), 2))?;
    expect_err("too many rows", backend.linear(&mut out, &x, &weight, None, 3))
}

fn bench<B: Backend>(w: &Workload) -> Vec<BenchCase<B>> {
    let w = *w;
    let ModelShape { hidden, ffn, heads, kv_heads, head_dim, vocab, .. } = w.model;
    let case = |name: &str, rows: usize, n: usize, k: usize, logits: bool| {
        let weight_bytes = w.bytes_of(n * k);
        let bytes = weight_bytes + w.bytes_of(rows * (k + n));
        BenchCase::new(name, bytes, 2.0 * (rows * n * k) as f64, move |backend: &mut B| {
            let out_dtype = if logits { w.logits_dtype } else { w.dtype };
            let x = noise(backend, w.dtype, rows, k)?;
            let mut out = backend.tensor("out", out_dtype, rows, n)?;
            let mut weights = Rotation::new(w.copies(weight_bytes), |_| noise(backend, w.dtype, n, k))?;
            Ok(move |backend: &mut B| backend.linear(&mut out, &x, weights.turn(), None, rows))
        })
    };
    let rows = w.tokens();
    let mut cases = vec![
        case("qkv", rows, (heads + 2 * kv_heads) * head_dim, hidden, false),
        case("o", rows, hidden, heads * head_dim, false),
        case("gate_up", rows, 2 * ffn, hidden, false),
        case("down", rows, hidden, ffn, false),
    ];
    // A prompt's logits are those of its last token: the same shape as in decode.
    if w.q_len == 1 {
        cases.push(case("lm_head", rows, vocab, hidden, true));
    }
    cases
}
