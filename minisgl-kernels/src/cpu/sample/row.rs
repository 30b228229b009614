//! Passes over one row of logits.

use super::noise::{TOKENS, gumbel};
use crate::cpu::math::exp;
use crate::cpu::simd::{Element, LANES, Simd, load_any, store_any};

/// Elements that are summed in f32 before the sum goes on in f64.
const BLOCK: usize = 1024;

/// Copies logits to f32: NaN becomes minus infinity, and infinity the largest number, so that differences of
/// logits are numbers. Says whether any logit was finite.
#[inline(always)]
pub(super) fn load_logits<S: Simd, E: Element>(s: S, src: &[E], dst: &mut [f32]) -> bool {
    let (lowest, highest) = (s.splat(f32::NEG_INFINITY), s.splat(f32::MAX));
    let mut any_finite = false;
    for (src, dst) in src.chunks(LANES).zip(dst.chunks_mut(LANES)) {
        // A NaN as the first operand loses.
        let x = s.max(load_any(s, src), lowest);
        let is_number = s.mask_bits(s.le(s.splat(f32::MIN), x));
        let is_finite = is_number & s.mask_bits(s.le(x, highest));
        any_finite |= is_finite & (u32::MAX >> (32 - src.len())) != 0;
        store_any(s, s.min(x, highest), dst);
    }
    any_finite
}

/// What [`load_logits`] makes of one logit.
pub(super) fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// Largest element and the lowest index that has it; minus infinity and 0 where nothing is larger.
#[inline(always)]
pub(super) fn arg_max<S: Simd>(s: S, x: &[f32]) -> (f32, usize) {
    let mut best = Best::new(s);
    for (i, x) in x.chunks(LANES).enumerate() {
        best.update(s, i * LANES, load_or_lowest(s, x));
    }
    best.finish(s)
}

/// As [`arg_max`] of `x + noise` over the elements that are at least `threshold`.
#[inline(always)]
pub(super) fn draw<S: Simd>(s: S, x: &[f32], threshold: f32, seed: u64, position: u32) -> (f32, usize) {
    let mut best = Best::new(s);
    let (threshold, lowest) = (s.splat(threshold), s.splat(f32::NEG_INFINITY));
    for (block, x) in x.chunks(TOKENS).enumerate() {
        let mut kept = [lowest; TOKENS / LANES];
        let mut any = 0;
        for (kept, x) in kept.iter_mut().zip(x.chunks(LANES)) {
            let x = load_or_lowest(s, x);
            let is_kept = s.le(threshold, x);
            any |= s.mask_bits(is_kept);
            *kept = s.select(is_kept, x, lowest);
        }
        if any == 0 {
            continue;
        }
        let noise = gumbel(s, seed, position, block * TOKENS);
        for (i, noise) in noise.as_chunks::<LANES>().0.iter().enumerate() {
            best.update(s, block * TOKENS + i * LANES, s.add(kept[i], s.load_f32(noise)));
        }
    }
    best.finish(s)
}

/// `x /= by`, kept finite from above.
#[inline(always)]
pub(super) fn divide<S: Simd>(s: S, x: &mut [f32], by: f32) {
    for x in x.chunks_mut(LANES) {
        let quotient = s.div(load_any(s, x), s.splat(by));
        store_any(s, s.min(quotient, s.splat(f32::MAX)), x);
    }
}

/// How many elements are at least `threshold`.
#[inline(always)]
pub(super) fn count_from<S: Simd>(s: S, x: &[f32], threshold: f32) -> usize {
    let threshold = s.splat(threshold);
    let mut count = 0;
    for x in x.chunks(LANES) {
        count += s.mask_bits(s.le(threshold, load_or_lowest(s, x))).count_ones() as usize;
    }
    count
}

/// `weights = e^(x - max)` where `x` is at least `threshold`, else 0. Returns their sum.
#[inline(always)]
pub(super) fn weigh<S: Simd>(s: S, x: &[f32], max: f32, threshold: f32, weights: &mut [f32]) -> f64 {
    let mut total = 0.0;
    for (x, weights) in x.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)) {
        let mut sum = s.splat(0.0);
        for (x, weights) in x.chunks(LANES).zip(weights.chunks_mut(LANES)) {
            let x = load_or_lowest(s, x);
            let weight = exp(s, s.sub(x, s.splat(max)));
            let weight = s.select(s.le(s.splat(threshold), x), weight, s.splat(0.0));
            sum = s.add(sum, weight);
            store_any(s, weight, weights);
        }
        total += f64::from(s.reduce_add(sum));
    }
    total
}

/// Sum of the weights whose element is at least `threshold`. Rounding is monotonic, so a lower threshold never
/// gives a smaller sum.
#[inline(always)]
pub(super) fn mass_from<S: Simd>(s: S, x: &[f32], weights: &[f32], threshold: f32) -> f64 {
    let threshold = s.splat(threshold);
    let mut total = 0.0;
    for (x, weights) in x.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
        let mut sum = s.splat(0.0);
        for (x, weights) in x.chunks(LANES).zip(weights.chunks(LANES)) {
            let is_in = s.le(threshold, load_or_lowest(s, x));
            sum = s.add(sum, s.select(is_in, load_any(s, weights), s.splat(0.0)));
        }
        total += f64::from(s.reduce_add(sum));
    }
    total
}

/// Loads up to 16 elements; lanes beyond are minus infinity.
#[inline(always)]
fn load_or_lowest<S: Simd>(s: S, src: &[f32]) -> S::F {
    match src.as_array() {
        Some(full) => s.load_f32(full),
        None => {
            let mut full = [f32::NEG_INFINITY; LANES];
            full[..src.len()].copy_from_slice(src);
            s.load_f32(&full)
        }
    }
}

/// The largest element seen in each lane, and where.
struct Best<S: Simd> {
    value: S::F,
    /// Bits of the index.
    index: S::F,
}

impl<S: Simd> Best<S> {
    #[inline(always)]
    fn new(s: S) -> Self {
        Self { value: s.splat(f32::NEG_INFINITY), index: s.bits_to_f32(s.splat_u32(0)) }
    }

    /// Takes 16 elements from index `first` on; earlier elements win ties.
    #[inline(always)]
    fn update(&mut self, s: S, first: usize, x: S::F) {
        let index = s.add_u32(s.splat_u32(first as u32), s.load_u32(&std::array::from_fn(|i| i as u32)));
        let is_larger = s.lt(self.value, x);
        self.value = s.select(is_larger, x, self.value);
        self.index = s.select(is_larger, s.bits_to_f32(index), self.index);
    }

    #[inline(always)]
    fn finish(self, s: S) -> (f32, usize) {
        let (mut values, mut indices) = ([0.0; LANES], [0; LANES]);
        s.store_f32(self.value, &mut values);
        s.store_u32(s.f32_to_bits(self.index), &mut indices);
        let mut best = (f32::NEG_INFINITY, 0);
        for (&value, &index) in values.iter().zip(&indices) {
            let index = index as usize;
            if value > best.0 || value == best.0 && value > f32::NEG_INFINITY && index < best.1 {
                best = (value, index);
            }
        }
        best
    }
}
