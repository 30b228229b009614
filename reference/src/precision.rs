/// How numbers are kept between the steps of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Nothing is rounded: the oracle.
    F64,
    /// Intermediates stored as f32, sums in f32.
    F32,
    /// Intermediates stored as f16, sums in f32.
    F16,
    /// Intermediates stored as bf16, sums in f32.
    Bf16,
}

impl Precision {
    /// Every precision, most exact first.
    pub const ALL: [Precision; 4] = [Precision::F64, Precision::F32, Precision::F16, Precision::Bf16];

    /// Rounds a value that is written to memory: to nearest, ties to even, overflow to infinity.
    pub fn store(self, x: f64) -> f64 {
        match self {
            Precision::F64 => x,
            Precision::F32 => f64::from(x as f32),
            Precision::F16 => round_to_format(x, 11, -14, 65504.0),
            Precision::Bf16 => round_to_format(x, 8, -126, 3.389_531_389_251_535_5e38),
        }
    }

    /// Rounds a value that stays in a register: to f32, whatever the storage.
    pub fn register(self, x: f64) -> f64 {
        match self {
            Precision::F64 => x,
            _ => f64::from(x as f32),
        }
    }

    /// Rounds every element as [`store`](Self::store) does.
    pub fn store_all(self, x: &mut [f64]) {
        for v in x {
            *v = self.store(*v);
        }
    }

    /// `sum_i a[i] * b[i]`: exact products added in order, in f32 unless this is `F64`.
    pub fn dot<A: Real, B: Real>(self, a: &[A], b: &[B]) -> f64 {
        assert_eq!(a.len(), b.len(), "dot of different lengths");
        if self == Precision::F64 {
            return dot_f64(a, b);
        }
        let sum = a.iter().zip(b).fold(0f32, |sum, (&a, &b)| (f64::from(sum) + a.into() * b.into()) as f32);
        f64::from(sum)
    }

    /// `sum_i x[i]` in order.
    pub fn sum(self, x: impl IntoIterator<Item = f64>) -> f64 {
        x.into_iter().fold(0.0, |sum, x| self.register(sum + x))
    }
}

/// Eight partial sums, so that the compiler may use SIMD: a whole model is recomputed for every token.
fn dot_f64<A: Real, B: Real>(a: &[A], b: &[B]) -> f64 {
    let mut lanes = [0f64; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let mut sum: f64 = tail.map(|(&a, &b)| a.into() * b.into()).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            lanes[i] += a[i].into() * b[i].into();
        }
    }
    for lane in lanes {
        sum += lane;
    }
    sum
}

/// Rounds to a binary format of `digits` significant bits whose smallest normal number is `2^min_exponent`.
fn round_to_format(x: f64, digits: i32, min_exponent: i32, max: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let quantum = 2f64.powi(exponent.max(min_exponent) - (digits - 1));
    let rounded = (x / quantum).round_ties_even() * quantum;
    if rounded.abs() > max { f64::INFINITY.copysign(x) } else { rounded }
}

/// A number that an op can read: f32 or f64.
pub trait Real: Copy + Into<f64> {}
impl Real for f32 {}
impl Real for f64 {}

/// The elements as f64.
pub fn to_f64<T: Real>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_value_is_kept_and_midpoints_go_to_even() {
        for bits in 0..=u16::MAX {
            let (bf16, f16) = (half::bf16::from_bits(bits), half::f16::from_bits(bits));
            for (precision, value, next) in [
                (Precision::Bf16, bf16.to_f64(), half::bf16::from_bits(bits.wrapping_add(1)).to_f64()),
                (Precision::F16, f16.to_f64(), half::f16::from_bits(bits.wrapping_add(1)).to_f64()),
            ] {
                if value.is_nan() {
                    assert!(precision.store(value).is_nan());
                    continue;
                }
                assert_eq!(precision.store(value), value, "{precision:?} {bits:#x}");
                if bits & 0x7fff == 0x7fff || !next.is_finite() || !value.is_finite() {
                    continue;
                }
                let (middle, even) = ((value + next) / 2.0, if bits % 2 == 0 { value } else { next });
                assert_eq!(precision.store(middle), even, "{precision:?} {bits:#x}");
                let (above, beyond) = (middle + (next - value) * 1e-9, middle - (next - value) * 1e-9);
                assert_eq!(precision.store(above), next, "{precision:?} {bits:#x}");
                assert_eq!(precision.store(beyond), value, "{precision:?} {bits:#x}");
            }
        }
    }

    #[test]
    fn overflow_is_infinite() {
        assert_eq!(Precision::F16.store(65519.9), 65504.0);
        assert_eq!(Precision::F16.store(65520.0), f64::INFINITY);
        assert_eq!(Precision::Bf16.store(-3.4e38), f64::NEG_INFINITY);
        assert_eq!(Precision::F32.store(1e39), f64::INFINITY);
    }

    #[test]
    fn dot_agrees_with_a_plain_loop() {
        for n in [0, 1, 7, 8, 9, 40] {
            let a: Vec<f64> = (0..n).map(|i| 0.5 + f64::from(i)).collect();
            let b: Vec<f32> = (0..n).map(|i| 3.0 - i as f32).collect();
            let plain: f64 = (0..n as usize).map(|i| a[i] * f64::from(b[i])).sum();
            assert_eq!(Precision::F64.dot(&a, &b), plain);
            assert_eq!(Precision::Bf16.dot(&a, &b), plain, "small integers and halves are exact in f32");
        }
        let (ones, tiny) = ([1.0, 1.0], [1.0, 1e-9]);
        assert_eq!(Precision::F32.dot(&ones, &tiny), 1.0);
        assert_eq!(Precision::F64.dot(&ones, &tiny), 1.0 + 1e-9);
    }
}
