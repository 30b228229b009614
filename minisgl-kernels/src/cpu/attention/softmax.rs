//! The online softmax of one row over one tile.

use std::ops::Range;

use super::TILE;
use crate::cpu::math::exp;
use crate::cpu::simd::{LANES, Simd};

/// Largest score so far, and the sum of the exponentials relative to it.
pub(super) type Running = [f32; 2];

/// Before the first tile.
pub(super) const EMPTY: Running = [f32::NEG_INFINITY, 0.0];

/// Turns the scores of the positions `valid`, of which there is at least one, into exponentials relative to the
/// largest score so far, and the others into 0. Returns the factor for what was summed before.
#[inline(always)]
pub(super) fn update<S: Simd>(
    s: S,
    scores: &mut [f32; TILE],
    valid: Range<usize>,
    running: &mut Running,
) -> f32 {
    if valid != (0..TILE) {
        scores[..valid.start].fill(f32::NEG_INFINITY);
        scores[valid.end..].fill(f32::NEG_INFINITY);
    }
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let mut max = s.load_f32(&scores[0]);
    for scores in &scores[1..] {
        max = s.max(max, s.load_f32(scores));
    }
    let [max_before, sum_before] = *running;
    let max = s.reduce_max(max).max(max_before);
    // Scores that are all minus infinity have weight 0, not that of infinity minus infinity.
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = s.splat(0.0);
    for scores in scores {
        let p = exp(s, s.sub(s.load_f32(scores), s.splat(base)));
        sum = s.add(sum, p);
        s.store_f32(p, scores);
    }
    let factor = if max_before == max { 1.0 } else { (max_before - base).exp() };
    *running = [max, sum_before * factor + s.reduce_add(sum)];
    factor
}
