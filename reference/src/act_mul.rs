use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use crate::{Precision, Real};

/// The gate's activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the error function.
    Gelu,
    /// `x * Phi(x)` by the tanh approximation (Hendrycks, Gimpel 2016).
    GeluTanh,
}

/// `out[r][i] = act(gate_up[r][i]) * gate_up[r][ffn + i]`; `gate_up` is `[rows, 2 * ffn]`, `out` `[rows, ffn]`.
pub fn act_mul<T: Real>(gate_up: &[T], ffn: usize, kind: Activation, precision: Precision) -> Vec<f64> {
    assert!(gate_up.len().is_multiple_of(2 * ffn), "act_mul: rows of {}", 2 * ffn);
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * ffn) {
        let (gate, up) = row.split_at(ffn);
        for (&gate, &up) in gate.iter().zip(up) {
            let gate = precision.store(activation(gate.into(), kind));
            out.push(precision.store(gate * up.into()));
        }
    }
    out
}

/// One activation, exact.
pub fn activation(x: f64, kind: Activation) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => x * 0.5 * erfc(-x * FRAC_1_SQRT_2),
        Activation::GeluTanh => {
            let inner = (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x);
            // (1 + tanh(t)) / 2 = 1 / (1 + exp(-2 t)), which does not cancel for negative t.
            x / (1.0 + (-2.0 * inner).exp())
        }
    }
}

/// `1 - erf(x)` to about fifteen digits: Abramowitz, Stegun 7.1.6 (a series of positive terms) below 2, the
/// continued fraction 7.1.14 above.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let gauss = (-x * x).exp();
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        1.0 - FRAC_2_SQRT_PI * gauss * sum
    } else {
        let fraction = (1..=120).rev().fold(x, |tail, i| x + f64::from(i) / 2.0 / tail);
        gauss / (PI.sqrt() * fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python 3's `math.erfc`.
    #[test]
    fn erfc_known_answers() {
        for (x, expected) in [
            (0.0, 1.0),
            (0.1, 0.887_537_083_981_715),
            (1.0, 0.157_299_207_050_285_13),
            (1.99, 0.004_888_586_800_383_003),
            (2.0, 0.004_677_734_981_047_266),
            (5.0, 1.537_459_794_428_035e-12),
            (-0.5, 1.520_499_877_813_046_5),
        ] {
            let found = erfc(x);
            assert!(
                (found - expected).abs() <= f64::EPSILON / 2.0 + 4e-15 * expected,
                "{x}: {found} {expected}"
            );
        }
    }

    #[test]
    fn by_hand() {
        assert_eq!(activation(0.0, Activation::Silu), 0.0);
        assert!((activation(3f64.ln(), Activation::Silu) - 0.75 * 3f64.ln()).abs() < 1e-15);
        assert!((activation(1.0, Activation::Gelu) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((activation(1.0, Activation::GeluTanh) - 0.841_191_990_608_276_8).abs() < 1e-13);
        let out = act_mul(&[0f64, 3f64.ln(), 5.0, 2.0], 2, Activation::Silu, Precision::F64);
        assert!(out[0] == 0.0 && (out[1] - 1.5 * 3f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn identities() {
        for i in -60..60 {
            let x = f64::from(i) / 5.0;
            for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                // act(x) - act(-x) = x, since sigmoid and Phi are symmetric about a half.
                let difference = activation(x, kind) - activation(-x, kind);
                assert!((difference - x).abs() < 1e-13, "{kind:?} {x}");
            }
            let (erf, tanh) = (activation(x, Activation::Gelu), activation(x, Activation::GeluTanh));
            assert!((erf - tanh).abs() < 5e-4, "{x}: {erf} {tanh}");
        }
    }
}
