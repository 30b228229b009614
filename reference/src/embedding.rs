use crate::{Real, to_f64};

/// `out[t] = table[token_ids[t]]`; `table` is `[vocab, cols]`.
pub fn embedding<T: Real>(table: &[T], cols: usize, token_ids: &[u32]) -> Vec<f64> {
    token_ids.iter().flat_map(|&token| to_f64(&table[token as usize * cols..][..cols])).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn takes_rows() {
        assert_eq!(
            super::embedding(&[0f32, 1.0, 2.0, 3.0, 4.0, 5.0], 2, &[2, 0, 2]),
            [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]
        );
    }
}
