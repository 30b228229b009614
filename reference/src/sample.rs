use crate::{Real, gumbel};

/// How to draw a token from logits.
///
/// In this order: penalties on the logits (repetition, then frequency, then presence), `softmax(logits /
/// temperature)`, top-k, top-p on what top-k left (renormalised), min-p relative to the largest probability.
/// Tokens that tie with the last one kept by top-k or top-p are kept too. The draw is Gumbel-max: the largest
/// `logit / temperature + gumbel(seed, position, token)` over the kept tokens, ties to the lowest id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// 0 is greedy: the arg max, ties to the lowest id.
    pub temperature: f64,
    /// Below 1: off. 1 is greedy.
    pub top_k: i32,
    /// In (0, 1]; 1 is off.
    pub top_p: f64,
    /// In [0, 1]; 0 is off.
    pub min_p: f64,
    /// Subtracted from the logit of each token generated at least once.
    pub presence_penalty: f64,
    /// Subtracted from a token's logit once for each time that it was generated.
    pub frequency_penalty: f64,
    /// Divides a positive logit and multiplies a negative one, for each token of the prompt or the output.
    pub repetition_penalty: f64,
    /// Key of the random numbers.
    pub seed: u64,
    /// Counter of the random numbers.
    pub position: u32,
}

impl SampleParams {
    /// Plain sampling at temperature 1.
    pub const PLAIN: SampleParams = SampleParams {
        temperature: 1.0,
        top_k: -1,
        top_p: 1.0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
        position: 0,
    };

    /// Whether no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }
}

/// The logits after penalties (repetition: Keskar et al. 2019, section 4.1; the others: the OpenAI definitions).
/// NaN becomes minus infinity.
pub fn penalized_logits<T: Real>(
    logits: &[T],
    prompt: &[u32],
    generated: &[u32],
    params: &SampleParams,
) -> Vec<f64> {
    let mut counts = vec![0u32; logits.len()];
    let mut seen = vec![false; logits.len()];
    for &token in generated {
        counts[token as usize] += 1;
        seen[token as usize] = true;
    }
    for &token in prompt {
        seen[token as usize] = true;
    }
    let penalize = |(token, &logit): (usize, &T)| {
        let mut logit: f64 = logit.into();
        if logit.is_nan() {
            return f64::NEG_INFINITY;
        }
        if seen[token] && logit > 0.0 {
            logit /= params.repetition_penalty;
        } else if seen[token] {
            logit *= params.repetition_penalty;
        }
        logit -= params.frequency_penalty * f64::from(counts[token]);
        if counts[token] > 0 { logit - params.presence_penalty } else { logit }
    };
    logits.iter().enumerate().map(penalize).collect()
}

/// Which tokens top-k, top-p and min-p keep of penalised `logits`.
///
/// With `slack` of 0 the exact set. With a positive slack, every token that an implementation may keep whose
/// scaled logits are off by that share of `1 + |logit / temperature|` and whose masses are off by `slack`; with a
/// negative one only the tokens that each such implementation must keep.
pub fn kept(logits: &[f64], params: &SampleParams, slack: f64) -> Vec<bool> {
    let scaled: Vec<f64> = logits.iter().map(|l| l / params.temperature).collect();
    let raised = |z: f64| if z == f64::NEG_INFINITY { z } else { z + slack * (1.0 + z.abs()) };
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sorted = scaled.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted.retain(|&z| z > f64::NEG_INFINITY);
    if sorted.is_empty() {
        return vec![false; logits.len()];
    }

    let top_k = if params.top_k < 1 { sorted.len() } else { sorted.len().min(params.top_k as usize) };
    let kth = sorted[top_k - 1];
    sorted.retain(|&z| raised(z) >= kth);
    let total: f64 = sorted.iter().map(|z| (z - max).exp()).sum();
    // mass[i]: the probability, after top-k, of the i largest.
    let mut mass = vec![0.0];
    for z in &sorted {
        mass.push(mass[mass.len() - 1] + (z - max).exp() / total);
    }
    let keep = |&z: &f64| {
        if z == f64::NEG_INFINITY {
            return false;
        }
        // The smallest set of the largest probabilities that reaches top_p, with ties: the tokens with less
        // than top_p strictly above them.
        let above = sorted.partition_point(|&other| other > raised(z));
        z == max
            || raised(z) >= kth
                && (params.top_p >= 1.0 || mass[above] < params.top_p + slack)
                && (params.min_p <= 0.0 || raised(z) >= max + params.min_p.ln())
    };
    scaled.iter().map(keep).collect()
}

/// The probability of each token: a point mass for a greedy draw, all zeros where no logit is finite.
pub fn distribution(logits: &[f64], params: &SampleParams) -> Vec<f64> {
    if params.is_greedy() {
        let best = crate::argmax(logits);
        return (0..logits.len()).map(|i| f64::from(u8::from(Some(i as u32) == best))).collect();
    }
    let kept = kept(logits, params, 0.0);
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |(logit, kept): (&f64, &bool)| {
        if *kept { ((logit - max) / params.temperature).exp() } else { 0.0 }
    };
    let weights: Vec<f64> = logits.iter().zip(&kept).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| if sum > 0.0 { w / sum } else { 0.0 }).collect()
}

/// `logit / temperature + gumbel` of each token, kept or not.
pub fn scores(logits: &[f64], params: &SampleParams) -> Vec<f64> {
    let score = |(token, logit): (usize, &f64)| {
        logit / params.temperature + gumbel(params.seed, params.position, token as u32)
    };
    logits.iter().enumerate().map(score).collect()
}

/// Draws a token from penalised `logits`; none where no logit is finite.
pub fn draw(logits: &[f64], params: &SampleParams) -> Option<u32> {
    if params.is_greedy() {
        return crate::argmax(logits);
    }
    let kept = kept(logits, params, 0.0);
    let scores = scores(logits, params);
    let kept_scores: Vec<f64> =
        scores.iter().zip(&kept).map(|(&s, &kept)| if kept { s } else { f64::NEG_INFINITY }).collect();
    crate::argmax(&kept_scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: SampleParams = SampleParams::PLAIN;

    fn ln(probs: &[f64]) -> Vec<f64> {
        probs.iter().map(|p| p.ln()).collect()
    }

    #[track_caller]
    fn assert_distribution(probs: &[f64], params: SampleParams, expected: &[f64]) {
        let found = distribution(&ln(probs), &params);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        }
    }

    #[test]
    fn penalties_by_hand() {
        let params =
            SampleParams { presence_penalty: 0.5, frequency_penalty: 0.25, repetition_penalty: 2.0, ..P };
        let found = penalized_logits(&[4f64, -4.0, 4.0, -4.0, 1.0, f64::NAN], &[0, 1], &[2, 3, 3], &params);
        assert_eq!(found, [2.0, -8.0, 1.25, -9.0, 1.0, f64::NEG_INFINITY]);
    }

    #[test]
    fn temperature_is_a_power() {
        assert_distribution(
            &[0.5, 0.25, 0.25],
            SampleParams { temperature: 0.5, ..P },
            &[2.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0],
        );
        assert_distribution(&[0.25, 0.5, 0.5], SampleParams { temperature: 0.0, ..P }, &[0.0, 1.0, 0.0]);
        assert_distribution(&[0.25, 0.5, 0.5], SampleParams { top_k: 1, ..P }, &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        assert_distribution(&[0.1, 0.5, 0.3, 0.1], SampleParams { top_k: 2, ..P }, &[0.0, 0.625, 0.375, 0.0]);
        assert_distribution(&[0.1, 0.5, 0.3, 0.1], SampleParams { top_k: 3, ..P }, &[0.1, 0.5, 0.3, 0.1]);
        assert_distribution(&[0.1, 0.9], SampleParams { top_k: 0, ..P }, &[0.1, 0.9]);
        assert_distribution(&[0.1, 0.9], SampleParams { top_k: 99, ..P }, &[0.1, 0.9]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_and_its_ties() {
        assert_distribution(
            &[0.5, 0.25, 0.125, 0.125],
            SampleParams { top_p: 0.4, ..P },
            &[1.0, 0.0, 0.0, 0.0],
        );
        assert_distribution(
            &[0.5, 0.25, 0.15, 0.1],
            SampleParams { top_p: 0.6, ..P },
            &[2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0],
        );
        assert_distribution(
            &[0.5, 0.2, 0.15, 0.15],
            SampleParams { top_p: 0.8, ..P },
            &[0.5, 0.2, 0.15, 0.15],
        );
        assert_distribution(&[0.3, 0.7], SampleParams { top_p: 1e-9, ..P }, &[0.0, 1.0]);
    }

    #[test]
    fn top_p_counts_the_mass_that_top_k_left() {
        // Of 0.4, 0.3, 0.2, 0.1 top-k leaves 4/7 and 3/7, of which the first reaches 0.55 alone.
        let params = SampleParams { top_k: 2, top_p: 0.55, ..P };
        assert_distribution(&[0.4, 0.3, 0.2, 0.1], params, &[1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn min_p_is_relative_to_the_largest() {
        assert_distribution(
            &[0.6, 0.31, 0.09],
            SampleParams { min_p: 0.5, ..P },
            &[0.6 / 0.91, 0.31 / 0.91, 0.0],
        );
        assert_distribution(&[0.6, 0.31, 0.09], SampleParams { min_p: 1.0, ..P }, &[1.0, 0.0, 0.0]);
    }

    #[test]
    fn no_finite_logit_gives_no_token() {
        for params in [P, SampleParams { temperature: 0.0, ..P }] {
            assert_eq!(
                draw(&penalized_logits(&[f64::NAN, f64::NEG_INFINITY], &[], &[], &params), &params),
                None
            );
            let logits = penalized_logits(&[f64::NAN, -5.0, f64::NEG_INFINITY], &[], &[], &params);
            assert_eq!(draw(&logits, &params), Some(1));
        }
    }

    #[test]
    fn slack_brackets_the_exact_set() {
        let logits: Vec<f64> = (0..400).map(|t| 0.02 * f64::from(t * 7 % 400)).collect();
        for params in
            [SampleParams { top_p: 0.9, ..P }, SampleParams { top_k: 40, min_p: 0.01, temperature: 0.7, ..P }]
        {
            let sets = [-0.02, 0.0, 0.02].map(|slack| kept(&logits, &params, slack));
            let sizes = sets.each_ref().map(|set| set.iter().filter(|&&kept| kept).count());
            assert!(sizes[0] < sizes[1] && sizes[1] < sizes[2], "{sizes:?}");
            for i in 0..400 {
                assert!(sets[0][i] <= sets[1][i] && sets[1][i] <= sets[2][i]);
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = ln(&[0.05, 0.4, 0.25, 0.2, 0.1]);
        let params = SampleParams { temperature: 0.8, top_p: 0.9, ..P };
        let (n, expected) = (50_000, distribution(&logits, &params));
        let mut counts = [0f64; 5];
        for position in 0..n {
            counts[draw(&logits, &SampleParams { position, ..params }).unwrap() as usize] += 1.0;
        }
        assert_eq!(counts[0], 0.0);
        let n = f64::from(n);
        let terms = counts.iter().zip(&expected).filter(|(_, p)| **p > 0.0);
        let chi_square: f64 = terms.map(|(count, p)| (count - n * p).powi(2) / (n * p)).sum();
        // Three degrees of freedom: the 99.99 % quantile.
        assert!(chi_square < 21.1, "{chi_square}");
    }
}
