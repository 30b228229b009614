//! Log probabilities of the model: of one token, and of the most likely ones.

use super::row::{arg_max, weigh};
use crate::MAX_LOGPROBS;
use crate::cpu::simd::{LANES, Simd};

/// `ln(sum(e^x))` of a row with a finite maximum.
#[inline(always)]
pub(super) fn log_sum_exp<S: Simd>(s: S, x: &[f32], weights: &mut [f32]) -> f64 {
    let (max, _) = arg_max(s, x);
    f64::from(max) + weigh(s, x, max, f32::MIN, weights).ln()
}

/// No tokens.
pub(super) const NONE: [(u32, f32); MAX_LOGPROBS] = [(u32::MAX, f32::NEG_INFINITY); MAX_LOGPROBS];

/// The `count` largest elements, largest first, ties to the lowest index; entries that do not exist are
/// `(u32::MAX, -infinity)`.
#[inline(always)]
pub(super) fn top<S: Simd>(s: S, x: &[f32], count: usize) -> [(u32, f32); MAX_LOGPROBS] {
    let mut top = NONE;
    if count == 0 {
        return top;
    }
    for (chunk, x) in x.chunks(LANES).enumerate() {
        if let Some(full) = x.as_array()
            && s.mask_bits(s.lt(s.splat(top[count - 1].1), s.load_f32(full))) == 0
        {
            continue;
        }
        for (i, &x) in x.iter().enumerate() {
            if x > top[count - 1].1 {
                // Behind its equals, which have lower indices.
                let place = top[..count].partition_point(|&(_, other)| other >= x);
                top[place..count].rotate_right(1);
                top[place] = ((chunk * LANES + i) as u32, x);
            }
        }
    }
    top
}
