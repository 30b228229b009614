use crate::{Precision, Real, rms_norm};

/// Rotates one head in place: element `i` with element `i + head_dim / 2` (the half-split form of GPT-NeoX).
/// `cos_sin` is a row of [`RopeSpec::table`](crate::RopeSpec::table).
pub fn rotate<T: Real>(head: &mut [f64], cos_sin: &[T], precision: Precision) {
    assert_eq!(head.len(), cos_sin.len(), "rotate: head_dim");
    let half = head.len() / 2;
    for i in 0..half {
        let (cos, sin) = (cos_sin[i].into(), cos_sin[half + i].into());
        let (a, b) = (head[i], head[half + i]);
        head[i] = precision.store(precision.store(a * cos) - precision.store(b * sin));
        head[half + i] = precision.store(precision.store(b * cos) + precision.store(a * sin));
    }
}

/// RMSNorm of each head with `norm` where given, then rotary embedding. `heads` is `[tokens, n * head_dim]` for
/// any `n`, `rope` is `[max_position, head_dim]`.
pub fn norm_rope<X: Real, W: Real, R: Real>(
    heads: &[X],
    head_dim: usize,
    norm: Option<&[W]>,
    eps: f64,
    rope: &[R],
    positions: &[u32],
    precision: Precision,
) -> Vec<f64> {
    let cols = heads.len() / positions.len().max(1);
    assert!(
        cols.is_multiple_of(head_dim) && cols * positions.len() == heads.len(),
        "norm_rope: {cols} columns"
    );
    let mut out = match norm {
        Some(norm) => rms_norm(heads, norm, eps, precision),
        None => heads.iter().map(|&x| x.into()).collect(),
    };
    for (row, &position) in out.chunks_exact_mut(cols.max(1)).zip(positions) {
        for head in row.chunks_exact_mut(head_dim) {
            rotate(head, &rope[position as usize * head_dim..][..head_dim], precision);
        }
    }
    out
}

/// The keys and values of one layer in pages. Slot `page * page_size + offset` is row `slot` of each.
#[derive(Clone, Debug, PartialEq)]
pub struct KvPages {
    /// `[num_slots, cols]` keys.
    pub k: Vec<f64>,
    /// `[num_slots, cols]` values.
    pub v: Vec<f64>,
    /// `num_kv_heads * head_dim`.
    pub cols: usize,
    /// Tokens in a page.
    pub page_size: usize,
}

/// Writes row `t` of `k` and of `v` to `slots[t]`; a slot of `u32::MAX` is padding and writes nothing.
pub fn store_kv<T: Real>(pages: &mut KvPages, k: &[T], v: &[T], slots: &[u32]) {
    let cols = pages.cols;
    assert!(k.len() == slots.len() * cols && v.len() == k.len(), "store_kv: {} rows of {cols}", slots.len());
    for (t, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| slot != u32::MAX) {
        for i in 0..cols {
            pages.k[slot as usize * cols + i] = k[t * cols + i].into();
            pages.v[slot as usize * cols + i] = v[t * cols + i].into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RopeScaling, RopeSpec};

    fn spec(head_dim: usize) -> RopeSpec {
        RopeSpec { head_dim, theta: 1e4, scaling: RopeScaling::Default }
    }

    #[test]
    fn by_hand() {
        // A quarter turn of the first pair, no turn of the second.
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, &[0f64, 1.0, 1.0, 0.0], Precision::F64);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn keeps_norms_and_relative_positions() {
        let table = spec(32).table(200);
        let q: Vec<f64> = (0..32).map(|i| f64::from(i * 5 % 13) - 6.0).collect();
        let k: Vec<f64> = (0..32).map(|i| f64::from(i * 3 % 11) - 5.0).collect();
        let at = |x: &[f64], position| {
            norm_rope::<_, f64, _>(x, 32, None, 0.0, &table, &[position], Precision::F64)
        };
        let norm = Precision::F64.dot(&q, &q);
        // Angles below 200 are numbers of f32: each of the four is off by half a unit in the last place.
        let turned = 4.0 * 200.0 * f64::from(f32::EPSILON) / 2.0;
        let allowed = turned * (norm * Precision::F64.dot(&k, &k)).sqrt();
        for (p, d) in [(0, 3), (17, 3), (180, 3), (180, 19)] {
            let (rotated, key) = (at(&q, p + d), at(&k, p));
            assert!((Precision::F64.dot(&rotated, &rotated) - norm).abs() < 1e-10);
            let (here, origin) =
                (Precision::F64.dot(&rotated, &key), Precision::F64.dot(&at(&q, d), &at(&k, 0)));
            assert!((here - origin).abs() < allowed, "{here} {origin}");
        }
    }

    #[test]
    fn norm_comes_first_and_is_per_head() {
        let table = spec(2).table(3);
        let out = norm_rope(&[3f64, 4.0, 0.0, 2.0], 2, Some(&[1f64, 2.0]), 0.0, &table, &[0], Precision::F64);
        let expected = [3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt(), 0.0, 2.0 * 2.0 / 2f64.sqrt()];
        for (out, expected) in out.iter().zip(expected) {
            assert!((out - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn store_skips_padding() {
        let mut pages = KvPages { k: vec![0.0; 4], v: vec![0.0; 4], cols: 1, page_size: 2 };
        store_kv(&mut pages, &[1f32, 2.0, 3.0], &[4f32, 5.0, 6.0], &[3, u32::MAX, 0]);
        assert_eq!((pages.k, pages.v), (vec![3.0, 0.0, 0.0, 1.0], vec![6.0, 0.0, 0.0, 4.0]));
    }
}
