use std::f64::consts::PI;

use crate::Precision;

/// Rotary position embedding (Su et al. 2021): what a model's `config.json` says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Elements of a head, all of which are rotated: even.
    pub head_dim: usize,
    /// `rope_theta`.
    pub theta: f64,
    /// How positions past the trained length are reached.
    pub scaling: RopeScaling,
}

/// The scaling types of Hugging Face `config.json` files, with the parameter names used there.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Position interpolation (Chen et al. 2023): every frequency divided by `factor`.
    Linear {
        /// How much longer than trained.
        factor: f64,
    },
    /// Dynamic NTK: the base grows with the length once it passes the trained one. Position `p` takes the base
    /// of a sequence of `p + 1` tokens, so that its rotation depends on nothing but itself.
    Dynamic {
        /// How much longer than trained.
        factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// How much longer than trained.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023), with the factor on cosines and sines that stands for its attention temperature.
    Yarn {
        /// How much longer than trained.
        factor: f64,
        /// The trained length.
        original_max_position_embeddings: usize,
        /// Factor on cosines and sines; by default `0.1 * ln(factor) + 1`, or what the two mscales say.
        attention_factor: Option<f64>,
        /// Frequencies that turn at least this often over the trained length are kept; by default 32.
        beta_fast: Option<f64>,
        /// Frequencies that turn at most this often are divided by `factor`; by default 1.
        beta_slow: Option<f64>,
        /// With `mscale_all_dim`: numerator of the attention factor (DeepSeek).
        mscale: Option<f64>,
        /// With `mscale`: denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the borders of the blend are whole dimensions; by default yes.
        truncate: bool,
    },
}

impl RopeSpec {
    /// The `head_dim / 2` angular frequencies that rotate `position`, fastest first.
    ///
    /// These are numbers of f32, made by f32 arithmetic: a model was trained with what PyTorch computes, not with
    /// what the formula says.
    pub fn frequencies(&self, position: usize) -> Vec<f64> {
        let plain = |theta: f64| -> Vec<f64> {
            let exponent = |i: usize| store(2.0 * i as f64 / self.head_dim as f64);
            (0..self.head_dim / 2).map(|i| store(1.0 / store(store(theta).powf(exponent(i))))).collect()
        };
        match self.scaling {
            RopeScaling::Default => plain(self.theta),
            RopeScaling::Linear { factor } => {
                plain(self.theta).iter().map(|f| store(f / store(factor))).collect()
            }
            RopeScaling::Dynamic { factor, original_max_position_embeddings } => {
                let original = original_max_position_embeddings as f64;
                let len = (position as f64 + 1.0).max(original);
                let dim = self.head_dim as f64;
                plain(self.theta * (factor * len / original - (factor - 1.0)).powf(dim / (dim - 2.0)))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let blend = |frequency: f64| {
                    let turns = original_max_position_embeddings as f64 * frequency / (2.0 * PI);
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    store((1.0 - kept) * frequency / factor + kept * frequency)
                };
                plain(self.theta).into_iter().map(blend).collect()
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let dim = self.head_dim as f64;
                // The dimension whose frequency turns `turns` times over the trained length.
                let dimension = |turns: f64| {
                    let ratio = original_max_position_embeddings as f64 / (turns * 2.0 * PI);
                    dim * ratio.ln() / (2.0 * self.theta.ln())
                };
                let mut low = dimension(beta_fast.unwrap_or(32.0));
                let mut high = dimension(beta_slow.unwrap_or(1.0));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                low = low.max(0.0);
                high = high.min(dim - 1.0);
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, frequency): (usize, f64)| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    store(frequency / factor * divided + frequency * (1.0 - divided))
                };
                plain(self.theta).into_iter().enumerate().map(blend).collect()
            }
        }
    }

    /// The factor on every cosine and sine: 1 but for YaRN.
    pub fn attention_factor(&self) -> f64 {
        let RopeScaling::Yarn { factor, attention_factor, mscale, mscale_all_dim, .. } = self.scaling else {
            return 1.0;
        };
        let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        // As in Python, where a scale of 0 is as good as none.
        let scales = mscale.zip(mscale_all_dim).filter(|&(m, all)| m != 0.0 && all != 0.0);
        attention_factor
            .unwrap_or_else(|| scales.map_or(temperature(1.0), |(m, all)| temperature(m) / temperature(all)))
    }

    /// `[head_dim]`: the cosines of the `head_dim / 2` angles of `position`, then the sines. The angles are numbers of
    /// f32, too.
    pub fn cos_sin(&self, position: usize) -> Vec<f64> {
        let factor = self.attention_factor();
        let angle = |frequency: f64| store(frequency * position as f64);
        let angles: Vec<f64> = self.frequencies(position).into_iter().map(angle).collect();
        let (cos, sin) = (angles.iter().map(|a| factor * a.cos()), angles.iter().map(|a| factor * a.sin()));
        cos.chain(sin).collect()
    }

    /// `[max_position, head_dim]`: [`cos_sin`](Self::cos_sin) of each position from 0 on.
    pub fn table(&self, max_position: usize) -> Vec<f64> {
        (0..max_position).flat_map(|position| self.cos_sin(position)).collect()
    }
}

/// Rounds to f32.
fn store(x: f64) -> f64 {
    Precision::F32.store(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(head_dim: usize, theta: f64, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { head_dim, theta, scaling }
    }

    fn yarn(factor: f64, truncate: bool) -> RopeScaling {
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: 4096,
            attention_factor: None,
            beta_fast: None,
            beta_slow: None,
            mscale: None,
            mscale_all_dim: None,
            truncate,
        }
    }

    /// The last steps of a frequency are a handful of f32 operations, each off by half a unit in the last place; an
    /// exponent's error grows by the logarithm of theta, here up to 14, and again by half a unit.
    #[track_caller]
    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let allowed = (0.5 * 14.0 + 0.5 * 5.0) * f64::from(f32::EPSILON) * expected.abs();
            assert!((found - expected).abs() <= allowed, "{found} is not {expected}");
        }
    }

    /// Each literal below is from a Python transcription of the formulas of `modeling_rope_utils.py`.
    #[test]
    fn frequencies_known_answers() {
        assert_close(&spec(8, 1e4, RopeScaling::Default).frequencies(5), &[1.0, 0.1, 0.01, 0.001]);
        assert_close(
            &spec(8, 1e4, RopeScaling::Linear { factor: 4.0 }).frequencies(5),
            &[0.25, 0.025, 0.0025, 0.00025],
        );
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_close(
            &spec(16, 5e5, llama3).frequencies(0),
            &[
                1.0,
                0.193_922_744_748_685_76,
                0.037_606_030_930_863_93,
                0.007_292_664_737_217_109,
                0.000_429_556_796_559_368_15,
                8.570_255_489_881_478e-6,
                1.661_967_467_795_308_8e-6,
                3.222_932_930_378_893_6e-7,
            ],
        );
        assert_close(
            &spec(16, 1e6, yarn(4.0, true)).frequencies(0),
            &[
                1.0,
                0.177_827_941_003_892_26,
                0.023_717_082_451_262_85,
                0.002_811_706_625_951_745_5,
                0.000_25,
                4.445_698_525_097_307e-5,
                7.905_694_150_420_949e-6,
                1.405_853_312_975_872_8e-6,
            ],
        );
        assert_close(
            &spec(16, 1e6, yarn(4.0, false)).frequencies(0)[2..4],
            &[0.028_613_608_811_988_9, 0.002_986_734_511_777_551_3],
        );
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 100 };
        assert_close(
            &spec(8, 1e4, dynamic.clone()).frequencies(149),
            &[1.0, 0.079_370_052_598_409_97, 0.006_299_605_249_474_365, 0.000_5],
        );
        assert_close(&spec(8, 1e4, dynamic).frequencies(99), &[1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn attention_factor_known_answers() {
        assert_eq!(spec(16, 1e6, RopeScaling::Default).attention_factor(), 1.0);
        assert_close(&[spec(16, 1e6, yarn(4.0, true)).attention_factor()], &[1.138_629_436_111_989]);
        let with = |attention_factor, mscale, mscale_all_dim| RopeScaling::Yarn {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            attention_factor,
            beta_fast: None,
            beta_slow: None,
            mscale,
            mscale_all_dim,
            truncate: true,
        };
        let factor = |scaling| spec(16, 1e6, scaling).attention_factor();
        assert_close(&[factor(with(None, Some(1.0), Some(0.5)))], &[1.155_721_990_196_260_8]);
        assert_close(&[factor(with(Some(0.5), Some(1.0), Some(0.5)))], &[0.5]);
        assert_close(&[factor(with(None, Some(0.707), None))], &[0.1 * 40f64.ln() + 1.0]);
    }

    #[test]
    fn factor_one_is_no_scaling() {
        let plain = spec(64, 1e4, RopeScaling::Default);
        let llama3 = RopeScaling::Llama3 {
            factor: 1.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 128,
        };
        let dynamic = RopeScaling::Dynamic { factor: 1.0, original_max_position_embeddings: 1 << 20 };
        for scaling in [yarn(1.0, true), RopeScaling::Linear { factor: 1.0 }, llama3, dynamic] {
            let scaled = spec(64, 1e4, scaling);
            assert_eq!(scaled.attention_factor(), 1.0);
            assert_close(&scaled.frequencies(77), &plain.frequencies(77));
        }
    }

    #[test]
    fn cosines_come_before_sines() {
        let row = spec(4, 1e4, RopeScaling::Default).cos_sin(3);
        assert_close(&row, &[3f64.cos(), 0.03f64.cos(), 3f64.sin(), 0.03f64.sin()]);
        let table = spec(4, 1e4, RopeScaling::Default).table(4);
        assert_close(&table[12..], &row);
        assert_eq!(table[..4], [1.0, 1.0, 0.0, 0.0]);
    }
}
