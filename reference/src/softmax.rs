use crate::{Precision, Real};

/// `exp(x - max) / sum(exp(x - max))`. A NaN counts as minus infinity. All zeros where no element is finite.
pub fn softmax<T: Real>(x: &[T], precision: Precision) -> Vec<f64> {
    let Some(max) = finite_max(x) else { return vec![0.0; x.len()] };
    let shifted = x.iter().map(|&x| precision.register(x.into() - max));
    let exps: Vec<f64> =
        shifted.map(|x| if x.is_nan() { 0.0 } else { precision.register(x.exp()) }).collect();
    let sum = precision.sum(exps.iter().copied());
    exps.iter().map(|e| precision.store(e / sum)).collect()
}

/// `x - max - ln(sum(exp(x - max)))`. A NaN counts as minus infinity. All minus infinity where no element is finite.
pub fn log_softmax<T: Real>(x: &[T], precision: Precision) -> Vec<f64> {
    let Some(max) = finite_max(x) else { return vec![f64::NEG_INFINITY; x.len()] };
    let shifted: Vec<f64> = x
        .iter()
        .map(|&x| x.into() - max)
        .map(|x| if x.is_nan() { f64::NEG_INFINITY } else { precision.register(x) })
        .collect();
    let sum = precision.sum(shifted.iter().map(|x| precision.register(x.exp())));
    let ln_sum = precision.register(sum.ln());
    shifted.iter().map(|x| precision.store(x - ln_sum)).collect()
}

fn finite_max<T: Real>(x: &[T]) -> Option<f64> {
    x.iter().map(|&x| x.into()).filter(|x| x.is_finite()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let out = softmax(&[2f64.ln(), 0.0, 5f64.ln()], Precision::F64);
        for (out, expected) in out.iter().zip([0.25, 0.125, 0.625]) {
            assert!((out - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn sums_to_one_without_overflow_and_agrees_with_its_logarithm() {
        let x: Vec<f64> = (0..50).map(|i| 1e4 + f64::from(i * 7 % 13)).collect();
        let (p, log_p) = (softmax(&x, Precision::F64), log_softmax(&x, Precision::F64));
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-14);
        for (p, log_p) in p.iter().zip(log_p) {
            assert!((p.ln() - log_p).abs() < 1e-12);
        }
    }

    #[test]
    fn nan_has_no_probability() {
        assert_eq!(softmax(&[f64::NAN, 1.0, f64::NEG_INFINITY], Precision::F64), [0.0, 1.0, 0.0]);
        assert_eq!(log_softmax(&[f64::NAN, 1.0], Precision::F64), [f64::NEG_INFINITY, 0.0]);
        assert_eq!(softmax(&[f64::NAN, f64::NEG_INFINITY], Precision::F64), [0.0, 0.0]);
    }
}
