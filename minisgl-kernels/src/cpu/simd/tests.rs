//! Every operation on every instruction set against scalar code.

use super::*;
use crate::philox::philox4x32_10;

/// Runs a kernel on each instruction set of this machine.
pub(crate) fn for_each_isa(f: impl Fn(DetectedIsa)) {
    for isa in Isa::available() {
        f(DetectedIsa::new(isa).unwrap());
    }
}

/// Sixteen numbers of mixed sign and size.
fn numbers(seed: u32) -> [f32; LANES] {
    std::array::from_fn(|i| {
        let [a, b, ..] = philox4x32_10([i as u32, 0, 0, 0], [seed, 0]);
        (f64::from(a.cast_signed()) / f64::from(1 << 30)) as f32 * (2.0f32).powi((b % 20) as i32 - 10)
    })
}

fn words(seed: u32) -> [u32; LANES] {
    std::array::from_fn(|i| philox4x32_10([i as u32, 1, 0, 0], [seed, 0])[0])
}

struct Arithmetic(u32);

impl Kernel for Arithmetic {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, b, c) = (numbers(self.0), numbers(self.0 + 1), numbers(self.0 + 2));
        let (va, vb, vc) = (s.load_f32(&a), s.load_f32(&b), s.load_f32(&c));
        let out = |v: S::F| {
            let mut out = [0.0; LANES];
            s.store_f32(v, &mut out);
            out
        };
        assert_eq!(out(s.add(va, vb)), std::array::from_fn(|i| a[i] + b[i]));
        assert_eq!(out(s.sub(va, vb)), std::array::from_fn(|i| a[i] - b[i]));
        assert_eq!(out(s.mul(va, vb)), std::array::from_fn(|i| a[i] * b[i]));
        assert_eq!(out(s.div(va, vb)), std::array::from_fn(|i| a[i] / b[i]));
        assert_eq!(out(s.min(va, vb)), std::array::from_fn(|i| a[i].min(b[i])));
        assert_eq!(out(s.max(va, vb)), std::array::from_fn(|i| a[i].max(b[i])));
        assert_eq!(out(s.splat(a[3])), [a[3]; LANES]);
        let fused = out(s.fma(va, vb, vc));
        for i in 0..LANES {
            assert!(fused[i] == a[i].mul_add(b[i], c[i]) || fused[i] == a[i] * b[i] + c[i]);
        }
        let less = std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { c[i] });
        assert_eq!(out(s.select(s.lt(va, vb), va, vc)), less);
        let bits = (0..LANES).map(|i| u32::from(a[i] <= b[i]) << i).sum::<u32>();
        assert_eq!(s.mask_bits(s.le(va, vb)), bits);
        assert_eq!(s.mask_bits(s.le(va, va)), 0xffff);
        assert_eq!(s.mask_bits(s.lt(va, va)), 0);

        let mut tree = a;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                tree[i] += tree[i + half];
            }
        }
        assert_eq!(s.reduce_add(va), tree[0]);
        let vd = s.mul(va, vb);
        let singles = [s.reduce_add(va), s.reduce_add(vb), s.reduce_add(vc), s.reduce_add(vd)];
        assert_eq!(s.reduce_add4([va, vb, vc, vd]), singles);
        assert_eq!(s.reduce_max(va), a.into_iter().fold(f32::NEG_INFINITY, f32::max));

        let nan = s.splat(f32::NAN);
        assert!(out(s.max(va, nan)).iter().all(|x| x.is_nan()));
        assert!(out(s.min(va, nan)).iter().all(|x| x.is_nan()));
        assert_eq!(out(s.max(nan, va)), a);
    }
}

struct Integers(u32);

impl Kernel for Integers {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (a, b) = (words(self.0), words(self.0 + 1));
        let (va, vb) = (s.load_u32(&a), s.load_u32(&b));
        let out = |v: S::U| {
            let mut out = [0; LANES];
            s.store_u32(v, &mut out);
            out
        };
        assert_eq!(out(s.add_u32(va, vb)), std::array::from_fn(|i| a[i].wrapping_add(b[i])));
        assert_eq!(out(s.sub_u32(va, vb)), std::array::from_fn(|i| a[i].wrapping_sub(b[i])));
        assert_eq!(out(s.and(va, vb)), std::array::from_fn(|i| a[i] & b[i]));
        assert_eq!(out(s.xor(va, vb)), std::array::from_fn(|i| a[i] ^ b[i]));
        assert_eq!(out(s.shl::<5>(va)), a.map(|x| x << 5));
        assert_eq!(out(s.shr::<9>(va)), a.map(|x| x >> 9));
        assert_eq!(out(s.sar::<9>(va)), a.map(|x| (x.cast_signed() >> 9).cast_unsigned()));
        assert_eq!(out(s.splat_u32(a[1])), [a[1]; LANES]);
        assert_eq!(out(s.f32_to_bits(s.bits_to_f32(va))), a);
        let (high, low) = s.mul_wide(va, vb);
        let wide = |i: usize| u64::from(a[i]) * u64::from(b[i]);
        assert_eq!(out(high), std::array::from_fn(|i| (wide(i) >> 32) as u32));
        assert_eq!(out(low), std::array::from_fn(|i| wide(i) as u32));
        let mut floats = [0.0; LANES];
        s.store_f32(s.i32_to_f32(va), &mut floats);
        assert_eq!(floats, a.map(|x| x.cast_signed() as f32));
    }
}

struct Shapes;

impl Kernel for Shapes {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows: [[f32; LANES]; LANES] =
            std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
        let columns = s.transpose(rows.map(|row| s.load_f32(&row)));
        for (j, column) in columns.into_iter().enumerate() {
            let mut out = [0.0; LANES];
            s.store_f32(column, &mut out);
            assert_eq!(out, std::array::from_fn(|i| rows[i][j]));
        }
        for len in 0..=LANES {
            let src: Vec<bf16> = (0..len).map(|i| bf16::from_f32(i as f32 + 1.0)).collect();
            let v = load_partial(s, &src);
            let mut out = [f32::NAN; LANES];
            s.store_f32(v, &mut out);
            assert_eq!(out, std::array::from_fn(|i| if i < len { i as f32 + 1.0 } else { 0.0 }));
            let mut back = vec![bf16::NAN; len];
            store_partial(s, v, &mut back);
            assert_eq!(back, src);
        }
        let mut out = [0.0; LANES];
        for n in [-300, -160, -149, -127, -126, -1, 0, 1, 64, 127, 128, 300] {
            for x in [1.0f32, -1.5] {
                s.store_f32(s.ldexp(s.splat(x), s.splat(n as f32)), &mut out);
                assert_eq!(out[0], (f64::from(x) * 2f64.powi(n)) as f32, "{x} * 2^{n}");
            }
        }
    }
}

/// Every bf16 and f16 value, and f32 values around every rounding border.
struct Conversions;

impl Kernel for Conversions {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut wide = [0.0f32; LANES];
        for base in (0..=u16::MAX).step_by(LANES) {
            let bits: [u16; LANES] = std::array::from_fn(|i| base + i as u16);
            s.store_f32(s.load_bf16(&bits.map(bf16::from_bits)), &mut wide);
            for i in 0..LANES {
                assert_eq!(wide[i].to_bits(), u32::from(bits[i]) << 16);
            }
            s.store_f32(s.load_f16(&bits.map(f16::from_bits)), &mut wide);
            for i in 0..LANES {
                let expected = f16::from_bits(bits[i]).to_f32();
                assert!(wide[i] == expected || wide[i].is_nan() && expected.is_nan());
            }
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = bits.map(|b| f32::from_bits(u32::from(b) << 16 | low));
                let mut narrow = [bf16::ZERO; LANES];
                s.store_bf16(s.load_f32(&x), &mut narrow);
                let mut half = [f16::ZERO; LANES];
                s.store_f16(s.load_f32(&x), &mut half);
                for i in 0..LANES {
                    assert_eq!(narrow[i].to_bits(), bf16::from_f32(x[i]).to_bits(), "{:#x}", x[i].to_bits());
                    let expected = f16::from_f32(x[i]);
                    assert!(half[i].to_bits() == expected.to_bits() || half[i].is_nan() && expected.is_nan());
                }
            }
        }
    }
}

#[test]
fn arithmetic() {
    for seed in 0..100 {
        for_each_isa(|isa| dispatch(isa, Arithmetic(seed)));
    }
}

#[test]
fn integers() {
    for seed in 0..100 {
        for_each_isa(|isa| dispatch(isa, Integers(seed)));
    }
}

#[test]
fn shapes() {
    for_each_isa(|isa| dispatch(isa, Shapes));
}

#[test]
fn conversions() {
    for_each_isa(|isa| dispatch(isa, Conversions));
}

struct DotPairs;

impl KernelBf16 for DotPairs {
    #[inline(always)]
    fn run<S: SimdBf16>(self, s: S) {
        let a: [bf16; 32] = std::array::from_fn(|i| bf16::from_f32(i as f32 - 7.0));
        let b: [bf16; 32] = std::array::from_fn(|i| bf16::from_f32(3.0 - i as f32));
        let base = s.base();
        let dot = s.dot_pairs(base.splat(0.5), s.load_pairs(&a), s.load_pairs(&b));
        let mut out = [0.0; LANES];
        base.store_f32(dot, &mut out);
        let term = |i: usize| a[i].to_f32() * b[i].to_f32();
        assert_eq!(out, std::array::from_fn(|i| 0.5 + term(2 * i) + term(2 * i + 1)));
    }
}

#[test]
fn dot_of_pairs() {
    for_each_isa(|isa| {
        let ran = dispatch_bf16(isa, DotPairs).is_ok();
        assert_eq!(ran, isa.isa() == Isa::Avx512Bf16);
    });
}
