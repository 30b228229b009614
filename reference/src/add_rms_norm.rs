use crate::{Precision, Real, rms_norm};

/// `residual += x`, stored, then `out = rms_norm(residual)`. Returns `(out, residual)`.
///
/// The norm is that of the residual as stored, so `precision` says what the second result holds, too.
pub fn add_rms_norm<X: Real, W: Real>(
    residual: &[X],
    x: &[X],
    weight: &[W],
    eps: f64,
    precision: Precision,
) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(residual.len(), x.len(), "add_rms_norm: residual and x differ in length");
    let sums = residual.iter().zip(x).map(|(&residual, &x)| precision.store(residual.into() + x.into()));
    let residual: Vec<f64> = sums.collect();
    (rms_norm(&residual, weight, eps, precision), residual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (out, residual) = add_rms_norm(&[1f64, 5.0], &[2f64, -1.0], &[1f64, 0.5], 0.0, Precision::F64);
        assert_eq!(residual, [3.0, 4.0]);
        assert!((out[0] - 3.0 / 12.5f64.sqrt()).abs() < 1e-15);
        assert!((out[1] - 2.0 / 12.5f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn the_stored_residual_is_normalised() {
        let (out, residual) = add_rms_norm(&[256f64], &[1f64], &[1f64], 0.0, Precision::Bf16);
        assert_eq!((out[0], residual[0]), (1.0, 256.0));
    }
}
