use std::fmt;

use minisgl_kernels::{DType, KernelError, Result};
use minisgl_reference::Precision;

/// Why a case failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A wrong result.
    Wrong(String),
    /// The backend refused or failed.
    Kernel(KernelError),
}

impl Failure {
    /// A wrong result.
    pub(crate) fn wrong(what: impl Into<String>) -> Self {
        Failure::Wrong(what.into())
    }

    /// Whether the backend said that it does not support the arguments.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Failure::Kernel(KernelError::Unsupported { .. }))
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Failure::Kernel(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Wrong(what) => f.write_str(what),
            Failure::Kernel(error) => write!(f, "unexpected error: {error}"),
        }
    }
}

/// Compares results of storage `dtype` with the oracle, row by row of `cols` elements.
///
/// An element may be off by twice the largest error of the naive run in its row, plus a rounding floor: one ulp
/// of the dtype (twice the half that the best rounding costs), and `floor(i)` for the f32 sums behind element
/// `i`, without which a row whose naive run is exact by luck could not be met by another order of summation.
pub(crate) fn close(
    what: &str,
    dtype: DType,
    cols: usize,
    found: &[f64],
    exact: &[f64],
    naive: &[f64],
    floor: impl Fn(usize) -> f64,
) -> Result<(), Failure> {
    assert!(found.len() == exact.len() && naive.len() == exact.len(), "{what}: lengths");
    for first in (0..exact.len()).step_by(cols) {
        let row = first..first + cols;
        let naive_error = row.clone().map(|i| (naive[i] - exact[i]).abs()).fold(0.0, f64::max);
        for i in row {
            let bound = 2.0 * naive_error + dtype.epsilon() * exact[i].abs() + floor(i) + subnormal(dtype);
            let error = (found[i] - exact[i]).abs();
            if !error.le(&bound) {
                return Err(Failure::wrong(format!(
                    "{what}[{}][{}] is {}, the oracle says {}: off by {error:.3e}, allowed {bound:.3e} \
                     (naive {dtype} run: {naive_error:.3e})",
                    first / cols,
                    i - first,
                    found[i],
                    exact[i],
                )));
            }
        }
    }
    Ok(())
}

/// The smallest normal number: below it the spacing is fixed, and hardware may flush to zero.
fn subnormal(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-24),
        DType::BF16 | DType::F32 => f64::from(f32::MIN_POSITIVE),
    }
}

/// Compares with `expected` as stored in `precision`, bit by bit (any NaN equals any other).
pub(crate) fn bitwise(
    what: &str,
    precision: Precision,
    found: &[f64],
    expected: &[f64],
) -> Result<(), Failure> {
    let expected: Vec<f64> = expected.iter().map(|&x| precision.store(x)).collect();
    same_bits(what, found, &expected)
}

/// Compares two results bit by bit (any NaN equals any other).
pub(crate) fn same_bits(what: &str, found: &[f64], expected: &[f64]) -> Result<(), Failure> {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        if found.to_bits() != expected.to_bits() && !(found.is_nan() && expected.is_nan()) {
            return Err(Failure::wrong(format!(
                "{what}: element {i} is {found:e}, not the same {expected:e}"
            )));
        }
    }
    Ok(())
}

/// Checks that arguments that do not fit were refused.
pub(crate) fn expect_err(what: &str, result: Result<()>) -> Result<(), Failure> {
    match result {
        Err(KernelError::Shape { .. } | KernelError::DType { .. } | KernelError::Index { .. }) => Ok(()),
        Err(KernelError::Unsupported { .. }) => Ok(()),
        Err(other) => Err(Failure::wrong(format!("{what}: refused for another reason: {other}"))),
        Ok(()) => Err(Failure::wrong(format!("{what}: accepted"))),
    }
}
