//! What the checks of linear layers and those fused with them share: sizes, weights, and the error that rounding
//! between their parts may cause.

use std::fmt::Debug;

use minisgl_kernels::{Backend, DType, Tensor};
use minisgl_reference::{Precision, linear};
use proptest::prelude::*;

use super::support::{Failure, Guarded, Rng, dtype, one_of};
use super::{CheckConfig, property};

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

/// [`property`] of a product over `k(case)` elements. Matrix engines want rows of whole vectors, and may refuse others;
/// no model has them.
pub(super) fn product_property<B: Backend, C: Debug>(
    backend: &mut B,
    config: &CheckConfig,
    strategy: impl Strategy<Value = C>,
    k: impl Fn(&C) -> usize,
    check: impl Fn(&mut B, &CheckConfig, &C) -> Result<(), Failure>,
) -> Result<(), String> {
    property(backend, config, strategy, |backend, config, case| match check(backend, config, case) {
        Err(failure) if failure.is_unsupported() && !k(case).is_multiple_of(8) => Ok(()),
        result => result,
    })
}

/// [`product_property`] of products of many tokens: of a [`Case`], and how many copies of its rows follow each other, so
/// that the oracle computes each once. A third as many cases, and none where one is asked for: tools that watch every
/// access take minutes for it.
pub(super) fn many_tokens<B: Backend>(
    backend: &mut B,
    config: &CheckConfig,
    check: impl Fn(&mut B, &CheckConfig, &Case, usize) -> Result<(), Failure>,
) -> Result<(), String> {
    // Around the edges of tiles of 128 rows, 224 and 256 weights and 64 of k, and more tiles than a GPU has multiprocessors.
    let rows = one_of(&[33, 67, 127, 129, 131]);
    let k = one_of(&[448, 456, 504, 512, 520, 576, 640, 96, 832, 840, 896, 1000]);
    let n = one_of(&[32, 96, 128, 160, 224, 352, 1056, 100]);
    let total = one_of(&[66, 128, 200, 256, 511, 512, 513, 640, 767, 1100, 2300]);
    let strategy = (dtype(), 0..3usize, rows, k, n, total, any::<u64>()).prop_map(
        |(dtype, spare_rows, rows, k, n, total, seed)| {
            let bias = seed.is_multiple_of(8);
            // As above: what the oracle computes is kept small.
            let rows = if n > 1000 { rows.min(33) } else { rows };
            (Case { dtype, bias, rows, spare_rows, k, n, seed }, total.div_ceil(rows))
        },
    );
    let config = CheckConfig { cases: config.cases / 3, ..*config };
    product_property(
        backend,
        &config,
        strategy,
        |(case, _)| case.k,
        |backend, config, (case, copies)| check(backend, config, case, *copies),
    )
}

/// Weights `[n, k]` and perhaps a bias `[n]`.
pub(super) struct Layer<Buf> {
    weight: Guarded<Buf>,
    bias: Option<Guarded<Buf>>,
}

impl<Buf> Layer<Buf> {
    /// Weights that keep the deviation of their input.
    pub(super) fn random<B: Backend<Buf = Buf>>(
        backend: &mut B,
        rng: &mut Rng,
        dtype: DType,
        (n, k): (usize, usize),
        has_bias: bool,
    ) -> Result<Self, Failure> {
        let weight = Guarded::new(backend, dtype, n, k, &rng.normals(n * k, 0.0, 1.0 / (k as f64).sqrt()))?;
        let bias = match has_bias {
            true => Some(Guarded::new(backend, dtype, 1, n, &rng.normals(n, 0.0, 1.0))?),
            false => None,
        };
        Ok(Self { weight, bias })
    }

    pub(super) fn weight(&self) -> &Tensor<Buf> {
        &self.weight.tensor
    }

    pub(super) fn bias(&self) -> Option<&Tensor<Buf>> {
        self.bias.as_ref().map(|bias| &bias.tensor)
    }

    /// Checks that no byte of either has changed.
    pub(super) fn unchanged<B: Backend<Buf = Buf>>(&mut self, backend: &mut B) -> Result<(), Failure> {
        self.weight.unchanged(backend, "weight")?;
        self.bias.iter_mut().try_for_each(|bias| bias.unchanged(backend, "bias"))
    }

    /// Weights and bias as the dtype holds them.
    pub(super) fn written(&self) -> (Vec<f64>, Option<Vec<f64>>) {
        (self.weight.written(), self.bias.as_ref().map(Guarded::written))
    }
}

/// `linear` of the magnitudes: an f32 sum of the products, in whatever order, is off by a small multiple of an f32
/// rounding of it.
pub(super) fn sums_of_magnitudes(x: &[f64], weight: &[f64], bias: Option<&[f64]>, k: usize) -> Vec<f64> {
    let magnitudes = |v: &[f64]| v.iter().map(|x| x.abs()).collect::<Vec<_>>();
    linear(&magnitudes(x), &magnitudes(weight), bias.map(magnitudes).as_deref(), k, Precision::F64)
}

/// What may be lost before a bias is added, for an element that is `sum` with its bias.
///
/// A weight of one row makes a product a matrix times a vector, and cuBLASLt's kernel for that rounds before it adds. No
/// model has such a layer.
pub(super) fn rounding_before_bias(
    config: &CheckConfig,
    dtype: DType,
    n: usize,
    bias: Option<&[f64]>,
    sum: f64,
) -> f64 {
    match bias {
        Some(bias) if n == 1 && config.truncates_sums => dtype.epsilon() / 2.0 * (sum - bias[0]).abs(),
        _ => 0.0,
    }
}

/// What may be lost in `linear(x)` for an `x` that was computed and rounded to `dtype` before, for each element.
///
/// Six deviations of independent roundings of each element of `x` (uniform up to half an ulp, so half an ulp over the
/// root of 3 each), one f32 rounding of the sum of magnitudes as in `linear`, and the f32 arithmetic before.
pub(super) fn rounding_of_x(x: &[f64], weight: &[f64], k: usize, dtype: DType) -> Vec<f64> {
    let squares = |v: &[f64]| v.iter().map(|x| x * x).collect::<Vec<_>>();
    let variances = linear(&squares(x), &squares(weight), None, k, Precision::F64);
    let sums = sums_of_magnitudes(x, weight, None, k);
    let deviation = dtype.epsilon() / 2.0 / 3f64.sqrt();
    let lost =
        |(variance, sum): (&f64, &f64)| 6.0 * deviation * variance.sqrt() + 9.0 * DType::F32.epsilon() * sum;
    variances.iter().zip(&sums).map(lost).collect()
}
