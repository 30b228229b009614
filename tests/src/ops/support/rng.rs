/// Reproducible random numbers (SplitMix64: Steele, Lea, Flood, OOPSLA 2014, section 3).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A stream of its own for every `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; the bias of the remainder is of no matter here.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in (0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / 2f64.powi(53)
    }

    /// True with probability `p`.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box, Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * self.unit().ln()).sqrt(), std::f64::consts::TAU * self.unit());
        radius * angle.cos()
    }

    /// `n` activations: standard normal, one in a hundred of them an outlier ten times as large.
    pub(crate) fn activations(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal() * if self.chance(0.01) { 10.0 } else { 1.0 }).collect()
    }

    /// `n` numbers, normal with deviation `std`.
    pub(crate) fn normals(&mut self, n: usize, mean: f64, std: f64) -> Vec<f64> {
        (0..n).map(|_| mean + std * self.normal()).collect()
    }

    /// `n` different numbers from `0..limit` in random order.
    pub(crate) fn distinct(&mut self, n: usize, limit: usize) -> Vec<u32> {
        assert!(n <= limit, "{n} different numbers below {limit}");
        let mut all: Vec<u32> = (0..limit as u32).collect();
        for i in 0..n {
            let j = i + self.below(limit - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }
}
