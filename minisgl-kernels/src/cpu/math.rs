//! Exponential, logarithm and the normal distribution on sixteen lanes.
//!
//! Polynomials are least-maximum fits to the functions named, computed for this project in 40 digits; the error
//! bounds are those of the tests, which compare with f64.

use super::simd::Simd;

/// ln 2 in two parts: `n * LN2_HI` is exact for every exponent.
const LN2_HI: f32 = 355.0 / 512.0;
const LN2_LO: f32 = -2.121_944_4e-4;

/// `((c[n] * x + c[n - 1]) * x + ...) + c[0]`.
#[inline(always)]
fn horner<S: Simd, const N: usize>(s: S, x: S::F, coefficients: [f32; N]) -> S::F {
    let mut sum = s.splat(coefficients[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.fma(sum, x, s.splat(coefficients[i]));
    }
    sum
}

/// `e^x`, within 1.5 units in the last place of f32; 0 and infinity where it underflows and overflows; NaN stays.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative error of e^r below 1e-10.
    const P: [f32; 6] = [0.5, 0.166_666_66, 0.041_666_295, 0.008_333_498, 0.001_394_475_8, 1.979_024_4e-4];
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // NaN as the second operand survives both.
    let x = s.min(s.splat(100.0), s.max(s.splat(-120.0), x));
    let n = s.sub(s.fma(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND)), s.splat(ROUND));
    let r = s.fma(n, s.splat(-LN2_HI), x);
    let r = s.fma(n, s.splat(-LN2_LO), r);
    let tail = s.fma(horner(s, r, P), s.mul(r, r), r);
    s.ldexp(s.add(tail, s.splat(1.0)), n)
}

/// Natural logarithm of a positive normal number, within 2 units in the last place of f32, near 1 too.
#[inline(always)]
pub(crate) fn ln<S: Simd>(s: S, x: S::F) -> S::F {
    // (ln(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1], relative error of ln below 1e-9.
    const P: [f32; 9] = [
        0.333_333_13,
        -0.250_000_1,
        0.200_021_19,
        -0.166_679_96,
        0.142_195_52,
        -0.124_055_89,
        0.118_881_63,
        -0.116_756_51,
        0.067_466_386,
    ];
    // x = m * 2^e with m in [sqrt(1/2), sqrt(2)), so that e is 0 around 1 and f is exact there.
    let bits = s.f32_to_bits(x);
    let e = s.sar::<23>(s.sub_u32(bits, s.splat_u32(std::f32::consts::FRAC_1_SQRT_2.to_bits())));
    let f = s.sub(s.bits_to_f32(s.sub_u32(bits, s.shl::<23>(e))), s.splat(1.0));
    let e = s.i32_to_f32(e);
    let square = s.mul(f, f);
    let tail = s.mul(s.mul(f, square), horner(s, f, P));
    let tail = s.fma(e, s.splat(LN2_LO), tail);
    let tail = s.fma(square, s.splat(-0.5), tail);
    s.fma(e, s.splat(LN2_HI), s.add(tail, f))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.mul(x, sigmoid(s, x))
}

/// `x * Phi(x)` with `Phi` approximated by a tanh (Hendrycks, Gimpel 2016, section 2), which is a sigmoid of
/// twice its argument.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let cubic = s.fma(s.mul(s.mul(x, x), s.splat(0.044_715)), x, x);
    s.mul(x, sigmoid(s, s.mul(cubic, s.splat(TWICE_SQRT_2_OVER_PI))))
}

/// `x * Phi(x)` with the normal distribution function. Negative `x` use the tail itself, so nothing cancels.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    // erfc(a) = t * exp(Q(t) - a^2) with t = 1 / (1 + a / 2), the form of Press et al., Numerical Recipes, 6.2.
    const Q: [f32; 11] = [
        -1.265_553_4,
        1.001_226_7,
        0.359_279_6,
        0.197_579_53,
        -0.607_022_3,
        1.410_113,
        -3.131_162,
        3.783_969_4,
        -2.477_984_4,
        0.850_717_07,
        -0.121_163_145,
    ];
    let one = s.splat(1.0);
    let zero = s.splat(0.0);
    let a = s.mul(s.max(x, s.sub(zero, x)), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = s.div(one, s.fma(a, s.splat(0.5), one));
    // a^2 from x: halving is exact, the factor of a is not.
    let exponent = s.fma(s.mul(x, s.splat(-0.5)), x, horner(s, t, Q));
    let tail = s.mul(s.mul(t, s.splat(0.5)), exp(s, exponent));
    s.mul(x, s.select(s.lt(x, zero), tail, s.sub(one, tail)))
}

#[cfg(test)]
mod tests {
    use super::super::isa::Isa;
    use super::super::simd::tests::for_each_isa;
    use super::super::simd::{DetectedIsa, Kernel, LANES, dispatch};
    use super::*;

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Ln,
        Silu,
        Gelu,
        GeluTanh,
    }

    struct Map<'a>(Function, &'a [f32]);

    impl Kernel for Map<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut out = Vec::new();
            for chunk in self.1.as_chunks::<LANES>().0 {
                let x = s.load_f32(chunk);
                let y = match self.0 {
                    Function::Exp => exp(s, x),
                    Function::Ln => ln(s, x),
                    Function::Silu => silu(s, x),
                    Function::Gelu => gelu(s, x),
                    Function::GeluTanh => gelu_tanh(s, x),
                };
                let mut lanes = [0.0; LANES];
                s.store_f32(y, &mut lanes);
                out.extend(lanes);
            }
            out
        }
    }

    /// Evenly spaced points, a multiple of the lanes.
    fn points(from: f64, to: f64) -> Vec<f32> {
        const COUNT: usize = 1 << 16;
        (0..COUNT).map(|i| (from + (to - from) * i as f64 / (COUNT - 1) as f64) as f32).collect()
    }

    /// Largest error in units of `2^-23` of the larger of the result and `floor`.
    fn worst(function: Function, xs: &[f32], floor: f64, oracle: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0f64;
        for isa in Isa::available() {
            let ys = dispatch(DetectedIsa::new(isa).unwrap(), Map(function, xs));
            for (&x, &y) in xs.iter().zip(&ys) {
                let expected = oracle(f64::from(x));
                worst =
                    worst.max((f64::from(y) - expected).abs() / expected.abs().max(floor) * 2f64.powi(23));
            }
        }
        worst
    }

    #[test]
    fn exp_is_within_its_bound() {
        for (from, to) in [(-87.0, 88.7), (-1.0, 1.0), (-20.0, 0.0)] {
            let error = worst(Function::Exp, &points(from, to), f64::from(f32::MIN_POSITIVE), f64::exp);
            assert!(error < 1.5, "{error} units on [{from}, {to}]");
        }
        // Subnormal results, in units of the smallest normal number's last place.
        assert!(worst(Function::Exp, &points(-110.0, -87.0), f64::from(f32::MIN_POSITIVE), f64::exp) < 1.5);
    }

    #[test]
    fn exp_at_the_ends() {
        let mut xs = [0.0; LANES];
        xs[..5].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1e30, 1e30]);
        for_each_isa(|isa| {
            let ys = dispatch(isa, Map(Function::Exp, &xs));
            assert_eq!((ys[0], ys[1], ys[3], ys[4], ys[5]), (0.0, f32::INFINITY, 0.0, f32::INFINITY, 1.0));
            assert!(ys[2].is_nan());
        });
    }

    #[test]
    fn ln_is_within_its_bound() {
        for (from, to) in [(1e-30, 1e-3), (1e-3, 0.7), (0.7, 1.5), (0.999, 1.001), (1.5, 1e6), (1e6, 3e38)] {
            let error = worst(Function::Ln, &points(from, to), f64::from(f32::MIN_POSITIVE), f64::ln);
            assert!(error < 2.0, "{error} units on [{from}, {to}]");
        }
    }

    #[test]
    fn activations_are_within_their_bounds() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let tanh = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        };
        // The slope of the exponential turns an error of one unit in its argument into |x| units.
        assert!(worst(Function::Silu, &points(-80.0, 80.0), 1e-30, silu) < 5.0);
        assert!(worst(Function::Silu, &points(-4.0, 4.0), 1e-30, silu) < 5.0);
        // Here the argument itself, up to 7, carries three roundings of half a unit each.
        assert!(worst(Function::GeluTanh, &points(-3.0, 8.0), 1e-3, tanh) < 5.0 + 7.0 * 1.5);
        // Here the exponent, up to 8, does; and terms of its polynomial, up to 4, cancel.
        assert!(worst(Function::Gelu, &points(-4.0, 4.0), 1e-3, |x| x * phi(x)) < 5.0 + 8.0 + 4.0);
        assert!(worst(Function::Gelu, &points(-1.0, 1.0), 1e-30, |x| x * phi(x)) < 5.0 + 4.0);
    }

    /// Normal distribution function: the Taylor series of the error function, which converges everywhere and
    /// loses at most `e^(x^2 / 2)` units of f64: nothing that matters up to 4.
    fn phi(x: f64) -> f64 {
        let a = x / std::f64::consts::SQRT_2;
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs().max(1e-300) && n < 400.0 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        0.5 + sum / std::f64::consts::PI.sqrt()
    }
}
