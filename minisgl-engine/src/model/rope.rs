//! Rotary position embedding: which frequencies a configuration asks for, and the table of cosines and sines.
//!
//! The formulas are those of the papers, with the parameter names and defaults of Hugging Face's files: linear
//! (Chen et al. 2023), dynamic NTK (a reddit post by bloc97, 2023), YaRN (Peng et al. 2023), Llama 3 (its
//! technical report, 2024).

use std::f64::consts::PI;

use super::fields::Fields;
use crate::{EngineError, Result};

/// The rotary embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// Ratio of the new length to the trained one.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than the trained length. The angles of position `p` are
    /// those of a sequence of `p + 1` tokens, so that they do not depend on how a prompt is cut into chunks.
    Dynamic {
        /// Ratio of the new length to the trained one.
        factor: f64,
        /// The trained length.
        original_max_position: usize,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between interpolated; queries and keys are
    /// scaled by `attention_factor`.
    Yarn {
        /// Ratio of the new length to the trained one.
        factor: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Rotations over the trained length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided by `factor`.
        beta_slow: f64,
        /// The trained length.
        original_max_position: usize,
        /// Whether the borders are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// As YaRN with borders by wave length and without the attention factor.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wave lengths over `original / low_freq_factor` are divided by `factor`.
        low_freq_factor: f64,
        /// Wave lengths under `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained length.
        original_max_position: usize,
    },
}

const SUPPORTED: &str = "default, linear, dynamic, yarn and llama3";

impl RopeSpec {
    /// Reads `rope_parameters` (new spelling) or `rope_theta` with `rope_scaling` (old).
    pub(super) fn read(config: &Fields<'_>, max_position: usize) -> Result<Self> {
        let (name, value) = match (config.get("rope_parameters"), config.get("rope_scaling")) {
            (Some(value), _) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => {
                let theta = config.positive("rope_theta")?.unwrap_or(10_000.0);
                return Ok(Self { theta, scaling: RopeScaling::Default });
            }
        };
        let place = format!("{}: {name}", config.place);
        let rope = Fields::of(&place, value)?;
        let theta = match rope.positive("rope_theta")? {
            Some(theta) => theta,
            None => config.positive("rope_theta")?.unwrap_or(10_000.0),
        };
        let partial = rope.positive("partial_rotary_factor")?.or(config.positive("partial_rotary_factor")?);
        if partial.is_some_and(|share| share != 1.0) {
            return Err(EngineError::Model(format!(
                "{place}: partial_rotary_factor {} is not supported, only 1",
                partial.unwrap_or_default()
            )));
        }
        // Old files say `type`.
        let kind = match rope.text("rope_type")? {
            Some(kind) => kind,
            None => rope.text("type")?.unwrap_or("default"),
        };
        let scaling = RopeScaling::read(kind, &rope, max_position)?;
        Ok(Self { theta, scaling })
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// The `head_dim / 2` angular frequencies at `position`.
    ///
    /// Every step is rounded to f32, in the order of PyTorch's code: the models were trained with these numbers, and
    /// for a head size that is no power of two they are some units in the last place away from the exact ones, which
    /// the position multiplies.
    pub fn frequencies(&self, head_dim: usize, position: usize) -> Vec<f32> {
        match self.scaling {
            RopeScaling::Default => periods(self.theta, head_dim).map(|p| 1.0 / p).collect(),
            RopeScaling::Linear { factor } => {
                periods(self.theta, head_dim).map(|p| 1.0 / p / factor as f32).collect()
            }
            RopeScaling::Dynamic { factor, original_max_position } => {
                let grown = (position + 1).max(original_max_position) as f64 / original_max_position as f64;
                let dim = head_dim as f64;
                let theta = self.theta * (factor * grown - (factor - 1.0)).powf(dim / (dim - 2.0));
                periods(theta, head_dim).map(|p| 1.0 / p).collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position, truncate, .. } => {
                let dim = head_dim as f64;
                let border = |rotations: f64| {
                    dim * (original_max_position as f64 / (rotations * 2.0 * PI)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (border(beta_fast), border(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let scale = |(i, period): (usize, f32)| {
                    let ramp = (i as f32 - low as f32) / (high - low) as f32;
                    let keep = 1.0 - ramp.clamp(0.0, 1.0);
                    1.0 / (factor as f32 * period) * (1.0 - keep) + 1.0 / period * keep
                };
                periods(self.theta, head_dim).enumerate().map(scale).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let original = original_max_position as f64;
                let scale = |period: f32| {
                    let frequency = 1.0 / period;
                    let wave_len = (2.0 * PI) as f32 / frequency;
                    if wave_len < (original / high_freq_factor) as f32 {
                        frequency
                    } else if wave_len > (original / low_freq_factor) as f32 {
                        frequency / factor as f32
                    } else {
                        let keep = (original as f32 / wave_len - low_freq_factor as f32)
                            / (high_freq_factor - low_freq_factor) as f32;
                        (1.0 - keep) * frequency / factor as f32 + keep * frequency
                    }
                };
                periods(self.theta, head_dim).map(scale).collect()
            }
        }
    }

    /// The table for positions `0..max_position`: a row of `head_dim` f32, cosines then sines.
    ///
    /// Angles are rounded to f32 before the cosine, as PyTorch does: at long contexts that rounding is larger than
    /// the cosine's own, and the models were trained with it.
    pub fn table(&self, head_dim: usize, max_position: usize) -> Vec<f32> {
        let half = head_dim / 2;
        let factor = self.attention_factor() as f32;
        let mut table = vec![0.0; max_position * head_dim];
        let fixed = self.frequencies(head_dim, 0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows_each = max_position.div_ceil(threads).max(1024);
        std::thread::scope(|scope| {
            for (part, rows) in table.chunks_mut(rows_each * head_dim).enumerate() {
                let fixed = &fixed;
                scope.spawn(move || {
                    for (i, row) in rows.chunks_exact_mut(head_dim).enumerate() {
                        let position = part * rows_each + i;
                        let moving = self.moves_at(position).then(|| self.frequencies(head_dim, position));
                        let frequencies = moving.as_ref().unwrap_or(fixed);
                        let (cos, sin) = row.split_at_mut(half);
                        for ((cos, sin), &frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
                            let angle = f64::from(position as f32 * frequency);
                            *cos = angle.cos() as f32 * factor;
                            *sin = angle.sin() as f32 * factor;
                        }
                    }
                });
            }
        });
        table
    }

    /// Whether the frequencies at `position` differ from those at 0.
    fn moves_at(&self, position: usize) -> bool {
        match self.scaling {
            RopeScaling::Dynamic { original_max_position, .. } => position >= original_max_position,
            _ => false,
        }
    }
}

/// `theta^(2 i / head_dim)`.
fn periods(theta: f64, head_dim: usize) -> impl Iterator<Item = f32> {
    let theta = f64::from(theta as f32);
    (0..head_dim / 2).map(move |i| theta.powf(f64::from((2 * i) as f32 / head_dim as f32)) as f32)
}

impl RopeScaling {
    fn read(kind: &str, rope: &Fields<'_>, max_position: usize) -> Result<Self> {
        let factor = || rope.positive("factor")?.ok_or_else(|| rope.error("factor", "a number above 0"));
        let original = || rope.size("original_max_position_embeddings");
        Ok(match kind {
            "default" => Self::Default,
            "linear" => Self::Linear { factor: factor()? },
            // The trained length is the model's, also where the file holds an original one.
            "dynamic" => Self::Dynamic { factor: factor()?, original_max_position: max_position },
            "yarn" => {
                let original_max_position = original()?.unwrap_or(max_position);
                let factor = match rope.positive("factor")? {
                    Some(factor) => factor,
                    None => max_position as f64 / original_max_position as f64,
                };
                Self::Yarn {
                    factor,
                    attention_factor: yarn_attention_factor(rope, factor)?,
                    beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                    original_max_position,
                    truncate: rope.flag("truncate", true)?,
                }
            }
            "llama3" => {
                let need = |name| rope.positive(name)?.ok_or_else(|| rope.error(name, "a number above 0"));
                Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor: need("low_freq_factor")?,
                    high_freq_factor: need("high_freq_factor")?,
                    original_max_position: original()?.unwrap_or(max_position),
                }
            }
            _ => {
                return Err(EngineError::Model(format!(
                    "{}: rope type '{kind}' is not supported; supported are {SUPPORTED}",
                    rope.place
                )));
            }
        })
    }
}

/// YaRN's temperature on attention (Peng et al. 2023, section 3.4), as a factor on cosines and sines.
fn yarn_attention_factor(rope: &Fields<'_>, factor: f64) -> Result<f64> {
    if let Some(given) = rope.positive("attention_factor")? {
        return Ok(given);
    }
    let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    Ok(match (rope.number("mscale")?, rope.number("mscale_all_dim")?) {
        (Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
        _ => mscale(1.0),
    })
}
