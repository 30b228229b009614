use crate::{Precision, Real};

/// `out[r][n] = sum_k x[r][k] * weight[n][k] + bias[n]`; `x` is `[rows, k]`, `weight` `[n, k]`, `out` `[rows, n]`.
pub fn linear<X: Real, W: Real>(
    x: &[X],
    weight: &[W],
    bias: Option<&[W]>,
    k: usize,
    precision: Precision,
) -> Vec<f64> {
    assert!(k > 0 && x.len().is_multiple_of(k) && weight.len().is_multiple_of(k), "linear: rows of {k}");
    let n = weight.len() / k;
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "linear: bias length");
    }
    let mut out = Vec::with_capacity(x.len() / k * n);
    for row in x.chunks_exact(k) {
        for (i, weight_row) in weight.chunks_exact(k).enumerate() {
            let sum = precision.dot(row, weight_row);
            out.push(precision.store(bias.map_or(sum, |bias| precision.register(sum + bias[i].into()))));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let (x, weight) = ([1f32, 2.0, 3.0, -1.0, 0.5, 0.0], [1f32, 0.0, -1.0, 2.0, 2.0, 2.0]);
        assert_eq!(linear(&x, &weight, None, 3, Precision::F64), [-2.0, 12.0, -1.0, -1.0]);
        assert_eq!(linear(&x, &weight, Some(&[10.0, 0.25]), 3, Precision::F64), [8.0, 12.25, 9.0, -0.75]);
    }

    #[test]
    fn rounds_once_to_storage() {
        let (x, weight) = ([1f32, 1.0, 1.0], [256f32, 1.0, 1.0]);
        assert_eq!(linear(&x, &weight, None, 3, Precision::Bf16), [258.0]);
        assert_eq!(linear(&x, &weight, Some(&[1.0]), 3, Precision::Bf16), [260.0]);
    }
}
