use crate::{KvPages, Precision, Real, softmax};

/// The sizes of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnSpec {
    /// Query heads: a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f64,
    /// Sliding window: how many positions a query sees, its own included.
    pub window: Option<usize>,
}

/// Causal attention of the last queries of one sequence over all of its keys (Vaswani et al. 2017; grouped
/// queries: Ainslie et al. 2023).
///
/// `q` is `[q_len, num_heads * head_dim]`, `k` and `v` are `[kv_len, num_kv_heads * head_dim]`; query `i` is at
/// position `kv_len - q_len + i` and sees positions up to its own, with a window only the last of them.
pub fn attention<Q: Real, K: Real>(
    q: &[Q],
    k: &[K],
    v: &[K],
    spec: &AttnSpec,
    precision: Precision,
) -> Vec<f64> {
    let &AttnSpec { num_heads, num_kv_heads, head_dim, scale, window } = spec;
    let (q_cols, kv_cols) = (num_heads * head_dim, num_kv_heads * head_dim);
    assert!(num_heads.is_multiple_of(num_kv_heads), "attention: {num_heads} heads over {num_kv_heads}");
    assert!(q.len().is_multiple_of(q_cols) && k.len().is_multiple_of(kv_cols) && v.len() == k.len());
    let (q_len, kv_len) = (q.len() / q_cols, k.len() / kv_cols);
    assert!(q_len <= kv_len, "attention: {q_len} queries of {kv_len} positions");
    let group = num_heads / num_kv_heads;

    let mut out = vec![0.0; q.len()];
    for i in 0..q_len {
        let position = kv_len - q_len + i;
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        for h in 0..num_heads {
            let query = &q[i * q_cols + h * head_dim..][..head_dim];
            let first_element = |j: usize| j * kv_cols + h / group * head_dim;
            let score = |j: usize| {
                let dot = precision.dot(query, &k[first_element(j)..][..head_dim]);
                precision.store(precision.register(dot * scale))
            };
            let scores: Vec<f64> = (first..=position).map(score).collect();
            let probs = softmax(&scores, precision);
            let mut sums = vec![0.0; head_dim];
            for (p, j) in probs.iter().zip(first..=position) {
                for (sum, &v) in sums.iter_mut().zip(&v[first_element(j)..][..head_dim]) {
                    *sum = precision.register(*sum + p * v.into());
                }
            }
            for (out, sum) in out[i * q_cols + h * head_dim..].iter_mut().zip(sums) {
                *out = precision.store(sum);
            }
        }
    }
    out
}

/// [`attention`] over keys and values in pages: position `j` of the sequence is at offset `j % page_size` of page
/// `page_table[j / page_size]`. Nothing past `kv_len` is read.
pub fn paged_attention<Q: Real>(
    q: &[Q],
    pages: &KvPages,
    page_table: &[u32],
    kv_len: usize,
    spec: &AttnSpec,
    precision: Precision,
) -> Vec<f64> {
    let gather = |storage: &[f64]| -> Vec<f64> {
        let slot = |j| page_table[j / pages.page_size] as usize * pages.page_size + j % pages.page_size;
        (0..kv_len).flat_map(|j| storage[slot(j) * pages.cols..][..pages.cols].iter().copied()).collect()
    };
    attention(q, &gather(&pages.k), &gather(&pages.v), spec, precision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_kv;

    const SPEC: AttnSpec = AttnSpec { num_heads: 4, num_kv_heads: 2, head_dim: 6, scale: 0.4, window: None };

    fn noise(n: usize, salt: u32) -> Vec<f64> {
        (0..n)
            .map(|i| f64::from(crate::philox4x32_10([i as u32, salt, 0, 0], [1, 2])[0]) / 2f64.powi(31) - 1.0)
            .collect()
    }

    #[test]
    fn by_hand() {
        // Scores 0 and ln 3 give weights 1/4 and 3/4; the first query sees the first key alone.
        let spec = AttnSpec { num_heads: 1, num_kv_heads: 1, head_dim: 2, scale: 1.0, window: None };
        let k = [0.0, 7.0, 3f64.ln(), 0.0];
        let out = attention(&[5.0, 5.0, 1.0, 0.0], &k, &[4.0, 8.0, 0.0, 4.0], &spec, Precision::F64);
        for (out, expected) in out.iter().zip([4.0, 8.0, 1.0, 5.0]) {
            assert!((out - expected).abs() < 1e-14, "{out} {expected}");
        }
    }

    #[test]
    fn equal_keys_give_the_mean_of_the_visible_values() {
        let v = noise(9 * 12, 1);
        for (window, first) in [(None, 0), (Some(1), 8), (Some(4), 5), (Some(100), 0)] {
            let out =
                attention(&noise(24, 2), &[0.5; 9 * 12], &v, &AttnSpec { window, ..SPEC }, Precision::F64);
            for h in 0..4 {
                for d in 0..6 {
                    let column = (first..9).map(|j| v[j * 12 + h / 2 * 6 + d]);
                    let mean = column.sum::<f64>() / (9 - first) as f64;
                    assert!((out[h * 6 + d] - mean).abs() < 1e-14, "{window:?} {h} {d}");
                }
            }
        }
    }

    #[test]
    fn a_window_is_attention_over_the_last_positions() {
        let (q, k, v) = (noise(24, 3), noise(9 * 12, 4), noise(9 * 12, 5));
        let windowed = attention(&q, &k, &v, &AttnSpec { window: Some(3), ..SPEC }, Precision::F64);
        assert_eq!(windowed, attention(&q, &k[6 * 12..], &v[6 * 12..], &SPEC, Precision::F64));
    }

    #[test]
    fn chunks_of_queries_change_nothing() {
        let (q, k, v) = (noise(9 * 24, 6), noise(9 * 12, 7), noise(9 * 12, 8));
        let whole = attention(&q, &k, &v, &SPEC, Precision::F64);
        let head = attention(&q[..4 * 24], &k[..4 * 12], &v[..4 * 12], &SPEC, Precision::F64);
        let tail = attention(&q[4 * 24..], &k, &v, &SPEC, Precision::F64);
        assert_eq!(whole, [head, tail].concat());
    }

    #[test]
    fn pages_change_nothing_and_free_slots_are_not_read() {
        let (q, k, v) = (noise(2 * 24, 9), noise(9 * 12, 10), noise(9 * 12, 11));
        let (page_size, page_table) = (4, [2u32, 0, 3]);
        let nan = vec![f64::NAN; 4 * page_size * 12];
        let mut pages = KvPages { k: nan.clone(), v: nan, cols: 12, page_size };
        let slots: Vec<u32> = (0..9).map(|j| page_table[j / 4] * 4 + j as u32 % 4).collect();
        store_kv(&mut pages, &k, &v, &slots);
        let paged = paged_attention(&q, &pages, &page_table, 9, &SPEC, Precision::F64);
        assert_eq!(paged, attention(&q, &k, &v, &SPEC, Precision::F64));
    }
}
