use crate::{Real, to_f64};

/// `out[s] = x[sample_tokens[s]]`; `x` is `[tokens, cols]`.
pub fn gather_samples<T: Real>(x: &[T], cols: usize, sample_tokens: &[u32]) -> Vec<f64> {
    sample_tokens.iter().flat_map(|&row| to_f64(&x[row as usize * cols..][..cols])).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn takes_rows() {
        assert_eq!(
            super::gather_samples(&[0f32, 1.0, 2.0, 3.0], 2, &[1, 1, 0]),
            [2.0, 3.0, 2.0, 3.0, 0.0, 1.0]
        );
    }
}
