use crate::{Precision, Real};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row (Zhang, Sennrich 2019); `x` is `[rows, weight.len()]`.
pub fn rms_norm<X: Real, W: Real>(x: &[X], weight: &[W], eps: f64, precision: Precision) -> Vec<f64> {
    let cols = weight.len();
    assert!(x.len().is_multiple_of(cols), "rms_norm: rows of {cols}");
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(cols) {
        let mean = precision.register(precision.dot(row, row) / cols as f64);
        let inverse = precision.register(1.0 / (mean + eps).sqrt());
        for (&x, &weight) in row.iter().zip(weight) {
            out.push(precision.store(precision.store(x.into() * inverse) * weight.into()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // mean(9, 16, 0, 0) = 6.25, and 1 / 2.5 = 0.4
        let out = rms_norm(&[3f64, 4.0, 0.0, 0.0], &[1f64, 1.0, 1.0, 2.0], 0.0, Precision::F64);
        for (out, expected) in out.iter().zip([1.2, 1.6, 0.0, 0.0]) {
            assert!((out - expected).abs() < 1e-15);
        }
        let out = rms_norm(&[1f64, 0.0], &[2f64, 2.0], 3.5, Precision::F64);
        assert_eq!(out, [1.0, 0.0]);
    }

    #[test]
    fn output_has_unit_mean_square_whatever_the_scale() {
        let x: Vec<f64> = (0..37).map(|i| 1e3 * f64::from(i * i % 11 - 5)).collect();
        let out = rms_norm(&x, &[1f64; 37], 0.0, Precision::F64);
        let mean_square = out.iter().map(|x| x * x).sum::<f64>() / 37.0;
        assert!((mean_square - 1.0).abs() < 1e-12);
    }
}
