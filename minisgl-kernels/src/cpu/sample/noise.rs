//! Gumbel noise: Philox on sixteen counters at a time (see [`crate::philox`]) and two logarithms.

use crate::cpu::math::ln;
use crate::cpu::simd::{LANES, Simd};
use crate::philox::{MULTIPLIERS, WEYL};

/// Tokens whose noise is computed at a time: sixteen counters of four numbers.
pub(super) const TOKENS: usize = 4 * LANES;

/// [`crate::philox::philox4x32_10`] at the counters `[c0, c1, 0, 0]`.
#[inline(always)]
pub(in crate::cpu) fn philox<S: Simd>(s: S, c0: S::U, c1: S::U, mut key: [u32; 2]) -> [S::U; 4] {
    let mut c = [c0, c1, s.splat_u32(0), s.splat_u32(0)];
    for _ in 0..10 {
        let (high0, low0) = s.mul_wide(c[0], s.splat_u32(MULTIPLIERS[0]));
        let (high1, low1) = s.mul_wide(c[2], s.splat_u32(MULTIPLIERS[1]));
        c = [
            s.xor(s.xor(high1, c[1]), s.splat_u32(key[0])),
            low1,
            s.xor(s.xor(high0, c[3]), s.splat_u32(key[1])),
            low0,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// `-ln(-ln(u))` for the tokens `first..first + TOKENS`, `u` from [`crate::philox::token_noise`]. `first` is a
/// multiple of 4.
#[inline(always)]
pub(super) fn gumbel<S: Simd>(s: S, seed: u64, position: u32, first: usize) -> [f32; TOKENS] {
    let blocks: [u32; LANES] = std::array::from_fn(|i| (first / 4 + i) as u32);
    let key = [seed as u32, (seed >> 32) as u32];
    let words = philox(s, s.load_u32(&blocks), s.splat_u32(position), key);
    let mut noise = [0.0; TOKENS];
    let zero = s.splat(0.0);
    for (j, word) in words.into_iter().enumerate() {
        // As `unit_open`: exact in f32, and in the open interval.
        let cell = s.add(s.i32_to_f32(s.shr::<9>(word)), s.splat(0.5));
        let u = s.mul(cell, s.splat(1.0 / 8_388_608.0));
        let g = s.sub(zero, ln(s, s.sub(zero, ln(s, u))));
        let mut lanes = [0.0; LANES];
        s.store_f32(g, &mut lanes);
        for i in 0..LANES {
            noise[4 * i + j] = lanes[i];
        }
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::tests::for_each_isa;
    use crate::cpu::simd::{Kernel, dispatch};
    use crate::philox::{token_noise, unit_open};

    struct Gumbel(u64, u32, usize);

    impl Kernel for Gumbel {
        type Output = [f32; TOKENS];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; TOKENS] {
            gumbel(s, self.0, self.1, self.2)
        }
    }

    #[test]
    fn noise_is_that_of_the_scalar_generator() {
        for (seed, position, first) in
            [(0, 0, 0), (0x0123_4567_89ab_cdef, 77, 64), (u64::MAX, u32::MAX, 151_936)]
        {
            for_each_isa(|isa| {
                let noise = dispatch(isa, Gumbel(seed, position, first));
                for (i, &g) in noise.iter().enumerate() {
                    let token = first + i;
                    let u = unit_open(token_noise(seed, position, token as u32 / 4)[token % 4]);
                    let expected = -(-f64::from(u).ln()).ln();
                    // Two units in the last place of the inner logarithm are that many of 1 in the outer one.
                    let bound = f64::from(f32::EPSILON) * (2.0 + 2.0 * expected.abs());
                    assert!(
                        (f64::from(g) - expected).abs() < bound,
                        "token {token}: {g}, expected {expected}"
                    );
                }
            });
        }
    }
}
