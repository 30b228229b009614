//! What the checks of fused linear layers share: sizes, and the error that rounding between their parts may cause.

use minisgl_kernels::DType;
use minisgl_reference::{Precision, linear};
use proptest::prelude::*;

use super::support::{dtype, one_of};

/// A product and its surroundings.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) dtype: DType,
    pub(super) bias: bool,
    pub(super) rows: usize,
    pub(super) spare_rows: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) seed: u64,
}

pub(super) fn strategy() -> impl Strategy<Value = Case> {
    // Around the edges of tiles of tokens, of groups and chunks of k, and of units of 8 rows; the last ones are more
    // rows than one pass of a GPU's multiprocessors takes.
    let rows = one_of(&[1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 70]);
    let k = one_of(&[32, 64, 96, 128, 224, 256, 288, 512, 544, 1024, 1056, 8, 24, 40, 7, 33]);
    let n = one_of(&[1, 5, 8, 15, 16, 17, 24, 32, 48, 64, 100, 128, 160, 256, 4608]);
    (dtype(), any::<bool>(), rows, 0..3usize, k, n, any::<u64>()).prop_map(
        |(dtype, bias, rows, spare_rows, k, n, seed)| {
            // The oracle computes in scalar f64: a large product of many tokens would take most of the time.
            let rows = if n > 1000 { rows.min(9) } else { rows };
            Case { dtype, bias, rows, spare_rows, k, n, seed }
        },
    )
}

/// What may be lost in `linear(x)` for an `x` that was computed and rounded to `dtype` before, for each element.
///
/// Six deviations of independent roundings of each element of `x` (uniform up to half an ulp, so half an ulp over the
/// root of 3 each), one f32 rounding of the sum of magnitudes as in `linear`, and the f32 arithmetic before.
pub(super) fn rounding_of_x(x: &[f64], weight: &[f64], k: usize, dtype: DType) -> Vec<f64> {
    let squares = |v: &[f64]| v.iter().map(|x| x * x).collect::<Vec<_>>();
    let magnitudes = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let variances = linear(&squares(x), &squares(weight), None, k, Precision::F64);
    let sums = linear(&magnitudes(x), &magnitudes(weight), None, k, Precision::F64);
    let deviation = dtype.epsilon() / 2.0 / 3f64.sqrt();
    let lost =
        |(variance, sum): (&f64, &f64)| 6.0 * deviation * variance.sqrt() + 9.0 * DType::F32.epsilon() * sum;
    variances.iter().zip(&sums).map(lost).collect()
}
