//! Where top-k, top-p and min-p cut, without sorting.
//!
//! Each cut is a threshold on the scaled logits: what is at least as large is kept, so ties with the last one
//! kept are kept too. The threshold is found exactly, by bisection over the order of all f32 values: 32 passes
//! over a row that stays in the second-level cache.

use super::row::{count_from, mass_from, weigh};
use crate::SampleParams;
use crate::cpu::simd::{Kernel, Simd};

/// The smallest scaled logit that is kept. `x` are scaled logits, of which `max` is the largest and finite.
#[inline(always)]
pub(super) fn threshold<S: Simd>(
    s: S,
    x: &[f32],
    max: f32,
    params: &SampleParams,
    weights: &mut [f32],
) -> f32 {
    // Minus infinity is never kept.
    let mut threshold = f32::MIN;
    let top_k = usize::try_from(params.top_k).unwrap_or(0);
    if top_k >= 1 && top_k < x.len() {
        threshold = largest(threshold, max, |threshold| s.call(Count { x, threshold }) >= top_k);
    }
    if params.top_p < 1.0 {
        let wanted = weigh(s, x, max, threshold, weights) * f64::from(params.top_p);
        threshold = largest(threshold, max, |threshold| s.call(Mass { x, weights, threshold }) >= wanted);
    }
    if params.min_p > 0.0 {
        // e^(x - max) >= min_p
        threshold = threshold.max(max + params.min_p.ln());
    }
    threshold.min(max)
}

/// [`count_from`] as a kernel: inside of a closure it would miss the caller's instruction set.
struct Count<'a> {
    x: &'a [f32],
    threshold: f32,
}

impl Kernel for Count<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        count_from(s, self.x, self.threshold)
    }
}

/// [`mass_from`] as a kernel.
struct Mass<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    threshold: f32,
}

impl Kernel for Mass<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        mass_from(s, self.x, self.weights, self.threshold)
    }
}

/// The largest number of `low..=high` for which `holds`, which holds below a number and not above it; `low` if it
/// holds nowhere.
#[inline(always)]
fn largest(low: f32, high: f32, mut holds: impl FnMut(f32) -> bool) -> f32 {
    let (mut low, mut high) = (key(low), key(high));
    while low < high {
        // Rounded up, without overflow: the interval shrinks in either case.
        let middle = low + ((i64::from(high) - i64::from(low) + 1) / 2) as i32;
        if holds(from_key(middle)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    from_key(low)
}

/// Maps f32 to integers in the same order; negative zero comes just before zero.
fn key(x: f32) -> i32 {
    let bits = x.to_bits().cast_signed();
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

fn from_key(key: i32) -> f32 {
    let bits = if key < 0 { key ^ i32::MAX } else { key };
    f32::from_bits(bits.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_and_come_back() {
        let ordered =
            [f32::MIN, -1.5, -1.0, -f32::MIN_POSITIVE, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.5, f32::MAX];
        assert!(ordered.array_windows().all(|[a, b]| key(*a) < key(*b)));
        assert!(ordered.iter().all(|&x| from_key(key(x)).to_bits() == x.to_bits()));
    }

    #[test]
    fn bisection_finds_the_last() {
        for last in [f32::MIN, -7.25, -0.0, 1e-40, 3.5, f32::MAX] {
            let found = largest(f32::MIN, f32::MAX, |t| t <= last);
            assert_eq!(found, last);
        }
        assert_eq!(largest(2.0, 3.0, |_| false), 2.0);
    }
}
