//! The two products of a tile: scores from queries and keys, sums from probabilities and values.

use std::ops::Range;

use super::TILE;
use crate::cpu::simd::{LANES, Simd};

/// `scores[r][i] = sum_d queries[r][d] * keys[d][i]` for `M` rows, `d` in order.
#[inline(always)]
pub(super) fn score<S: Simd, const M: usize>(
    s: S,
    queries: &[f32],
    head_dim: usize,
    keys: &[f32],
    scores: &mut [f32],
) {
    if S::WIDE {
        score_columns::<S, M, 4>(s, queries, head_dim, keys, scores);
    } else {
        score_columns::<S, M, 2>(s, queries, head_dim, keys, scores);
    }
}

/// [`score`] with tiles of `N` vectors.
#[inline(always)]
fn score_columns<S: Simd, const M: usize, const N: usize>(
    s: S,
    queries: &[f32],
    head_dim: usize,
    keys: &[f32],
    scores: &mut [f32],
) {
    let rows: [&[f32]; M] = std::array::from_fn(|r| &queries[r * head_dim..(r + 1) * head_dim]);
    for start in (0..TILE).step_by(N * LANES) {
        let mut sums = [[s.splat(0.0); N]; M];
        for d in 0..head_dim {
            let keys = &keys[d * TILE + start..][..N * LANES];
            let (keys, _) = keys.as_chunks::<LANES>();
            for r in 0..M {
                let q = s.splat(rows[r][d]);
                for n in 0..N {
                    sums[r][n] = s.fma(q, s.load_f32(&keys[n]), sums[r][n]);
                }
            }
        }
        for r in 0..M {
            let (out, _) = scores[r * TILE + start..][..N * LANES].as_chunks_mut::<LANES>();
            for n in 0..N {
                s.store_f32(sums[r][n], &mut out[n]);
            }
        }
    }
}

/// `sums[r] += sum_i probabilities[r][i] * values[i]` for `M` rows and the positions `range` in order.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const M: usize>(
    s: S,
    probabilities: &[f32],
    values: &[f32],
    padded: usize,
    range: Range<usize>,
    sums: &mut [f32],
) {
    if range.is_empty() {
        return;
    }
    let mut col = 0;
    while col < padded {
        let left = (padded - col) / LANES;
        if S::WIDE && left >= 4 {
            accumulate_columns::<S, M, 4>(s, probabilities, values, padded, col, range.clone(), sums);
            col += 4 * LANES;
        } else if left >= 2 {
            accumulate_columns::<S, M, 2>(s, probabilities, values, padded, col, range.clone(), sums);
            col += 2 * LANES;
        } else {
            accumulate_columns::<S, M, 1>(s, probabilities, values, padded, col, range.clone(), sums);
            col += LANES;
        }
    }
}

/// [`accumulate`] for `N` vectors of columns from `col` on.
#[inline(always)]
fn accumulate_columns<S: Simd, const M: usize, const N: usize>(
    s: S,
    probabilities: &[f32],
    values: &[f32],
    padded: usize,
    col: usize,
    range: Range<usize>,
    sums: &mut [f32],
) {
    let rows: [&[f32]; M] = std::array::from_fn(|r| &probabilities[r * TILE..(r + 1) * TILE]);
    let mut acc = [[s.splat(0.0); N]; M];
    for r in 0..M {
        let (sums, _) = sums[r * padded + col..][..N * LANES].as_chunks::<LANES>();
        for n in 0..N {
            acc[r][n] = s.load_f32(&sums[n]);
        }
    }
    for i in range {
        let (values, _) = values[i * padded + col..][..N * LANES].as_chunks::<LANES>();
        for r in 0..M {
            let p = s.splat(rows[r][i]);
            for n in 0..N {
                acc[r][n] = s.fma(p, s.load_f32(&values[n]), acc[r][n]);
            }
        }
    }
    for r in 0..M {
        let (sums, _) = sums[r * padded + col..][..N * LANES].as_chunks_mut::<LANES>();
        for n in 0..N {
            s.store_f32(acc[r][n], &mut sums[n]);
        }
    }
}
